"""Trigonometric and hyperbolic functions and their inverses, and what else is made of a few operators.

The formulas keep small and large arguments: Kahan, "Branch cuts for complex elementary functions" (1987), section 6;
those of squares that overflow are the limits for large arguments.
"""

from __future__ import annotations

import math

from flashlight.arrays import Array, Builder, pointwise
from flashlight.aten.pointwise import formula, is_inf
from flashlight.aten.table import TABLE, Node, elementwise, row
from flashlight.expr import Const, Expr, apply, kind
from flashlight.scalars import cast, op

ZERO, HALF, ONE, TWO = Const(0.0), Const(0.5), Const(1.0), Const(2.0)
FAR = Const(1e9)
"""1 + x**2 is x**2 beyond, in float64 too."""


def _negative(x: Expr) -> Expr:
    """Is the sign bit set?  That of zero shows in its reciprocal."""
    if kind(x) != "real":
        return apply("lt", x, Const(0))
    below = apply("lt", op("div", ONE, x), ZERO)
    return apply("or", apply("lt", x, ZERO), apply("and", apply("eq", x, ZERO), below))


def _odd(x: Expr, of_magnitude: Expr) -> Expr:
    """The value at x of a function that is known at ``abs(x)``, and changes its sign with x."""
    return apply("select", apply("lt", x, ZERO), op("neg", of_magnitude), of_magnitude)


def _sinh(x: Expr) -> Expr:
    a = op("abs", x)
    e, root = op("expm1", a), op("exp", op("mul", a, HALF))
    near = op("mul", HALF, op("add", e, op("div", e, op("add", e, ONE))))
    far = op("mul", op("mul", HALF, root), root)  # exp(x) alone would be infinite before its half is
    return _odd(x, apply("select", apply("lt", a, Const(40.0)), near, far))


def _cosh(x: Expr) -> Expr:
    root = op("exp", op("mul", op("abs", x), HALF))
    return op("add", op("mul", op("mul", HALF, root), root), op("div", op("div", HALF, root), root))


def _log_of_double(x: Expr) -> Expr:
    return op("add", op("log", x), Const(math.log(2.0)))


def _asinh(x: Expr) -> Expr:
    a = op("abs", x)
    square = op("mul", a, a)
    below = op("add", ONE, op("sqrt", op("add", ONE, square)))
    near = op("log1p", op("add", a, op("div", square, below)))
    return _odd(x, apply("select", apply("lt", a, FAR), near, _log_of_double(a)))


def _acosh(x: Expr) -> Expr:
    t = op("sub", x, ONE)
    near = op("log1p", op("add", t, op("sqrt", op("mul", t, op("add", t, TWO)))))
    valid = apply("select", apply("lt", x, ONE), Const(math.nan), near)
    return apply("select", apply("gt", x, FAR), _log_of_double(x), valid)


def _atanh(x: Expr) -> Expr:
    a = op("abs", x)
    return _odd(x, op("mul", HALF, op("log1p", op("div", op("add", a, a), op("sub", ONE, a)))))


def _asin(x: Expr) -> Expr:
    return op("atan", op("div", x, op("sqrt", op("mul", op("sub", ONE, x), op("add", ONE, x)))))


def _acos(x: Expr) -> Expr:
    return op("mul", TWO, op("atan", op("sqrt", op("div", op("sub", ONE, x), op("add", ONE, x)))))


def _atan2(y: Expr, x: Expr) -> Expr:
    """The angle of (x, y), by the ratio of the smaller to the larger of both."""
    across, up = op("abs", x), op("abs", y)
    small, large = op("minimum", across, up), op("maximum", across, up)
    same = apply("or", apply("eq", large, ZERO), apply("and", is_inf(across), is_inf(up)))
    ratio = apply("select", same, cast(is_inf(large), "real"), op("div", small, large))
    angle = op("atan", ratio)
    angle = apply("select", apply("gt", up, across), op("sub", Const(math.pi / 2), angle), angle)
    angle = apply("select", _negative(x), op("sub", Const(math.pi), angle), angle)
    return apply("select", _negative(y), op("neg", angle), angle)


def _sinc(x: Expr) -> Expr:
    turned = op("mul", x, Const(math.pi))
    return apply("select", apply("eq", x, ZERO), ONE, op("div", op("sin", turned), turned))


formula(lambda x: op("div", op("sin", x), op("cos", x)), "tan")
formula(lambda x: op("atan", x), "atan", "arctan")
formula(_asin, "asin", "arcsin")
formula(_acos, "acos", "arccos")
formula(_sinh, "sinh")
formula(_cosh, "cosh")
formula(_asinh, "asinh", "arcsinh")
formula(_acosh, "acosh", "arccosh")
formula(_atanh, "atanh", "arctanh")
formula(_sinc, "sinc", "special_sinc")
formula(lambda x: op("mul", x, Const(math.pi / 180)), "deg2rad")
formula(lambda x: op("mul", x, Const(180 / math.pi)), "rad2deg")
TABLE["signbit"] = lambda b, n, self: pointwise(_negative, "bool", self)


@row("atan2", "arctan2")
def _atan2_row(b: Builder, n: Node, self: Array, other: Array) -> Array:
    return elementwise(_atan2, n, self, other)


@row("copysign")
def _copysign(b: Builder, n: Node, self: Array, other: Array | float) -> Array:
    def fn(x: Expr, y: Expr) -> Expr:
        return apply("select", _negative(y), op("neg", op("abs", x)), op("abs", x))

    return elementwise(fn, n, self, other)
