"""Scalar expressions over indices and sizes <-> isl's quasi-affine expressions and sets.

Quasi-affine: sums, multiples by literals, floor division and remainder by positive literals, minima, maxima, absolute
values, comparisons, logic and selections of such.  Real arithmetic takes part as far as it is exact for indices below
2**22 in single precision: conversions of integers, dyadic literals, division by a power of two, and the floor of a
division by a literal.  What is built from sizes only and is not affine (``B * H``, ``n // m``) is one *opaque*
parameter: statements about all its values hold for the one it has.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from functools import cache

import islpy as isl

from flashlight.errors import NotAffine
from flashlight.expr import Apply, Const, Expr, Index, Size, apply, children, kind
from flashlight.polyhedral.space import Space, number

NEGATED = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}
PLAIN = frozenset({"add", "sub", "neg", "abs", "minimum", "maximum", "and", "or", "not", "select", "real", "bool"})
ROUNDED = frozenset({"floor", "ceil", "trunc", "int"})


@cache
def is_affine(e: Expr) -> bool:
    """Can isl hold this expression (see the module)?  Looks at the tree only."""
    return _structure(e) or _sizes_only(e)


def _structure(e: Expr) -> bool:
    match e:
        case Const(value):
            return not isinstance(value, float) or _dyadic(value)
        case Index() | Size():
            return True
        case Apply("mul", (a, b)):
            return is_affine(a) and is_affine(b) and (literal(a) is not None or literal(b) is not None)
        case Apply("floordiv" | "mod", (a, b)):
            return kind(a) != "real" and is_affine(a) and _divisor(b)
        case Apply("div", (a, b)):
            by = literal(b)
            return is_affine(a) and by is not None and by > 0 and _dyadic(float(1 / by))
        case Apply(op, (Apply("div", (a, b)),)) if op in ROUNDED and is_affine(a) and _divisor(b):
            return True
        case Apply(op, args) if op in PLAIN or op in NEGATED or op in ROUNDED:
            return all(map(is_affine, args))
    return False


def literal(e: Expr) -> Fraction | None:
    """The value of a literal, behind signs and conversions."""
    match e:
        case Const(bool() | int() as value):
            return Fraction(int(value))
        case Const(float(value)) if _dyadic(value):
            return Fraction(value)
        case Apply("neg", (a,)):
            inner = literal(a)
            return None if inner is None else -inner
        case Apply("real", (a,)):
            return literal(a)
    return None


def _divisor(e: Expr) -> bool:
    value = literal(e)
    return value is not None and value > 0 and value.denominator == 1


def _dyadic(value: float) -> bool:
    """Is a float exact in single precision with few digits, so that sums with indices stay exact?"""
    if value != value or abs(value) >= 2**22:
        return False
    exact: bool = struct.unpack("f", struct.pack("f", value))[0] == value
    return exact and Fraction(value).denominator <= 4


@cache
def _sizes_only(e: Expr) -> bool:
    match e:
        case Size():
            return True
        case Const(value):
            return not isinstance(value, float)
        case Apply(_, args):
            return kind(e) == "int" and all(map(_sizes_only, args))
    return False


def parameters(*expressions: Expr) -> tuple[Expr, ...]:
    """The sizes and opaque expressions that occur, in order of appearance."""
    out: dict[Expr, None] = {}
    seen: set[Expr] = set()

    def go(e: Expr) -> None:
        if e in seen:
            return
        seen.add(e)
        if isinstance(e, Size) or (not _structure(e) and _sizes_only(e)):
            out[e] = None
            return
        for c in children(e):
            go(c)

    for e in expressions:
        go(e)
    return tuple(out)


class Translator:
    """Expressions to isl in one space.  ``at`` gives the leaves that are not keys of the space themselves (an index in
    terms of a tile's number and an offset); raises NotAffine, naming the expression, for what isl cannot hold."""

    def __init__(self, space: Space, at: Mapping[Expr, isl.PwAff] | None = None):
        self.space = space
        self._values: dict[Expr, isl.PwAff] = dict(at or {})
        self._truths: dict[tuple[Expr, bool], isl.Set] = {}

    def value(self, e: Expr) -> isl.PwAff:
        """A number (a truth value is 0 or 1)."""
        if e not in self._values:
            self._values[e] = self._value(e)
        return self._values[e]

    def truth(self, e: Expr, positive: bool = True) -> isl.Set:
        """The points where ``e`` is true (or where it is false)."""
        key = (e, positive)
        if key not in self._truths:
            self._truths[key] = self._truth(e, positive)
        return self._truths[key]

    def _value(self, e: Expr) -> isl.PwAff:
        if e in self.space:
            return self.space[e]
        if kind(e) == "bool" and not isinstance(e, Const):
            return self.truth(e).indicator_function()
        if not is_affine(e):
            raise NotAffine(f"{e} is not affine")
        match e:
            case Const():
                return self.space.constant(literal(e) or 0)
            case Apply("add", (a, b)):
                return self.value(a).add(self.value(b))
            case Apply("sub", (a, b)):
                return self.value(a).sub(self.value(b))
            case Apply("neg", (a,)):
                return self.value(a).neg()
            case Apply("abs", (a,)):
                return self.value(a).max(self.value(a).neg())
            case Apply("mul", (a, b)):
                by, other = (literal(b), a) if literal(b) is not None else (literal(a), b)
                return self.value(other).scale_val(number(by or 0))
            case Apply("div", (a, b)):
                return self.value(a).scale_down_val(number(literal(b) or 1))
            case Apply("floordiv", (a, b)):
                return self.value(a).scale_down_val(number(literal(b) or 1)).floor()
            case Apply("mod", (a, b)):
                return self.value(a).mod_val(number(literal(b) or 1))
            case Apply("maximum", (a, b)):
                return self.value(a).max(self.value(b))
            case Apply("minimum", (a, b)):
                return self.value(a).min(self.value(b))
            case Apply("select", (c, a, b)):
                where = self.truth(c)
                return self.value(a).intersect_domain(where).union_add(self.value(b).subtract_domain(where))
            case Apply("floor", (a,)):
                return self._ratio(a).floor()
            case Apply("ceil", (a,)):
                return self._ratio(a).ceil()
            case Apply("trunc" | "int", (a,)):
                x = self._ratio(a)
                above = x.ge_set(self.space.constant(0))
                return x.floor().intersect_domain(above).union_add(x.ceil().subtract_domain(above))
            case Apply("real", (a,)):
                return self.value(a)
        raise NotAffine(f"{e} is not affine: {e} is a leaf of no known place")

    def _ratio(self, e: Expr) -> isl.PwAff:
        """The argument of a rounding: there, division by any positive literal is exact."""
        match e:
            case Apply("div", (a, b)):
                return self.value(a).scale_down_val(number(literal(b) or 1))
        return self.value(e)

    def _truth(self, e: Expr, positive: bool) -> isl.Set:
        match e:
            case Const(value):
                return self.space.universe() if bool(value) == positive else self.space.empty()
            case Apply("not", (a,)):
                return self.truth(a, not positive)
            case Apply("and" | "or" as op, (a, b)):
                left, right = self.truth(a, positive), self.truth(b, positive)
                return left.intersect(right) if (op == "and") == positive else left.union(right)
            case Apply("select", (c, a, b)) if kind(e) == "bool":
                then = self.truth(c).intersect(self.truth(a, positive))
                return then.union(self.truth(c, False).intersect(self.truth(b, positive)))
            case Apply("eq" | "ne" as op, (a, b)) if kind(a) == kind(b) == "bool":
                both = (
                    self.truth(a).intersect(self.truth(b)).union(self.truth(a, False).intersect(self.truth(b, False)))
                )
                return both if (op == "eq") == positive else both.complement()
            case Apply("eq" | "ne" as op, (a, b)):
                x, y = self.value(a), self.value(b)
                return x.eq_set(y) if (op == "eq") == positive else x.eq_set(y).complement()
            case Apply(op, (a, b)) if op in NEGATED:
                op = op if positive else NEGATED[op]
                small, large = (a, b) if op in ("lt", "le") else (b, a)
                return self._ordered(small, large, op in ("lt", "gt"))
            case Apply("bool", (a,)):
                return self.truth(a, positive)
        if kind(e) == "bool":
            raise NotAffine(f"{e} is not affine")
        x = self.value(e)
        zero = x.eq_set(self.space.constant(0))
        return zero.complement() if positive else zero

    def _ordered(self, small: Expr, large: Expr, strict: bool) -> isl.Set:
        """``small < large`` or ``small <= large``, with extrema taken apart: that keeps the sets simple."""
        match small, large:
            case (Apply("maximum", (a, b)), _):
                return self._ordered(a, large, strict).intersect(self._ordered(b, large, strict))
            case (Apply("minimum", (a, b)), _):
                return self._ordered(a, large, strict).union(self._ordered(b, large, strict))
            case (_, Apply("maximum", (a, b))):
                return self._ordered(small, a, strict).union(self._ordered(small, b, strict))
            case (_, Apply("minimum", (a, b))):
                return self._ordered(small, a, strict).intersect(self._ordered(small, b, strict))
            case (Apply("abs", (a,)), _):
                return self._ordered(a, large, strict).intersect(self._ordered(apply("neg", a), large, strict))
            case (_, Apply("abs", (a,))):
                return self._ordered(small, a, strict).union(self._ordered(small, apply("neg", a), strict))
            case (Apply("select", (c, a, b)), _):
                then, other = self._ordered(a, large, strict), self._ordered(b, large, strict)
                return self.truth(c).intersect(then).union(self.truth(c, False).intersect(other))
            case (_, Apply("select", (c, a, b))):
                then, other = self._ordered(small, a, strict), self._ordered(small, b, strict)
                return self.truth(c).intersect(then).union(self.truth(c, False).intersect(other))
        x, y = self.value(small), self.value(large)
        if strict and "real" in (kind(small), kind(large)):
            return y.le_set(x).complement()  # isl's strict comparison is one of integers
        return x.lt_set(y) if strict else x.le_set(y)
