"""What surrounds a computation: gradients turned off, autocast, profilers.  None of them ends a kernel."""

from __future__ import annotations

import pytest
import torch

import flashlight


def attention(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v


@torch.no_grad()
def decorated(q, k, v):
    return attention(q, k, v)


def partly(q, k, v):
    with torch.no_grad():
        scores = q @ k.mT
    return torch.softmax(scores, -1) @ v, scores.amax(-1)


def named(q, k, v):
    with torch.profiler.record_function("attention"):
        return attention(q, k, v)


def cast(q, k, v):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return attention(q, k, v)


def qkv(**options):
    return [torch.randn(2, 3, 37, 16, **options) for _ in range(3)]


@pytest.mark.parametrize("program", [attention, decorated, partly, named, cast], ids=lambda f: f.__name__)
@pytest.mark.parametrize("wanted", [False, True])
def test_results_and_gradients_are_the_programs(program, wanted):
    args = qkv(requires_grad=wanted)
    fast = flashlight.optimize(program, strict=True)
    for _ in range(3):
        got, want = (x if isinstance(x, tuple) else (x,) for x in (fast(*args), program(*args)))
        tolerance = {"atol": 0.05, "rtol": 0.05} if program is cast else {"atol": 1e-5, "rtol": 1e-4}
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
            assert a.requires_grad == b.requires_grad
        if want[0].requires_grad:
            grads = [torch.autograd.grad(x[0].float().sum(), args, allow_unused=True) for x in (got, want)]
            for a, b in zip(*grads, strict=True):
                assert (a is None) == (b is None)
                assert a is None or torch.allclose(a, b, **tolerance)


def test_a_call_inside_autocast_is_another_one():
    fast, args = flashlight.optimize(attention, strict=True), qkv()
    for _ in range(3):
        assert fast(*args).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(*args).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.float16):
            assert fast(*args).dtype == torch.float16
    assert fast.compilations == 3
