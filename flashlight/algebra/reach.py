"""How far from 0 exponents may lie when a number is put in the place of a gauge.

Where every output is unchanged by moving a gauge and the elements are known to lie in a short interval (a soft cap, a
cosine, a sigmoid), the middle of the interval serves as well as the maximum: then there is no maximum to keep, and
nothing is ever rescaled.  Masked elements, at -inf, add nothing there either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from flashlight.algebra.bounds import Bounds
from flashlight.algebra.field import where_finite
from flashlight.algebra.proof import Certificate, Gauge, Slot
from flashlight.algebra.terms import EXPONENTIAL, multiply, subtract
from flashlight.expr import INF, Apply, Const, Expr, Fold, Ref, apply, refs, substitute, walk

LONGEST = 700.0  # nats: what float64 has


@dataclass(frozen=True)
class Live:
    """Values lie in [low, high], but for masked ones, which are all infinite with this sign (0: there are none)."""

    low: float
    high: float
    masked: int = 0

    def joined(self, other: Live) -> Live | None:
        if self.masked * other.masked < 0:
            return None
        return Live(min(self.low, other.low), max(self.high, other.high), self.masked or other.masked)


def live(bounds: Bounds, e: Expr) -> Live | None:
    """The finite range of an expression apart from masks; None if it has none."""
    found = _live(bounds, e)
    if found is None:
        low, high = bounds.interval(e)
        return Live(low, high) if max(abs(low), abs(high)) < INF else None
    return found


def _live(bounds: Bounds, e: Expr) -> Live | None:
    match e:
        case Const(float(v)) if math.isinf(v):
            return Live(INF, -INF, 1 if v > 0 else -1)
        case Apply("select", (_, a, b)):
            left, right = live(bounds, a), live(bounds, b)
            return left.joined(right) if left and right else None
        case Apply("neg", (a,)):
            return _scaled(live(bounds, a), Live(-1.0, -1.0))
        case Apply("add" | "sub" as op, (a, b)):
            left, right = live(bounds, a), live(bounds, b)
            if op == "sub":
                right = _scaled(right, Live(-1.0, -1.0))
            if left and right and left.masked * right.masked >= 0:
                return Live(left.low + right.low, left.high + right.high, left.masked or right.masked)
        case Apply("mul", (a, b)):
            left, right = live(bounds, a), live(bounds, b)
            return _scaled(left, right) if left and left.masked else _scaled(right, left)
        case Apply("div", (a, b)):
            low, high = bounds.interval(apply("div", Const(1.0), b))
            return _scaled(live(bounds, a), Live(low, high))
    return None


def _scaled(a: Live | None, by: Live | None) -> Live | None:
    """A product; what is masked stays masked only under a factor that keeps its sign."""
    if a is None or by is None or by.masked or max(abs(by.low), abs(by.high)) == INF:
        return None
    if a.masked and by.low <= 0 <= by.high:
        return None
    if a.low > a.high:
        return Live(INF, -INF, a.masked * (1 if by.low > 0 else -1))
    ends = [p * q for p in (a.low, a.high) for q in (by.low, by.high)]
    return Live(min(ends), max(ends), a.masked * (1 if by.low > 0 else -1) if a.masked else 0)


# ---- constants -------------------------------------------------------------------------------------------------------
def with_constants(cert: Certificate, outputs: tuple[Expr, ...], bounds: Bounds) -> Certificate:
    """Give every free gauge the number that may be put in its place, where there is one."""
    gauges = tuple(_constant(cert, g, outputs, bounds) if not g.exact else g for g in cert.gauges)
    return replace(cert, gauges=gauges)


def _constant(cert: Certificate, g: Gauge, outputs: tuple[Expr, ...], bounds: Bounds) -> Gauge:
    stage = where_finite(g.final)
    if not isinstance(stage, Ref) or not isinstance(slot := cert.link(stage.name).value, Ref):
        return g
    ends = live(bounds, cert.slot(slot.name).body)
    if ends is None or not ends.low <= ends.high or _read_besides(cert, g, stage.name, outputs):
        return g
    middle = (ends.low + ends.high) / 2
    hanging = [s for s in cert.slots if g.name in s.gauges]
    at: dict[Expr, Expr] = {Ref(f"g:{g.name}"): Const(middle)}
    reach = 0.0
    for e in (e for s in hanging for e in walk(s.body) if isinstance(e, Apply) and e.op in EXPONENTIAL):
        if f"g:{g.name}" in refs(e):
            there = live(bounds, substitute(e.args[0], at))
            if there is None or there.masked > 0:
                return g
            nats = 1.0 if e.op == "exp" else math.log(2)
            reach = max(reach, *(nats * abs(end) for end in (there.low, there.high) if abs(end) < INF))
    weighed = any(counts(cert, s, g, bounds) for s in hanging)
    if not 0 < reach <= LONGEST or (any(g.name in k.restore for k in cert.links) and not weighed):
        return g
    return replace(g, constant=middle, reach=reach)


def _read_besides(cert: Certificate, g: Gauge, stage: str, outputs: tuple[Expr, ...]) -> bool:
    """Is the result also read where it does not stand for the gauge?"""
    bodies = [
        *outputs,
        *(k.value for k in cert.links if k.stage != stage),
        *(k.final for k in cert.gauges if k is not g),
    ]
    if any(isinstance(e, Fold) and stage in refs(e) for b in bodies for e in walk(b)):
        return True
    return any(stage in refs(substitute(b, {g.final: Const(0.0)})) for b in bodies)


def counts(cert: Certificate, s: Slot, g: Gauge, bounds: Bounds) -> bool:
    """Is the slot the sum of exp(k * (x - g)), so that it is 0 only where nothing is live?"""
    if s.monoid != "sum" or not isinstance(s.body, Apply) or s.body.op not in EXPONENTIAL or s.gauges != (g.name,):
        return False
    if len(s.bound) != 1 or len(s.bound[0]) != 1:
        return False
    ((size, fact),) = s.bound[0]
    if not any(fact.low is t.body or fact.high is t.body for t in cert.slots):
        return False
    full = bounds.full
    exponent = full.term(substitute(s.body.args[0], {Ref(f"g:{g.name}"): g.final}))
    difference = multiply(full.term(size), subtract(full.term(fact.low), full.term(fact.high)))
    return full.is_zero(subtract(exponent, difference))
