"""Views: index maps of one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, Hint
from flashlight.aten.table import Node, row
from flashlight.errors import UnsupportedOperator
from flashlight.expr import Const, Expr, apply
from flashlight.index import add, equal, mul, sub
from flashlight.scalars import op

ONE, ZERO = Const(1), Const(0)
At = tuple[Expr, ...]


def expr(x: Any) -> Expr:
    return Const(x) if isinstance(x, int) else x


# ---- shapes ----------------------------------------------------------------------------------------------------------
@row(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "view_as",
    "reshape_as",
    "ravel",
    "view_copy",
    "_reshape_copy",
)
def _reshape(b: Builder, n: Node, self: Array, **_: Any) -> Array:
    if n.dtype != self.dtype:
        raise UnsupportedOperator("a view of the bits as another dtype")
    return reshape(b, self, n.shape)


def flat(b: Builder, a: Array) -> Array:
    """All elements, row by row."""
    return reshape(b, a, (mul(ONE, *a.shape),))


def reshape(b: Builder, a: Array, shape: Sequence[Expr]) -> Array:
    """Row-major order kept.  Groups of dimensions with equal products are matched, so that what is not split or
    merged stays as it is."""
    groups, guard = _groups(a.shape, shape)
    if guard is not None:
        b.require(guard)
    hints: list[Hint] = [None] * len(shape)
    for olds, news in groups:
        solid = [d for d in olds if a.shape[d] is not ONE], [d for d in news if shape[d] is not ONE]
        if len(solid[0]) == len(solid[1]) == 1:
            hints[solid[1][0]] = a.hints[solid[0][0]]

    def at(i: At) -> list[Expr]:
        out: list[Expr] = [ZERO] * a.rank
        for olds, news in groups:
            position = index.flatten([i[d] for d in news], [shape[d] for d in news])
            inner = index.unflatten(position, [a.shape[d] for d in olds], b.names.extent)
            for d, e in zip(olds, inner, strict=True):
                out[d] = ZERO if a.shape[d] is ONE else e
        return out

    return a.view(shape, at, hints)


def _groups(old: Sequence[Expr], new: Sequence[Expr]) -> tuple[list[tuple[list[int], list[int]]], Expr | None]:
    """Runs of dimensions with the same number of elements, and a condition where that is not provable."""
    out: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = ([i] if i < len(old) else []), ([j] if j < len(new) else [])
        a, c = (old[i] if olds else ONE), (new[j] if news else ONE)
        i, j = i + len(olds), j + len(news)
        while not equal(a, c):
            take_old = i < len(old) and (j >= len(new) or _divides(a, c))
            if take_old:
                a, i = mul(a, old[i]), i + 1
                olds.append(i - 1)
            elif j < len(new):
                c, j = mul(c, new[j]), j + 1
                news.append(j - 1)
            elif i < len(old):
                a, i = mul(a, old[i]), i + 1
                olds.append(i - 1)
            else:
                out.append((olds, news))
                return out, op("eq", a, c)
        out.append((olds, news))
    return out, None


def _divides(a: Expr, c: Expr) -> bool:
    """Does ``a`` divide ``c`` (or is it at least not a multiple of it)?  Then ``a`` is the side to grow."""
    _, rest = index.divmod_(c, a, lambda axis: None)
    if rest is ZERO:
        return True
    _, other = index.divmod_(a, c, lambda axis: None)
    return other is not ZERO and str(a) <= str(c)


@row("permute", "permute_copy")
def _permute(b: Builder, n: Node, self: Array, dims: Sequence[int]) -> Array:
    order = [d % self.rank for d in dims]
    return permute(self, order)


def permute(a: Array, order: Sequence[int]) -> Array:
    back = [list(order).index(d) for d in range(a.rank)]
    return a.view([a.shape[d] for d in order], lambda i: [i[d] for d in back], [a.hints[d] for d in order])


@row("transpose", "swapaxes", "swapdims", "t", "mT", "adjoint", "mH", "matrix_H")
def _transpose(b: Builder, n: Node, self: Array, dim0: int = -1, dim1: int = -2, **names: int) -> Array:
    first, second = names.get("axis0", dim0), names.get("axis1", dim1)
    if self.rank < 2:
        return self
    order = list(range(self.rank))
    p, q = first % self.rank, second % self.rank
    order[p], order[q] = order[q], order[p]
    return permute(self, order)


@row("numpy_T")
def _numpy_t(b: Builder, n: Node, self: Array) -> Array:
    return permute(self, list(reversed(range(self.rank))))


@row("movedim", "moveaxis")
def _movedim(b: Builder, n: Node, self: Array, source: Any, destination: Any) -> Array:
    sources = [d % self.rank for d in ((source,) if isinstance(source, int) else source)]
    targets = [d % self.rank for d in ((destination,) if isinstance(destination, int) else destination)]
    order: list[int | None] = [None] * self.rank
    for s, t in zip(sources, targets, strict=True):
        order[t] = s
    rest = iter(d for d in range(self.rank) if d not in sources)
    return permute(self, [next(rest) if d is None else d for d in order])


@row("unsqueeze", "unsqueeze_copy")
def _unsqueeze(b: Builder, n: Node, self: Array, dim: int) -> Array:
    at = dim % (self.rank + 1)
    hints = list(self.hints)
    hints.insert(at, None)
    return self.view(n.shape, lambda i: [*i[:at], *i[at + 1 :]], hints)


@row("squeeze", "squeeze_copy")
def _squeeze(b: Builder, n: Node, self: Array, dim: Any = None) -> Array:
    return reshape(b, self, n.shape)


@row("expand", "expand_as", "broadcast_to", "expand_copy")
def _expand(b: Builder, n: Node, self: Array, **_: Any) -> Array:
    lead = len(n.shape) - self.rank
    hints = [None] * lead + [h if m is not ONE else None for h, m in zip(self.hints, self.shape, strict=True)]

    def at(i: At) -> list[Expr]:
        return [ZERO if m is ONE else e for m, e in zip(self.shape, i[lead:], strict=True)]

    return self.view(n.shape, at, hints)


@row("broadcast_tensors")
def _broadcast_tensors(b: Builder, n: Node, tensors: Sequence[Array]) -> list[Array]:
    return [_expand(b, n, a) for a in tensors]


@row("meshgrid")
def _meshgrid(b: Builder, n: Node, tensors: Sequence[Array], indexing: str = "ij", **_: Any) -> list[Array]:
    places = list(range(len(tensors)))
    if indexing == "xy":
        places[:2] = reversed(places[:2])

    def along(a: Array, d: int) -> Array:
        hints = [a.hints[0] if k == d and a.rank else None for k in range(len(n.shape))]
        return a.view(n.shape, lambda i: [i[d]] if a.rank else [], hints)

    return [along(a, d) for a, d in zip(tensors, places, strict=True)]


@row("repeat", "tile")
def _repeat(b: Builder, n: Node, self: Array, **_: Any) -> Array:
    lead = len(n.shape) - self.rank

    def at(i: At) -> list[Expr]:
        out = []
        for m, size, e in zip(self.shape, n.shape[lead:], i[lead:], strict=True):
            out.append(ZERO if m is ONE else e if equal(m, size) else index.divmod_(e, m, b.names.extent)[1])
        return out

    same = [equal(m, size) for m, size in zip(self.shape, n.shape[lead:], strict=True)]
    hints = [None] * lead + [h if s else None for h, s in zip(self.hints, same, strict=True)]
    return self.view(n.shape, at, hints)


@row("repeat_interleave")
def _repeat_interleave(b: Builder, n: Node, self: Array, repeats: Any, dim: int | None = None, **_: Any) -> Array:
    if isinstance(repeats, Array):
        raise UnsupportedOperator("repeat_interleave with a tensor of counts")
    if dim is None:
        self, dim = flat(b, self), 0
    d = dim % self.rank
    times = expr(repeats)

    def at(i: At) -> list[Expr]:
        low, _ = index.divmod_(i[d], times, b.names.extent)
        return [*i[:d], ZERO if self.shape[d] is ONE else low, *i[d + 1 :]]

    return self.view(n.shape, at, [None if k == d else h for k, h in enumerate(self.hints)])


# ---- parts -----------------------------------------------------------------------------------------------------------
def part(a: Array, dim: int, start: Expr, length: Expr, step: int = 1) -> Array:
    """``a[start : start + length*step : step]`` along ``dim``."""
    shape = [*a.shape[:dim], length, *a.shape[dim + 1 :]]
    whole = start is ZERO and step == 1 and equal(length, a.shape[dim])

    def at(i: At) -> list[Expr]:
        return [*i[:dim], add(mul(i[dim], Const(step)), start), *i[dim + 1 :]]

    return a if whole else a.view(shape, at, [h if d != dim else None for d, h in enumerate(a.hints)])


def start_of(b: Builder, x: Any, size: Expr, default: Expr) -> Expr:
    """A slice's start or stop as PyTorch reads it: from the end where negative, never outside (which is required of
    symbolic sizes)."""
    if x is None:
        return default
    e = expr(x)
    if isinstance(e, Const) and e.value >= 1 << 62:
        return size
    if isinstance(e, Const) and e.value < 0:
        e = add(size, e)
    if isinstance(e, Const) and isinstance(size, Const):
        return Const(max(0, min(int(e.value), int(size.value))))
    for slack in (e, sub(size, e)):
        if not index.nonnegative(index.polynomial(slack), b.names.extent):
            b.require(op("ge", slack, ZERO))
    return e


@row("slice", "slice_copy")
def _slice(b: Builder, n: Node, self: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Array:
    d = dim % self.rank
    first, last = start_of(b, start, self.shape[d], ZERO), start_of(b, end, self.shape[d], self.shape[d])
    length, _ = index.divmod_(add(sub(last, first), Const(step - 1)), Const(step), b.names.extent)
    agree(b, n.shape[d], length)
    return part(self, d, first, n.shape[d], step)


def agree(b: Builder, made: Expr, computed: Expr) -> None:
    """The length that PyTorch gave has to be the one computed here."""
    if not equal(made, computed):
        b.require(op("eq", made, computed))


@row("narrow", "narrow_copy")
def _narrow(b: Builder, n: Node, self: Array, dim: int, start: Any, length: Any) -> Array:
    if isinstance(start, Array):
        raise UnsupportedOperator("narrow from a position in a tensor")
    d = dim % self.rank
    return part(self, d, start_of(b, start, self.shape[d], ZERO), n.shape[d])


@row("select", "select_copy")
def _select(b: Builder, n: Node, self: Array, dim: int, index: Any) -> Array:
    d, at = dim % self.rank, start_of(b, index, self.shape[dim % self.rank], ZERO)
    hints = [h for k, h in enumerate(self.hints) if k != d]
    return self.view(n.shape, lambda i: [*i[:d], at, *i[d:]], hints)


@row("unbind", "unbind_copy")
def _unbind(b: Builder, n: Node, self: Array, dim: int = 0) -> list[Array]:
    d = dim % self.rank
    count = self.shape[d]
    if not isinstance(count, Const):
        raise UnsupportedOperator(f"unbind along a dimension of symbolic length {count}")
    return [_select(b, n, self, d, k) for k in range(int(count.value))]


@row("split", "split_with_sizes", "chunk", "tensor_split", "split_copy", "unsafe_split", "unsafe_chunk")
def _split(
    b: Builder, n: Node, self: Array, dim: int = 0, shapes: Sequence[Sequence[Expr]] = (), **_: Any
) -> list[Array]:
    d = dim % self.rank
    start: Expr = ZERO
    out: list[Array] = []
    for shape in shapes:
        out.append(part(self, d, start, shape[d]))
        start = add(start, shape[d])
    agree(b, start, self.shape[d])
    return out


@row("flip")
def _flip(b: Builder, n: Node, self: Array, dims: Sequence[int]) -> Array:
    over = {d % self.rank for d in dims}

    def at(i: At) -> list[Expr]:
        return [sub(sub(self.shape[d], ONE), e) if d in over else e for d, e in enumerate(i)]

    return self.view(n.shape, at, [None if d in over else h for d, h in enumerate(self.hints)])


@row("roll")
def _roll(b: Builder, n: Node, self: Array, shifts: Any, dims: Any = ()) -> Array:
    moves = (shifts,) if not isinstance(shifts, tuple) else shifts
    over = (dims,) if isinstance(dims, int) else tuple(dims)
    if not over:
        line = flat(b, self)
        return reshape(b, _roll(b, Node(line.shape, n.dtype), line, shifts, (0,)), n.shape)
    out = self
    for shift, dim in zip(moves, over, strict=True):
        d, size = dim % self.rank, self.shape[dim % self.rank]
        move = expr(shift)
        if isinstance(move, Const) and isinstance(size, Const):
            move = Const(int(move.value) % int(size.value))
        elif isinstance(move, Const) and move.value < 0:
            move = add(size, move)

        def at(i: At, d: int = d, size: Expr = size, move: Expr = move) -> list[Expr]:
            wrapped = apply("select", op("lt", i[d], move), add(sub(i[d], move), size), sub(i[d], move))
            return [*i[:d], wrapped, *i[d + 1 :]]

        out = out.view(out.shape, at, [None if k == d else h for k, h in enumerate(out.hints)])
    return out


@row("diagonal", "diagonal_copy")
def diagonal(b: Builder, n: Node, self: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    p, q = dim1 % self.rank, dim2 % self.rank
    kept = [d for d in range(self.rank) if d not in (p, q)]
    left, right = sub(self.shape[p], Const(max(0, -offset))), sub(self.shape[q], Const(max(0, offset)))
    agree(b, n.shape[-1], left if equal(left, right) else apply("minimum", left, right))

    def at(i: At) -> list[Expr]:
        own = dict(zip(kept, i, strict=False)) | {
            p: add(i[-1], Const(max(0, -offset))),
            q: add(i[-1], Const(max(0, offset))),
        }
        return [own[d] for d in range(self.rank)]

    return self.view(n.shape, at, [*(self.hints[d] for d in kept), None])


@row("unfold", "unfold_copy")
def _unfold(b: Builder, n: Node, self: Array, dimension: int, size: int, step: int) -> Array:
    d = dimension % self.rank
    return windows(b, self, d, size, step, n.shape[d])


def windows(b: Builder, a: Array, d: int, size: int, step: int, length: Expr) -> Array:
    """``size`` elements that follow one another, beginning at every ``step``, as a last dimension."""
    count, _ = index.divmod_(sub(a.shape[d], Const(size)), Const(step), b.names.extent)
    agree(b, length, add(count, ONE))

    def at(i: At) -> list[Expr]:
        own = list(i[:-1])
        own[d] = add(mul(i[d], Const(step)), i[-1])
        return own

    shape = (*a.shape[:d], length, *a.shape[d + 1 :], Const(size))
    return a.view(shape, at, [*(None if k == d else h for k, h in enumerate(a.hints)), None])
