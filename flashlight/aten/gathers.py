"""Elements at positions that are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, aligned, broadcast, kind_of, scalar
from flashlight.aten.reductions import placed
from flashlight.aten.table import Node, row
from flashlight.aten.views import ONE, ZERO, At, flat
from flashlight.errors import UnsupportedOperator
from flashlight.expr import FALSE, Const, Expr, apply
from flashlight.scalars import cast, op


def position(e: Expr, size: Expr, b: Builder) -> Expr:
    """An index as PyTorch reads it: counted from the end where negative."""
    if index.nonnegative(index.polynomial(e), b.names.extent):
        return e
    return apply("select", op("lt", e, ZERO), apply("add", e, size), e)


UNROLLED = 64  # the most places that a scatter names one by one


@row("embedding")
def _embedding(b: Builder, n: Node, weight: Array, indices: Array, **_: Any) -> Array:
    k = indices.rank
    return Array(n.shape, n.dtype, lambda i: weight[(indices[i[:k]], i[k])], [*indices.hints, weight.hints[1]])


@row("index_select")
def _index_select(b: Builder, n: Node, self: Array, dim: int, index: Array) -> Array:
    d = dim % self.rank
    flat = index if index.rank else index.view((ONE,), lambda i: (), (None,))
    hints = [flat.hints[0] if k == d else h for k, h in enumerate(self.hints)]
    return self.view(n.shape, lambda i: [*i[:d], flat[(i[d],)], *i[d + 1 :]], hints)


@row("gather", "take_along_dim")
def _gather(
    b: Builder,
    n: Node,
    self: Array,
    dim: int | None = None,
    index: Array | None = None,
    indices: Array | None = None,
    **_: Any,
) -> Array:
    where = index if index is not None else indices
    if where is None:
        raise UnsupportedOperator("gather without indices")
    if dim is None:
        self, where, dim = flat(b, self), flat(b, where), 0
    d = dim % self.rank

    def at(i: At) -> list[Expr]:
        own = [ZERO if m is ONE else e for m, e in zip(self.shape, i, strict=True)]
        got = [ZERO if m is ONE else e for m, e in zip(where.shape, i, strict=True)]
        return [*own[:d], where[got], *own[d + 1 :]]

    return self.view(n.shape, at, [None if k == d else h for k, h in enumerate(self.hints)])


@row("take")
def _take(b: Builder, n: Node, self: Array, index: Array) -> Array:
    own = flat(b, self)
    return own.view(n.shape, lambda i: [position(index[i], own.shape[0], b)], index.hints)


@row("index", "_unsafe_index")
def _index(b: Builder, n: Node, self: Array, indices: Sequence[Array | None]) -> Array:
    given = [(d, a) for d, a in enumerate(indices) if a is not None]
    if any(kind_of(a.dtype) == "bool" for _, a in given):
        raise UnsupportedOperator("indexing by a boolean mask gives a shape that depends on values")
    shape, hints = broadcast([a for _, a in given])
    dims = [d for d, _ in given]
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    at = dims[0] if together else 0
    rest = [d for d in range(self.rank) if d not in dims]

    def where(i: At) -> list[Expr]:
        mine = i[at : at + len(shape)]
        others = iter((*i[:at], *i[at + len(shape) :]))
        own: dict[int, Expr] = {d: position(aligned(a, mine), self.shape[d], b) for d, a in given}
        own |= {d: next(others) for d in rest}
        return [own[d] for d in range(self.rank)]

    kept = [self.hints[d] for d in rest]
    return self.view(n.shape, where, [*kept[:at], *hints, *kept[at:]])


@row("index_put", "_unsafe_index_put")
def _index_put(
    b: Builder, n: Node, self: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False
) -> Array:
    """``x[mask] = number`` is a choice, and ``x[:, rows] = values`` a search for the row among them."""
    given = [(d, a) for d, a in enumerate(indices) if a is not None]
    if len(given) == 1 and given[0][1].rank == 1 and given[0][1].dtype != "bool":
        d, at = given[0]
        shape = (*self.shape[:d], at.shape[0], *self.shape[d + 1 :])
        return _written(b, n, self, d, at, lambda i: aligned(values, i), shape, accumulate)
    if len(given) != 1 or given[0][1].dtype != "bool" or any(e is not ONE for e in values.shape):
        raise UnsupportedOperator("writing at several indices at once is no function of the place (at one it is)")
    (first, mask), k = given[0], kind_of(n.dtype)
    number = values[(ZERO,) * values.rank]

    def element(i: At) -> Expr:
        own = self[i]
        new = op("add", own, cast(number, k)) if accumulate else cast(number, k)
        return op("select", mask[i[first : first + mask.rank]], new, own)

    return Array(self.shape, n.dtype, element, self.hints)


@row("index_copy")
def _index_copy(b: Builder, n: Node, self: Array, dim: int, index: Array, source: Array) -> Array:
    return _written(b, n, self, dim % self.rank, index, lambda i: source[i], source.shape, False)


@row("index_add")
def _index_add(b: Builder, n: Node, self: Array, dim: int, index: Array, source: Array, alpha: Any = 1) -> Array:
    k = kind_of(n.dtype)
    return _written(
        b, n, self, dim % self.rank, index, lambda i: op("mul", cast(source[i], k), Const(alpha)), source.shape, True
    )


@row("index_fill")
def _index_fill(b: Builder, n: Node, self: Array, dim: int, index: Array, value: Any) -> Array:
    number = value[()] if isinstance(value, Array) else scalar(value, n.dtype)[()]
    return _written(b, n, self, dim % max(self.rank, 1), index, lambda i: number, self.shape, False)


def _written(
    b: Builder,
    n: Node,
    self: Array,
    d: int,
    where: Array,
    new: Callable[[At], Expr],
    shape: Sequence[Expr],
    accumulate: bool,
) -> Array:
    """Slices along ``d`` written over, or added to: for each place, which of the given ones it is.  The last one counts
    where several are the same (PyTorch does not say which)."""
    if where.rank != 1 or not self.rank:
        raise UnsupportedOperator("writing at indices that are no row of numbers")
    k, length, count = kind_of(n.dtype), self.shape[d], where.shape[0]

    def here(place: Expr, which: Expr) -> Expr:
        return op("eq", position(where[(ZERO if count is ONE else which,)], length, b), place)

    def given(i: At, which: Expr) -> Expr:
        own = (ZERO if m is ONE else e for m, e in zip(shape, (*i[:d], which, *i[d + 1 :]), strict=True))
        return cast(new(tuple(own)), k)

    if accumulate:
        every = (*self.shape, count)

        def term(i: At) -> Expr:
            return op("select", here(i[d], i[-1]), given(i[:-1], i[-1]), cast(Const(0), k))

        added = b.reduce("sum", Array(every, n.dtype, term, (*self.hints, where.hints[0])), (self.rank,), n.dtype)
        return Array(self.shape, n.dtype, lambda i: op("add", self[i], added[i]), self.hints)

    def candidate(i: At) -> Expr:
        return op("select", here(i[0], i[1]), i[1], Const(-1))

    searched = Array((length, count), "int64", candidate, (self.hints[d], where.hints[0]))
    found = None if count is ONE else placed(b, searched, 1, False, "argmax")

    def element(i: At) -> Expr:
        which = found[(i[d],)] if found else ZERO
        return op("select", here(i[d], which), given(i, which), self[i])

    return Array(self.shape, n.dtype, element, self.hints)


@row("one_hot")
def _one_hot(b: Builder, n: Node, self: Array, num_classes: Any = -1) -> Array:
    if num_classes == -1:
        raise UnsupportedOperator("one_hot without a number of classes has a shape that depends on values")
    return Array(n.shape, n.dtype, lambda i: cast(op("eq", self[i[:-1]], i[-1]), "int"), (*self.hints, None))


@row("scatter")
def _scatter(b: Builder, n: Node, self: Array, dim: int, index: Array, **given: Any) -> Array:
    """A number written at given indices is a choice: is any of them this place?"""
    value, d = given.get("value"), dim % max(self.rank, 1)
    count = index.shape[d] if index.rank else ONE
    if value is None or isinstance(value, Array) or given.get("reduce") or not self.rank:
        raise UnsupportedOperator("scattering a tensor writes in an order that is not defined")
    if not isinstance(count, Const) or any(
        p is not q for k, (p, q) in enumerate(zip(self.shape, index.shape, strict=True)) if k != d
    ):
        raise UnsupportedOperator("scattering over a length, or to a part of the other dimensions")

    if int(count.value) > UNROLLED:
        raise UnsupportedOperator(f"scattering to more than {UNROLLED} places")
    number = scalar(value, n.dtype)[()]

    def element(i: At) -> Expr:
        hit: Expr = FALSE
        for t in range(int(count.value)):
            at = (*i[:d], Const(t), *i[d + 1 :])
            hit = apply("or", hit, op("eq", index[at], i[d]))
        return op("select", hit, number, self[i])

    return Array(self.shape, n.dtype, element, self.hints)
