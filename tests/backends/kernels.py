"""The hand-written tile programs, for tests that look at one of them, and the operators of reals and of integers."""

from __future__ import annotations

from flashlight._conformance import (
    CASES,
    Case,
    attention,
    attention_case,
    gather,
    layer_norm,
    logsumexp,
    matmul,
    rms_norm,
    total,
)
from flashlight.expr import OPS

__all__ = [
    "CASES",
    "ON_INTS",
    "ON_REALS",
    "SHIFTS",
    "Case",
    "attention",
    "attention_case",
    "gather",
    "layer_norm",
    "logsumexp",
    "matmul",
    "rms_norm",
    "total",
]

SHIFTS = ("lshift", "rshift")
"""Whose second argument is a number of bits."""
ON_INTS = ("add", "sub", "mul", "neg", "abs", "maximum", "minimum", "floordiv", "mod", "sign", "lt", "le", "gt", "ge",
           "eq", "ne", "floor", "ceil", "round", "trunc", "fmod", "xor", "bitand", *SHIFTS)  # fmt: skip
ON_REALS = tuple(o for o in OPS if o not in ("and", "or", "not", "select", "int", "xor", "bitand", *SHIFTS))
