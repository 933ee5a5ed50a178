"""Operators that are written with others: running sums, shifts, one-hot rows, numbers scattered, masks assigned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import flashlight
from flashlight.runtime import FallbackWarning

N, D = 300, 16


def running(x, q, k, v):
    return x.cumsum(-1), (x > 0).cumsum(-1), x.cummax(-1).values, x.logcumsumexp(-1), v.cumsum(2)


def forgetting(x, q, k, v):
    c = F.logsigmoid(x).cumsum(-1)
    s = q @ k.mT * 0.25 + c[..., :, None] - c[..., None, :]
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ v


def shifted(x, q, k, v):
    i = torch.arange(k.shape[2])
    return (q @ k.mT).masked_fill((i >> 6) > (i[:, None] >> 6), -torch.inf).softmax(-1) @ v, (i << 2) & 15


def hard(x, q, k, v):
    return F.one_hot((q @ k.mT).argmax(-1), k.shape[2]).to(v.dtype) @ v


def chosen_blocks(x, q, k, v):
    tokens = k.unflatten(2, (-1, 50)).mean(3)
    blocks = (q @ tokens.mT).topk(2, -1).indices
    keep = torch.zeros(*q.shape[:3], tokens.shape[2]).scatter(-1, blocks, 1.0) > 0
    return (q @ k.mT).masked_fill(~keep.repeat_interleave(50, -1), -torch.inf).softmax(-1) @ v


def assigned(x, q, k, v):
    s = q @ k.mT
    s[:, :, torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)] = -torch.inf
    return s.softmax(-1) @ v


def two_halves(x, q, k, v):
    n, i = q.shape[2] // 2, torch.arange(q.shape[2])
    block = torch.where(i >= n, (i - n) // 16, i // 16)
    return (q @ k.mT).masked_fill(block[:, None] != block, -torch.inf).softmax(-1) @ v


def windows(x, q, k, v):
    """The bias of a Swin window, by the published code's indices; and a mask made the other way round."""
    rows = torch.stack(torch.meshgrid(torch.arange(15), torch.arange(20), indexing="ij")).flatten(1)
    apart = rows[:, :, None] - rows[:, None] + torch.tensor([14, 19])[:, None, None]
    bias = x.flatten()[apart[0] * 39 + apart[1]]
    i, j = torch.meshgrid(torch.arange(q.shape[2]), torch.arange(k.shape[2]), indexing="xy")
    return ((q @ k.mT + bias).masked_fill(j < i, -torch.inf)).softmax(-1) @ v


def inputs():
    g = torch.Generator().manual_seed(0)
    return (torch.randn(2, 2, N, generator=g), *(torch.randn(2, 2, N, D, generator=g) for _ in range(3)))


@pytest.mark.parametrize(
    "program",
    [running, forgetting, shifted, hard, chosen_blocks, assigned, two_halves, windows],
    ids=lambda f: f.__name__,
)
def test_without_a_fallback(program):
    got, want = (
        torch.utils._pytree.tree_leaves(f(*inputs()))
        for f in (flashlight.optimize(program, backend="cpu", strict=True), program)
    )
    for p, q in zip(got, want, strict=True):
        assert p.dtype == q.dtype
        torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-5)


def stick_breaking(x, q, k, v):
    z = q @ k.mT * 0.25
    before = torch.ones(z.shape[-2:], dtype=torch.bool).tril(-1)
    beyond = F.logsigmoid(-z).masked_fill(~before, 0.0)
    after = beyond.flip(-1).cumsum(-1).flip(-1) - beyond
    return (F.logsigmoid(z) + after).masked_fill(~before, -torch.inf).exp() @ v


def running_scores(x, q, k, v):
    gates = F.logsigmoid(q @ k.mT)
    return (gates.cumsum(-1) + q @ v.mT * 0.1).softmax(-1) @ v, gates.sum(-1)


def contextual_positions(x, q, k, v):
    s = q @ k.mT * 0.25
    places = torch.sigmoid(s).tril().flip(-1).cumsum(-1).flip(-1)
    return (s - 0.1 * places).masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(
        -1
    ) @ v


@pytest.mark.parametrize("program", [stick_breaking, running_scores, contextual_positions], ids=lambda f: f.__name__)
def test_running_sums_of_scores_in_one_pass(program):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (N, 129, 64, 1):
        args = tuple(t[:, :, :n].contiguous() for t in inputs())
        got, want = (torch.utils._pytree.tree_leaves(f(*args)) for f in (fast, program))
        for p, q in zip(got, want, strict=True):
            torch.testing.assert_close(p, q, atol=2e-5, rtol=2e-5)
    report = flashlight.explain(program, *inputs(), backend="cpu")
    assert report.launches == 1
    assert not report.notes
    assert "pass 2" not in report.schedule


def test_a_running_sum_across_all_scores_is_left_to_torch():
    def program(x, q, k, v):
        return F.logsigmoid(q @ k.mT).cumsum(-2).exp() @ v

    with pytest.warns(FallbackWarning, match="it runs along a length at every point of a plane"):
        got = flashlight.optimize(program, backend="cpu")(*inputs())
    torch.testing.assert_close(got, program(*inputs()), atol=1e-4, rtol=1e-4)


def looped(q, k):
    return torch.stack([(q[:, h] @ k[:, h].mT).softmax(-1) for h in range(q.shape[1])], 1)


def grouped(q, k):
    return F.scaled_dot_product_attention(q, k[:, :2], k[:, :2], enable_gqa=True)


def padded(q, k):
    n = q.shape[2]
    k = F.pad(k, (0, 0, 0, -n % 64))
    live = torch.arange(k.shape[2]) < n
    return (q @ k.mT).masked_fill(~live, -torch.inf).softmax(-1)[..., :n] @ q


@pytest.mark.parametrize("program", [looped, grouped, padded], ids=lambda f: f.__name__)
def test_only_the_lengths_that_must_be_are_numbers(program):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (64, 41, 128, 57):
        x = torch.randn(2, 4, n, D)
        torch.testing.assert_close(fast(x, x), program(x, x), atol=2e-5, rtol=1e-5)
    assert fast.compilations == (2 if program is padded else 1)  # with and without padding


def test_one_query_that_sees_no_key():
    def program(q, k):
        s = q @ k.mT
        return s.masked_fill(~torch.ones_like(s, dtype=torch.bool).tril(-1), -1e9).softmax(-1)

    q, k = torch.randn(2, 2, 1, D), torch.randn(2, 2, N, D)
    got = flashlight.optimize(program, backend="cpu", strict=True)(q, k)
    torch.testing.assert_close(got, program(q, k))
