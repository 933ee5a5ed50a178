"""Windows and patches: all lengths but the number of sequences are literal and short, so that nothing is streamed."""

from __future__ import annotations

import math

import pytest
import torch

import flashlight
from flashlight.testing import assert_close

B, H, D = 3, 2, 8
WIDTH = H * D


def block(side):
    """Attention of Swin's in a window (https://arxiv.org/abs/2103.14030), with its projections and a bias by two
    differences."""
    n = side * side

    def program(x, w, wo, table):
        q, k, v = (x @ w).reshape(-1, n, 3, H, D).permute(2, 0, 3, 1, 4)
        t = torch.arange(side)
        at = torch.stack(torch.meshgrid(t, t, indexing="ij")).flatten(1)
        gap = (at[:, :, None] - at[:, None]) + side - 1
        bias = table[(gap[0] * (2 * side - 1) + gap[1]).view(-1)].view(n, n, H).permute(2, 0, 1)
        p = torch.softmax(q * D**-0.5 @ k.mT + bias, -1)
        return (p @ v).transpose(1, 2).reshape(-1, n, WIDTH) @ wo

    return program


def turned(side):
    """Rotated halves, heads and features of the result in one."""
    n = side * side

    def rotated(t):
        angle = torch.outer(torch.arange(n), 0.1 ** torch.arange(D // 2)).to(t.dtype).repeat(1, 2)
        return t * angle.cos() + torch.cat((-t[..., D // 2 :], t[..., : D // 2]), -1) * angle.sin()

    def program(x, w, wo, table):
        q, k, v = (t.reshape(-1, n, H, D).transpose(1, 2) for t in (x @ w).chunk(3, -1))
        scores = rotated(q) @ rotated(k).mT / math.sqrt(D)
        p = torch.softmax(scores.masked_fill(torch.ones(n, n).triu(1).bool(), -1e9), -1)
        return (p @ v).transpose(1, 2).reshape(-1, n, WIDTH)

    return program


def args(side, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = (B, side * side, WIDTH), (WIDTH, 3 * WIDTH), (WIDTH, WIDTH), ((2 * side - 1) ** 2, H)
    return [(torch.randn(*s, generator=g) * s[0] ** -0.5).to(dtype) for s in shapes]


def nests(program, side):
    fast = flashlight.optimize(program(side), strict=True)
    fast(*args(side))
    return [low.nest for low in fast._variants[0].generated[-1].lowered]


EACH = pytest.mark.parametrize("program", [block, turned], ids=lambda p: p.__name__)


@EACH
@pytest.mark.parametrize("side", [6, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values(program, side, dtype):
    given = args(side, dtype)
    out = flashlight.optimize(program(side), strict=True)(*given)
    assert_close(out, program(side)(*(a.double() for a in given)), program(side)(*given))


def test_a_product_of_merged_heads_is_a_nest_of_its_own():
    """In one nest, weights were computed for each feature of each head."""
    attention, product = nests(block, 6)
    assert [a.extent.value for a in attention.points] == [36, D]
    assert product.points == ()


@EACH
@pytest.mark.parametrize("side", [6, 9])
def test_a_plane_of_scores_fills_a_block(program, side):
    """Blocks of sequences and of heads besides would be tensors of four dimensions, and sums unrolled."""
    nest = nests(program, side)[0]
    blocked = [a.extent.value for a in nest.grid if a.name in nest.blocked]
    assert blocked == ([] if side == 6 else [81])
    assert D in [a.extent.value for a in nest.points]


@EACH
@pytest.mark.parametrize("side", [6, 9])
@pytest.mark.parametrize("backend", ["cpu", "triton", "cupy"])
def test_the_text_is_short(program, side, backend):
    for source in flashlight.explain(program(side), *args(side), backend=backend).kernels[backend].sources:
        assert len(source.text.splitlines()) < 700
