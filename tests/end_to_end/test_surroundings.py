"""What surrounds a computation: gradients turned off, autocast, profilers.  None of them ends a kernel."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

import flashlight
from flashlight.errors import CaptureError
from flashlight.runtime import FallbackWarning


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


# ---- what works below the operators that are seen otherwise ----------------------------------------------------------
def mapped(q, k, v):
    def one(q, k, v, slope):
        i = torch.arange(q.shape[0])
        return (q @ k.T * q.shape[-1] ** -0.5 - slope * (i[:, None] - i).abs()).softmax(-1) @ v

    slopes = 2.0 ** -torch.arange(1, q.shape[1] + 1)
    return torch.vmap(torch.vmap(one), in_dims=(0, 0, 0, None))(q, k, v, slopes)


def one_pair_at_a_time(q, k, v):
    def score(x, y):
        return (x * y).sum(-1) * 0.25

    rows = torch.vmap(torch.vmap(score, (None, 0)), (0, None))
    return torch.vmap(torch.vmap(rows))(q, k).softmax(-1) @ v


def fused_heads(q, k, v):
    return torch.vmap(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))(q, k, v)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("program", [mapped, one_pair_at_a_time, fused_heads], ids=lambda f: f.__name__)
def test_functions_mapped_over_dimensions(program):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (70, 131):
        args = [torch.randn(2, 3, n, 16) for _ in range(3)]
        torch.testing.assert_close(fast(*args), program(*args), atol=2e-5, rtol=1e-5)
    assert fast.compilations == 1
    assert len(fast.explain(*args).kernels["cpu"].sources) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript():
    """Its operators are not seen from Python; the result was once a tensor without memory."""
    args = qkv()
    scripted, traced = torch.jit.script(attention), torch.jit.trace(attention, args)
    for program in (lambda q, k, v: scripted(q, k, v) * 2, lambda q, k, v: traced(q, k, v) + q):
        program(*args)
        fast = flashlight.optimize(program, backend="cpu", strict=True)
        torch.testing.assert_close(fast(*args), program(*args), atol=2e-5, rtol=1e-5)
        assert len(fast.explain(*args).kernels["cpu"].sources) == 1


# ---- what a program keeps --------------------------------------------------------------------------------------------
@functools.lru_cache
def cached_mask(n):
    return torch.ones(n, n, dtype=torch.bool).tril(), torch.arange(n)


MASKS = {}


def with_a_cache(q, k, v):
    keep, _ = cached_mask(int(q.shape[2]))
    return (q @ k.mT).masked_fill(~keep, -torch.inf).softmax(-1) @ v


def with_a_dictionary(q, k, v):
    n = int(q.shape[2])
    if n not in MASKS:
        MASKS[n] = torch.ones(n, n, dtype=torch.bool).tril()
    return (q @ k.mT).masked_fill(~MASKS[n], -torch.inf).softmax(-1) @ v


TABLE = None


def with_a_variable(q, k, v):
    global TABLE
    if TABLE is None or len(TABLE) != q.shape[2]:
        TABLE = torch.arange(int(q.shape[2]))
    return (q @ k.mT).masked_fill(TABLE[:, None] < TABLE, -torch.inf).softmax(-1) @ v


class Holder:
    """No module, and nothing that the program names."""

    def __init__(self):
        self.table = None

    def of(self, n):
        if self.table is None or len(self.table) != n:
            self.table = torch.arange(n)
        return self.table


def with_a_closure():
    holders, last = [Holder()], None

    def program(q, k, v):
        nonlocal last
        table = holders[0].of(int(q.shape[2]))
        if last is None or len(last) != q.shape[2]:
            last = torch.ones(int(q.shape[2]))
        return (q @ k.mT).masked_fill(table > table[:, None], -torch.inf).softmax(-1) @ (v * last[:, None])

    return program


class Lazy(torch.nn.Module):
    """A table that is made when it is first needed, as rotary embeddings often are."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, q, k, v):
        if self.table is None or len(self.table[0]) < q.shape[2]:
            t = torch.outer(torch.arange(int(q.shape[2])).float(), torch.ones(q.shape[-1]))
            self.table = t.cos(), t.sin()
        c, s = (t[: q.shape[2]] for t in self.table)
        return ((q * c) @ (k * s).mT).softmax(-1) @ v


@pytest.mark.parametrize(
    "program",
    [with_a_cache, with_a_dictionary, with_a_variable, with_a_closure(), Lazy()],
    ids=["cache", "dictionary", "variable", "closure", "module"],
)
def test_what_a_program_keeps_is_there_for_plain_calls(program):
    cached_mask.cache_clear()
    MASKS.clear()
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (40, 57, 40):
        args = [torch.randn(2, 3, n, 16) for _ in range(3)]
        got = fast(*args)
        torch.testing.assert_close(got, program(*args), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(fast(*args), got)


class Keeper(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = None
        self.log = []

    def forward(self, q, k, v):
        self.weights = (q @ k.mT).softmax(-1)
        self.log.append(self.weights.amax())
        return self.weights @ v


def test_what_follows_from_the_arguments_is_kept_at_every_call():
    module, args = Keeper(), qkv()
    fast = flashlight.optimize(module, backend="cpu")
    with pytest.warns(FallbackWarning, match="keeps a tensor that it computes from its arguments"):
        fast(*args)
    for k in (2, 3):
        args = qkv()
        torch.testing.assert_close(fast(*args), module.weights @ args[2])
        assert [type(x) for x in module.log] == [torch.Tensor] * k
    with pytest.raises(CaptureError, match="keeps a tensor"):
        flashlight.optimize(Keeper(), backend="cpu", strict=True)(*args)
