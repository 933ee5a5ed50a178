"""Attention with its projections, as modules are written: what is projected is written once, finished, and read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flashlight
from flashlight.testing import assert_close

WIDTH, HEADS = 512, 8


class Packed(nn.Module):
    """One projection for queries, keys and values, and one of the result."""

    def __init__(self, bias):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=bias), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = (t.view(b, n, HEADS, width // HEADS).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        out = (q @ k.mT * (width // HEADS) ** -0.5).softmax(-1) @ v
        return self.out(out.transpose(1, 2).reshape(b, n, width))


class Apart(nn.Module):
    """A projection each, with queries and keys normalised."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = (f(x).view(b, n, HEADS, width // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (t * torch.rsqrt((t * t).mean(-1, keepdim=True) + 1e-6) for t in (q, k))
        return (q @ k.mT).softmax(-1) @ v


class Multihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


MODULES = {
    "packed": (lambda: Packed(False), 3),
    "packed with a bias": (lambda: Packed(True), 3),
    "apart": (Apart, 4),
    "multihead": (Multihead, 3),
}


def made(name):
    torch.manual_seed(0)
    module = MODULES[name][0]().eval()
    for p in module.parameters():
        nn.init.normal_(p, std=0.05)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_a_projection_is_computed_once(name):
    module = made(name).bfloat16()
    with torch.no_grad():
        report = flashlight.optimize(module, backend="triton", strict=True).explain(
            torch.randn(2, 1024, WIDTH).bfloat16()
        )
    assert report.launches == MODULES[name][1]
    attention = next(n for n in report.nests if "max" in n)
    assert f"<{WIDTH}}}" not in attention, "the attention nest computes projections"
    assert "[16" not in str(report.tilings)
    assert any(t.startswith(attention.split(":")[0].removeprefix("nest ") + ": 64 by 64") for t in report.tilings)


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_right(name):
    module = made(name)
    x = torch.randn(2, 75, WIDTH)
    with torch.no_grad():
        out = flashlight.optimize(module, backend="cpu", strict=True)(x)
        own = module(x)
        exact = made(name).double()(x.double())
    assert_close(out, exact, own)


def test_a_bias_is_added_before_it_is_written():
    with torch.no_grad():
        report = flashlight.explain(made("multihead"), torch.randn(2, 300, WIDTH), backend="cpu")
    attention = next(n for n in report.nests if "max" in n)
    assert "bias" not in attention
    assert "/" in attention.splitlines()[-1], "the result is written undivided"


def test_heads_merged_in_a_short_projection_are_not_computed_for_each_element():
    """48 columns fit a tile, but the scores behind them would be computed once for each column."""

    def program(q, k, v, w):
        out = (q @ k.mT).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2) @ w

    args = [torch.randn(2, 3, 90, 16) for _ in range(3)] + [torch.randn(48, 48)]
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    assert fast.explain(*args).launches == 2
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
