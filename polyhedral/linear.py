"""Integer linear forms over expressions, in a normal form that prints short; isl's affine expressions as such forms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import islpy as isl

from flashlight.expr import Apply, Const, Expr, apply
from flashlight.polyhedral.space import PARAM, Space

DIV = isl.dim_type.div


@dataclass(frozen=True)
class Linear:
    """``sum of factor * atom + constant``; atoms are indices, sizes and floor divisions, each once, no factor 0."""

    terms: tuple[tuple[Expr, int], ...] = ()
    constant: int = 0

    def __add__(self, other: Linear | int) -> Linear:
        if isinstance(other, int):
            return Linear(self.terms, self.constant + other)
        factors = dict(self.terms)
        for atom, factor in other.terms:
            factors[atom] = factors.get(atom, 0) + factor
        return Linear(tuple((a, f) for a, f in factors.items() if f), self.constant + other.constant)

    def scaled(self, by: int) -> Linear:
        return Linear(tuple((a, f * by) for a, f in self.terms), self.constant * by) if by else Linear()

    def floordiv(self, by: int) -> Linear:
        """``self // by`` (by > 0): multiples of ``by`` leave the division, common factors leave both sides."""
        if by == 1:
            return self
        whole = Linear(tuple((a, f // by) for a, f in self.terms if f % by == 0), self.constant // by)
        rest = tuple((a, f) for a, f in self.terms if f % by)
        if not rest:
            return whole
        common = gcd(by, *(f for _, f in rest))
        rest, by = tuple((a, f // common) for a, f in rest), by // common
        constant = self.constant % (by * common) // common
        if all(f < 0 for _, f in rest):  # (-x + c) // d = -((x - c + d - 1) // d)
            inner = Linear(tuple((a, -f) for a, f in rest), by - 1 - constant).floordiv(by)
            return whole + inner.scaled(-1)
        if len(rest) == 1 and isinstance(rest[0][0], Apply) and rest[0][0].op == "floordiv" and rest[0][1] == 1:
            atom, below = rest[0][0].args  # (x // m + c) // d = (x + c*m) // (d*m)
            if isinstance(below, Const):
                again = as_linear(atom)
                return whole + (again + constant * int(below.value)).floordiv(by * int(below.value))
        atom = apply("floordiv", Linear(rest, constant).expr(), Const(by))
        return whole + Linear(((atom, 1),))

    def ceildiv(self, by: int) -> Linear:
        return (self + (by - 1)).floordiv(by)

    def expr(self) -> Expr:
        """Positive terms, then the constant if it leads, then what is taken off."""
        out: Expr | None = None
        plus = [(a, f) for a, f in self.terms if f > 0]
        minus = [(a, -f) for a, f in self.terms if f < 0]
        for a, f in plus:
            part = a if f == 1 else apply("mul", Const(f), a)
            out = part if out is None else apply("add", out, part)
        constant = self.constant
        if out is None and (constant or not minus):
            out, constant = Const(constant), 0
        for a, f in minus:
            part = a if f == 1 else apply("mul", Const(f), a)
            out = apply("neg", part) if out is None else apply("sub", out, part)
        if out is not None and constant:
            out = apply("add" if constant > 0 else "sub", out, Const(abs(constant)))
        return out if out is not None else Const(0)


def as_linear(e: Expr) -> Linear:
    """The form of an expression built of sums and literal multiples (anything else is an atom)."""
    match e:
        case Const(value):
            return Linear((), int(value))
        case Apply("add", (a, b)):
            return as_linear(a) + as_linear(b)
        case Apply("sub", (a, b)):
            return as_linear(a) + as_linear(b).scaled(-1)
        case Apply("neg", (a,)):
            return as_linear(a).scaled(-1)
        case Apply("mul", (Const(value), a)) | Apply("mul", (a, Const(value))):
            return as_linear(a).scaled(int(value))
        case Apply("floordiv", (a, Const(value))) if value > 0:
            return as_linear(a).floordiv(int(value))
    return Linear(((e, 1),))


def sum_of(parts: Iterable[Linear]) -> Linear:
    out = Linear()
    for p in parts:
        out = out + p
    return out


def numerator(aff: isl.Aff, space: Space, dims: bool) -> Linear | None:
    """The integer form ``denominator * aff`` of an affine expression; None if it has unknown divisions, or, unless
    ``dims``, if a division in it has set dimensions in it.  The dimensions' own terms are left out unless ``dims``."""
    den = aff.get_denominator_val()
    constant = aff.get_constant_val().mul(den)
    terms: list[Linear] = [Linear((), integer(constant))]
    for kind, keys in ((PARAM, space.params), (isl.dim_type.in_, space.dims if dims else ())):
        for k, key in enumerate(keys):
            if factor := integer(aff.get_coefficient_val(kind, k).mul(den)):
                terms.append(Linear(((key, factor),)))
    for k in range(aff.dim(DIV)):
        factor = integer(aff.get_coefficient_val(DIV, k).mul(den))
        if not factor:
            continue
        div = aff.get_div(k)
        if div.is_nan() or (not dims and div.involves_dims(isl.dim_type.in_, 0, len(space.dims))):
            return None
        inner = numerator(div, space, dims)
        if inner is None:
            return None
        terms.append(inner.floordiv(integer(div.get_denominator_val())).scaled(factor))
    return sum_of(terms)


def integer(value: isl.Val) -> int:
    return int(value.get_num_si())  # and not by its text: printing fails in silence when the budget is used up
