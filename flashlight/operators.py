"""What PyTorch's arithmetic means: one row an operator.

A row is a function of a :class:`~flashlight.arrays.Builder`, the facts of the node (:class:`Node`), and the operator's
arguments by the names of its schema; tensors come as arrays.  A row that has no meaning for its arguments raises
UnsupportedOperator with the reason, and the node runs as it would have run without us.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flashlight import index
from flashlight.arrays import Array, Builder, cast, keep_dims, kind_of, op, pointwise, scalar
from flashlight.errors import UnsupportedOperator
from flashlight.expr import Const, Expr, apply, kind

Row = Callable[..., Any]
INF = math.inf


@dataclass(frozen=True)
class Node:
    """The shape and dtype of what an operator gives (the first of its results)."""

    shape: tuple[Expr, ...]
    dtype: str


TABLE: dict[str, Row] = {}


def row(*names: str) -> Callable[[Row], Row]:
    def enter(fn: Row) -> Row:
        for name in names:
            TABLE[name] = fn
        return fn

    return enter


def array(x: Any, dtype: str) -> Array:
    """An argument as an array: numbers take the dtype of the result."""
    return x if isinstance(x, Array) else scalar(x, dtype)


# ---- point by point --------------------------------------------------------------------------------------------------
def elementwise(fn: Callable[..., Expr], n: Node, *args: Any) -> Array:
    """``fn`` of the elements, converted to the result's kind first."""
    k = kind_of(n.dtype)
    arrays = [array(x, n.dtype) for x in args]
    return pointwise(lambda *e: fn(*(cast(x, k) for x in e)), n.dtype, *arrays)


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


def _formula(fn: Callable[..., Expr], *names: str) -> None:
    for name in names:
        TABLE[name] = lambda b, n, self, **_: elementwise(fn, n, self)


def _one_over(x: Expr) -> Expr:
    return op("div", Const(1.0), x)


def _softplus(x: Expr) -> Expr:
    """max(x, 0) + log1p(exp(-|x|)), which neither overflows nor loses small terms."""
    return op("add", op("maximum", x, Const(0.0)), op("log1p", op("exp", op("neg", op("abs", x)))))


def _logsigmoid(x: Expr) -> Expr:
    return op("sub", op("minimum", x, Const(0.0)), op("log1p", op("exp", op("neg", op("abs", x)))))


_formula(_one_over, "reciprocal")
_formula(lambda x: op("mul", x, x), "square")
_formula(lambda x: op("maximum", x, Const(0.0 if kind(x) == "real" else 0)), "relu")
_formula(lambda x: op("mul", x, op("sigmoid", x)), "silu")
_formula(_logsigmoid, "log_sigmoid")
_formula(lambda x: op("mul", x, op("tanh", _softplus(x))), "mish")
_formula(lambda x: op("sub", Const(1.0), op("erf", x)), "erfc")
_formula(lambda x: op("div", op("log", x), Const(math.log(10.0))), "log10")
_formula(lambda x: op("sub", x, op("trunc", x)), "frac")
_formula(lambda x: op("minimum", op("maximum", x, Const(0.0)), Const(6.0)), "relu6")
_formula(lambda x: op("div", op("sin", x), op("cos", x)), "tan")
_formula(
    lambda x: op("minimum", op("maximum", op("add", op("mul", x, Const(1 / 6)), Const(0.5)), Const(0.0)), Const(1.0)),
    "hardsigmoid",
)


@row("round")
def _round(b: Builder, n: Node, self: Array, decimals: int = 0, **_: Any) -> Array:
    if decimals:
        raise UnsupportedOperator("round to decimals")
    return elementwise(lambda x: op("round", x), n, self)


@row("gelu")
def _gelu(b: Builder, n: Node, self: Array, approximate: str = "none") -> Array:
    def exact(x: Expr) -> Expr:
        return op("mul", op("mul", x, Const(0.5)), op("add", Const(1.0), op("erf", op("mul", x, Const(2**-0.5)))))

    def tanh(x: Expr) -> Expr:
        cubic = op("add", x, op("mul", Const(0.044715), op("mul", x, op("mul", x, x))))
        inner = op("tanh", op("mul", Const(math.sqrt(2 / math.pi)), cubic))
        return op("mul", op("mul", x, Const(0.5)), op("add", Const(1.0), inner))

    return elementwise(tanh if approximate == "tanh" else exact, n, self)


@row("softplus")
def _softplus_row(b: Builder, n: Node, self: Array, beta: float = 1, threshold: float = 20) -> Array:
    def fn(x: Expr) -> Expr:
        z = op("mul", x, Const(float(beta)))
        return apply("select", apply("gt", z, Const(float(threshold))), x, op("div", _softplus(z), Const(float(beta))))

    return elementwise(fn, n, self)


@row("elu", "celu")
def _elu(b: Builder, n: Node, self: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    def fn(x: Expr) -> Expr:
        low = op("mul", op("expm1", op("mul", x, Const(float(input_scale)))), Const(float(alpha)))
        return op("mul", apply("select", apply("gt", x, Const(0.0)), x, low), Const(float(scale)))

    return elementwise(fn, n, self)


@row("selu")
def _selu(b: Builder, n: Node, self: Array) -> Array:
    return _elu(b, n, self, 1.6732632423543772, 1.0507009873554805)


@row("leaky_relu")
def _leaky_relu(b: Builder, n: Node, self: Array, negative_slope: float = 0.01) -> Array:
    low = Const(float(negative_slope))
    return elementwise(lambda x: apply("select", apply("gt", x, Const(0.0)), x, op("mul", x, low)), n, self)


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


@row("threshold")
def _threshold(b: Builder, n: Node, self: Array, threshold: float, value: float) -> Array:
    return elementwise(lambda x, t, v: apply("select", apply("gt", x, t), x, v), n, self, threshold, value)


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
        raise UnsupportedOperator("integer division that rounds towards zero")
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


@row("logaddexp")
def _logaddexp(b: Builder, n: Node, self: Array, other: Array) -> Array:
    def fn(x: Expr, y: Expr) -> Expr:
        return op("add", op("maximum", x, y), op("log1p", op("exp", op("neg", op("abs", op("sub", x, y))))))

    return elementwise(fn, n, self, other)


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
            lambda x, y: apply(_op, *_common(x, y)), "bool", self, _literal(other)
        )


def _literal(x: Any) -> Array:
    if isinstance(x, Array):
        return x
    e = Const(x) if isinstance(x, bool | int | float) else x
    return Array((), {"bool": "bool", "int": "int64", "real": "float64"}[kind(e)], lambda i: e)


def _logic(name: str) -> Row:
    def fn(b: Builder, n: Node, self: Any, other: Any) -> Array:
        if kind_of(n.dtype) != "bool":
            raise UnsupportedOperator(f"bitwise {name} of integers")

        def combine(x: Expr, y: Expr) -> Expr:
            x, y = cast(x, "bool"), cast(y, "bool")
            return apply("ne", x, y) if name == "xor" else apply(name, x, y)

        return pointwise(combine, "bool", _literal(self), _literal(other))

    return fn


for _name in ("and", "or", "xor"):
    for _form in ("logical_{}", "bitwise_{}", "__{}__"):
        TABLE[_form.format(_name)] = _logic(_name)


@row("logical_not", "bitwise_not")
def _not(b: Builder, n: Node, self: Array) -> Array:
    if kind_of(n.dtype) != "bool":
        raise UnsupportedOperator("bitwise not of integers")
    return pointwise(lambda x: op("not", cast(x, "bool")), "bool", self)


@row("isnan")
def _isnan(b: Builder, n: Node, self: Array) -> Array:
    return pointwise(lambda x: apply("isnan", x) if kind(x) == "real" else Const(False), "bool", self)


def _is_inf(x: Expr) -> Expr:
    return apply("eq", op("abs", x), Const(INF)) if kind(x) == "real" else Const(False)


TABLE["isinf"] = lambda b, n, self: pointwise(_is_inf, "bool", self)
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
def _to(b: Builder, n: Node, self: Array, **_: Any) -> Array:
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


# ---- reductions ------------------------------------------------------------------------------------------------------
def _dims(dim: Any, rank: int) -> tuple[int, ...]:
    if dim is None or dim == ():
        return tuple(range(rank))
    return tuple(d % rank if rank else 0 for d in ((dim,) if isinstance(dim, int) else dim))


def _wide(dtype: str) -> str:
    """The dtype in which PyTorch computes a normalisation of 16-bit values."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def extent(a: Array, dims: Sequence[int]) -> Expr:
    return index.mul(Const(1), *(a.shape[d] for d in dims))


def count(a: Array, dims: Sequence[int], less: Any = 0) -> Expr:
    """The number of elements reduced, as a real."""
    return cast(index.sub(extent(a, dims), Const(less)) if less else extent(a, dims), "real")


@row("sum")
def _sum(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return b.reduce("sum", self, _dims(dim, self.rank), n.dtype, keepdim) if self.rank else _to(b, n, self)


@row("mean")
def _mean(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return mean(b, self, _dims(dim, self.rank), n.dtype, keepdim)


def mean(b: Builder, a: Array, dims: Sequence[int], dtype: str, keep: bool) -> Array:
    total = b.reduce("sum", a, dims, dtype, keep) if a.rank else a
    size = count(a, dims)
    return pointwise(lambda x: apply("div", x, size) if size is not Const(1.0) else x, dtype, total)


@row("amax", "amin", "max", "min")
def _extreme(
    b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, other: Any = None, *, monoid: str = "max"
) -> Any:
    if other is not None:
        return elementwise(lambda x, y: op(f"{monoid}imum", x, y), n, self, other)
    if kind_of(self.dtype) == "bool":
        raise UnsupportedOperator(f"{monoid} of booleans")
    out = b.reduce(monoid, self, _dims(dim, self.rank), n.dtype, keepdim) if self.rank else self
    return (out, None) if isinstance(dim, int) else out


TABLE["max"] = lambda b, n, **a: _extreme(b, n, monoid="max", **a)
TABLE["min"] = lambda b, n, **a: _extreme(b, n, monoid="min", **a)
TABLE["amax"] = lambda b, n, self, dim=None, keepdim=False: _extreme(b, n, self, tuple(_dims(dim, self.rank)), keepdim)
TABLE["amin"] = lambda b, n, self, dim=None, keepdim=False: _extreme(
    b, n, self, tuple(_dims(dim, self.rank)), keepdim, monoid="min"
)


@row("prod")
def _prod(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return b.reduce("prod", self, _dims(dim, self.rank), n.dtype, keepdim)


@row("any", "all")
def _any(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, *, monoid: str = "max") -> Array:
    flags = Array(self.shape, "int32", lambda i: cast(cast(self[i], "bool"), "int"), self.hints)
    out = b.reduce(monoid, flags, _dims(dim, self.rank), "int32", keepdim)
    return pointwise(lambda x: apply("ne", x, Const(0)), "bool", out)


TABLE["all"] = partial(_any, monoid="min")


@row("count_nonzero")
def _count_nonzero(b: Builder, n: Node, self: Array, dim: Any = None) -> Array:
    flags = Array(self.shape, "int64", lambda i: cast(cast(self[i], "bool"), "int"), self.hints)
    return b.reduce("sum", flags, _dims(dim, self.rank), "int64")


@row("linalg_vector_norm", "norm")
def _norm(
    b: Builder, n: Node, self: Array, ord: Any = 2, dim: Any = None, keepdim: bool = False, p: Any = None, **_: Any
) -> Array:
    ord = float(p if p is not None else ord if ord is not None else 2)
    dims = _dims(dim, self.rank)
    size = pointwise(lambda x: op("abs", cast(x, "real")), n.dtype, self)
    if math.isinf(ord):
        return b.reduce("max" if ord > 0 else "min", size, dims, n.dtype, keepdim)
    if ord == 0:
        return _count_nonzero(b, n, self, dims)
    if ord == 2:
        total = b.reduce("sum", pointwise(lambda x: op("mul", x, x), n.dtype, self), dims, n.dtype, keepdim)
        return pointwise(lambda x: op("sqrt", x), n.dtype, total)
    power = pointwise(lambda x: op("pow", x, Const(ord)) if ord != 1 else x, n.dtype, size)
    total = b.reduce("sum", power, dims, n.dtype, keepdim)
    return pointwise(lambda x: op("pow", x, Const(1 / ord)) if ord != 1 else x, n.dtype, total)


@row("var", "std", "var_mean", "std_mean")
def _var(
    b: Builder,
    n: Node,
    self: Array,
    dim: Any = None,
    correction: Any = 1,
    keepdim: bool = False,
    unbiased: bool | None = None,
    *,
    root: bool = False,
    both: bool = False,
) -> Any:
    dims = _dims(dim, self.rank)
    less = int(unbiased) if unbiased is not None else 1 if correction is None else correction
    middle, out = moments(b, self, dims, n.dtype, less)
    if root:
        out = pointwise(lambda x: op("sqrt", x), n.dtype, out)
    squeeze = [out, middle] if keepdim else [drop_dims(a, dims) for a in (out, middle)]
    return tuple(squeeze) if both else squeeze[0]


TABLE["std"], TABLE["var_mean"] = partial(_var, root=True), partial(_var, both=True)
TABLE["std_mean"] = partial(_var, root=True, both=True)


def moments(b: Builder, a: Array, dims: Sequence[int], dtype: str, less: Any = 0) -> tuple[Array, Array]:
    """Mean and variance over ``dims``, which stay with length 1."""
    middle = mean(b, a, dims, dtype, True)
    square = pointwise(lambda x, m: _squared(op("sub", cast(x, "real"), m)), dtype, a, middle)
    total = b.reduce("sum", square, dims, dtype, True)
    size = count(a, dims, less)
    return middle, pointwise(lambda x: apply("div", x, size), dtype, total)


def _squared(x: Expr) -> Expr:
    return op("mul", x, x)


def drop_dims(a: Array, dims: Sequence[int]) -> Array:
    kept = [d for d in range(a.rank) if d not in dims]

    def at(i: tuple[Expr, ...]) -> list[Expr]:
        own = dict(zip(kept, i, strict=True))
        return [own.get(d, Const(0)) for d in range(a.rank)]

    return a.view([a.shape[d] for d in kept], at, [a.hints[d] for d in kept])


@row("cosine_similarity")
def _cosine_similarity(b: Builder, n: Node, x1: Array, x2: Array, dim: int = 1, eps: float = 1e-8) -> Array:
    """Each norm is at least eps, as PyTorch has it."""

    def total(a: Array, c: Array) -> Array:
        return b.reduce("sum", pointwise(lambda x, y: op("mul", x, y), n.dtype, a, c), (dim,), n.dtype)

    def size(a: Array) -> Array:
        return pointwise(lambda s: op("maximum", op("sqrt", s), Const(float(eps))), n.dtype, total(a, a))

    return pointwise(lambda p, s, t: op("div", op("div", p, s), t), n.dtype, total(x1, x2), size(x1), size(x2))


# ---- normalisations, written out -------------------------------------------------------------------------------------
@row("softmax", "_softmax", "special_softmax", "_safe_softmax")
def _softmax(b: Builder, n: Node, self: Array, dim: int, **_: Any) -> Array:
    _, e, total = exponentials(b, self, dim, _wide(n.dtype))
    return pointwise(lambda p, s: op("div", p, s), n.dtype, e, total)


@row("log_softmax", "_log_softmax", "special_log_softmax")
def _log_softmax(b: Builder, n: Node, self: Array, dim: int, **_: Any) -> Array:
    top, _, total = exponentials(b, self, dim, _wide(n.dtype))
    return pointwise(lambda x, m, s: op("sub", op("sub", cast(x, "real"), m), op("log", s)), n.dtype, self, top, total)


def exponentials(b: Builder, a: Array, dim: int, dtype: str) -> tuple[Array, Array, Array]:
    """The maximum along a dimension, exp of the distance to it, and the sum of these."""
    if not a.rank:
        zero = pointwise(lambda x: cast(x, "real"), dtype, a)
        one = pointwise(lambda x, y: op("exp", op("sub", x, y)), dtype, zero, zero)
        return zero, one, one
    top = b.reduce("max", a, (dim,), dtype, True, f"{b.stem}_max")
    e = pointwise(lambda x, m: op("exp", op("sub", cast(x, "real"), m)), dtype, a, top)
    e = b.define(e, f"{b.stem}_exp")
    return top, e, b.reduce("sum", e, (dim,), dtype, True, f"{b.stem}_sum")


@row("logsumexp", "special_logsumexp")
def _logsumexp(b: Builder, n: Node, self: Array, dim: Any, keepdim: bool = False) -> Array:
    """As PyTorch defines it: a row of -inf gives -inf."""
    dims, dtype = _dims(dim, self.rank), _wide(n.dtype)
    top = b.reduce("max", self, dims, dtype, True, f"{b.stem}_max")
    safe = pointwise(lambda m: apply("select", _is_inf(m), Const(0.0), m), dtype, top)
    e = pointwise(lambda x, m: op("exp", op("sub", cast(x, "real"), m)), dtype, self, safe)
    total = b.reduce("sum", e, dims, dtype, True, f"{b.stem}_sum")
    out = pointwise(lambda s, m: op("add", op("log", s), m), n.dtype, total, safe)
    return out if keepdim else drop_dims(out, dims)


@row("layer_norm", "native_layer_norm")
def _layer_norm(
    b: Builder,
    n: Node,
    input: Array,
    normalized_shape: Sequence[Any],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Array:
    dims = tuple(range(input.rank - len(normalized_shape), input.rank))
    middle, spread = moments(b, input, dims, _wide(n.dtype))
    return affine(n, input, middle, spread, eps, weight, bias)


def affine(
    n: Node, x: Array, middle: Array, spread: Array, eps: float, weight: Array | None, bias: Array | None
) -> Array:
    """``(x - mean) * rsqrt(variance + eps) * weight + bias``."""

    def fn(x: Expr, m: Expr, v: Expr) -> Expr:
        return op("mul", op("sub", cast(x, "real"), m), op("rsqrt", op("add", v, Const(float(eps)))))

    out = pointwise(fn, n.dtype, x, middle, spread)
    if weight is not None:
        out = pointwise(lambda y, w: op("mul", y, w), n.dtype, out, weight)
    return out if bias is None else pointwise(lambda y, c: op("add", y, c), n.dtype, out, bias)


@row("rms_norm", "_fused_rms_norm")
def _rms_norm(
    b: Builder,
    n: Node,
    input: Array,
    normalized_shape: Sequence[Any],
    weight: Array | None = None,
    eps: float | None = None,
) -> Array:
    dims, dtype = tuple(range(input.rank - len(normalized_shape), input.rank)), _wide(n.dtype)
    small = torch.finfo(getattr(torch, dtype)).eps if eps is None else float(eps)
    square = mean(b, pointwise(lambda x: _squared(cast(x, "real")), dtype, input), dims, dtype, True)
    out = pointwise(lambda x, s: op("mul", x, op("rsqrt", op("add", s, Const(small)))), n.dtype, input, square)
    return out if weight is None else pointwise(lambda y, w: op("mul", y, w), n.dtype, out, weight)


@row("nll_loss", "nll_loss_nd")
def _nll_loss(
    b: Builder,
    n: Node,
    self: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
) -> Array:
    if weight is not None or self.rank not in (1, 2):
        raise UnsupportedOperator("nll_loss with class weights or of more than two dimensions")
    live = pointwise(lambda t: apply("ne", t, Const(int(ignore_index))), "bool", target)

    def picked(i: tuple[Expr, ...]) -> Expr:
        loss = op("neg", self[(*i, index.clamp(target[i], self.shape[-1]))])
        return apply("select", live[i], loss, Const(0.0))

    losses = Array(target.shape, n.dtype, picked, target.hints)
    if reduction == 0:
        return losses
    total = b.reduce("sum", losses, (), n.dtype) if losses.rank else losses
    if reduction == 2:
        return total
    kept = (
        b.reduce("sum", pointwise(lambda c: cast(cast(c, "int"), "real"), _wide(n.dtype), live), ())
        if live.rank
        else live
    )
    return pointwise(lambda x, c: op("div", x, cast(c, "real")), n.dtype, total, kept)


@row("cross_entropy_loss")
def _cross_entropy(
    b: Builder,
    n: Node,
    self: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Array:
    if label_smoothing or kind_of(target.dtype) != "int":
        raise UnsupportedOperator("cross entropy with label smoothing or class probabilities")
    logp = _log_softmax(b, Node(self.shape, n.dtype), self, self.rank - 1)
    return _nll_loss(b, n, logp, target, weight, reduction, ignore_index)


__all__ = ["TABLE", "Node", "keep_dims", "row"]
