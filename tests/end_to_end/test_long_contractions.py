"""Contractions longer than a tile: in strips, in one kernel, with no matrix of scores in memory."""

from __future__ import annotations

import pytest
import torch

import flashlight
from flashlight.lower import Tiling
from flashlight.strips import in_strips, summed_only
from flashlight.testing import assert_close
from flashlight.tile import Loop

F = torch.nn.functional


def cross_entropy(x, w, target):
    return F.cross_entropy(F.linear(x, w).float(), target, reduction="none")


def capped(x, w, target):
    logits = 30 * torch.tanh(F.linear(x, w).float() / 30)
    return torch.logsumexp(logits, -1) - logits.gather(-1, target[:, None])[:, 0]


def nearest(x, w, target):
    return ((x @ w.T).max(-1).values, F.one_hot(target, 3)[:, 0])


def normed(x, w, target):
    return F.cross_entropy(F.rms_norm(x, (x.shape[-1],)) @ w.T, target)


def batched(x, w, target):
    return torch.logsumexp(torch.einsum("bnd,md->bnm", torch.stack((x, -x)), w).float(), -1)


def attention(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def causal(q, k, v):
    n = q.shape[-2]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax((q @ k.mT * q.shape[-1] ** -0.5).masked_fill(future, float("-inf")), -1) @ v


def heads(length, width, dtype):
    q, k, v = (torch.randn(2, 2, length, n).to(dtype) for n in (width, width, 32))
    return q, k, v


PROGRAMS = (cross_entropy, capped, nearest, normed, batched)


def arguments(rows, columns, width, dtype):
    x, w = torch.randn(rows, width), torch.randn(columns, width) * width**-0.5
    return x.to(dtype), w.to(dtype), torch.randint(3, (rows,))


def agrees(fn, args, fast):
    ours = fast(*args)
    exact = fn(*(a.double() if a.is_floating_point() else a for a in args))
    for out, want, eager in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, exact, fn(*args))), strict=True):
        assert_close(out, want, eager)


def loops_within(body):
    return [t for s in body if isinstance(s, Loop) for g in s.segments for t in g.body if isinstance(t, Loop)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees(fn, dtype):
    fast = flashlight.optimize(fn, strict=True)
    for rows, columns, width in ((70, 150, 704), (4, 3, 704), (128, 64, 1024)):
        agrees(fn, arguments(rows, columns, width, dtype), fast)


def test_nothing_as_large_as_the_scores_is_written():
    report = flashlight.explain(cross_entropy, *arguments(64, 256, 4096, torch.bfloat16), backend="triton")
    (source,) = report.kernels["triton"].sources
    assert [str(b.shape) for b in source.kernel.outputs] == ["(Size(name='N'),)"]
    within = loops_within(source.kernel.body)
    assert {(len(s.carries), source.kernel.dim(s.axis).block) for s in within} == {(1, 64)}


def test_a_contraction_that_is_no_multiple_of_a_strip_is_written():
    report = flashlight.explain(cross_entropy, *arguments(64, 256, 1000, torch.bfloat16), backend="triton")
    assert len(report.kernels["triton"].sources) == 2
    agrees(cross_entropy, arguments(64, 100, 1000, torch.float32), flashlight.optimize(cross_entropy, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", [attention, causal], ids=lambda f: f.__name__)
def test_values_beside_a_long_contraction(fn, dtype):
    """Attention with keys of 640: its scores are not written."""
    args = heads(70, 640, dtype)
    (source,) = flashlight.explain(fn, *args, backend="triton").kernels["triton"].sources
    assert len(loops_within(source.kernel.body)) >= 1
    agrees(fn, args, flashlight.optimize(fn, strict=True))


def test_a_product_that_several_blocks_would_make_again_is_written():
    """Two layers with something between: 1024 results a row, of which each block would need all of the first layer."""

    def layers(x, w, u):
        return torch.relu(x @ w.T) @ u.T

    x, w, u = torch.randn(70, 640), torch.randn(300, 640) * 0.04, torch.randn(1024, 300) * 0.06
    assert len(flashlight.explain(layers, x, w, u, backend="triton").kernels["triton"].sources) == 2
    agrees(layers, (x, w, u), flashlight.optimize(layers))


def test_strips_share_no_nest_with_values():
    """Two results over the same rows and columns, one of a long contraction, one with values."""

    def both(x, w, q, k, v):
        return torch.logsumexp(x @ w.T, -1), torch.softmax(q @ k.T, -1) @ v

    x, w, _ = arguments(70, 90, 640, torch.float32)
    args = (x, w, torch.randn(70, 16), torch.randn(90, 16), torch.randn(90, 32))
    report = flashlight.explain(both, *args, backend="triton")
    strips = [bool(loops_within(s.kernel.body)) for s in report.kernels["triton"].sources]
    assert sorted(strips) == [False, True]
    agrees(both, args, flashlight.optimize(both))


def test_what_is_summed_only():
    """The axis of a kernel's dot can be taken in strips, one that is stored cannot."""
    tiling = Tiling((64,), 64, 4, 2)
    fast = flashlight.optimize(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, backend="triton", tiling=tiling)
    q, k, v = torch.randn(8, 128), torch.randn(8, 128), torch.randn(8, 32)
    (source,) = fast.explain(q, k, v).kernels["triton"].sources
    (dim,) = summed_only(source.kernel)
    assert dim.block == 128
    assert in_strips(source.kernel, 128) == source.kernel  # one strip is no loop
    cut = in_strips(source.kernel, 32)
    (inner, *_) = loops_within(cut.body)
    assert inner.axis == dim.axis
    assert [(s.lo.value, s.hi.value) for s in inner.segments] == [(0, 4)]
    assert cut.dim(dim.axis).role == "stream"
    assert summed_only(cut) == ()
