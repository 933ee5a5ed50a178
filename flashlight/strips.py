"""Long contractions in strips: a loop inside a trip adds them up, a strip of both operands at a time.

Held whole, an operand of a long contraction fills shared memory at a few rows, and every block of rows streams the
other side once more.  In strips the blocks of the result may be as large as registers hold, whatever the contraction's
length (docs/decisions/0020-strips.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flashlight.program import fresh
from flashlight.tile import (
    Apply,
    Carry,
    CastOp,
    Const,
    Dim,
    DotOp,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Ref,
    Segment,
    Stmt,
    Store,
    lets,
    reads,
)

STRIP = 64  # columns: what is contracted a strip at a time is a multiple of it


def summed_only(kernel: Kernel) -> tuple[Dim, ...]:
    """Point dimensions that nothing but dots and sums over them read: of what is loaded, and made of that point by
    point."""
    spoilt: set[str] = set()
    carried: dict[str, frozenset[str]] = {}  # names, and the dimensions of what they hold

    def visit(body: Iterable[Stmt]) -> None:
        for s in body:
            match s:
                case Let(name, dims, _, op):
                    if not isinstance(op, LoadOp | CastOp | MapOp):
                        spoilt.update(dims)
                    over = _summed(s)
                    spoilt.update(a for r in reads(s) for a in carried.get(r, ()) if a not in dims and a != over)
                    if isinstance(op, DotOp) and op.acc is not None:
                        spoilt.add(op.contract)
                    carried[name] = frozenset(dims)
                case Store(_, _, value):
                    spoilt.update(carried.get(value, ()))
                case Loop(_, carries, segments):
                    for c in carries:
                        spoilt.update(c.dims)
                    for g in segments:
                        visit(g.body)

    visit(kernel.body)
    return tuple(d for d in kernel.dims if d.role == "point" and d.axis not in spoilt)


def long(kernel: Kernel, strip: int = STRIP) -> list[Dim]:
    """The contracted dimensions that strips can be cut from: longer than one, and a multiple of it."""
    return [d for d in summed_only(kernel) if d.block > strip and d.block % strip == 0]


def in_strips(kernel: Kernel, strip: int) -> Kernel:
    """The kernel with every contraction that is :func:`long` as a loop over strips."""
    for d in long(kernel, strip):
        body = _Strips(kernel, d, strip).body(kernel.body, {})
        dims = tuple(replace(x, block=strip, role="stream") if x.axis == d.axis else x for x in kernel.dims)
        kernel = replace(kernel, body=body, dims=dims)
    return kernel


class _Strips:
    """One axis of a kernel in strips: what varies along it is computed where it is summed, in a loop of its own."""

    def __init__(self, kernel: Kernel, dim: Dim, strip: int):
        self.axis, self.trips = dim.axis, dim.block // strip
        self.taken = {s.name for s in lets(kernel.body)}

    def body(self, body: tuple[Stmt, ...], known: dict[str, Let]) -> tuple[Stmt, ...]:
        """``known``: what varies along the axis, by name, in order."""
        known, out = dict(known), list[Stmt]()
        for s in body:
            match s:
                case Let(name, dims) if self.axis in dims:
                    known[name] = s
                case Let() if _summed(s) == self.axis:
                    out.append(self.loop(s, known))
                case Loop(_, _, segments):
                    made = tuple(replace(g, body=self.body(g.body, known)) for g in segments)
                    out.append(replace(s, segments=made))
                case _:
                    out.append(s)
        return tuple(out)

    def loop(self, s: Let, known: dict[str, Let]) -> Loop:
        wanted, todo = set[str](), list(reads(s))
        while todo:
            if (name := todo.pop()) in known and name not in wanted:
                wanted.add(name)
                todo += reads(known[name])
        after = self.fresh(f"{s.name}_next")
        body: list[Stmt] = [x for name, x in known.items() if name in wanted]
        if isinstance(s.op, DotOp):
            body.append(replace(s, name=after, op=replace(s.op, acc=s.name)))
        else:
            part = self.fresh(f"{s.name}_strip")
            body.append(replace(s, name=part))
            body.append(Let(after, s.dims, s.dtype, MapOp(Apply("add", (Ref(s.name), Ref(part))))))
        segment = Segment("full", Const(0), Const(self.trips), tuple(body))
        return Loop(self.axis, (Carry(s.name, s.dims, s.dtype, 0.0, after),), (segment,), True)

    def fresh(self, name: str) -> str:
        name = fresh(name, self.taken)
        self.taken.add(name)
        return name


def _summed(s: Let) -> str | None:
    """The axis that a statement sums over."""
    match s.op:
        case DotOp(_, _, contract):
            return contract
        case ReduceOp("sum", _, axis):
            return axis
    return None
