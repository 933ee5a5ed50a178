"""Does a nest, as it is run, respect every dependence that no certificate relaxes?

The schedule is read off what was lowered: blocks of the grid in parallel; in each, pass after pass; in a pass, block
after block of the streamed axis, and in a block slot after slot, then what is written as it runs; then the results of
its stages; at last the outputs, and the sweep that writes what else carries the streamed axis.  isl is asked for a pair
of instances in the wrong order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flashlight.algebra import Certificate, Slot
from flashlight.errors import IllegalFusion, InternalError
from flashlight.expr import Const, Expr, Index, apply, axes, loads, refs
from flashlight.lower import Lowered
from flashlight.nests import Nest, Output, Pass
from flashlight.polyhedral.access import accesses
from flashlight.polyhedral.dependence import Dependence, Pairs, depend
from flashlight.polyhedral.domain import IterationDomain
from flashlight.polyhedral.schedule_tree import Band, Domain, Filter, Leaf, Mark, Sequence, Tree, tile, violation
from flashlight.polyhedral.space import TooHard
from flashlight.tile import Loop, Store, leaves
from flashlight.verify import Obligation


def verify_legality(lowered: Lowered) -> tuple[Obligation, ...]:
    """Every dependence of the nest runs forward under its schedule, but for completions that a certificate relaxes.

    A certificate relaxes the completion of a stage for later stages *of its own pass*, and leaves behind that a block
    reads the slots of its gauges as this block has left them.  Raises IllegalFusion with a pair of instances that run
    in the wrong order, or with what a certificate says other than the nest; InternalError if the kernel's loops are not
    the nest's.
    """
    nest = lowered.nest
    build = _Schedule(nest, lowered)
    build.demand_certificates()
    tree = build.tree()
    left, relaxed = build.dependences()
    try:
        witness = violation(tree, left)
    except TooHard as why:
        raise InternalError(f"{nest.name}: isl could not decide whether the schedule is legal: {why}") from None
    if witness is not None:
        raise IllegalFusion(f"{nest.name}: the schedule breaks a dependence", witness)
    forward = Obligation(
        f"{nest.name}: every dependence that no certificate relaxes runs forward",
        f"isl, {len(left)} dependences" + (f", {len(relaxed)} completions relaxed" if relaxed else ""),
        str(tree),
    )
    return (forward, *relaxed.values())


@dataclass(frozen=True)
class _Sweep:
    """A pass as it is scheduled: its statements are the updates of its slots and the results of its stages."""

    number: int
    certificate: Certificate
    slots: dict[str, IterationDomain]  # by the slot's name in the certificate
    results: dict[str, IterationDomain]


class _Schedule:
    def __init__(self, nest: Nest, lowered: Lowered):
        self.nest, self.kernel = nest, lowered.kernel
        own = nest.stream.name if nest.stream else None
        strips = {d.axis for d in self.kernel.dims if d.role == "stream" and d.axis != own}  # of sums inside a body
        loops = [s for s in self.kernel.body if isinstance(s, Loop) and s.axis not in strips]
        slots = [len(p.certificate.slots) for p in nest.passes] + ([0] if nest.maps else [])
        if [len(s.carries) for s in loops] != slots or any(
            nest.stream is None or s.axis != nest.stream.name for s in loops
        ):
            raise InternalError(f"{nest.name}: the kernel's loops are not the passes of the nest")
        written = [[o.name for o in nest.swept_with(p.stages)] for p in nest.passes]
        written += [[o.name for o in nest.maps]] if nest.maps else []
        for loop, names in zip(loops, written, strict=True):
            if any([x.buffer for x in leaves(g.body) if isinstance(x, Store)] != names for g in loop.segments):
                raise InternalError(f"{nest.name}: a loop does not write {names or 'nothing'}, as its pass does")
        self.blocks = {d.axis: d.block for d in self.kernel.dims}
        self.stream = nest.stream.name if nest.stream else ""
        self.points: dict[str, frozenset[str]] = {}  # point axes along which a value varies
        self.results: dict[str, IterationDomain] = {}
        self.sweeps = [self.sweep(k + 1, p) for k, p in enumerate(nest.passes)]
        self.outputs = {o.name: self.output(o) for o in nest.outputs}

    # ---- statements --------------------------------------------------------------------------------------------
    def sweep(self, number: int, p: Pass) -> _Sweep:
        cert, slots = p.certificate, {}
        for s in cert.slots:
            gauged = [cert.gauge(g).value for g in s.gauges]
            self.points[s.name] = self.varies(s.body, *gauged)
            name = s.name if number == 1 else f"{s.name}@{number}"
            slots[s.name] = self.domain(name, self.points[s.name], streamed=True)
        results = {}
        for link in cert.links:
            self.points[link.stage] = self.varies(link.value)
            self.results[link.stage] = results[link.stage] = self.domain(link.stage, self.points[link.stage])
        return _Sweep(number, cert, slots, results)

    def output(self, o: Output) -> IterationDomain:
        own = {a.name for a in o.axes}
        return self.domain(f"store {o.name}", own, self.stream in own)

    def domain(self, name: str, points: Iterable[str], streamed: bool = False) -> IterationDomain:
        nest = self.nest
        stream = (nest.stream,) if streamed and nest.stream else ()
        return IterationDomain(name, (*nest.grid, *(a for a in nest.points if a.name in points), *stream))

    def varies(self, *es: Expr) -> frozenset[str]:
        """The point axes along which the value of expressions varies, through what they refer to."""
        own = frozenset().union(*map(axes, es)) & {a.name for a in self.nest.points}
        named = [*(r for e in es for r in refs(e)), *(x.tensor for e in es for x in loads(e))]
        return own.union(*(self.points.get(r, frozenset()) for r in sorted(named)))

    # ---- the schedule ------------------------------------------------------------------------------------------
    def tree(self) -> Domain:
        nest = self.nest
        filters: list[Filter] = []
        for w in self.sweeps:
            note = f"pass {w.number} along {self.stream}"
            written = (self.outputs[o.name] for o in nest.swept_with(w.results))
            filters.append(self.along((*w.slots.values(), *written), note))
            filters.append(self.one_by_one(tuple(w.results.values())))
        maps = {o.name for o in nest.maps}
        last = tuple(d for n, d in self.outputs.items() if n not in maps | {o.name for o in nest.swept})
        if last:
            filters.append(self.one_by_one(last))
        if maps:
            filters.append(
                self.along(tuple(d for n, d in self.outputs.items() if n in maps), f"map along {self.stream}")
            )
        body = _sequence(filters)
        grid = tile(Band(tuple(Index(a.name) for a in nest.grid)), tuple(self.blocks.get(a.name, 1) for a in nest.grid))
        every = tuple(d for w in self.sweeps for d in (*w.slots.values(), *w.results.values()))
        return Domain((*every, *self.outputs.values()), Band(grid.members, body, parallel=True) if nest.grid else body)

    def along(self, statements: tuple[IterationDomain, ...], note: str) -> Filter:
        """One block of the streamed axis after the other, in each the statements in order."""
        block = apply("floordiv", Index(self.stream), Const(self.blocks[self.stream]))
        inner = _sequence([Filter((d.name,), self.block(d)) for d in statements])
        return Filter(tuple(d.name for d in statements), Mark(note, Band((block,), inner)))

    def one_by_one(self, statements: tuple[IterationDomain, ...]) -> Filter:
        return Filter(
            tuple(d.name for d in statements), _sequence([Filter((d.name,), self.block(d)) for d in statements])
        )

    def block(self, d: IterationDomain) -> Tree:
        """The points of one block, all at once."""
        point = {a.name for a in self.nest.points}
        members: list[Expr] = []
        for a in d.axes:
            if a.name in point:
                members.append(Index(a.name))
            elif (length := self.blocks.get(a.name, 1)) != 1:
                members.append(apply("mod", Index(a.name), Const(length)))
        return Band(tuple(members), parallel=True) if members else Leaf()

    # ---- the dependences ---------------------------------------------------------------------------------------
    def demand_certificates(self) -> None:
        """Certificates speak of the states of this nest, and of every one."""
        done = {s.name: s for p in self.nest.passes for s in p.certificate.cascade.stages}
        for s in self.nest.states:
            stage = done.get(s.name)
            if stage is None or stage != s.stage:
                raise IllegalFusion(f"{self.nest.name}: no certificate speaks of the state", f"{s}; {stage}")

    def dependences(self) -> tuple[tuple[Dependence, ...], dict[tuple[str, str], Obligation]]:
        """What the schedule must respect, and what is relaxed: as (stage, the stage it need not wait for)."""
        out: dict[Dependence, None] = {}
        relaxed: dict[tuple[str, str], Obligation] = {}
        for p, w in zip(self.nest.passes, self.sweeps, strict=True):
            bodies = {s.name: s.body for s in p.certificate.cascade.stages}
            for link in w.certificate.links:
                for r in sorted(refs(bodies[link.stage]) & self.results.keys()):
                    if _covers(p, r, link.stage):
                        claim = f"{self.nest.name} pass {w.number}: {link.stage} need not wait until {r} is finished"
                        relaxed[link.stage, r] = Obligation(claim, f"certificate, {link.form}: {link}")
                    else:
                        out |= dict.fromkeys(self.completion(w, r, link.stage))
                out |= dict.fromkeys(self.result(w, link.stage))
            for s in w.certificate.slots:
                out |= dict.fromkeys(self.update(w, s))
        for o in self.nest.outputs:
            sink = self.outputs[o.name]
            out |= dict.fromkeys(self.element(self.results[r], sink) for r in sorted(refs(o.body)) if r in self.results)
            for w in self.sweeps if o in self.nest.swept else ():
                out |= dict.fromkeys(self.run(w, slot, sink) for slot in _running(w, o.body))
            out |= dict.fromkeys(self.through_memory(sink, o.body))
        return tuple(out), relaxed

    def element(self, source: IterationDomain, sink: IterationDomain, kind: str = "element") -> Dependence:
        own = {a.name for a in sink.axes}
        at = tuple(Index(a.name) if a.name in own else None for a in source.axes)
        return depend(kind, Pairs(source, sink, at))

    def completion(self, w: _Sweep, stage: str, reader: str) -> Iterable[Dependence]:
        """Every update of the reader's slots needs the stage's result."""
        for slot in _slots(w, w.certificate.link(reader).value):
            yield self.element(self.results[stage], w.slots[slot], "completion")

    def result(self, w: _Sweep, stage: str) -> Iterable[Dependence]:
        """A result is read off its slots when all points have been added, and off earlier results."""
        cert, sink = w.certificate, w.results[stage]
        link = cert.link(stage)
        values = [link.value, *(cert.gauge(g).value for g in link.restore)]
        for slot in _slots(w, link.value):
            moved = [cert.gauge(g) for g in cert.slot(slot).gauges if not cert.gauge(g).same]
            values += [e for g in moved for e in (g.value, g.final)]
        for e in values:
            yield from (self.finished(w.slots[slot], sink) for slot in _slots(w, e))
            yield from (self.element(self.results[r], sink) for r in sorted(refs(e)) if r in self.results)

    def finished(self, source: IterationDomain, sink: IterationDomain) -> Dependence:
        at = tuple(None if a.name == self.stream else Index(a.name) for a in source.axes)
        own = {a.name for a in sink.axes}
        at = tuple(e if e is None or e.axis in own else None for e in at)
        return depend("completion", Pairs(source, sink, at))

    def update(self, w: _Sweep, s: Slot) -> Iterable[Dependence]:
        """A block is added at gauges that are made of slots as this block has left them."""
        sink = w.slots[s.name]
        for e in (s.body, *(w.certificate.gauge(g).value for g in s.gauges)):
            yield from (self.element(self.results[r], sink) for r in sorted(refs(e)) if r in self.results)
            yield from (self.run(w, slot, sink) for slot in (*_slots(w, e), *_running(w, e)))
        yield from self.through_memory(sink, s.body)

    def run(self, w: _Sweep, slot: str, sink: IterationDomain) -> Dependence:
        """What reads a slot as this block has left it: all blocks up to this one have been added."""
        source = w.slots[slot]
        at = self.finished(source, sink).pairs.at
        return depend("running", Pairs(source, sink, at, (self.stream, self.blocks[self.stream])))

    def through_memory(self, sink: IterationDomain, body: Expr) -> Iterable[Dependence]:
        """Loads of what this very nest writes."""
        for access in accesses(sink, body):
            if access.tensor in self.outputs:
                source = self.outputs[access.tensor]
                written = next(o for o in self.nest.outputs if o.name == access.tensor)
                pairs = zip(written.index, access.index, strict=True)
                where: dict[str, Expr | None] = {i.axis: e for i, e in pairs if isinstance(i, Index)}
                at = tuple(where.get(a.name) for a in source.axes)
                yield depend("element", Pairs(source, sink, at), access.is_exact)


def _sequence(filters: list[Filter]) -> Tree:
    return filters[0].child if len(filters) == 1 else Sequence(tuple(filters))


def _slots(w: _Sweep, e: Expr) -> list[str]:
    return [s.name for s in w.certificate.slots if s.name in refs(e)]


def _running(w: _Sweep, e: Expr) -> list[str]:
    """The slots of what an expression reads as it runs along the axis: all blocks up to this one have been added."""
    stages = {s.name for s in w.certificate.cascade.stages if s.scan is not None} & {x.tensor for x in loads(e)}
    return [slot for stage in sorted(stages) for slot in _slots(w, w.certificate.link(stage).value)]


def _covers(p: Pass, stage: str, reader: str) -> bool:
    """Does the pass's certificate speak of both stages, in this order?"""
    for order in (p.stages, tuple(s.name for s in p.certificate.cascade.stages)):
        if stage not in order or reader not in order or order.index(stage) > order.index(reader):
            return False
    return True
