"""A nest and its tiling become a tile program.

Expressions turn into blocks at the outermost place they can: what does not vary along the streamed axis is computed
before the loop, what varies is computed a trip.  A product summed over an axis that splits into two sides becomes a
dot; every other reduction is one of a block's dimensions.  The loop's states are the certificate's slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashlight.algebra import Certificate, Gauge, Slot
from flashlight.expr import (
    FALSE,
    OPS,
    TRUE,
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
    children,
    evaluate,
    kind,
    loads,
    refs,
    substitute,
    walk,
)
from flashlight.fuse import Nest, Output
from flashlight.masks import Kill, Refusal, kills
from flashlight.polyhedral import tiles
from flashlight.program import Program
from flashlight.tile import (
    BlockOp,
    Buffer,
    Carry,
    CastOp,
    Dim,
    DotOp,
    GridAxis,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Segment,
    Stmt,
    Store,
)

NARROW = ("bfloat16", "float16")
UNROLL = 64  # an element-wise fold over a tile is unrolled up to this many terms


@dataclass(frozen=True)
class Tiling:
    """Block lengths: ``rows`` for the nest's blocked axes in order, ``stream`` for the streamed axis."""

    rows: tuple[int, ...]
    stream: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Sweep:
    """One loop over the streamed axis as it was cut into segments (for verification and reports)."""

    label: str
    live: Expr
    kills: tuple[Kill, ...]
    refusals: tuple[Refusal, ...]
    classes: tiles.TileClasses


@dataclass(frozen=True)
class Lowered:
    kernel: Kernel
    sweeps: tuple[Sweep, ...]


def lower(nest: Nest, program: Program, tiling: Tiling) -> Lowered:
    """Build the kernel of one nest."""
    return _Lowering(nest, program, tiling).run()


@dataclass(frozen=True)
class _Value:
    dims: tuple[str, ...]
    dtype: str
    local: bool  # defined inside the loop that is open


class _Lowering:
    def __init__(self, nest: Nest, program: Program, tiling: Tiling):
        self.nest, self.program, self.tiling = nest, program, tiling
        self.stream = nest.stream.name if nest.stream else ""
        self.extents = {a.name: a.extent for a in (*nest.grid, *nest.points)}
        self.dims: dict[str, Dim] = {}
        for name, block in zip(nest.blocked, tiling.rows, strict=True):
            self.dims[name] = Dim(name, block, self.extents[name], "row")
        if nest.stream:
            self.dims[self.stream] = Dim(self.stream, tiling.stream, nest.stream.extent, "stream")
        for a in nest.points:
            self.dims[a.name] = Dim(
                a.name, int(a.extent.value) if isinstance(a.extent, Const) else 0, a.extent, "point"
            )
        touched = {x.tensor for o in nest.outputs for x in loads(o.body)} | {
            x.tensor for s in nest.states for x in loads(s.body)
        }
        reads = [program.tensor(n) for n in sorted(touched)]
        self.inputs = {t.name: Buffer(t.name, t.dtype, t.shape) for t in reads}
        wide = any(t.dtype == "float64" for t in reads) or any(o.dtype == "float64" for o in nest.outputs)
        self.real = "float64" if wide else "float32"
        self.values: dict[str, _Value] = {}
        self.memo: dict[Expr, str] = {}
        self.outer: list[Stmt] = []
        self.inner: list[Stmt] | None = None
        self.inner_memo: dict[Expr, str] = {}
        self.uses: dict[Expr, int] = {}
        self.tail = False
        self.taken: set[str] = set(self.inputs) | {o.name for o in nest.outputs} | set(program.sizes)
        self.sweeps: list[Sweep] = []

    # ---- the spine ---------------------------------------------------------------------------------------------
    def run(self) -> Lowered:
        nest = self.nest
        results: dict[Expr, Expr] = {}
        for k, p in enumerate(nest.passes):
            results |= self.sweep(p.certificate, f"pass {k + 1}", results)
        written = [o for o in nest.outputs if o not in nest.maps]
        bodies = {o.name: substitute(o.body, results) for o in nest.outputs}
        self.count([bodies[o.name] for o in written])
        for o in written:
            self.store(o, bodies[o.name], self.outer)
        if nest.maps:
            self.map_loop(nest.maps, bodies)
        grid = tuple(GridAxis(a.name, a.extent, self.block(a.name), self.longest_last(a.name)) for a in nest.grid)
        outputs = tuple(Buffer(o.name, o.dtype, o.tensor.shape) for o in nest.outputs)
        sizes = tuple(n for n in self.program.sizes)
        kernel = Kernel(
            nest.name,
            sizes,
            tuple(self.inputs.values()),
            outputs,
            grid,
            tuple(self.dims.values()),
            tuple(self.outer),
            self.tiling.warps,
            self.tiling.stages,
        )
        return Lowered(kernel, tuple(self.sweeps))

    def block(self, axis: str) -> int:
        return self.dims[axis].block if axis in self.dims else 1

    def longest_last(self, axis: str) -> bool:
        """Does a later block of this axis stream more tiles?  (Then the grid starts there.)"""
        if axis not in self.nest.blocked or not self.sweeps:
            return False

        def trips(at: int) -> int:
            def leaf(e: Expr) -> int:
                return at if e is Index(axis) else 0 if isinstance(e, Index) else 4096

            ranges = self.sweeps[0].classes.ranges
            return sum(max(0, evaluate(r.hi, leaf) - evaluate(r.lo, leaf)) for r in ranges)

        return trips(4096 // self.block(axis) - 1) > trips(0)

    # ---- sweeps ------------------------------------------------------------------------------------------------
    def sweep(self, cert: Certificate, label: str, done: dict[Expr, Expr]) -> dict[Expr, Expr]:
        """One loop carrying the certificate's slots; returns Ref(stage) -> Ref(value) for its stages."""
        slots = {s.name: s for s in cert.slots}
        self.narrow = {n: self.nest.state(k.stage).dtype for k in cert.links for n in refs(k.value) if n in slots}
        bodies = {s.name: substitute(s.body, done) for s in cert.slots}
        found, refused = kills(tuple(cert.slots), self.stream)
        live: Expr = TRUE
        for k in found:
            live = apply("and", live, k.predicate)
        classes = self.classes(live)
        self.sweeps.append(Sweep(label, live, found, refused, classes))
        carried = {n: self.fresh(n) for n in slots}
        after = {n: self.fresh(f"{n}_next") for n in slots}
        shape: dict[str, tuple[str, ...]] = {}
        for s in cert.slots:
            shape[s.name] = self.slot_dims(s, bodies[s.name], cert, shape)
            self.values[carried[s.name]] = _Value(shape[s.name], self.real, True)
        segments = []
        for r in classes.ranges:
            trip = self.trip(
                cert, bodies, found if r.kind == "full" else (), found, r.kind, carried, after, shape, done, live
            )
            segments.append(Segment(r.kind, r.lo, r.hi, trip))
        carries = tuple(Carry(carried[n], shape[n], self.real, slots[n].identity, after[n]) for n in slots)
        self.outer.append(Loop(self.stream, carries, tuple(segments)))
        for n in slots:
            self.values[carried[n]] = _Value(shape[n], self.real, False)
        return done | self.results(cert, carried, done)

    def classes(self, live: Expr) -> tiles.TileClasses:
        stream = self.nest.stream
        assert stream is not None
        rows = tuple((a, self.block(a.name)) for a in self.nest.grid if a.name in self.nest.blocked)
        batch = tuple(a for a in self.nest.grid if a.name not in self.nest.blocked)
        return tiles.segments(live, stream, self.tiling.stream, rows, batch)

    def slot_dims(self, s: Slot, body: Expr, cert: Certificate, shape: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        names = set(self.free(body)) - {self.stream}
        for g in s.gauges:
            for r in refs(cert.gauge(g).value):
                names |= set(shape.get(r, ()))
        return self.order(names)

    def trip(
        self,
        cert: Certificate,
        bodies: dict[str, Expr],
        fixed: tuple[Kill, ...],
        found: tuple[Kill, ...],
        kind_: str,
        carried: dict[str, str],
        after: dict[str, str],
        shape: dict[str, tuple[str, ...]],
        done: dict[Expr, Expr],
        live: Expr,
    ) -> tuple[Stmt, ...]:
        """The body of one segment: every slot moved to the new gauge, plus what this block adds."""
        self.inner, self.inner_memo, self.tail = [], {}, kind_ != "full"
        true = {k.condition: TRUE if k.live else FALSE for k in fixed}
        need_tail = kind_ != "full" and not self.inside(live)
        old = {Ref(n): Ref(v) for n, v in carried.items()}
        new = {Ref(n): Ref(v) for n, v in after.items()}
        gauges: dict[Expr, Expr] = {}
        terms: dict[str, Expr] = {}
        for s in cert.slots:
            body = substitute(bodies[s.name], true)
            terms[s.name] = self.guarded(s, body, found if kind_ != "full" else (), need_tail)
        names = {g.name: (self.fresh(f"{g.name}_old"), self.fresh(f"{g.name}_new")) for g in cert.gauges}
        for g, (a, b) in names.items():
            gauges |= {Ref(f"g:{g}"): Ref(b), Ref(f"h:{g}"): Ref(b)}
        moved = {}
        for s in cert.slots:
            before = {Ref(f"g:{g}"): Ref(names[g][0]) for g in s.gauges}
            moved[s.name] = self.moved(s, before | {Ref(f"h:{g}"): Ref(names[g][1]) for g in s.gauges}, old)
        self.count([*(substitute(t, gauges) for t in terms.values()), *moved.values()])
        ready: set[str] = set()
        for s in cert.slots:
            for g in s.gauges:
                if g not in ready:
                    self.gauge(cert.gauge(g), names[g], old, new, done)
                    ready.add(g)
            to = {Ref(f"g:{g}"): Ref(names[g][1]) for g in s.gauges}
            self.accumulate(s, substitute(terms[s.name], to), moved[s.name], after[s.name], shape[s.name])
        body, self.inner = tuple(self.inner), None
        for name in [n for n, v in self.values.items() if v.local and n not in carried.values()]:
            del self.values[name]
            if name not in after.values():
                self.taken.discard(name)  # segments use the same names for the same things
        return body

    def gauge(
        self, g: Gauge, names: tuple[str, str], old: dict[Expr, Expr], new: dict[Expr, Expr], done: dict[Expr, Expr]
    ) -> None:
        """The gauge before and after this block, each made safe where no element has been seen."""
        value = substitute(g.value, done)
        after = _safe(g, self.ref(substitute(value, new)), Const(g.safe))
        self.let_as(names[1], after, f"{g.final} so far")
        before = _safe(g, self.ref(substitute(value, old)), Ref(names[1]))
        self.let_as(names[0], before, "")

    def moved(self, s: Slot, at: dict[Expr, Expr], old: dict[Expr, Expr]) -> Expr:
        if not s.row:
            return old[Ref(s.name)]
        total: Expr | None = None
        for k, c in s.row:
            term = _times(substitute(c, at), old[Ref(k)])
            total = term if total is None else apply("add", total, term)
        return total if total is not None else Const(s.identity)

    def accumulate(self, s: Slot, term: Expr, moved: Expr, name: str, dims: tuple[str, ...]) -> None:
        """``name = moved (+) reduce term``, with the sum inside the dot where there is one."""
        if s.monoid == "sum" and (sides := self.sides(term, self.stream)) is not None:
            left, right, rest = sides
            pair = self.operands(left, right, self.narrow.get(s.name, self.real))
            out = self.order(set(self.values[pair[0]].dims) | set(self.values[pair[1]].dims) - {self.stream})
            out = tuple(d for d in out if d != self.stream)
            if rest is None and out == dims:
                acc = self.name_of(moved)
                self.emit(name, dims, self.real, DotOp(*pair, self.stream, acc), str(s.name))
                return
            dot = self.let(DotOp(*pair, self.stream), out, self.real)
            part: Expr = Ref(dot) if rest is None else _times(rest, Ref(dot))
        else:
            part = self.reduce(s.monoid, term, self.stream)
        op = {"sum": "add", "max": "maximum", "min": "minimum", "prod": "mul"}[s.monoid]
        self.let_as(name, apply(op, moved, part), s.name, dims)

    def inside(self, live: Expr) -> bool:
        """Does being live imply lying inside the streamed extent?"""
        stream = self.nest.stream
        assert stream is not None
        if isinstance(stream.extent, Const) and stream.extent.value % self.tiling.stream == 0:
            return True
        return tiles.implies_inside(live, stream, tuple(self.nest.grid))

    def guarded(self, s: Slot, body: Expr, found: tuple[Kill, ...], tail: bool) -> Expr:
        """The slot's term on a partial block: beyond the axis's end it is the identity."""
        if not tail:
            return body
        stream = self.nest.stream
        assert stream is not None
        within = apply("lt", Index(self.stream), stream.extent)
        touched = {k.condition: k for k in found if _contains(body, k.condition)}
        if touched:
            first = next(iter(touched.values()))
            both = (
                apply("and", first.condition, within)
                if first.live
                else apply("or", first.condition, apply("not", within))
            )
            return substitute(body, {first.condition: both})
        if s.monoid != "sum":
            return apply("select", within, body, Const(s.identity))
        factors = _factors(body)
        k = next((k for k, f in enumerate(factors) if self.stream in axes(f)), 0)
        factors[k] = apply("select", within, factors[k], Const(0.0))
        return _product(factors)

    def results(self, cert: Certificate, carried: dict[str, str], done: dict[Expr, Expr]) -> dict[Expr, Expr]:
        """Read every stage off the slots, moving to exact gauges first where the running ones are not."""
        at = {Ref(n): Ref(v) for n, v in carried.items()}
        results: dict[Expr, Expr] = {}
        self.count([])
        settled: set[str] = set()
        for link in cert.links:
            for s in [s for s in cert.slots if Ref(s.name) in _nodes(link.value)]:
                off = [cert.gauge(g) for g in s.gauges if not cert.gauge(g).same]
                if off and s.name not in settled:
                    self.settle(cert, s.gauges, at, results, done, settled)
            value = substitute(substitute(link.value, at), {**done, **results})
            for g in link.restore:
                gauge = cert.gauge(g)
                running = self.ref(substitute(substitute(gauge.value, at), {**done, **results}))
                empty = apply("isnan", running) if math.isnan(gauge.empty) else apply("eq", running, Const(gauge.empty))
                value = apply("select", empty, Const(math.nan), value)
            results[Ref(link.stage)] = Ref(self.name_of(value, link.stage))
        return results

    def settle(
        self,
        cert: Certificate,
        gauges: tuple[str, ...],
        at: dict[Expr, Expr],
        results: dict[Expr, Expr],
        done: dict[Expr, Expr],
        settled: set[str],
    ) -> None:
        """Transport the slots of these gauges from the last running value to the exact one."""
        table: dict[Expr, Expr] = {}
        for g in map(cert.gauge, gauges):
            here = substitute(substitute(g.value, at), {**done, **results})
            there = substitute(g.final, {**done, **results}) if not g.same else here
            running = self.ref(_safe(g, self.ref(here), Const(g.safe)))
            table |= {Ref(f"g:{g.name}"): running, Ref(f"h:{g.name}"): self.ref(there) if not g.same else running}
        group = [s for s in cert.slots if s.gauges == gauges]
        new = {Ref(s.name): self.ref(self.moved(s, table, at)) for s in group}
        at |= new
        settled |= {s.name for s in group}

    def map_loop(self, outputs: tuple[Output, ...], bodies: dict[str, Expr]) -> None:
        """A last sweep that writes what carries the streamed axis."""
        classes = self.classes(TRUE)
        self.sweeps.append(Sweep("map", TRUE, (), (), classes))
        segments = []
        for r in classes.ranges:
            self.inner, self.inner_memo, self.tail = [], {}, r.kind != "full"
            self.count([bodies[o.name] for o in outputs])
            for o in outputs:
                self.store(o, bodies[o.name], self.inner)
            segments.append(Segment("map", r.lo, r.hi, tuple(self.inner)))
            self.inner = None
            self.taken -= {n for n, v in self.values.items() if v.local}
            self.values = {n: v for n, v in self.values.items() if not v.local}
        self.outer.append(Loop(self.stream, (), tuple(segments)))

    def store(self, o: Output, body: Expr, into: list[Stmt]) -> None:
        index = tuple(Const(0) if a.extent is Const(1) else Index(a.name) for a in o.axes)
        dims = self.order({a.name for a in o.axes} & set(self.dims))
        name = self.name_of(body, o.name)
        if self.values[name].dims != dims:
            name = self.let(MapOp(Ref(name)), dims, self.values[name].dtype)
        into.append(Store(o.name, index, name, self.guard(dims)))

    # ---- values ------------------------------------------------------------------------------------------------
    def order(self, names: set[str]) -> tuple[str, ...]:
        return tuple(d for d in self.dims if d in names)

    def free(self, e: Expr) -> frozenset[str]:
        """The block dimensions an expression varies along."""
        out = axes(e) & self.dims.keys()
        for r in refs(e):
            if r in self.values:
                out |= set(self.values[r].dims)
        return frozenset(out)

    def varies(self, e: Expr) -> bool:
        return self.stream in axes(e) or any(self.values[r].local for r in refs(e) if r in self.values)

    def guard(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        out = []
        for d in dims:
            dim = self.dims[d]
            exact = isinstance(dim.extent, Const) and dim.extent.value % dim.block == 0
            if not exact and (dim.role == "row" or (dim.role == "stream" and self.tail)):
                out.append(d)
        return tuple(out)

    def fresh(self, stem: str) -> str:
        stem = stem.replace(":", "_").replace("'", "").replace(".", "_")
        name, k = stem, 1
        while name in self.taken:
            name, k = f"{stem}_{k}", k + 1
        self.taken.add(name)
        return name

    def emit(
        self, name: str, dims: tuple[str, ...], dtype: str, op: BlockOp, note: str = "", local: bool | None = None
    ) -> None:
        local = self.inner is not None if local is None else local
        self.values[name] = _Value(dims, dtype, local)
        (self.inner if local and self.inner is not None else self.outer).append(Let(name, dims, dtype, op, note))

    def let(self, op: BlockOp, dims: tuple[str, ...], dtype: str, stem: str = "t", local: bool | None = None) -> str:
        name = self.fresh(stem)
        self.emit(name, dims, dtype, op, "", local)
        return name

    def let_as(self, name: str, e: Expr, note: str, dims: tuple[str, ...] | None = None) -> None:
        tree = self.tree(e, top=True)
        self.emit(name, self.order(set(self.free(tree))) if dims is None else dims, self.dtype(tree), MapOp(tree), note)

    def ref(self, e: Expr) -> Expr:
        """A reference to (or constant of) an expression."""
        return e if isinstance(e, Const | Size) else Ref(self.name_of(e))

    def name_of(self, e: Expr, stem: str = "t") -> str:
        """The block that holds an expression's value; computed once, at the outermost place possible."""
        if isinstance(e, Ref):
            return e.name
        local = self.inner is not None and self.varies(e)
        memo = self.inner_memo if local else self.memo
        if e not in memo:
            match e:
                case Load():
                    memo[e] = self.load(e, local)
                case Fold():
                    memo[e] = self.fold(e)
                case _:
                    tree = self.tree(e, top=True)
                    memo[e] = self.let(MapOp(tree), self.order(set(self.free(tree))), self.dtype(tree), stem, local)
        return memo[e]

    def count(self, roots: list[Expr]) -> None:
        """How many places use each node: what is used twice gets a name."""
        self.uses, seen = {}, set()
        stack = list(roots)
        for r in roots:
            self.uses[r] = self.uses.get(r, 0) + 1
        while stack:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            for c in children(e):
                self.uses[c] = self.uses.get(c, 0) + 1
                stack.append(c)

    def tree(self, e: Expr, top: bool = False) -> Expr:
        """A scalar body over references: nodes used once, of the same shape and at the same place, stay together."""
        match e:
            case Const() | Index() | Size() | Ref():
                return e
            case Load() | Fold():
                return Ref(self.real_of(e))
            case Apply(op, args):
                here, local = self.free(e), self.varies(e)
                parts = []
                for a in args:
                    same = self.free(a) == here and self.varies(a) == local
                    plain = not isinstance(a, Apply) or (same and self.uses.get(a, 1) < 2 and a not in self.inner_memo)
                    trivial = (
                        isinstance(a, Apply)
                        and not self.free(a)
                        and kind(a) != "real"
                        and not _nodes_of(a, (Load, Fold))
                    )
                    parts.append(self.tree(a) if plain or trivial else Ref(self.name_of(a)))
                return Apply(op, tuple(parts))

    def real_of(self, e: Expr) -> str:
        """A load or fold as an operand of arithmetic: 16-bit values are widened."""
        name = self.name_of(e)
        value = self.values[name]
        if value.dtype in NARROW or (value.dtype == "float32" and self.real == "float64"):
            return self.cast(name, self.real)
        return name

    def cast(self, name: str, dtype: str) -> str:
        value = self.values[name]
        if value.dtype == dtype:
            return name
        memo = self.inner_memo if value.local else self.memo
        key = Apply("cast_" + dtype, (Ref(name),))
        if key not in memo:
            memo[key] = self.let(CastOp(name), value.dims, dtype, name, value.local)
        return memo[key]

    def dtype(self, tree: Expr) -> str:
        match _kind(tree, self.values):
            case "bool":
                return "bool"
            case "int":
                names = [r for r in refs(tree) if r in self.values]
                return "int64" if any(self.values[r].dtype == "int64" for r in names) else "int32"
        return self.real

    def load(self, e: Load, local: bool) -> str:
        index = tuple(self.integer(i) for i in e.index)
        dims = self.order(set().union(*[set(self.free(i)) for i in index]) if index else set())
        buffer = self.inputs[e.tensor]
        return self.let(LoadOp(e.tensor, index, self.guard(dims)), dims, buffer.dtype, f"{e.tensor}_tile", local)

    def integer(self, e: Expr) -> Expr:
        """An index expression: arithmetic stays, loaded parts become references."""
        if isinstance(e, Load):
            return Ref(self.name_of(e))
        parts = children(e)
        return Apply(e.op, tuple(map(self.integer, parts))) if isinstance(e, Apply) else e

    # ---- reductions --------------------------------------------------------------------------------------------
    def fold(self, e: Fold) -> str:
        """A bounded reduction: a dot, an unrolled sum, or one block dimension reduced."""
        self.dims.setdefault(e.axis, Dim(e.axis, e.extent, Const(e.extent), "point"))
        local = self.inner is not None and self.varies(e)
        if e.monoid == "sum" and (sides := self.sides(e.body, e.axis)) is not None:
            left, right, rest = sides
            pair = self.operands(left, right, e.dtype)
            dims = self.order((set(self.values[pair[0]].dims) | set(self.values[pair[1]].dims)) - {e.axis})
            dot = self.let(DotOp(*pair, e.axis), dims, self.real, "t", local)
            return dot if rest is None else self.name_of(_times(rest, Ref(dot)))
        tile = [d for d in self.free(e) if self.dims[d].role != "point"]
        if len(tile) > 1 and e.extent <= UNROLL:
            op = {"sum": "add", "max": "maximum", "min": "minimum", "prod": "mul"}[e.monoid]
            total = substitute(e.body, {Index(e.axis): Const(0)})
            for k in range(1, e.extent):
                total = apply(op, total, substitute(e.body, {Index(e.axis): Const(k)}))
            return self.name_of(total)
        return self.name_of(self.reduce(e.monoid, e.body, e.axis))

    def reduce(self, monoid: str, body: Expr, axis: str) -> Expr:
        if axis not in self.free(body):
            if monoid in ("max", "min"):
                return body
            dims = self.order({*self.free(body), axis})  # every point counts, however many a trip holds
            tree = self.tree(body, top=True)
            spread = self.let(MapOp(tree), dims, self.dtype(tree), "t", True if axis == self.stream else None)
            return Ref(self.let(ReduceOp(monoid, spread, axis), tuple(d for d in dims if d != axis), self.real))
        name = self.cast(self.name_of(body), self.real) if kind(body) == "real" else self.name_of(body)
        value = self.values[name]
        dims = tuple(d for d in value.dims if d != axis)
        return Ref(self.let(ReduceOp(monoid, name, axis), dims, value.dtype, "t", value.local))

    def sides(self, body: Expr, axis: str) -> tuple[Expr, Expr, Expr | None] | None:
        """Split a product into two sides that share only ``axis``, and the factors without it; None if there are not
        two sides (then it is no dot)."""
        factors = _factors(body)
        rest = [f for f in factors if axis not in self.free(f)]
        groups: list[tuple[set[str], list[Expr]]] = []
        bare: list[Expr] = []
        for f in (f for f in factors if axis in self.free(f)):
            own = set(self.free(f)) - {axis}
            if not own:
                bare.append(f)
                continue
            touching = [g for g in groups if g[0] & own]
            merged = (own.union(*[g[0] for g in touching]), [*[x for g in touching for x in g[1]], f])
            groups = [g for g in groups if g not in touching] + [merged]
        if len(groups) != 2:
            return None
        first, second = sorted(groups, key=lambda g: min(list(self.dims).index(d) for d in g[0]))
        left, right = _product([*first[1], *bare]), _product(second[1])
        return left, right, _product(rest) if rest else None

    def operands(self, left: Expr, right: Expr, dtype: str) -> tuple[str, str]:
        """Dot operands: both in the statement's 16-bit dtype, or both wide; loads of one narrow dtype are exact as
        they are."""
        names = [self.name_of(e) for e in (left, right)]
        dtypes = [self.values[n].dtype for n in names]
        if dtype in NARROW:
            return self.cast(names[0], dtype), self.cast(names[1], dtype)
        if dtypes[0] == dtypes[1] and dtypes[0] in NARROW:
            return names[0], names[1]
        return self.cast(names[0], self.real), self.cast(names[1], self.real)


def _safe(g: Gauge, value: Expr, instead: Expr) -> Expr:
    empty = apply("isnan", value) if math.isnan(g.empty) else apply("eq", value, Const(g.empty))
    return apply("select", empty, instead, value)


def _factors(e: Expr) -> list[Expr]:
    return [*_factors(e.args[0]), *_factors(e.args[1])] if isinstance(e, Apply) and e.op == "mul" else [e]


def _product(factors: list[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = apply("mul", out, f)
    return out


def _times(a: Expr, b: Expr) -> Expr:
    if isinstance(a, Const) and a.value == 1:
        return b
    return apply("mul", b, a)


def _nodes(e: Expr) -> set[Expr]:
    return set(walk(e))


def _nodes_of(e: Expr, types: tuple[type, ...]) -> bool:
    return any(isinstance(n, types) for n in _nodes(e))


def _contains(e: Expr, part: Expr) -> bool:
    return part in _nodes(e)


def _kind(e: Expr, values: dict[str, _Value]) -> str:
    """Like ``kind``, with references typed by their blocks."""
    match e:
        case Ref(name) if name in values:
            dtype = values[name].dtype
            return "bool" if dtype == "bool" else "int" if dtype.startswith(("int", "uint")) else "real"
        case Apply(op, args):
            known = OPS[op].kind
            if known != "same":
                return known
            kinds = {_kind(a, values) for a in (args[1:] if op == "select" else args)}
            return "real" if "real" in kinds else "int" if "int" in kinds or op != "select" else "bool"
    return kind(e)
