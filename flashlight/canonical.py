"""Kernels without the words of the programs they come from: equal kernels become equal texts.

``canonical(kernel)`` is the same kernel with everything named in order of use.  Statements and states stand in the
order in which results ask for them, operands that commute and the dimensions of a buffer (whose strides are given at
run time) in one order.  Nothing that changes a value, a rounding or the amount of work is touched, so two spellings of
a program have reached one kernel exactly when their canonical texts are equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from flashlight import index
from flashlight.expr import Apply, Const, Expr, Index, Load, Ref, Size, apply, axes, kind, walk
from flashlight.tile import (
    BlockOp,
    Buffer,
    Carry,
    CastOp,
    DotOp,
    GridAxis,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    ScanOp,
    Segment,
    Stmt,
    Store,
)

Table = dict[Expr, Expr]
_COMMUTE = ("add", "mul", "maximum", "minimum", "eq", "ne")
_CHAIN = ("and", "or")
_COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
_ROLES = ("row", "stream", "point")


def canonical(kernel: Kernel) -> Kernel:
    """The kernel in its canonical order and under its canonical names.

    Equal kernels give equal ones; ``str`` of them is equal even where constants differ in digits that float32 has not.
    """
    return _Renaming(_Ordering(kernel).kernel()).kernel()


def respelt(e: Expr, table: Table) -> Expr:
    """An expression over other leaves: integers in their normal form, operands that commute in the order of their
    texts."""
    if e in table or not isinstance(e, Apply):
        return table.get(e, e)
    args = tuple(respelt(a, table) for a in e.args)
    if e.op in _CHAIN:
        first, *rest = sorted((p for a in args for p in _links(e.op, a)), key=str)
        for p in rest:
            first = apply(e.op, first, p)
        return first
    if e.op in _COMPARE and all(kind(a) == "int" for a in args):
        return index.compare(e.op, *args)
    if e.op in _COMMUTE:
        args = tuple(sorted(args, key=str))
    return index.normal(apply(e.op, *args))


def _links(op: str, e: Expr) -> list[Expr]:
    return [p for a in e.args for p in _links(op, a)] if isinstance(e, Apply) and e.op == op else [e]


def _refs(*parts: Expr) -> list[str]:
    return [n.name for e in parts for n in walk(e) if isinstance(n, Ref)]


class _Ordering:
    """Statements in the order in which results ask for them.

    A value's *mark* is a digest of how it is computed, without names.  Marks order what has no order of its own:
    operands that commute, and states.
    """

    def __init__(self, kernel: Kernel):
        self.k = kernel
        streams = dict.fromkeys(d.axis for d in kernel.dims if d.role == "stream")
        self.labels: Table = {Index(d.axis): Index(f"p{d.extent}") for d in kernel.dims}
        self.labels |= {Index(a): Index(f"s{n}") for n, a in enumerate(streams)}
        self.labels |= {Index(g.axis): Index(f"g{n}") for n, g in enumerate(kernel.grid)}
        self.labels |= {Size(old): Size(new) for old, new in _sizes(kernel).items()}
        self.position = {b.name: n for n, b in enumerate(kernel.outputs)}

    def kernel(self) -> Kernel:
        return replace(self.k, body=self.body(self.k.body, (), {}, []))

    # ---- marks -------------------------------------------------------------------------------------------------
    def mark(self, s: Let | Store, marks: Table) -> str:
        def of(name: str | None) -> str:
            return str(marks.get(Ref(name), "")) if name else ""

        def places(buffer: Buffer, at: tuple[Expr, ...]) -> list[str]:
            table = self.labels | marks
            return sorted(str(respelt(at[d], table)) for d, n in enumerate(buffer.shape) if n is not Const(1))

        match s:
            case Store(buffer, at, value):
                return _digest("store", [], self.position[buffer], places(self.k.buffer(buffer), at), of(value))
            case Let(_, dims, dtype, LoadOp(buffer, at, guard, other)):
                b = self.k.buffer(buffer)
                shape = sorted(str(respelt(n, self.labels)) for n in b.shape if n is not Const(1))
                what, op = "load", [b.dtype, shape, places(b, at), self.named(guard), other]
            case Let(_, dims, dtype, MapOp(body)):
                what, op = "map", [str(respelt(body, self.labels | marks))]
            case Let(_, dims, dtype, DotOp(left, right, contract, acc)):
                what, op = "dot", [of(left), of(right), self.named([contract]), of(acc)]
            case Let(_, dims, dtype, ReduceOp(monoid, value, axis)):
                what, op = monoid, [of(value), self.named([axis])]
            case Let(_, dims, dtype, ScanOp(value, axis)):
                what, op = "scan", [of(value), self.named([axis])]
            case Let(_, dims, dtype, CastOp(value)):
                what, op = "cast", [of(value)]
        return _digest(what, self.named(dims), dtype, *op)

    def named(self, names: Iterable[str]) -> list[str]:
        return sorted(str(self.labels[Index(n)]) for n in names)

    def reads(self, s: Stmt, marks: Table) -> list[str]:
        """The values that a statement refers to; where operands commute, in the order of their marks."""
        match s:
            case Store():
                return [s.value, *_refs(*s.index)]
            case Let(op=LoadOp() as op):
                return _refs(*op.index)
            case Let(op=MapOp() as op):
                own: dict[str, list[str]] = {}
                for n in dict.fromkeys(_refs(op.body)):
                    own.setdefault(str(marks.get(Ref(n), n)), []).append(n)
                return [n for m in _refs(respelt(op.body, self.labels | marks)) for n in own[m]]
            case Let(op=DotOp() as op):
                return [op.left, op.right, *([op.acc] if op.acc else [])]
            case Let(op=ReduceOp() | ScanOp() | CastOp() as op):
                return [op.value]
        return []

    # ---- orders ------------------------------------------------------------------------------------------------
    def body(self, body: Sequence[Stmt], wanted: Sequence[str], marks: Table, outside: list[str]) -> tuple[Stmt, ...]:
        """A body in order: the values ``wanted`` of it first, then its stores.  ``marks`` gets those of its values,
        ``outside`` the names that it reads and does not define."""
        defined: dict[str, Stmt] = {}
        roots: list[tuple[int, str, Stmt]] = []
        reads: dict[int, list[str]] = {}
        ready: dict[int, Stmt] = {}
        for s in body:
            ready[id(s)] = s
            match s:
                case Let():
                    marks[Ref(s.name)] = Ref(self.mark(s, marks))
                    defined[s.name] = s
                case Store():
                    roots.append((self.position[s.buffer], self.mark(s, marks), s))
                case Loop():
                    ready[id(s)], reads[id(s)] = self.loop(s, marks)
                    defined |= {c.name: s for c in s.carries}
                    roots += [(self.position[n], "", s) for n in _stored(s)]
        out: list[Stmt] = []
        done: set[int] = set()

        def ask(names: Iterable[str]) -> None:
            for n in names:
                if n in defined:
                    emit(defined[n])
                else:
                    outside.append(n)

        def emit(s: Stmt) -> None:
            if id(s) not in done:
                done.add(id(s))
                ask(reads[id(s)] if isinstance(s, Loop) else self.reads(s, marks))
                out.append(ready[id(s)])

        ask(wanted)
        for _, _, s in sorted(roots, key=lambda root: root[:2]):
            emit(s)
        for s in body:  # what nobody asks for stays visible
            emit(s)
        return tuple(out)

    def loop(self, s: Loop, marks: Table) -> tuple[Loop, list[str]]:
        """The loop in order, and the names that it reads from outside."""
        seeds: Table = {Ref(c.name): Ref(_digest("state", self.named(c.dims), c.dtype, c.init)) for c in s.carries}
        inner: list[Table] = []
        for g in s.segments:
            inner.append(marks | seeds)
            self.body(g.body, (), inner[-1], [])
        keys = {c.name: [str(m[Ref(c.next)]) for m in inner] for c in s.carries}
        carries = tuple(sorted(s.carries, key=lambda c: (_depth(c, s, self), len(c.dims), keys[c.name])))
        marks |= {Ref(c.name): Ref(_digest("state", self.named(c.dims), c.init, keys[c.name])) for c in carries}
        outside: list[str] = []
        segments = tuple(
            replace(g, body=self.body(g.body, [c.next for c in carries], dict(marks), outside)) for g in s.segments
        )
        own = {c.name for c in s.carries}
        return replace(s, carries=carries, segments=segments), [n for n in outside if n not in own]


def _depth(c: Carry, loop: Loop, order: _Ordering) -> int:
    """On how long a chain of new states a new state hangs: a maximum on none, a sum that it rescales on one."""
    nexts = {x.next for x in loop.carries}
    deepest = 0
    for g in loop.segments:
        chain: dict[str, int] = {}
        for x in g.body:
            if isinstance(x, Let):
                chain[x.name] = max((chain.get(n, 0) + (n in nexts) for n in order.reads(x, {})), default=0)
        deepest = max(deepest, chain.get(c.next, 0))
    return deepest


def _stored(s: Loop) -> list[str]:
    return [x.buffer for g in s.segments for x in g.body if isinstance(x, Store)]


def _digest(what: str, dims: list[str], *parts: object) -> str:
    """Short, and in an order that what stands first decides, so that texts of unequal kernels differ in few lines."""
    return f"{what}{dims}{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def _sizes(k: Kernel) -> dict[str, str]:
    """A new name for every size, in the order of the grid's extents, those of the dimensions, and the rest."""
    extents = [*(g.extent for g in k.grid), *(d.extent for d in k.dims if d.role == "stream"), *map(Size, k.sizes)]
    found = dict.fromkeys(n.name for e in extents for n in walk(e) if isinstance(n, Size))
    return {old: f"n{k}" for k, old in enumerate(found)}


class _Renaming:
    """Names in order of use: axes g (grid), s (streamed), p (points), sizes n, buffers in and out, values v."""

    def __init__(self, kernel: Kernel):
        self.k = kernel
        self.table: Table = {Size(old): Size(new) for old, new in _sizes(kernel).items()}
        self.axes: dict[str, str] = {}
        self.sizes = _sizes(kernel)
        self.values: dict[str, str] = {}
        self.after: dict[str, str] = {}  # a state's value after the trip
        self.buffers: dict[str, tuple[str, list[int]]] = {}  # the name, and the dimensions in their order
        self.count = 0
        for g in kernel.grid:
            self.axis(g.axis, "g")
        for d in kernel.dims:
            if d.role == "stream":
                self.axis(d.axis, "s")

    def kernel(self) -> Kernel:
        k, body = self.k, tuple(map(self.statement, self.k.body))
        for d in k.dims:
            self.axis(d.axis, "p")
        order = list(self.axes)
        dims = sorted(k.dims, key=lambda d: (_ROLES.index(d.role), order.index(d.axis)))
        return Kernel(
            "kernel",
            tuple(n for old, n in self.sizes.items() if old in k.sizes),
            tuple(sorted(map(self.buffer, k.inputs), key=lambda b: (len(b.name), b.name))),
            tuple(map(self.buffer, k.outputs)),
            tuple(GridAxis(self.axes[g.axis], self.expr(g.extent), g.block, g.reverse) for g in k.grid),
            tuple(replace(d, axis=self.axes[d.axis], extent=self.expr(d.extent)) for d in dims),
            body,
            k.warps,
            k.stages,
        )

    # ---- names -------------------------------------------------------------------------------------------------
    def axis(self, name: str, role: str) -> None:
        if name not in self.axes:
            self.axes[name] = f"{role}{sum(n.startswith(role) for n in self.axes.values())}"
            self.table[Index(name)] = Index(self.axes[name])

    def points(self, dims: Iterable[str]) -> None:
        for d in sorted((d for d in dims if d not in self.axes), key=lambda d: str(self.k.dim(d).extent)):
            self.axis(d, "p")

    def names(self, dims: Iterable[str]) -> tuple[str, ...]:
        """Axes under their new names: rows first, then the stream, then points."""
        order = list(self.axes)
        return tuple(self.axes[d] for d in sorted(dims, key=lambda d: ("gsp".index(self.axes[d][0]), order.index(d))))

    def expr(self, e: Expr) -> Expr:
        for n in walk(e):
            if isinstance(n, Load):  # a bound that is read from memory
                self.table[n] = Load(*self.place(n.tensor, n.index, "in"), n.kind)
        return respelt(e, self.table)

    def value(self, name: str) -> str:
        new = self.after.get(name)
        if new is None:
            new, self.count = f"v{self.count}", self.count + 1
        self.values[name], self.table[Ref(name)] = new, Ref(new)
        return new

    def place(self, buffer: str, at: tuple[Expr, ...], role: str) -> tuple[str, tuple[Expr, ...]]:
        """A buffer's new name, and an index with its dimensions in the order of the axes at the first use; dimensions
        of length 1 are left out."""
        if buffer not in self.buffers:
            rank = {n: p for p, n in enumerate(self.axes)}
            long = [d for d, n in enumerate(self.k.buffer(buffer).shape) if n is not Const(1)]
            long.sort(key=lambda d: min((rank[a] for a in axes(at[d])), default=len(rank)))
            self.buffers[buffer] = f"{role}{sum(n.startswith(role) for n, _ in self.buffers.values())}", long
        name, order = self.buffers[buffer]
        return name, tuple(self.expr(at[d]) for d in order)

    def buffer(self, b: Buffer) -> Buffer:
        name, order = self.buffers.get(b.name, (b.name, range(len(b.shape))))
        return Buffer(name, b.dtype, tuple(self.expr(b.shape[d]) for d in order))

    # ---- statements --------------------------------------------------------------------------------------------
    def statement(self, s: Stmt) -> Stmt:
        match s:
            case Let(name, dims, dtype, op):
                self.points(dims)
                op = self.op(op)
                return Let(self.value(name), self.names(dims), dtype, op)
            case Store(buffer, at, value, guard):
                named, where = self.place(buffer, at, "out")
                return Store(named, where, self.values[value], self.names(guard))
            case Loop(axis, carries, segments):
                for c in carries:
                    self.points(c.dims)
                states = {c.name: self.value(c.name) for c in carries}
                self.after = {c.next: f"{states[c.name]}_next" for c in carries}
                inner = tuple(
                    Segment(
                        g.kind,
                        self.expr(g.lo),
                        self.expr(g.hi),
                        tuple(map(self.statement, g.body)),
                        None if g.tile is None else self.expr(g.tile),
                    )
                    for g in segments
                )
                carried = tuple(
                    Carry(states[c.name], self.names(c.dims), c.dtype, c.init, self.after[c.next]) for c in carries
                )
                self.after = {}
                return Loop(self.axes[axis], carried, inner)

    def op(self, op: BlockOp) -> BlockOp:
        v = self.values
        match op:
            case LoadOp(buffer, at, guard, other):
                name, where = self.place(buffer, at, "in")
                return LoadOp(name, where, self.names(guard), other)
            case MapOp(body):
                return MapOp(self.expr(body))
            case DotOp(left, right, contract, acc):
                return DotOp(v[left], v[right], self.axes[contract], v[acc] if acc else None)
            case ReduceOp(monoid, value, axis):
                return ReduceOp(monoid, v[value], self.axes[axis])
            case ScanOp(value, axis):
                return ScanOp(v[value], self.axes[axis])
            case CastOp(value):
                return CastOp(v[value])
