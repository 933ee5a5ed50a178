"""Several tensors, or a tensor and its surroundings, as one; and parts written over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, kind_of, scalar
from flashlight.aten.table import Node, row
from flashlight.aten.views import ONE, ZERO, At, expr, flat, start_of
from flashlight.aten.views import diagonal as diagonal_of
from flashlight.errors import UnsupportedOperator
from flashlight.expr import Const, Expr, apply
from flashlight.index import add, clamp, equal, sub
from flashlight.scalars import cast, op


@row("cat", "concat", "concatenate")
def _cat(b: Builder, n: Node, tensors: Sequence[Array], dim: int = 0) -> Array:
    parts = [a for a in tensors if not (a.rank == 1 and a.shape[0] is ZERO and len(n.shape) > 1)]
    d = dim % len(n.shape)
    k = kind_of(n.dtype)
    ends: list[Expr] = []
    for a in parts:
        ends.append(add(ends[-1] if ends else ZERO, a.shape[d]))

    def element(i: At) -> Expr:
        out: Expr | None = None
        for which in reversed(range(len(parts))):
            a, start = parts[which], ends[which - 1] if which else ZERO
            own = [e if m is not ONE or p == d else ZERO for p, (m, e) in enumerate(zip(a.shape, i, strict=True))]
            own[d] = clamp(sub(i[d], start), a.shape[d]) if len(parts) > 1 else i[d]
            value = cast(a[own], k)
            out = value if out is None else op("select", op("lt", i[d], ends[which]), value, out)
        return out if out is not None else Const(0)

    hints = [None if p == d and len(parts) > 1 else h for p, h in enumerate(parts[0].hints)]
    return Array(n.shape, n.dtype, element, hints)


@row("stack")
def stack(b: Builder, n: Node, tensors: Sequence[Array], dim: int = 0) -> Array:
    d = dim % len(n.shape)
    rows = []
    for a in tensors:
        hints = [*a.hints[:d], None, *a.hints[d:]]
        rows.append(a.view([*a.shape[:d], ONE, *a.shape[d:]], lambda i: [*i[:d], *i[d + 1 :]], hints))
    return _cat(b, n, rows, d)


@row("constant_pad_nd", "pad")
def _pad(b: Builder, n: Node, self: Array, pad: Sequence[Any], value: Any = 0, mode: str = "constant") -> Array:
    if mode != "constant":
        raise UnsupportedOperator(f"padding by {mode}")
    before = {self.rank - 1 - k: expr(pad[2 * k]) for k in range(len(pad) // 2)}
    fill = cast(scalar(value or 0, n.dtype)[()], kind_of(n.dtype))

    def element(i: At) -> Expr:
        at, inside = list(i), []
        for d, low in before.items():
            at[d] = sub(i[d], low)
            if not equal(n.shape[d], self.shape[d]):
                inside += [op("ge", at[d], ZERO), op("lt", at[d], self.shape[d])]
                at[d] = clamp(at[d], self.shape[d])
        return op("select", _all(inside), self[at], fill)

    return Array(n.shape, n.dtype, element, [None if d in before else h for d, h in enumerate(self.hints)])


@row("diag_embed")
def diag_embed(b: Builder, n: Node, self: Array, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Array:
    p, q = dim1 % len(n.shape), dim2 % len(n.shape)
    k = kind_of(n.dtype)

    def element(i: At) -> Expr:
        place = add(i[p], Const(min(offset, 0)))
        at = [e for d, e in enumerate(i) if d not in (p, q)]
        at.append(clamp(place, self.shape[-1]) if offset else place)
        return op("select", op("eq", add(i[p], Const(offset)), i[q]), self[at], cast(Const(False), k))

    others = iter(self.hints[:-1])
    return Array(n.shape, n.dtype, element, [None if d in (p, q) else next(others) for d in range(len(n.shape))])


@row("diag")
def _diag(b: Builder, n: Node, self: Array, diagonal: int = 0) -> Array:
    return (diag_embed if self.rank == 1 else diagonal_of)(b, n, self, diagonal)


@row("diagflat")
def _diagflat(b: Builder, n: Node, self: Array, offset: int = 0) -> Array:
    return diag_embed(b, n, flat(b, self), offset)


def _all(conditions: Sequence[Expr]) -> Expr:
    out: Expr = Const(True)
    for c in conditions:
        out = apply("and", out, c)
    return out


@row("block_diag")
def _block_diag(b: Builder, n: Node, tensors: Sequence[Array]) -> Array:
    k = kind_of(n.dtype)

    def element(i: At) -> Expr:
        out: Expr = cast(Const(0), k)
        start: list[Expr] = [ZERO, ZERO]
        for a in tensors:
            shape = (*(ONE,) * (2 - a.rank), *a.shape)
            ends = [add(s, m) for s, m in zip(start, shape, strict=True)]
            inside = [op(t, e, x) for e, s, x in zip(i, start, ends, strict=True) for t, x in (("ge", s), ("lt", x))]
            at = [clamp(sub(e, s), m) for e, s, m in zip(i, start, shape, strict=True)]
            out = op("select", _all(inside), cast(a[at[2 - a.rank :]], k), out)
            start = ends
        return out

    return Array(n.shape, n.dtype, element)


@row("select_scatter")
def _select_scatter(b: Builder, n: Node, self: Array, src: Array, dim: int, index: Any) -> Array:
    d, k = dim % self.rank, kind_of(n.dtype)
    where = start_of(b, index, self.shape[d], ZERO)

    def element(i: At) -> Expr:
        return op("select", op("eq", i[d], where), cast(src[i[:d] + i[d + 1 :]], k), self[i])

    return Array(n.shape, n.dtype, element, self.hints)


@row("slice_scatter")
def _slice_scatter(
    b: Builder, n: Node, self: Array, src: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Array:
    d, k = dim % self.rank, kind_of(n.dtype)
    first = start_of(b, start, self.shape[d], ZERO)

    def element(i: At) -> Expr:
        from_start = sub(i[d], first)
        low, phase = index.divmod_(from_start, Const(step), b.names.extent)
        inside = [op("ge", from_start, ZERO), op("lt", low, src.shape[d]), op("eq", phase, ZERO)]
        if phase is ZERO:
            inside.pop()
        at = [*i[:d], clamp(low, src.shape[d]), *i[d + 1 :]]
        return op("select", _all(inside), cast(src[at], k), self[i])

    return Array(n.shape, n.dtype, element, self.hints)
