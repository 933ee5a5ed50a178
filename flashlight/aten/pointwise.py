"""Arithmetic point by point, comparisons, logic, conversions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from flashlight.arrays import Array, Builder, kind_of, pointwise, scalar
from flashlight.aten.table import TABLE, Node, Row, array, elementwise, literal, row
from flashlight.errors import UnsupportedOperator
from flashlight.expr import Const, Expr, apply, kind
from flashlight.scalars import cast, op

INF = math.inf


def _simple(name: str) -> Row:
    return lambda b, n, self, **_: elementwise(lambda x: op(name, x), n, self)


for _op in ("neg", "abs", "sign", "floor", "ceil", "trunc"):
    TABLE[_op] = _simple(_op)
for _op in ("exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "erf"):
    TABLE[_op] = _simple(_op)
TABLE |= {
    "absolute": TABLE["abs"],
    "negative": TABLE["neg"],
    "fix": TABLE["trunc"],
    "sgn": TABLE["sign"],
    "special_erf": TABLE["erf"],
    "special_expit": TABLE["sigmoid"],
}


def formula(fn: Callable[..., Expr], *names: str) -> None:
    for name in names:
        TABLE[name] = lambda b, n, self, **_: elementwise(fn, n, self)


def _one_over(x: Expr) -> Expr:
    return op("div", Const(1.0), x)


formula(_one_over, "reciprocal")
formula(lambda x: op("mul", x, x), "square")
formula(lambda x: op("sub", Const(1.0), op("erf", x)), "erfc")
formula(lambda x: op("div", op("log", x), Const(math.log(10.0))), "log10")
formula(lambda x: op("sub", x, op("trunc", x)), "frac")


@row("round")
def _round(b: Builder, n: Node, self: Array, decimals: int = 0, **_: Any) -> Array:
    if not decimals or kind_of(n.dtype) != "real":
        return elementwise(lambda x: op("round", x), n, self)
    places = Const(10.0 ** abs(decimals))
    to, back = ("mul", "div") if decimals > 0 else ("div", "mul")
    return elementwise(lambda x: op(back, op("round", op(to, x, places)), places), n, self)


@row("hardtanh", "clamp", "clip", "clamp_min", "clamp_max")
def _clamp(
    b: Builder, n: Node, self: Array, min: Any = None, max: Any = None, min_val: Any = -1, max_val: Any = 1, **_: Any
) -> Array:
    if min is None and max is None:
        min, max = min_val, max_val
    out = self
    if min is not None:
        out = elementwise(lambda x, y: op("maximum", x, y), n, out, min)
    return out if max is None else elementwise(lambda x, y: op("minimum", x, y), n, out, max)


@row("add", "sub", "subtract", "rsub")
def _add(b: Builder, n: Node, self: Any, other: Any, alpha: Any = 1, *, name: str = "add") -> Array:
    def fn(x: Expr, y: Expr) -> Expr:
        if alpha != 1:
            y = op("mul", y, cast(Const(alpha), kind(y)))
        if kind_of(n.dtype) == "bool":
            return apply("or", x, y)
        return op(name, x, y)

    return elementwise(fn, n, self, other)


TABLE["sub"] = TABLE["subtract"] = partial(_add, name="sub")
TABLE["rsub"] = lambda b, n, self, other, alpha=1: _add(b, n, other, self, alpha, name="sub")


@row("mul", "multiply")
def _mul(b: Builder, n: Node, self: Any, other: Any) -> Array:
    if kind_of(n.dtype) == "bool":
        return elementwise(lambda x, y: apply("and", x, y), n, self, other)
    if kind_of(n.dtype) == "real" and self is other:
        return elementwise(lambda x: op("mul", x, x), n, self)
    return elementwise(lambda x, y: op("mul", x, y), n, self, other)


@row("div", "divide", "true_divide", "floor_divide")
def _div(b: Builder, n: Node, self: Any, other: Any, rounding_mode: str | None = None) -> Array:
    if kind_of(n.dtype) == "real":

        def fn(x: Expr, y: Expr) -> Expr:
            q = op("div", x, y)
            return q if rounding_mode is None else op(rounding_mode, q)

        return elementwise(fn, n, self, other)
    if rounding_mode == "trunc":

        def towards_zero(x: Expr, y: Expr) -> Expr:
            magnitude = apply("floordiv", op("abs", x), op("abs", y))
            return apply(
                "select", apply("ne", op("lt", x, Const(0)), op("lt", y, Const(0))), op("neg", magnitude), magnitude
            )

        return elementwise(towards_zero, n, self, other)
    return elementwise(lambda x, y: apply("floordiv", x, y), n, self, other)


TABLE["floor_divide"] = lambda b, n, self, other: _div(b, n, self, other, "floor")


@row("remainder")
def _remainder(b: Builder, n: Node, self: Any, other: Any) -> Array:
    return elementwise(lambda x, y: apply("mod", x, y), n, self, other)


@row("pow", "float_power")
def _pow(b: Builder, n: Node, self: Any, exponent: Any) -> Array:
    def fn(x: Expr, y: Expr) -> Expr:
        if isinstance(y, Const):
            v = y.value
            if v in (1, 2, 3, 4) and v == int(v):
                out = x
                for _ in range(int(v) - 1):
                    out = op("mul", out, x)
                return out
            if kind(x) == "real":
                if v in (0.5, -0.5):
                    return op("sqrt" if v > 0 else "rsqrt", x)
                if v == -1:
                    return _one_over(x)
        if isinstance(x, Const) and x.value == 2 and kind(y) == "real":
            return op("exp2", y)
        return op("pow", x, y)

    return elementwise(fn, n, self, exponent)


for _op in ("maximum", "minimum", "fmod"):
    TABLE[_op] = lambda b, n, self, other, _op=_op: elementwise(lambda x, y: op(_op, x, y), n, self, other)


@row("fmax", "fmin")
def _fmax(b: Builder, n: Node, self: Array, other: Array, *, name: str = "maximum") -> Array:
    """The other one where one is NaN."""

    def fn(x: Expr, y: Expr) -> Expr:
        if kind(x) != "real":
            return op(name, x, y)
        both = apply("select", apply("isnan", y), x, op(name, x, y))
        return apply("select", apply("isnan", x), y, both)

    return elementwise(fn, n, self, other)


TABLE["fmin"] = partial(_fmax, name="minimum")


@row("logaddexp", "logaddexp2")
def _logaddexp(b: Builder, n: Node, self: Array, other: Array, *, base: float = math.e) -> Array:
    def fn(x: Expr, y: Expr) -> Expr:
        small = op("log1p", op("exp" if base != 2 else "exp2", op("neg", op("abs", op("sub", x, y)))))
        if base == 2:
            small = op("mul", small, Const(1 / math.log(2)))
        same = apply("and", is_inf(x), apply("eq", x, y))  # whose difference is NaN
        return apply("select", same, x, op("add", op("maximum", x, y), small))

    return elementwise(fn, n, self, other)


TABLE["logaddexp2"] = partial(_logaddexp, base=2)


def xlogy(x: Expr, y: Expr, log: str = "log") -> Expr:
    """``x * log(y)``, 0 where x is 0 (and y is a number)."""
    zero = apply("and", apply("eq", x, Const(0.0)), apply("not", apply("isnan", y)))
    return apply("select", zero, Const(0.0), op("mul", x, op(log, y)))


def _hypot(x: Expr, y: Expr) -> Expr:
    """Relative to the larger of both, whose square may be too large or too small for its dtype."""
    x, y = op("abs", x), op("abs", y)
    large = op("maximum", x, y)
    ratio = op("div", op("minimum", x, y), large)
    alone = apply("or", apply("eq", large, Const(0.0)), is_inf(large))
    return apply("select", alone, large, op("mul", large, op("sqrt", op("add", op("mul", ratio, ratio), Const(1.0)))))


formula(lambda x: apply("neg", xlogy(x, apply("select", apply("lt", x, Const(0.0)), Const(0.0), x))), "special_entr")


@row("xlogy", "special_xlogy")
def _xlogy(b: Builder, n: Node, self: Any, other: Any) -> Array:
    return elementwise(xlogy, n, self, other)


@row("special_xlog1py")
def _xlog1py(b: Builder, n: Node, self: Any, other: Any) -> Array:
    return elementwise(partial(xlogy, log="log1p"), n, self, other)


@row("ldexp")
def _ldexp(b: Builder, n: Node, self: Any, other: Any) -> Array:
    return elementwise(lambda x, y: op("mul", x, op("exp2", y)), n, self, other)


@row("hypot")
def _hypot_row(b: Builder, n: Node, self: Array, other: Array) -> Array:
    return elementwise(_hypot, n, self, other)


@row("heaviside")
def _heaviside(b: Builder, n: Node, self: Array, values: Array) -> Array:
    def fn(x: Expr, v: Expr) -> Expr:
        zero = Const(0.0 if kind(x) == "real" else 0)
        return apply("select", op("eq", x, zero), v, cast(op("gt", x, zero), kind(x)))

    return elementwise(fn, n, self, values)


@row("lerp")
def _lerp(b: Builder, n: Node, self: Array, end: Array, weight: Any) -> Array:
    return elementwise(lambda x, y, w: op("add", x, op("mul", w, op("sub", y, x))), n, self, end, weight)


@row("addcmul")
def _addcmul(b: Builder, n: Node, self: Array, tensor1: Array, tensor2: Array, value: Any = 1) -> Array:
    return elementwise(lambda x, y, z, v: op("add", x, op("mul", v, op("mul", y, z))), n, self, tensor1, tensor2, value)


@row("addcdiv")
def _addcdiv(b: Builder, n: Node, self: Array, tensor1: Array, tensor2: Array, value: Any = 1) -> Array:
    return elementwise(lambda x, y, z, v: op("add", x, op("mul", v, op("div", y, z))), n, self, tensor1, tensor2, value)


# ---- comparisons and logic -------------------------------------------------------------------------------------------
def _common(x: Expr, y: Expr) -> tuple[Expr, Expr]:
    kinds = (kind(x), kind(y))
    k = "real" if "real" in kinds else "int" if "int" in kinds else "bool"
    return cast(x, k), cast(y, k)


for _op, _names in {
    "lt": ("lt", "less"),
    "le": ("le", "less_equal"),
    "gt": ("gt", "greater"),
    "ge": ("ge", "greater_equal"),
    "eq": ("eq",),
    "ne": ("ne", "not_equal"),
}.items():
    for _name in _names:
        TABLE[_name] = lambda b, n, self, other, _op=_op: pointwise(
            lambda x, y: op(_op, *_common(x, y)), "bool", self, literal(other)
        )


def _bits(name: str, x: Expr, y: Expr) -> Expr:
    """Integers bit by bit.  The lowest bits are a remainder, of which more is known."""
    if name == "and" and isinstance(y, Const) and y.value > 0 and not int(y.value) & int(y.value + 1):
        return op("mod", x, Const(int(y.value) + 1))
    if name == "or":  # what is in one of both, and what is in both
        return op("add", apply("xor", x, y), apply("bitand", x, y))
    return apply("xor" if name == "xor" else "bitand", x, y)


def _logic(name: str) -> Row:
    def fn(b: Builder, n: Node, self: Any, other: Any) -> Array:
        if kind_of(n.dtype) != "bool":
            return elementwise(partial(_bits, name), n, self, other)

        def combine(x: Expr, y: Expr) -> Expr:
            x, y = cast(x, "bool"), cast(y, "bool")
            return apply("ne", x, y) if name == "xor" else apply(name, x, y)

        return pointwise(combine, "bool", literal(self), literal(other))

    return fn


for _name in ("and", "or", "xor"):
    for _form in ("logical_{}", "bitwise_{}", "__{}__"):
        TABLE[_form.format(_name)] = _logic(_name)


@row("bitwise_left_shift", "__lshift__", "bitwise_right_shift", "__rshift__")
def _shift(b: Builder, n: Node, self: Any, other: Any, *, name: str = "lshift") -> Array:
    """By a number of bits, a multiplication or a division (rounded down) by a power of two, of which more is known."""

    def fn(x: Expr, y: Expr) -> Expr:
        if isinstance(y, Const) and 0 <= y.value < 63:
            return op("mul" if name == "lshift" else "floordiv", x, Const(1 << int(y.value)))
        return apply(name, x, y)

    return elementwise(fn, n, self, other)


TABLE["bitwise_right_shift"] = TABLE["__rshift__"] = partial(_shift, name="rshift")


@row("logical_not", "bitwise_not")
def _not(b: Builder, n: Node, self: Array) -> Array:
    """Of an integer, what is left of a number whose bits are all set."""
    if kind_of(n.dtype) != "bool":
        ones = Const(255 if n.dtype == "uint8" else -1)
        return elementwise(lambda x: op("sub", ones, x), n, self)
    return pointwise(lambda x: op("not", cast(x, "bool")), "bool", self)


@row("isnan")
def _isnan(b: Builder, n: Node, self: Array) -> Array:
    return pointwise(lambda x: apply("isnan", x) if kind(x) == "real" else Const(False), "bool", self)


def is_inf(x: Expr) -> Expr:
    return apply("eq", op("abs", x), Const(INF)) if kind(x) == "real" else Const(False)


TABLE["isinf"] = lambda b, n, self: pointwise(is_inf, "bool", self)
TABLE["isfinite"] = lambda b, n, self: pointwise(
    lambda x: apply("lt", op("abs", x), Const(INF)) if kind(x) == "real" else Const(True), "bool", self
)
TABLE["isneginf"] = lambda b, n, self: pointwise(lambda x: apply("eq", x, Const(-INF)), "bool", self)
TABLE["isposinf"] = lambda b, n, self: pointwise(lambda x: apply("eq", x, Const(INF)), "bool", self)


@row("where")
def _where(b: Builder, n: Node, condition: Array, self: Any, other: Any) -> Array:
    k = kind_of(n.dtype)
    return pointwise(
        lambda c, x, y: op("select", cast(c, "bool"), cast(x, k), cast(y, k)),
        n.dtype,
        condition,
        array(self, n.dtype),
        array(other, n.dtype),
    )


@row("masked_fill")
def _masked_fill(b: Builder, n: Node, self: Array, mask: Array, value: Any) -> Array:
    return _where(b, n, mask, value, self)


@row("fill")
def _fill(b: Builder, n: Node, self: Array, value: Any) -> Array:
    source = array(value, n.dtype)
    return Array(n.shape, n.dtype, lambda i: cast(source[()], kind_of(n.dtype)))


@row("nan_to_num")
def _nan_to_num(
    b: Builder, n: Node, self: Array, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Array:
    top = torch.finfo(getattr(torch, n.dtype)).max

    def fn(x: Expr) -> Expr:
        out = apply("select", apply("isnan", x), Const(float(nan or 0.0)), x)
        out = apply("select", apply("eq", x, Const(INF)), Const(float(top if posinf is None else posinf)), out)
        return apply("select", apply("eq", x, Const(-INF)), Const(float(-top if neginf is None else neginf)), out)

    return elementwise(fn, n, self)


# ---- conversions, and what changes nothing ---------------------------------------------------------------------------
@row("_to_copy", "to", "type_as", "float", "half", "bfloat16", "double", "int", "long", "bool")
def _to(b: Builder, n: Node, self: Array | float, **_: Any) -> Array:
    if not isinstance(self, Array):  # a rule of vmap's may convert one
        return scalar(self, n.dtype)
    if n.dtype == self.dtype:
        return self
    k = kind_of(n.dtype)
    return Array(self.shape, n.dtype, lambda i: cast(self[i], k), self.hints)


@row(
    "clone",
    "contiguous",
    "alias",
    "detach",
    "lift_fresh_copy",
    "lift_fresh",
    "lift",
    "positive",
    "_conj",
    "resolve_neg",
    "resolve_conj",
    "view_as_real_copy",
    "conj",
    "_reshape_alias_copy",
    "requires_grad_",
    "detach_copy",
)
def _same(b: Builder, n: Node, self: Array, **_: Any) -> Array:
    return self


@row("dropout", "native_dropout", "feature_dropout", "alpha_dropout")
def _dropout(b: Builder, n: Node, input: Array, p: float, train: bool) -> Array:
    if train and p:
        raise UnsupportedOperator(f"dropout with p = {p} in training draws random numbers")
    return input


@row("copy")
def _copy(b: Builder, n: Node, self: Array, src: Array, **_: Any) -> Array:
    k = kind_of(n.dtype)
    return pointwise(lambda x, s: cast(s, k), n.dtype, Array(n.shape, n.dtype, lambda i: Const(0), self.hints), src)
