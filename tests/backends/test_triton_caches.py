"""One of two tensors by an address that is chosen: in Triton's interpreter, and compiled ahead of time."""

from __future__ import annotations

import os

import pytest
import torch

import flashlight
from flashlight.backends.triton import either
from flashlight.backends.triton.compile import KEPT, compile_only
from flashlight.expr import Const, Index, Size, apply, evaluate
from tests.end_to_end.test_caches import PROGRAMS, agrees, arguments, joined, tokens_first

pytest.importorskip("triton")
INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INSIDE, reason="run by test_triton_interpreter.test_in_the_interpreter")
outside = pytest.mark.skipif(INSIDE, reason="for a GPU")


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees(fn, dtype):
    fast = flashlight.optimize(fn, backend="triton", strict=True)
    for new, past in ((70, 100), (40, 7)):
        agrees(fn, arguments(new, past, dtype), fast)


@inside
def test_widths_that_are_padded():
    agrees(joined, arguments(70, 100, torch.float16, width=24), flashlight.optimize(joined, backend="triton"))


def source(fn, *args):
    return flashlight.explain(fn, *args, backend="triton").kernels["triton"].sources[-1]


@outside
@pytest.mark.parametrize("fn", [joined, tokens_first], ids=lambda f: f.__name__)
def test_both_wait_in_the_place_of_one(fn):
    args = arguments(128, 256, torch.bfloat16, width=64)
    text = source(fn, *args).text
    assert text.count("tl.load(tl.where(") == 4  # of keys and of values, in either loop

    def whole(q, k, v):
        return (q @ k.mT * 0.125).softmax(-1) @ v

    two, one = compile_only(source(fn, *args)), compile_only(source(whole, *args[:3]))
    assert two.shared == one.shared
    assert two.count(r"cp\.async\.c") == one.count(r"cp\.async\.c")
    assert two.spills <= KEPT


# ---- bounds that a comparison makes superfluous ----------------------------------------------------------------------
j, M, N = Index("j"), Size("M"), Size("N")


def inside(e, length):
    return apply("maximum", apply("minimum", e, apply("sub", length, Const(1))), Const(0))


@pytest.mark.parametrize(
    ("test", "first", "second", "plain"),
    [
        (apply("lt", j, M), inside(j, M), inside(apply("sub", j, M), N), (True, False)),
        (apply("le", apply("add", j, Const(1)), M), inside(j, M), inside(apply("sub", j, M), N), (True, False)),
        (apply("lt", j, M), inside(j, M), apply("maximum", apply("sub", j, M), Const(0)), (True, True)),
        (apply("lt", j, N), inside(j, M), apply("maximum", apply("sub", j, M), Const(0)), (False, False)),
        (apply("lt", M, j), inside(apply("sub", j, M), N), inside(j, M), (False, False)),
        (apply("eq", j, M), inside(j, M), inside(j, N), (False, False)),
    ],
)
def test_indices_are_the_same_wherever_they_are_chosen(test, first, second, plain):
    holds, fails = either._facts(test)
    shorter = either._unclamped(first, holds), either._unclamped(second, fails)
    for m, n in ((1, 1), (3, 5), (7, 2)):
        for at in range(m + n):
            env = {j: at, M: m, N: n}.__getitem__
            k = 0 if evaluate(test, env) else 1
            assert evaluate(shorter[k], env) == evaluate((first, second)[k], env)
    assert tuple("m" not in str(e) for e in shorter) == plain
