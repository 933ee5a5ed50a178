"""What comes at a place of an order: argmax, topk, and what is gathered there, in one pass with everything else."""

from __future__ import annotations

import pytest
import torch

import flashlight
from flashlight.runtime import FallbackWarning

N, D = 300, 16


def scores(x, y):
    return x @ y.mT


def nearest(x, y, v):
    return torch.cdist(x, y).argmin(-1)


def largest(x, y, v):
    return scores(x, y).max(-1)


def third_smallest(x, y, v):
    return scores(x, y).kthvalue(3, -1)


def third_largest(x, y, v):
    s = scores(x, y)
    return s.kthvalue(s.shape[-1] - 2, -1)


def three(x, y, v):
    return scores(x, y).topk(3, -1)


def hard_attention(x, y, v):
    at = scores(x, y).argmax(-1)
    return torch.gather(v, 2, at[..., None].expand(-1, -1, -1, v.shape[-1]))


def with_its_softmax(x, y, v):
    p = scores(x, y).masked_fill(torch.ones(x.shape[2], y.shape[2], dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    return p @ v, p.argmax(-1)


def short(x, y, v):
    return x.argmin(-1), x.topk(2, -1).indices, y.max(-1)


def of_all(x, y, v):
    return x.argmax()


PROGRAMS = [nearest, largest, third_smallest, third_largest, three, hard_attention, with_its_softmax, short, of_all]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_values_and_places(program):
    torch.manual_seed(0)
    x, y, v = (torch.randn(2, 2, N, D) for _ in range(3))
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (N, 77):
        args = (x[:, :, :n].contiguous(), y, v) if program is not with_its_softmax else (x, y, v)
        got, want = (torch.utils._pytree.tree_leaves(f(*args)) for f in (fast, program))
        for p, q in zip(got, want, strict=True):
            assert p.dtype == q.dtype
            torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "program", [nearest, largest, three, hard_attention, with_its_softmax], ids=lambda f: f.__name__
)
def test_one_pass(program):
    report = flashlight.explain(program, *(torch.randn(2, 2, N, D) for _ in range(3)), backend="cpu")
    assert not report.fallbacks
    assert report.launches == 1
    assert not report.notes
    assert "pass 1 along" in report.schedule
    assert "pass 2" not in report.schedule


def test_ties_and_nan_as_in_torch():
    x = torch.tensor([[0.0, 2.0, 2.0, 1.0], [1.0, float("nan"), 3.0, float("nan")], [-float("inf")] * 4]).repeat(1, 90)
    fast = flashlight.optimize(lambda x: (x.argmax(-1), x.argmin(-1)), backend="cpu", strict=True)
    assert all(torch.equal(p, q) for p, q in zip(fast(x), (x.argmax(-1), x.argmin(-1)), strict=True))


def test_many_places_run_unfused():
    fast = flashlight.optimize(lambda x: x.topk(20, -1).values, backend="cpu")
    x = torch.randn(4, N)
    with pytest.warns(FallbackWarning, match="topk of 20, more than 8 places"):
        assert torch.equal(fast(x), x.topk(20, -1).values)


def test_a_table_read_at_places_that_scores_tell():
    def program(q, k, v, table):
        at = (q @ k.mT).sigmoid().mul(7.9).floor().long()
        return (q @ k.mT + table[at]).softmax(-1) @ v

    args = [torch.randn(1, 2, 90, 16) for _ in range(3)] + [torch.randn(8)]
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    assert (fast(*args) - program(*args)).abs().median() < 1e-6  # a score at a step may fall on either side
