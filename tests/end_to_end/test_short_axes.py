"""Windows and patches: all lengths but the number of sequences are literal and short, so that nothing is streamed."""

from __future__ import annotations

import math

import pytest
import torch

import flashlight
from flashlight.testing import assert_close

B, H, N, D = 3, 2, 36, 8
WIDTH = H * D


def split(t):
    return t.reshape(-1, N, H, D).transpose(1, 2)


def block(x, w, wo, table):
    """A window of Swin's (https://arxiv.org/abs/2103.14030) with its projections and a bias by two differences."""
    q, k, v = (x @ w).reshape(-1, N, 3, H, D).permute(2, 0, 3, 1, 4)
    t = torch.arange(6)
    at = torch.stack(torch.meshgrid(t, t, indexing="ij")).flatten(1)
    gap = (at[:, :, None] - at[:, None]) + 5
    bias = table[(gap[0] * 11 + gap[1]).view(-1)].view(N, N, H).permute(2, 0, 1)
    return (torch.softmax(q * D**-0.5 @ k.mT + bias, -1) @ v).transpose(1, 2).reshape(-1, N, WIDTH) @ wo


def turned(x, w, wo, table):
    """Rotated halves, heads and features of the result in one."""
    q, k, v = map(split, (x @ w).chunk(3, -1))
    angle = torch.outer(torch.arange(N), 0.1 ** torch.arange(D // 2)).to(x.dtype).repeat(1, 2)
    rotate = lambda t: t * angle.cos() + torch.cat((-t[..., D // 2 :], t[..., : D // 2]), -1) * angle.sin()  # noqa: E731
    p = torch.softmax((rotate(q) @ rotate(k).mT / math.sqrt(D)).masked_fill(~torch.ones(N, N).tril().bool(), -1e9), -1)
    return (p @ v).transpose(1, 2).reshape(-1, N, WIDTH)


def args(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    shapes = (B, N, WIDTH), (WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (121, H)
    return [(torch.randn(*s, generator=g) * s[0] ** -0.5).to(dtype) for s in shapes]


@pytest.mark.parametrize("program", [block, turned], ids=lambda p: p.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values(program, dtype):
    given = args(dtype)
    out = flashlight.optimize(program, strict=True)(*given)
    assert_close(out, program(*(a.double() for a in given)), program(*given))


def nests(program):
    fast = flashlight.optimize(program, strict=True)
    fast(*args())
    return [low.nest for low in fast._variants[0].generated[-1].lowered]


def test_a_product_of_merged_heads_is_a_nest_of_its_own():
    """In one nest, weights were computed for each feature of each head."""
    attention, product = nests(block)
    assert [a.extent.value for a in product.points] == []
    assert [a.extent.value for a in attention.points] == [N, D]


@pytest.mark.parametrize("program", [block, turned], ids=lambda p: p.__name__)
def test_a_plane_of_scores_fills_a_block(program):
    """Blocks of sequences and of heads besides would be tensors of four dimensions, and sums unrolled."""
    nest = nests(program)[0]
    assert len(nest.grid) == 2
    assert nest.blocked == ()


@pytest.mark.parametrize("program", [block, turned], ids=lambda p: p.__name__)
@pytest.mark.parametrize("backend", ["cpu", "triton", "cupy"])
def test_the_text_is_short(program, backend):
    for source in flashlight.explain(program, *args(), backend=backend).kernels[backend].sources:
        assert len(source.text.splitlines()) < 700
