"""Running sums that are written: one sweep along the axis, which stores as it runs; on every backend here.

``tests/backends`` runs the same programs in Triton's interpreter and through the cupy shim.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

import flashlight
from flashlight.testing import tolerance

inside = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by tests/backends/test_triton_interpreter.py"
)


# ---- programs of x (rows, n): each is written in one sweep, without the axis in the grid -------------------------------
def forward(x):
    return F.logsigmoid(x).cumsum(-1)


def backward(x):
    return x.flip(-1).cumsum(-1).flip(-1)


def of_the_reverse(x):
    return x.flip(-1).cumsum(-1)


def exclusive(x):
    return x.cumsum(-1) - x


def exclusive_backward(x):
    return x.flip(-1).cumsum(-1).flip(-1) - x


def conditional(x):
    """A condition on values, and one on places: where it fails there is still something to write."""
    early = torch.arange(x.shape[-1], device=x.device) < 37
    return x.masked_fill(x < 0, 0.0).masked_fill(~early, 0.0).cumsum(-1)


def decay(x):
    return F.logsigmoid(x).cumsum(-1).exp()


def triangle(x):
    n = x.shape[-1]
    return torch.ones(n, n, dtype=x.dtype, device=x.device).tril() @ x[..., None]


def twice(x):
    return x.cumsum(-1).cumsum(-1)


def counted(x):
    return (x > 0).cumsum(-1), x.cumsum(-1) * x


def both_ways(x):
    return x.cumsum(-1), x.flip(-1).cumsum(-1).flip(-1).exp()


def ones(x):
    return torch.ones_like(x).cumsum(-1) * 0.5


ALONG = [
    forward, backward, of_the_reverse, exclusive, exclusive_backward, conditional, decay, triangle, twice, counted,
    both_ways, ones,
]  # fmt: skip


# ---- programs of other shapes ------------------------------------------------------------------------------------------
def columns(x):
    return x.transpose(-1, -2).contiguous().cumsum(-2)


def middle(x):
    """Along the second dimension of (1, n, rows)."""
    return x.mT[None].cumsum(1) - 0.5


def folded(x):
    """Sums over a short axis, and what is done to them, run along the long one."""
    return (x[..., None] * torch.arange(3, device=x.device)).sum(-1).tanh().cumsum(-1)


def spread_out(x):
    """What runs is read at points of an axis of its reader's: it is written once, for all of them."""
    return x.cumsum(-1).exp()[..., None] * torch.arange(8.0, device=x.device)


def of_probabilities(x):
    """Two passes: what is known at the end, then what runs."""
    return x.softmax(-1).cumsum(-1)


def share(x):
    return x.exp().cumsum(-1) / x.exp().sum(-1, keepdim=True)


def against_each_other(x):
    return x.cumsum(-1) - x.flip(-1).cumsum(-1).flip(-1)


def scores(x):
    """A running sum of a product, written with it."""
    return (x.mT @ x * 0.1).cumsum(-1)


def forgetting(x):
    q, k, v = (torch.outer(f(x[0]), torch.arange(1.0, 17.0, device=x.device)) * 0.1 for f in (torch.sin, torch.cos, torch.tanh))
    c = F.logsigmoid(x + 2).cumsum(-1)
    s = q @ k.mT + c[:, :, None] - c[:, None, :]
    future = torch.ones(s.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return s.masked_fill(future, -torch.inf).softmax(-1) @ v


OTHERS = [columns, middle, folded, spread_out, of_probabilities, share, against_each_other, scores, forgetting]


def check(program, backend, rows, n, dtype=torch.float32, fast=None):
    fast = fast or flashlight.optimize(program, backend=backend, strict=True)
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(rows + n)).to(dtype)
    got, want, exact = (
        torch.utils._pytree.tree_leaves(y) for y in (fast(x), program(x), program(x.double()))
    )
    for p, w, e in zip(got, want, exact, strict=True):
        assert p.dtype == w.dtype
        if not p.is_floating_point():
            assert torch.equal(p, w)
            continue
        # Eager adds up in float64 on a CPU; here float32 is added to float32, one by one in Triton's interpreter.
        rounding = torch.finfo(torch.float32).eps * max(e[torch.isfinite(e)].abs().tolist(), default=0.0)
        odd = ~torch.isfinite(w)
        assert torch.equal(p[odd].nan_to_num(7.0), w[odd].nan_to_num(7.0))
        wrong = (p.double() - e).abs()[~odd]
        assert wrong.max().item() <= tolerance(e, w) + n**0.5 * rounding
    return fast


@pytest.mark.parametrize("program", [*ALONG, *OTHERS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_of_any_length(program, backend):
    for rows, n in ((3, 300), (2, 1), (2, 5), (70, 129)):
        check(program, backend, rows, n)


@pytest.mark.parametrize("program", [forward, exclusive_backward, decay, middle], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_long_rows(program, backend):
    check(program, backend, 2, 5000)
