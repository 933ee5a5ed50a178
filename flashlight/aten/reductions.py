"""Sums, means, extremes, norms, moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, kind_of, pointwise, scalar
from flashlight.aten.joins import stack
from flashlight.aten.table import TABLE, Node, dims_of, elementwise, row, wide
from flashlight.aten.views import ONE, At, diagonal, expr, flat, windows
from flashlight.errors import NeedsLiteral, UnsupportedOperator
from flashlight.expr import IDENTITY, Const, Expr, apply
from flashlight.lengths import sizes_of
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


def _without_nan(a: Array, dtype: str) -> Array:
    return pointwise(lambda x: apply("select", apply("isnan", x), Const(0.0), x), dtype, a)


@row("nansum")
def _nansum(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False) -> Array:
    return _sum(b, n, _without_nan(self, self.dtype) if kind_of(self.dtype) == "real" else self, dim, keepdim)


@row("nanmean")
def _nanmean(b: Builder, n: Node, self: Array, dim: Any = None, keepdim: bool = False) -> Array:
    real = pointwise(lambda x: cast(op("not", apply("isnan", x)), "real"), wide(n.dtype), self)
    total, kept = (_sum(b, n, a, dim, keepdim) for a in (_without_nan(self, n.dtype), real))
    return pointwise(lambda x, c: op("div", x, c), n.dtype, total, kept)


@row("trace")
def _trace(b: Builder, n: Node, self: Array) -> Array:
    rows, columns = self.shape
    length = rows if index.equal(rows, columns) else apply("minimum", rows, columns)
    if not isinstance(length, Const) and length is not rows:
        raise NeedsLiteral(sizes_of(length), f"a matrix of {rows} by {columns} has a trace of the shorter length")
    return _sum(b, n, diagonal(b, Node((length,), self.dtype), self))


@row("avg_pool1d")
def _avg_pool(
    b: Builder,
    n: Node,
    self: Array,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dims: int = 1,
) -> Array:
    """The mean of windows.  What of a window lies outside has no place in a view: no padding, nothing rounded up."""
    kernel, step, around = (_per_dim(x, dims) for x in (kernel_size, stride or kernel_size, padding))
    if any(around) or ceil_mode:
        raise UnsupportedOperator("average pooling with padding or ceil_mode")
    if not all(isinstance(k, int) for k in (*kernel, *step)):
        raise UnsupportedOperator("average pooling with a kernel or stride that is not a number")
    lead, out = self.rank - dims, self
    for d, (size, by) in enumerate(zip(kernel, step, strict=True), lead):
        out = windows(b, out, d, size, by, n.shape[d])
    over = range(self.rank, self.rank + dims)
    if divisor_override is None:
        return mean(b, out, over, n.dtype, False)
    total = b.reduce("sum", out, over, n.dtype)
    return pointwise(lambda x: op("div", x, Const(float(divisor_override))), n.dtype, total)


TABLE["avg_pool2d"] = partial(_avg_pool, dims=2)


def _per_dim(x: Any, dims: int) -> tuple[Any, ...]:
    given = tuple(x) if isinstance(x, tuple | list) else (x,)
    return given * dims if len(given) == 1 else given


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
        out = placed(b, flat(b, self), 0, False, monoid)
        return out.view(n.shape, lambda i: (), (None,) * self.rank) if keepdim else out
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
def _kthvalue(b: Builder, n: Node, self: Array, k: Any, dim: int = -1, keepdim: bool = False) -> Any:
    before, after = index.sub(expr(k), ONE), index.sub(self.shape[dim % self.rank], expr(k))
    places = {end: int(e.value) for end, e in (("min", before), ("max", after)) if isinstance(e, Const)}
    end = min(places, key=lambda e: places[e], default="min")
    if places.get(end, TOP) >= TOP:
        raise UnsupportedOperator(f"kthvalue of {k}, more than {TOP} places from either end")
    out = b.reduce(end, self, (dim,), self.dtype, keepdim, place=places[end])
    return out, placed(b, self, dim, keepdim, f"arg{end}", places[end])


TABLE["max"] = lambda b, n, **a: _extreme(b, n, monoid="max", **a)
TABLE["min"] = lambda b, n, **a: _extreme(b, n, monoid="min", **a)
TABLE["amax"] = lambda b, n, self, dim=None, keepdim=False: _extreme(
    b, n, self, tuple(dims_of(dim, self.rank)), keepdim
)
TABLE["amin"] = lambda b, n, self, dim=None, keepdim=False: _extreme(
    b, n, self, tuple(dims_of(dim, self.rank)), keepdim, monoid="min"
)


@row("aminmax")
def _aminmax(b: Builder, n: Node, self: Array, dim: int | None = None, keepdim: bool = False) -> Any:
    dims = dims_of(dim, self.rank)
    return tuple(_extreme(b, n, self, dims, keepdim, monoid=monoid) for monoid in ("min", "max"))


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
    power: Callable[[Expr], Expr]
    root: Callable[[Expr], Expr]
    if ord == 0:
        power, root = lambda x: cast(op("ne", x, Const(0.0)), "real"), lambda x: x
    elif ord == 1:
        power = root = lambda x: x
    elif ord == 2:
        power, root = squared, lambda x: op("sqrt", x)
    else:
        power, root = lambda x: op("pow", x, Const(ord)), lambda x: op("pow", x, Const(1 / ord))
    total = b.reduce("sum", pointwise(power, n.dtype, self if ord == 2 else size), dims, n.dtype, keepdim)
    return pointwise(root, n.dtype, total)


@row("linalg_norm")
def _linalg_norm(b: Builder, n: Node, self: Array, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Array:
    """A norm of matrices where it is one of their elements (Frobenius), or of vectors."""
    of_vectors = self.rank == 1 or isinstance(dim, int) or (dim is not None and len(dim) == 1)
    if ord not in (None, "fro") and not of_vectors:
        raise UnsupportedOperator(f"a norm of matrices of order {ord}")
    return _norm(b, n, self, 2 if ord in (None, "fro") else ord, dim, keepdim)


TABLE["linalg_matrix_norm"] = lambda b, n, self, ord="fro", dim=(-2, -1), keepdim=False: _linalg_norm(
    b, n, self, ord, dim, keepdim
)


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


@row("bucketize", "searchsorted")
def _bucketize(
    b: Builder,
    n: Node,
    self: Array,
    boundaries: Array | None = None,
    sorted_sequence: Array | None = None,
    right: bool = False,
    side: str | None = None,
    sorter: Array | None = None,
    **_: Any,
) -> Array:
    """How many boundaries lie before each element: they are counted, so that their order does not matter."""
    ends = boundaries if boundaries is not None else sorted_sequence
    if ends is None or ends.rank != 1 or sorter is not None:
        raise UnsupportedOperator("a search in more than one sequence, or with a sorter")
    after = "gt" if right or side == "right" else "ge"

    def one(i: At) -> Expr:  # a NaN comes after all of them
        return op("select", op(after, ends[(i[-1],)], self[i[:-1]]), Const(0), Const(1))

    found = Array((*self.shape, ends.shape[0]), "int64", one, (*self.hints, ends.hints[0]))
    return b.reduce("sum", found, (-1,), n.dtype)
