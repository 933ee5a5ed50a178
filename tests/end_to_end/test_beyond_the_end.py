"""A block that reaches past the streamed axis's end: what is read there is 0, and adds nothing, whatever it divides."""

from __future__ import annotations

import math
import os

import pytest
import torch

import flashlight
from flashlight.expr import Const, Index, Load, apply
from flashlight.masks import is_wild
from flashlight.testing import assert_close

inside = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by tests/backends/test_triton_interpreter.py"
)
L, S, DOT = Load("l", (Index("j"),)), Load("s", (Index("i"),)), Load("x", (Index("i"), Index("j")))


@pytest.mark.parametrize(
    ("body", "wild"),
    [
        (apply("div", DOT, L), True),
        (apply("div", apply("exp", DOT), apply("mul", L, Const(2.0))), True),
        (apply("div", DOT, S), False),
        (apply("div", Const(1.0), apply("add", Const(1.0), apply("exp", apply("neg", DOT)))), False),
        (apply("log", L), True),
        (apply("log", apply("add", L, Const(1.0))), False),
        (apply("rsqrt", apply("add", L, S)), True),
        (apply("mul", DOT, L), False),
        (apply("exp", apply("sub", DOT, S)), True),  # of a row whose maximum is far below 0
        (apply("exp", apply("sub", Const(-math.inf), DOT)), False),
        (apply("exp", L), False),
        (apply("exp", S), False),
    ],
    ids=str,
)
def test_what_may_be_no_number_at_zeros(body, wild):
    assert is_wild(body, "j") == wild


def column_sums(q, k, v):
    live = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return (q @ k.mT).masked_fill(~live, -torch.inf).softmax(-1).sum(-2)


def weighted(q, k, v):
    """Columns of probabilities, times values of their rows."""
    return (q @ k.mT).softmax(-1).mT @ v


@pytest.mark.parametrize("program", [column_sums, weighted], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_probabilities_summed_over_their_rows(program, backend):
    args = [torch.randn(1, 2, 77, 16) for _ in range(3)]
    fast = flashlight.optimize(program, backend=backend, strict=True)
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
