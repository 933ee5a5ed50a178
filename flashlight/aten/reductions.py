"""Sums, means, extremes, norms, moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, kind_of, pointwise, scalar
from flashlight.aten.joins import stack
from flashlight.aten.table import TABLE, Node, dims_of, elementwise, row
from flashlight.aten.views import ONE, reshape
from flashlight.errors import UnsupportedOperator
from flashlight.expr import IDENTITY, Const, Expr, apply
from flashlight.scalars import cast, op

TOP = 8  # the most places in an order that are kept: each is a state of its own


def count(a: Array, dims: Sequence[int], less: Any = 0) -> Expr:
    """The number of elements reduced, as a real."""
    total = index.mul(Const(1), *(a.shape[d] for d in dims))
    return cast(index.sub(total, Const(less)) if less else total, "real")


@row("sum")
def _sum(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return (
        b.reduce("sum", self, dims_of(dim, self.rank), n.dtype, keepdim)
        if self.rank
        else elementwise(lambda x: x, n, self)
    )


@row("mean")
def _mean(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return mean(b, self, dims_of(dim, self.rank), n.dtype, keepdim)


def mean(b: Builder, a: Array, dims: Sequence[int], dtype: str, keep: bool) -> Array:
    total = b.reduce("sum", a, dims, dtype, keep) if a.rank else a
    size = count(a, dims)
    return pointwise(lambda x: apply("div", x, size) if size is not Const(1.0) else x, dtype, total)


@row("max", "min")
def _extreme(
    b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, other: Any = None, *, monoid: str = "max"
) -> Any:
    if other is not None:
        return elementwise(lambda x, y: op(f"{monoid}imum", x, y), n, self, other)
    if kind_of(self.dtype) == "bool":
        raise UnsupportedOperator(f"{monoid} of booleans")
    out = b.reduce(monoid, self, dims_of(dim, self.rank), n.dtype, keepdim) if self.rank else self
    return (out, placed(b, self, dim, keepdim, f"arg{monoid}")) if isinstance(dim, int) else out


def placed(b: Builder, a: Array, dim: int, keep: bool, monoid: str, place: int = 0) -> Array:
    """The index of the element that comes at a place in the order of a dimension."""
    if kind_of(a.dtype) == "bool":
        raise UnsupportedOperator(f"{monoid} of booleans")
    stem = f"{b.stem}_{monoid}{place or ''}"
    return b.reduce(monoid, a, (dim,), "int64", keep, stem, place) if a.rank else scalar(0, "int64")


@row("argmax", "argmin")
def _argument(
    b: Builder, n: Node, self: Array, dim: int | None = None, keepdim: bool = False, *, monoid: str = "argmax"
) -> Array:
    if dim is None:
        if keepdim:
            raise UnsupportedOperator(f"{monoid} over all dimensions with keepdim")
        return placed(b, reshape(b, self, [index.mul(ONE, *self.shape)]), 0, False, monoid)
    return placed(b, self, dim, keepdim, monoid)


TABLE["argmin"] = partial(_argument, monoid="argmin")


@row("topk")
def _topk(b: Builder, n: Node, self: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    end = "max" if largest else "min"
    if not isinstance(k, int) or k > TOP:
        raise UnsupportedOperator(f"topk of {k}, more than {TOP} places")
    at = dim % self.rank
    values = [b.reduce(end, self, (at,), self.dtype, stem=f"{b.stem}_{end}{r or ''}", place=r) for r in range(k)]
    places = [placed(b, self, at, False, f"arg{end}", r) for r in range(k)]
    shape = (*values[0].shape[:at], Const(k), *values[0].shape[at:])
    return tuple(stack(b, Node(shape, parts[0].dtype), parts, at) for parts in (values, places))


@row("kthvalue")
def _kthvalue(b: Builder, n: Node, self: Array, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if not isinstance(k, int) or k > TOP:
        raise UnsupportedOperator(f"kthvalue of {k}, more than {TOP} places")
    out = b.reduce("min", self, (dim,), self.dtype, keepdim, place=k - 1)
    return out, placed(b, self, dim, keepdim, "argmin", k - 1)


TABLE["max"] = lambda b, n, **a: _extreme(b, n, monoid="max", **a)
TABLE["min"] = lambda b, n, **a: _extreme(b, n, monoid="min", **a)
TABLE["amax"] = lambda b, n, self, dim=None, keepdim=False: _extreme(
    b, n, self, tuple(dims_of(dim, self.rank)), keepdim
)
TABLE["amin"] = lambda b, n, self, dim=None, keepdim=False: _extreme(
    b, n, self, tuple(dims_of(dim, self.rank)), keepdim, monoid="min"
)


@row("prod")
def _prod(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, **_: Any) -> Array:
    return b.reduce("prod", self, dims_of(dim, self.rank), n.dtype, keepdim)


@row("cumsum", "cumprod", "cummax", "cummin")
def _running(b: Builder, n: Node, self: Array, dim: int, *, monoid: str = "sum", **_: Any) -> Array:
    """A running reduction is a reduction of what does not come later."""
    if not self.rank:
        return elementwise(lambda x: x, n, self)
    d, k = dim % self.rank, kind_of(n.dtype)
    neutral = IDENTITY[monoid]
    if k != "real" and math.isinf(neutral):
        raise UnsupportedOperator(f"running {monoid} of integers")

    def body(i: tuple[Expr, ...], r: tuple[Expr, ...]) -> Expr:
        before = cast(self[i[:d] + r + i[d + 1 :]], k)
        return op("select", op("le", r[0], i[d]), before, cast(Const(neutral), k))

    if self.shape[d] is ONE:
        return elementwise(lambda x: x, n, self)
    return b.scan(monoid, self, d, n.dtype, body)


TABLE["cumprod"] = partial(_running, monoid="prod")
TABLE["cummax"] = lambda b, n, self, dim: (_running(b, n, self, dim, monoid="max"), None)
TABLE["cummin"] = lambda b, n, self, dim: (_running(b, n, self, dim, monoid="min"), None)


@row("logcumsumexp")
def _logcumsumexp(b: Builder, n: Node, self: Array, dim: int) -> Array:
    """Relative to the running maximum."""
    top = _running(b, n, self, dim, monoid="max")
    d = dim % max(self.rank, 1)

    def body(i: tuple[Expr, ...], r: tuple[Expr, ...]) -> Expr:
        x = cast(self[i[:d] + r + i[d + 1 :]], "real")
        return op("select", op("le", r[0], i[d]), op("exp", op("sub", x, top[i])), Const(0.0))

    if not self.rank or self.shape[d] is ONE:
        return elementwise(lambda x: x, n, self)
    total = b.scan("sum", self, d, n.dtype, body)
    return pointwise(lambda s, m: op("add", op("log", s), m), n.dtype, total, top)


@row("any", "all")
def _any(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False, *, monoid: str = "max") -> Array:
    flags = Array(self.shape, "int32", lambda i: cast(cast(self[i], "bool"), "int"), self.hints)
    out = b.reduce(monoid, flags, dims_of(dim, self.rank), "int32", keepdim)
    return pointwise(lambda x: apply("ne", x, Const(0)), "bool", out)


TABLE["all"] = partial(_any, monoid="min")


@row("count_nonzero")
def _count_nonzero(b: Builder, n: Node, self: Array, dim: Any = None) -> Array:
    flags = Array(self.shape, "int64", lambda i: cast(cast(self[i], "bool"), "int"), self.hints)
    return b.reduce("sum", flags, dims_of(dim, self.rank), "int64")


@row("linalg_vector_norm", "norm")
def _norm(
    b: Builder, n: Node, self: Array, ord: Any = 2, dim: Any = None, keepdim: bool = False, p: Any = None, **_: Any
) -> Array:
    ord = float(p if p is not None else ord if ord is not None else 2)
    dims = dims_of(dim, self.rank)
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
    dims = dims_of(dim, self.rank)
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
    square = pointwise(lambda x, m: squared(op("sub", cast(x, "real"), m)), dtype, a, middle)
    total = b.reduce("sum", square, dims, dtype, True)
    size = count(a, dims, less)
    return middle, pointwise(lambda x: apply("div", x, size), dtype, total)


def squared(x: Expr) -> Expr:
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
