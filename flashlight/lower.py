"""A nest and its tiling become a tile program: the loop's states are the certificate's slots."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from flashlight.algebra import Certificate, Gauge, Slot
from flashlight.blocks import Blocks, Value, factors_of, product_of, times
from flashlight.classes import Classes, classes, is_wasteful, lie_apart, told
from flashlight.errors import InternalError
from flashlight.expr import (
    COMBINE,
    FALSE,
    TRUE,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    apply,
    axes,
    evaluate,
    refs,
    substitute,
    walk,
)
from flashlight.intervals import Ends
from flashlight.masks import Kill, Refusal, is_wild, kills
from flashlight.moves import is_empty, leaves_nothing, moved_to, safe
from flashlight.nests import Nest, Output
from flashlight.polyhedral import tiles
from flashlight.program import Axis, Program
from flashlight.strips import in_strips
from flashlight.tile import Buffer, Carry, Dim, DotOp, GridAxis, Kernel, Loop, MapOp, ScanOp, Segment, Stmt, Store

Table = dict[Expr, Expr]


@dataclass(frozen=True)
class Tiling:
    """Block lengths: ``rows`` for the nest's blocked axes in order, ``stream`` for the streamed axis.

    ``masked``: one loop with masks over all live tiles, in place of segments with and without (where few tiles are
    live, starting a second loop costs more than masks do).  ``strip``: how much of a long contraction a trip of a loop
    within takes (0: all of it).
    """

    rows: tuple[int, ...]
    stream: int
    warps: int = 4
    stages: int = 3
    masked: bool = False
    strip: int = 0

    def __str__(self) -> str:
        rows = "x".join(map(str, self.rows)) or "1"
        strips = f", contracted {self.strip} at a time" if self.strip else ""
        return f"{rows} by {self.stream}, {self.warps} warps, {self.stages} stages{', masked' * self.masked}{strips}"


@dataclass(frozen=True)
class Sweep:
    """One loop over the streamed axis as it was cut into segments (for verification and reports).

    ``found``: classes that other programs find out inside the call, where ``live`` reads memory.
    """

    label: str
    live: Expr
    refusals: tuple[Refusal, ...]
    classes: tiles.TileClasses
    found: Classes | None = None


@dataclass(frozen=True)
class Lowered:
    """The kernel of a nest, and how its sweeps were cut.  ``before``: kernels that find out tile classes for it."""

    nest: Nest
    program: Program
    kernel: Kernel
    tiling: Tiling
    sweeps: tuple[Sweep, ...]
    before: tuple[Lowered, ...] = ()


def lower(nest: Nest, program: Program, tiling: Tiling, look: bool = True) -> Lowered:
    """Build the kernel of one nest.  ``look``: other programs may find out its tile classes inside the call."""
    return _Lowering(nest, program, tiling, look).run()


@dataclass(frozen=True)
class _Pass:
    """What the bodies of one pass's segments are made from.

    ``done``: results of earlier passes.  ``written``: outputs that are stored in every trip.  ``bodies``: of the slots,
    over these.  ``before``, ``after``: a slot's name in the loop before and after a trip.  ``shape``: its dimensions.
    ``narrow``: the dtype its stage had in the program.
    """

    certificate: Certificate
    done: Table
    kills: tuple[Kill, ...]
    live: Expr
    written: dict[Output, Expr] = field(default_factory=dict)
    bodies: dict[str, Expr] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    shape: dict[str, tuple[str, ...]] = field(default_factory=dict)
    narrow: dict[str, str] = field(default_factory=dict)

    @property
    def scans(self) -> list[tuple[str, str]]:
        """The stages that run along the axis, in order, each with its slot."""
        cert = self.certificate
        pairs = [(s.name, cert.link(s.name).value) for s in cert.cascade.stages if s.scan is not None]
        return [(stage, value.name) for stage, value in pairs if isinstance(value, Ref)]

    @property
    def old(self) -> Table:
        return {Ref(n): Ref(v) for n, v in self.before.items()}

    @property
    def new(self) -> Table:
        return {Ref(n): Ref(v) for n, v in self.after.items()}


class _Lowering:
    def __init__(self, nest: Nest, program: Program, tiling: Tiling, look: bool):
        self.nest, self.program, self.tiling, self.look = nest, program, tiling, look
        self.rows = tuple((a, b) for a, b in zip(_blocked(nest), tiling.rows, strict=True))
        self.batch = tuple(a for a in nest.grid if a.name not in nest.blocked)
        dims = {a.name: Dim(a.name, block, a.extent, "row") for a, block in self.rows}
        if nest.stream:
            dims[nest.stream.name] = Dim(nest.stream.name, tiling.stream, nest.stream.extent, "stream")
        for a in nest.points:
            dims[a.name] = Dim(a.name, int(a.extent.value) if isinstance(a.extent, Const) else 0, a.extent, "point")
        bodies = [*(o.body for o in nest.outputs), *(s.body for s in nest.states)]
        for f in (n for b in bodies for n in walk(b) if isinstance(n, Fold)):
            dims.setdefault(f.axis, Dim(f.axis, f.extent, Const(f.extent), "point"))
        inputs = {t.name: Buffer(t.name, t.dtype, t.shape) for t in map(program.tensor, nest.reads)}
        taken = {*inputs, *(o.name for o in nest.outputs), *program.sizes}
        stream = nest.stream.name if nest.stream else ""
        self.blocks = Blocks(stream, dims, inputs, nest.real(program), taken)
        self.sweeps: list[Sweep] = []
        self.asked: dict[tuple[Expr, bool], Classes] = {}  # by what is live, and whether trips may be in any order
        self.bounds: dict[str, Buffer] = {}
        self.hint: tiles.TileClasses | None = None  # where affine conditions alone put the work

    @property
    def tiled(self) -> tuple[Axis, int, tuple[tuple[Axis, int], ...], tuple[Axis, ...]]:
        """What a classification of tiles is about."""
        return self.stream, self.tiling.stream, self.rows, self.batch

    @property
    def stream(self) -> Axis:
        if self.nest.stream is None:
            raise InternalError(f"{self.nest.name} streams nothing")
        return self.nest.stream

    # ---- the spine ---------------------------------------------------------------------------------------------
    def run(self) -> Lowered:
        nest, b = self.nest, self.blocks
        results: Table = {}
        for k, p in enumerate(nest.passes):
            results |= self.sweep(p.certificate, f"pass {k + 1}", results)
        bodies = {o.name: substitute(o.body, results) for o in nest.outputs}
        written = [o for o in nest.outputs if o not in nest.maps and o not in nest.swept]
        b.count([bodies[o.name] for o in written])
        for o in written:
            self.store(o, bodies[o.name], b.outer)
        if nest.maps:
            self.map_loop(nest.maps, bodies)
        grid = tuple(GridAxis(a.name, a.extent, self.block(a.name), self.longest_last(a.name)) for a in nest.grid)
        outputs = tuple(Buffer(o.name, o.dtype, o.tensor.shape) for o in nest.outputs)
        kernel = Kernel(
            nest.name,
            self.program.sizes,
            (*b.inputs.values(), *self.bounds.values()),
            outputs,
            grid,
            tuple(b.dims.values()),
            tuple(b.outer),
            self.tiling.warps,
            self.tiling.stages,
        )
        if self.tiling.strip:
            kernel = in_strips(kernel, self.tiling.strip)
        return Lowered(nest, self.program, kernel, self.tiling, tuple(self.sweeps))

    def block(self, axis: str) -> int:
        return next((block for a, block in self.rows if a.name == axis), 1)

    def longest_last(self, axis: str) -> bool:
        """Does a later block of this axis stream more tiles?  (Then the grid starts there.)"""
        if axis not in self.nest.blocked or not self.sweeps or self.hint is None:
            return False

        def trips(at: int) -> int:
            def leaf(e: Expr) -> int:
                return at if e is Index(axis) else 0 if isinstance(e, Index) else 4096

            ranges = self.hint.ranges if self.hint else ()
            return sum(max(0, evaluate(r.hi, leaf) - evaluate(r.lo, leaf)) for r in ranges)

        return trips(4096 // self.block(axis) - 1) > trips(0)

    # ---- sweeps ------------------------------------------------------------------------------------------------
    def sweep(self, cert: Certificate, label: str, done: Table) -> Table:
        """One loop carrying the certificate's slots; returns Ref(stage) -> Ref(value) for its stages."""
        b = self.blocks
        swept = self.nest.swept_with(s.name for s in cert.cascade.stages)
        written = {o: substitute(o.body, done) for o in swept}
        found, refused = ((), ()) if written else kills(cert.slots, b.stream)  # every point has a value to write
        found = tuple(k for k in found if k.affine or (self.look and told(k.predicate, *self.tiled)))
        live = all_of(k for k in found if k.affine)
        cut = self.classify(label, found, refused, cert.order == "any")
        p = _Pass(cert, done, found, live, written)
        for link in cert.links:
            for name in sorted(refs(link.value)):  # the stage a slot was made for reads it first
                p.narrow.setdefault(name, self.nest.state(link.stage).dtype)
        for s in cert.slots:
            p.bodies[s.name] = substitute(s.body, done)
            p.before[s.name], p.after[s.name] = b.fresh(s.name), b.fresh(f"{s.name}_next")
            p.shape[s.name] = self.slot_dims(p, s)
            b.values[p.before[s.name]] = Value(p.shape[s.name], b.real, True)
        segments = tuple(Segment(r.kind, *self.share(r), self.trip(p, r.kind == "full"), r.tile) for r in cut.ranges)
        carries = tuple(
            Carry(p.before[s.name], p.shape[s.name], b.real, s.identity, p.after[s.name]) for s in cert.slots
        )
        b.outer.append(Loop(b.stream, carries, segments, cert.order == "any"))
        for s in cert.slots:
            b.values[p.before[s.name]] = Value(p.shape[s.name], b.real, False)
        if self.nest.part:  # what is written is the slots themselves
            return dict(p.old)
        return done | self.results(p)

    def share(self, r: tiles.Range) -> tuple[Expr, Expr]:
        """The tiles of a range that belong to this part of the axis: as many for each, in order, none left over."""
        part = self.nest.part
        if part is None:
            return r.lo, r.hi
        span = apply("maximum", apply("sub", r.hi, r.lo), Const(0))

        def start(k: Expr) -> Expr:
            return apply("add", r.lo, apply("floordiv", apply("mul", span, k), part.extent))

        return start(Index(part.name)), start(apply("add", Index(part.name), Const(1)))

    def classify(
        self, label: str, found: tuple[Kill, ...], refused: tuple[Refusal, ...], free: bool
    ) -> tiles.TileClasses:
        """Which tiles are visited: known now where all that kills is affine and ranges hold few others, else found out
        inside the call.  ``free``: trips may be taken in any order."""
        affine, live = all_of(k for k in found if k.affine), all_of(found)
        known = tiles.segments(affine, *self.tiled)
        exact = tiles.conditions(affine, *self.tiled) if self.look and known.loose else None
        exact = exact if exact and is_wasteful(known, exact[0]) else None
        if self.hint is None:
            self.hint = known
        if self.tiling.masked:
            known = replace(known, ranges=tiles.joined(known.ranges))
        if all(k.affine for k in found) and exact is None:
            self.sweeps.append(Sweep(label, live, refused, known))
            return known
        asked = self.asked.get((live, free))
        if asked is None:
            prefix = self.blocks.fresh(f"{self.nest.name}_{label.replace(' ', '')}")
            split, listed = not self.tiling.masked, exact is not None or lie_apart(live, self.stream)
            rest = all_of(k for k in found if not k.affine)
            part = (Ends(exact[1], exact[0]), rest) if exact else None
            split = split and (free or not listed)
            asked = classes(prefix, live, self.program, *self.tiled, split=split, listed=listed, known=part)
            self.asked[live, free] = asked
        self.bounds |= {t.name: Buffer(t.name, t.dtype, t.shape) for t in asked.bounds}
        ranges = replace(known, ranges=asked.ranges)
        self.sweeps.append(Sweep(label, live, refused, ranges, asked))
        return ranges

    def slot_dims(self, p: _Pass, s: Slot) -> tuple[str, ...]:
        names = set(self.blocks.free(p.bodies[s.name])) - {self.blocks.stream}
        for stage, slot in p.scans:
            if Load(stage, (Index(self.blocks.stream),)) in walk(p.bodies[s.name]):
                names |= set(p.shape[slot])
        for g in s.gauges:
            for r in refs(p.certificate.gauge(g).value):
                names |= set(p.shape.get(r, ()))
        return self.blocks.order(names)

    def trip(self, p: _Pass, full: bool) -> tuple[Stmt, ...]:
        """The body of one segment: every slot moved to the new gauge, plus what this block adds."""
        b, cert = self.blocks, p.certificate
        b.open(tail=not full)
        known: Table = {k.condition: TRUE if k.live else FALSE for k in p.kills} if full else {}
        guard = not full and not self.inside(p.live)
        terms = {s.name: substitute(p.bodies[s.name], known) for s in cert.slots}
        if guard:
            terms = {s.name: self.guarded(p, s, terms[s.name]) for s in cert.slots}
        names = {
            g.name: (self.held_at(p, g) or b.fresh(f"{g.name}_old"), b.fresh(f"{g.name}_new")) for g in cert.gauges
        }
        here: Table = {Ref(f"g:{g}"): Ref(new) for g, (_, new) in names.items()}
        moves: Table = {Ref(f"g:{g}"): Ref(old) for g, (old, _) in names.items()}
        moves |= {Ref(f"h:{g}"): Ref(new) for g, (_, new) in names.items()}
        terms = {n: substitute(e, here) for n, e in terms.items()}
        moved = {s.name: moved_to(s, moves, p.old) for s in cert.slots}
        written = p.written
        b.count([*terms.values(), *moved.values()])
        if p.scans:
            running = self.run_along(p, terms)
            terms = {n: substitute(e, running) for n, e in terms.items()}
            written = {o: substitute(e, running) for o, e in written.items()}
            b.count([*terms.values(), *moved.values(), *written.values()])
        ready: set[str] = set()
        for s in cert.slots:
            for g in s.gauges:
                if g not in ready:
                    self.gauge(p, cert.gauge(g), names[g])
                    ready.add(g)
            self.accumulate(p, s, terms[s.name], moved[s.name])
        for o, e in written.items():
            self.store(o, e, b.inner if b.inner is not None else b.outer)
        body = b.close(keep=p.before.values())
        b.taken |= set(p.after.values())
        return body

    def run_along(self, p: _Pass, terms: dict[str, Expr]) -> Table:
        """Running values at the elements: what was reached before the block, and the running sum inside it."""
        b = self.blocks
        table: Table = {}
        for stage, slot in p.scans:
            block = b.cast(b.name_of(substitute(terms[slot], table)), b.real)
            dims = b.order({*b.values[block].dims, b.stream})
            if b.values[block].dims != dims:
                block = b.let(MapOp(Ref(block)), dims, b.real)
            inside = b.let(ScanOp(block, b.stream), dims, b.real, stage)
            table[Load(stage, (Index(b.stream),))] = apply("add", Ref(p.before[slot]), Ref(inside))
        return table

    def gauge(self, p: _Pass, g: Gauge, names: tuple[str, str]) -> None:
        """The gauge before and after this block, each made safe where no element has been seen."""
        b, value = self.blocks, substitute(g.value, p.done)
        old, new = names
        b.let_as(new, safe(g, b.ref(substitute(value, p.new)), Const(g.safe)), f"{g.final} so far")
        if self.held_at(p, g) is None:
            b.let_as(old, safe(g, b.ref(substitute(value, p.old)), Ref(new)), "")

    def held_at(self, p: _Pass, g: Gauge) -> str | None:
        """The state that is the gauge before the block as it stands: no guard is needed where an empty state moves to
        nothing anyway."""
        value = substitute(g.value, p.done | p.old)
        return value.name if isinstance(value, Ref) and leaves_nothing(p.certificate, g) else None

    def accumulate(self, p: _Pass, s: Slot, term: Expr, moved: Expr) -> None:
        """``after = moved (+) reduce term``, with the sum inside the dot where there is one."""
        b, name, dims = self.blocks, p.after[s.name], p.shape[s.name]
        sides = b.sides(term, b.stream) if s.monoid == "sum" else None
        if sides is None:
            part = b.reduce(s.monoid, term, b.stream)
        else:
            left, right, rest = sides
            pair = b.operands(left, right, p.narrow.get(s.name, b.real))
            both = set(b.values[pair[0]].dims) | set(b.values[pair[1]].dims)
            out = b.order(both - {b.stream})
            if rest is None and out == dims:
                b.emit(name, dims, b.real, DotOp(*pair, b.stream, b.name_of(moved)), s.name)
                return
            dot = Ref(b.let(DotOp(*pair, b.stream), out, b.real))
            part = dot if rest is None else times(rest, dot)
        b.let_as(name, apply(COMBINE[s.monoid], moved, part), s.name, dims)

    def inside(self, live: Expr) -> bool:
        """Does being live imply lying inside the streamed extent?"""
        extent = self.stream.extent
        if isinstance(extent, Const) and extent.value % self.tiling.stream == 0:
            return True
        return tiles.implies_inside(live, self.stream, self.nest.grid)

    def guarded(self, p: _Pass, s: Slot, body: Expr) -> Expr:
        """The slot's term on a partial block: beyond the axis's end it is the identity."""
        within = apply("lt", Index(self.stream.name), self.stream.extent)
        nodes = set(walk(body))
        masked = next((k for k in p.kills if k.condition in nodes), None)
        if masked is not None:
            c = masked.condition
            if not is_wild(substitute(body, {c: FALSE if masked.live else TRUE}), self.stream.name):  # one for both
                both = apply("and", c, within) if masked.live else apply("or", c, apply("not", within))
                return substitute(body, {c: both})
        if s.monoid != "sum":
            return apply("select", within, body, Const(s.identity))
        factors = factors_of(body)
        first = next((k for k, f in enumerate(factors) if self.stream.name in axes(f)), 0)
        bad = {k for k, f in enumerate(factors) if is_wild(f, self.stream.name)} or {first}
        return product_of([apply("select", within, f, Const(0.0)) if k in bad else f for k, f in enumerate(factors)])

    # ---- after the loop ----------------------------------------------------------------------------------------
    def results(self, p: _Pass) -> Table:
        """Read every stage off the slots, moving to exact gauges first where the running ones are not."""
        b, cert, at = self.blocks, p.certificate, p.old
        results: Table = {}
        b.count([])
        settled: set[str] = set()
        for link in cert.links:
            read = refs(link.value)
            for s in (s for s in cert.slots if s.name in read and s.name not in settled):
                if any(not cert.gauge(g).same for g in s.gauges):
                    self.settle(cert, s.gauges, at, p.done | results, settled)
            value = substitute(link.value, {**p.done, **results, **at})
            for g in map(cert.gauge, link.restore):
                running = b.ref(substitute(g.value, {**p.done, **results, **at}))
                value = apply("select", is_empty(g, running), Const(math.nan), value)
            results[Ref(link.stage)] = Ref(b.name_of(value, link.stage))
        return results

    def settle(self, cert: Certificate, gauges: tuple[str, ...], at: Table, known: Table, settled: set[str]) -> None:
        """Transport the slots of these gauges from the last running value to the exact one."""
        b = self.blocks
        table: Table = {}
        for g in map(cert.gauge, gauges):
            here = substitute(g.value, {**known, **at})
            running = b.ref(safe(g, b.ref(here), Const(g.safe)))
            table[Ref(f"g:{g.name}")] = running
            table[Ref(f"h:{g.name}")] = running if g.same else b.ref(substitute(g.final, known))
        group = [s for s in cert.slots if s.gauges == gauges]
        at |= {Ref(s.name): b.ref(moved_to(s, table, dict(at))) for s in group}
        settled |= {s.name for s in group}

    def map_loop(self, outputs: tuple[Output, ...], bodies: dict[str, Expr]) -> None:
        """A last sweep that writes what carries the streamed axis."""
        b = self.blocks
        every = tiles.segments(TRUE, *self.tiled)
        self.sweeps.append(Sweep("map", TRUE, (), every))
        segments = []
        for r in every.ranges:
            b.open(tail=r.kind != "full")
            b.count([bodies[o.name] for o in outputs])
            for o in outputs:
                self.store(o, bodies[o.name], b.inner if b.inner is not None else b.outer)
            segments.append(Segment("map", r.lo, r.hi, b.close()))
        b.outer.append(Loop(b.stream, (), tuple(segments)))

    def store(self, o: Output, body: Expr, into: list[Stmt]) -> None:
        b = self.blocks
        index = tuple(Const(0) if n is Const(1) else i for i, n in zip(o.index, o.tensor.shape, strict=True))
        dims = b.order({a.name for a in o.axes} & set(b.dims))
        name = b.name_of(body, o.name)
        if b.values[name].dims != dims:
            name = b.let(MapOp(Ref(name)), dims, b.values[name].dtype)
        into.append(Store(o.name, index, name, b.guard(dims)))


def all_of(found: Iterable[Kill]) -> Expr:
    """Where none of the conditions kills."""
    live: Expr = TRUE
    for k in found:
        live = apply("and", live, k.predicate)
    return live


def _blocked(nest: Nest) -> tuple[Axis, ...]:
    return tuple(next(a for a in nest.grid if a.name == n) for n in nest.blocked)
