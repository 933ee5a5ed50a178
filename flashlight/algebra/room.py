"""What a gauge that need not be exact is good for: constants in its place, skipped rescales, powers of two.

All three need room in the exponents of a floating-point type.  A consumer asks here; the algebra only says of a gauge
that no output notices it (``Gauge.exact`` is False), and how far exponents reach at a constant (``Gauge.reach``).
"""

from __future__ import annotations

import math
from dataclasses import replace

from flashlight.algebra.bounds import Bounds
from flashlight.algebra.field import Field
from flashlight.algebra.proof import Certificate, Fact, Gauge, Link, Slot
from flashlight.algebra.reach import counts
from flashlight.algebra.terms import EXPONENTIAL
from flashlight.expr import Apply, Const, Expr, Fold, Ref, apply, refs, rewrite, substitute, walk

# nats: exp of more is infinite, of less (with the other sign) no normal number
TOP = {"float16": math.log(65504.0), "bfloat16": 88.72, "float32": 88.72, "float64": 709.78}
BOTTOM = {"float16": 14 * math.log(2), "bfloat16": 87.33, "float32": 87.33, "float64": 708.39}
VALUES = 2.0**12  # how large the values may be that weights multiply, before a sum of them overflows


def room(narrow: str, wide: str = "float32", elements: float = 2.0**24) -> float:
    """How far from 0 the exponents of weights may lie, in nats.

    ``narrow``: the type the weights are rounded to (that of a product's operands), ``wide``: what they are summed in,
    ``elements`` of them.  9.7 for float16, 63 for bfloat16 and float32: weights are normal numbers, and sums of
    ``elements`` of them, times values up to 4096, finite.
    """
    return min(TOP[narrow], BOTTOM[narrow], BOTTOM[wide], TOP[wide] - math.log(elements) - math.log(VALUES))


def lag(narrow: str, wide: str = "float32", elements: float = 2.0**24) -> float:
    """How far a running maximum that need not be exact may be exceeded before sums must follow it, in nats of the
    exponents that hang on it: only upwards matters, what underflows against it underflows against the maximum."""
    return min(TOP[narrow], TOP[wide] - math.log(elements) - math.log(VALUES))


def whole_powers(cert: Certificate, g: Gauge) -> bool:
    """Would every rescale be an exact power of two if the gauge, in base 2, were rounded up to whole numbers?

    For a gauge that need not be exact, and that stands in every exponent of base 2 with a whole factor (of base e: once
    the gauge is kept as m * log2(e), and with factor 1).  Such rescales round nothing, and commute with the rounding of
    weights (the gauge of the reference, up to 1/2 in base 2, is the user's own maximum still).
    """
    if g.exact:
        return False
    g_, h_ = Ref(f"g:{g.name}"), Ref(f"h:{g.name}")
    steps = {apply("sub", g_, h_), apply("sub", h_, g_)}
    for s in cert.slots:
        for e in (e for _, c in s.row for e in walk(c) if isinstance(e, Apply) and e.op in EXPONENTIAL):
            if {g_.name, h_.name} & refs(e):
                match e.args[0]:
                    case Apply("mul", (a, Const(float(k)))) if a in steps and k.is_integer():
                        continue
                    case a if a in steps:
                        continue
                return False
    return True


# ---- constants -------------------------------------------------------------------------------------------------------
def anchored(cert: Certificate, narrow: str, wide: str = "float32", elements: float = 2.0**24) -> Certificate:
    """The certificate with constants for the gauges that allow one within the room of these types.

    Slots and rows that only served such a gauge are gone.  The link of its result holds the constant (form "constant"):
    it stands in for the result in links and outputs, none of which can tell.  NaN is restored where nothing was live,
    which the sum of the weights says by being 0 (they are too large to underflow).
    """
    for g in cert.gauges:
        if g.constant is not None and g.reach <= room(narrow, wide, elements):
            cert = _anchored(cert, g)
    return cert


def _anchored(cert: Certificate, g: Gauge) -> Certificate:
    at: dict[Expr, Expr] = {Ref(f"{side}:{g.name}"): Const(g.constant or 0.0) for side in "gh"}
    stage = next(n.name for n in walk(g.final) if isinstance(n, Ref) and any(k.stage == n.name for k in cert.links))
    bounds = Bounds(Field(cert.cascade.axis, frozenset(k.stage for k in cert.links), cut=False))
    count = next((s for s in cert.slots if counts(cert, s, g, bounds)), None)
    slots = []
    for s in cert.slots:
        gauges = tuple(n for n in s.gauges if n != g.name)
        row = tuple((k, _settled(substitute(c, at))) for k, c in s.row) if gauges else ()
        row = tuple((k, c) for k, c in row if c is not Const(0.0))
        proofs = _kept(s, at)
        slots.append(replace(s, body=_settled(substitute(s.body, at)), gauges=gauges, row=row, bound=proofs))
    links = []
    for k in cert.links:
        if k.stage == stage:
            k = Link(stage, Const(g.constant or 0.0), 1, "constant")
        elif g.name in k.restore and count is not None:
            nothing = apply("eq", Ref(count.name), Const(0.0))
            value = apply("select", nothing, Const(math.nan), k.value)
            k = replace(k, value=value, restore=tuple(n for n in k.restore if n != g.name))
        links.append(k)
    others = tuple(k for k in cert.gauges if k is not g)
    return _trimmed(replace(cert, slots=tuple(slots), gauges=others, links=tuple(links)))


def _kept(s: Slot, at: dict[Expr, Expr]) -> tuple[tuple[tuple[Expr, Fact], ...], ...]:
    """The proofs of exponents that still hang on some gauge."""
    names = {e.name for e in at if isinstance(e, Ref)}
    hanging = [e for e in walk(s.body) if isinstance(e, Apply) and e.op in EXPONENTIAL and _gauges(e)]
    return tuple(p for e, p in zip(hanging, s.bound, strict=True) if _gauges(e) - names)


def _gauges(e: Expr) -> frozenset[str]:
    return frozenset(n for n in refs(e) if n[:2] == "g:")


def _trimmed(cert: Certificate) -> Certificate:
    """Without the slots that nothing reads."""
    while True:
        read = [*(k.value for k in cert.links), *(g.value for g in cert.gauges)]
        used = (
            frozenset[str]().union(*map(refs, read)).union(*({k for k, _ in s.row if k != s.name} for s in cert.slots))
        )
        slots = tuple(s for s in cert.slots if s.name in used)
        if slots == cert.slots:
            return cert
        cert = replace(cert, slots=slots)


def _settled(e: Expr) -> Expr:
    """Without the differences and exponentials that a constant has made plain."""
    if not isinstance(e, (Apply, Fold)):
        return e
    if isinstance(e, Fold):
        return rewrite(e, lambda n: None if n is e else _settled(n))
    args = tuple(map(_settled, e.args))
    match e.op, args:
        case "sub", (Const(a), Const(b)) if a == b:
            return Const(0.0)
        case "sub" | "add", (a, Const(0.0)):
            return a
        case "exp" | "exp2", (Const(0.0),):
            return Const(1.0)
        case "mul", (Const(0.0), _) | (_, Const(0.0)):
            return Const(0.0)
        case "mul", (Const(1.0), a) | (a, Const(1.0)):
            return a
    return apply(e.op, *args)
