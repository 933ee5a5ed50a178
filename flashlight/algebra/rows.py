"""How a slot follows its gauges, as an expression: what a consumer of certificates emits."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from flashlight.algebra.proof import Slot
from flashlight.expr import COMBINE, Apply, Const, Expr, Ref, apply, substitute


def moved(slot: Slot, moves: Mapping[Expr, Expr], at: Mapping[Expr, Expr]) -> Expr:
    """The slot after its gauges moved.  ``moves``: what Ref("g:NAME") and Ref("h:NAME") are, ``at``: what Ref(slot)
    is before."""
    if not slot.row:
        return at[Ref(slot.name)]
    terms = [term(slot.monoid, substitute(c, moves), at[Ref(k)]) for k, c in slot.row]
    return functools.reduce(functools.partial(apply, COMBINE[slot.monoid]), terms)


def term(monoid: str, coefficient: Expr, value: Expr) -> Expr:
    """One term of a row: a product for sums, for maxima and minima a sum.

    What annihilates (0 under a sum, -inf under a maximum, inf under a minimum) drops the value whatever it is, so that
    an infinity or NaN that is dropped leaves nothing: a choice between nothing and all is emitted as one.
    """
    unit, nothing = (1.0, 0.0) if monoid == "sum" else (0.0, -math.inf if monoid == "max" else math.inf)
    match coefficient:
        case Const(c) if c == unit:
            return value
        case Apply("select", (c, Const(a), Const(b))) if (a, b) == (unit, nothing):
            return apply("select", c, value, Const(nothing))
        case Apply("select", (c, Const(a), Const(b))) if (a, b) == (nothing, unit):
            return apply("select", c, Const(nothing), value)
    return apply("mul", value, coefficient) if monoid == "sum" else apply("add", value, coefficient)
