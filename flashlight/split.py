"""Few rows, a long streamed axis: the axis is split over programs, and the parts are merged.

The certificate says how states kept at different gauges become one (its slots' rows), so the merge is no code of ours
but a program over the parts: it is planned, proved, lowered and checked like a user's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from flashlight.algebra import Certificate, Gauge, Slot
from flashlight.expr import (
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    Size,
    apply,
    axes,
    loads,
    refs,
    substitute,
    walk,
)
from flashlight.moves import is_empty, leaves_nothing, moved_to, safe
from flashlight.nests import Nest, Output, free_axes
from flashlight.program import Axis, Origin, Program, Statement, Tensor, fresh

PARTS = "parts"  # the size that says into how many parts the axis is split
ORIGIN = Origin(("merge of parts",))


@dataclass(frozen=True)
class Split:
    """``parts`` streams one part of the axis an instance and writes its slots; ``merge`` makes the nest's outputs.

    Both have one size more than the program, the last: how many parts there are.
    """

    parts: Nest
    program: Program
    merge: Program


def split(nest: Nest, program: Program) -> Split | None:
    """None where parts of the axis cannot be put together in any order, or in one pass."""
    if nest.stream is None or len(nest.passes) != 1 or nest.maps or nest.passes[0].certificate.order != "any":
        return None
    points = spread(nest)
    if points is None:
        return None
    return _Splitter(replace(nest, points=points), program, nest.passes[0].certificate).split()


def spread(nest: Nest) -> tuple[Axis, ...] | None:
    """The short axes along which results of a nest vary: its points, and axes that what reads the results folds (the
    latent width of values, the heads that are mixed).  None where a name stands for two lengths."""
    own = {a.name for a in (*nest.grid, *nest.points)} | {nest.stream.name if nest.stream else ""}
    table = {s.name: s for s in nest.states}
    varies = frozenset[str]().union(*(free_axes(s.body, table) for s in nest.states)) - own
    bodies = [*(s.body for s in nest.states), *(o.body for o in nest.outputs)]
    found = {(f.axis, f.extent) for b in bodies for f in walk(b) if isinstance(f, Fold) and f.axis in varies}
    if len(found) != len(varies):
        return None
    return (*nest.points, *(Axis(name, Const(extent)) for name, extent in sorted(found)))


class _Splitter:
    def __init__(self, nest: Nest, program: Program, certificate: Certificate):
        self.nest, self.program, self.certificate = nest, program, certificate
        self.sizes = (*program.sizes, fresh(PARTS, program.sizes))
        own = {a.name for a in (*nest.grid, *nest.points)} | {nest.stream.name if nest.stream else ""}
        self.part = Axis(fresh("part", own), Size(self.sizes[-1]))
        wide = any(t.dtype == "float64" for t in (*program.inputs, *(o.tensor for o in nest.outputs)))
        self.real = "float64" if wide else "float32"
        self.statements: dict[str, Statement] = {}
        self.whole: dict[Expr, Expr] = {}  # slots and stages as they are once the parts are merged
        self.points: dict[str, frozenset[str]] = {}
        self.settled: set[str] = set()
        self.taken = {t.name for t in program.inputs} | {o.name for o in nest.outputs}

    def split(self) -> Split:
        slots = self.certificate.slots
        outputs = tuple(self.written(s) for s in slots)
        grid = (self.part, *self.nest.grid)
        parts = replace(self.nest, name=f"{self.nest.name}_parts", grid=grid, outputs=outputs, part=self.part)
        for s in slots:
            self.merge(s)
        for k in self.certificate.links:
            self.result(k.stage)
        for o in self.nest.outputs:
            self.statements[o.name] = as_statement(o, self.whole)
        made = tuple(self.statements.values())
        known = {o.name: o.tensor for o in outputs}
        read = dict.fromkeys(x.tensor for s in made for x in loads(s.body) if x.tensor not in self.statements)
        inputs = tuple(known.get(n) or self.program.tensor(n) for n in read)
        merge = Program(inputs, made, tuple(o.name for o in self.nest.outputs), self.sizes)
        return Split(parts, replace(self.program, sizes=self.sizes), merge)

    # ---- the parts -----------------------------------------------------------------------------------------------
    def own(self, *values: Expr) -> tuple[Axis, ...]:
        """The axes that a value of the nest has: all of the grid, and the points it varies along."""
        names = frozenset[str]().union(*map(self.varies, values))
        return (*self.nest.grid, *(a for a in self.nest.points if a.name in names))

    def varies(self, e: Expr) -> frozenset[str]:
        """The axes of an expression, those of what it refers to included."""
        at: dict[Expr, Expr] = {Ref(r): Load(r, tuple(map(Index, sorted(self.points.get(r, ()))))) for r in refs(e)}
        return axes(substitute(e, at))

    def written(self, s: Slot) -> Output:
        over = self.own(s.body, *(self.certificate.gauge(g).value for g in s.gauges))
        self.points[s.name] = frozenset(a.name for a in over) & {a.name for a in self.nest.points}
        name = fresh(f"{self.nest.name}_{_plain(s.name)}", self.taken)
        over = (self.part, *over)
        tensor = Tensor(name, self.real, tuple(a.extent for a in over))
        return Output(tensor, over, _index(over), Ref(s.name), ORIGIN)

    def in_part(self, s: Slot) -> Expr:
        name = fresh(f"{self.nest.name}_{_plain(s.name)}", self.taken)
        over = [a for a in (*self.nest.grid, *self.nest.points) if a in self.nest.grid or a.name in self.points[s.name]]
        return Load(name, _index((self.part, *over)))

    # ---- the merge -----------------------------------------------------------------------------------------------
    def state(self, name: str, body: Expr, over: tuple[Axis, ...], monoid: str | None = None) -> Expr:
        """A statement, and the element of it at a point of the nest."""
        name = fresh(_plain(name), {*self.statements, *self.taken})
        reduced = (self.part,) if monoid else ()
        self.statements[name] = Statement(name, over, body, self.real, monoid, reduced, ORIGIN)
        return Load(name, _index(over))

    def running(self, g: Gauge) -> Expr:
        return substitute(g.value, self.whole)

    def merge(self, s: Slot) -> None:
        """All parts of a slot at the gauge of the whole."""
        here: dict[Expr, Expr] = {Ref(t.name): self.in_part(t) for t in self.certificate.slots if t.name in self.points}
        moves: dict[Expr, Expr] = {}
        for g in map(self.certificate.gauge, s.gauges):
            whole, part = self.running(g), substitute(g.value, here)
            new = safe(g, whole, Const(g.safe))
            moves[Ref(f"h:{g.name}")] = new
            moves[Ref(f"g:{g.name}")] = part if leaves_nothing(self.certificate, g) else safe(g, part, new)
        over = self.own(Ref(s.name))
        self.whole[Ref(s.name)] = self.state(f"{_plain(s.name)}_all", moved_to(s, moves, here), over, s.monoid)

    def result(self, stage: str) -> None:
        link = self.certificate.link(stage)
        for s in self.certificate.slots:
            exact = all(self.certificate.gauge(g).same for g in s.gauges)
            if s.name in refs(link.value) and not exact and s.name not in self.settled:
                self.settle(s.gauges)
        value = substitute(link.value, self.whole)
        for g in map(self.certificate.gauge, link.restore):
            value = apply("select", is_empty(g, self.running(g)), Const(math.nan), value)
        over = self.own(link.value, *(self.certificate.gauge(g).value for g in link.restore))
        self.points[stage] = frozenset(a.name for a in over) & {a.name for a in self.nest.points}
        self.whole[Ref(stage)] = self.state(stage, value, over)

    def settle(self, gauges: tuple[str, ...]) -> None:
        """All slots of these gauges from those of the whole to the exact ones."""
        moves: dict[Expr, Expr] = {}
        for g in map(self.certificate.gauge, gauges):
            running = safe(g, self.running(g), Const(g.safe))
            moves[Ref(f"g:{g.name}")] = running
            moves[Ref(f"h:{g.name}")] = running if g.same else substitute(g.final, self.whole)
        group = [s for s in self.certificate.slots if s.gauges == gauges]
        moved = {s.name: moved_to(s, moves, self.whole) for s in group}
        for s in group:
            self.whole[Ref(s.name)] = self.state(f"{_plain(s.name)}_exact", moved[s.name], self.own(Ref(s.name)))
        self.settled |= moved.keys()


def as_statement(o: Output, known: Mapping[Expr, Expr]) -> Statement:
    """A nest's output, with what is known of its states in their place, over the axes of the tensor: some of the nest's
    are two for one of those."""
    over: list[Axis] = []
    at: dict[Expr, Expr] = {}
    for d, (i, n) in enumerate(zip(o.index, o.tensor.shape, strict=True)):
        match i:
            case Index(name):
                over.append(Axis(name, n))
            case Apply("add", (Apply("mul", (Index(outer), Const() as size)), Index(inner))):
                axis = Axis(fresh(f"{outer}_{inner}", {a.name for a in o.axes}), n)
                over.append(axis)
                at[Index(outer)] = apply("floordiv", Index(axis.name), size)
                at[Index(inner)] = apply("mod", Index(axis.name), size)
            case _:
                over.append(Axis(fresh(f"only{d}", {a.name for a in o.axes}), n))
    body = substitute(substitute(o.body, known), at)
    return Statement(o.name, tuple(over), body, o.dtype, None, (), o.origin)


def _index(over: Iterable[Axis]) -> tuple[Expr, ...]:
    return tuple(Index(a.name) for a in over)


def _plain(name: str) -> str:
    return name.replace("'", "").replace(".", "_").replace(":", "_")
