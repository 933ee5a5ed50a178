"""Numbers of many digits know every operator of the table, and mean by it what float64 does."""

from __future__ import annotations

import math

import pytest

from flashlight.algebra.arithmetic import FLOATS, precise
from flashlight.expr import OPS

DIGITS = precise(60)
POINTS = {1: [(0.75,), (2.0,), (-1.5,), (0.0,)], 2: [(7.0, 2.0), (-7.0, 2.0), (5.0, -3.0), (3.0, 3.0), (1.0, 0.0)]}


@pytest.mark.parametrize("op", sorted(OPS))
def test_as_on_floats(op: str) -> None:
    for args in POINTS.get(OPS[op].arity, [(True, 1.0, 2.0), (False, 1.0, 2.0)]):
        want = float(FLOATS.apply(op, *args))
        got = float(DIGITS.apply(op, *(a if isinstance(a, bool) else DIGITS.constant(a) for a in args)))
        assert got == pytest.approx(want, rel=1e-12, abs=1e-12) or (math.isnan(got) and math.isnan(want)), args
