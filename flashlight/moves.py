"""Slots and gauges of a certificate as expressions: how what was summed at one gauge is moved to another."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flashlight.algebra import Certificate, Gauge, Slot
from flashlight.blocks import times
from flashlight.expr import COMBINE, Const, Expr, Ref, apply, substitute
from flashlight.masks import known


def moved_to(s: Slot, moves: Mapping[Expr, Expr], at: Mapping[Expr, Expr]) -> Expr:
    """The slot after its gauges moved, by its row.  ``moves``: what stands for g:GAUGE and h:GAUGE; ``at``: for the
    slots before."""
    if not s.row:
        return at[Ref(s.name)]
    join, act = ("add", times) if s.monoid == "sum" else (COMBINE[s.monoid], lambda a, b: apply("add", b, a))
    total: Expr | None = None
    for k, c in s.row:
        term = act(substitute(c, moves), at[Ref(k)])
        total = term if total is None else apply(join, total, term)
    return total if total is not None else Const(s.identity)


def leaves_nothing(cert: Certificate, g: Gauge) -> bool:
    """Is every slot's row 0 where the gauge is empty?  Then an empty state needs no guard: it is 0, and 0 it stays."""
    empty: dict[Expr, Expr] = {Ref(f"g:{g.name}"): Const(g.empty)}
    hanging = [s for s in cert.slots if g.name in s.gauges]
    return not math.isnan(g.empty) and all(
        s.identity == 0 and all(known(substitute(c, empty)) == 0 for _, c in s.row) for s in hanging
    )


def is_empty(g: Gauge, value: Expr) -> Expr:
    """Has no element been seen yet?"""
    return apply("isnan", value) if math.isnan(g.empty) else apply("eq", value, Const(g.empty))


def safe(g: Gauge, value: Expr, instead: Expr) -> Expr:
    """The gauge, or something finite where it is empty."""
    return apply("select", is_empty(g, value), instead, value)
