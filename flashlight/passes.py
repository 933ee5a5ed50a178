"""Which stages of a nest share a pass along the streamed axis.

Every stage would need a pass of its own after the stages it reads; certificates merge passes, and nothing else does.
Where the slots of a merged pass are more than registers hold, and a stage has fewer once the results that it reads are
known, those results get a pass first.  So they do where a stage then needs no sums that all rows share, and all that is
done twice is reading.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import prod

from flashlight.algebra import Cascade, Certificate, Proved, Verdict
from flashlight.algebra.derive import decide
from flashlight.errors import InternalError
from flashlight.expr import FALSE, Const, Expr, Fold, Ref, apply, loads, refs, substitute, walk
from flashlight.joins import joined, rowwise
from flashlight.nests import Output, Pass, State, free_axes
from flashlight.program import Axis
from flashlight.skipped import lost

ROWS = 64  # of a nominal block: the fewest that fill a tensor core's instruction
CARRIED = 96 * 1024
"""Bytes that the slots of one pass may take, of the 256 KB of registers that a multiprocessor has.

They stay while a trip holds what it makes: a tile of scores and one of weights for each map, the weights again in 16
bits for the next product, and addresses.  A quarter of the registers (two slots of 64 x 128) leaves room for that;
half of them (two of 64 x 256) does not (docs/decisions/0013-statistics-first.md has the compiler's counts).
"""


@dataclass(frozen=True)
class Passes:
    """How the states of a nest are computed: as they were given, or with sums joined.

    ``verdicts``: every question put to the algebra, as (stages, answer).  ``notes``: what takes a pass of its own.
    """

    states: tuple[State, ...]
    outputs: tuple[Output, ...]
    passes: tuple[Pass, ...] = ()
    verdicts: tuple[tuple[tuple[str, ...], Verdict], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """The axes of a nest: the streamed one, those of which an instance takes a block, and those that it takes whole."""

    stream: Axis
    tiled: tuple[Axis, ...]
    points: tuple[Axis, ...]


def passes(frame: Frame, states: tuple[State, ...], outputs: tuple[Output, ...], merge: bool = True) -> Passes:
    """Everything in one pass if the algebra proves it and registers hold its slots; else as few passes as do.

    Without ``merge`` a stage that reads others has a pass after theirs.
    """
    if not merge:
        return _arranged(frame.stream, states, outputs, late={s.name for s in states})
    plans = [_arranged(frame.stream, states, outputs)]
    if both := joined(frame.stream.name, states, outputs):
        plans.append(_arranged(frame.stream, *both))

    def most(plan: Passes) -> int:
        return max((sum(_carried(frame, plan.states, p.certificate).values()) for p in plan.passes), default=0)

    again = any(_repeats(frame, x, p, name) for x in plans for p in x.passes for name in p.stages)
    if again or most(min(plans, key=most)) > CARRIED:
        plans += [p for plan in plans if (p := _statistics_first(frame, plan))]
    verdicts = dict(v for plan in reversed(plans) for v in reversed(plan.verdicts))
    return replace(min(plans, key=most), verdicts=tuple(reversed(verdicts.items())))


def _arranged(
    stream: Axis, states: tuple[State, ...], outputs: tuple[Output, ...], late: Collection[str] = ()
) -> Passes:
    """All states in one pass if the algebra proves it; else the states it can prove first, and the rest after them.

    ``late``: states that share no pass with what they read.
    """
    todo, done, notes, odd = list(states), list[Pass](), list[str](), set[str]()
    verdicts: list[tuple[tuple[str, ...], Verdict]] = []
    while todo:
        waiting: set[str] = set()
        for s in todo:
            if _read(s.body, states) & (waiting if s.name not in late else {t.name for t in todo}):
                waiting.add(s.name)
        chosen = [s for s in todo if s.name not in waiting]
        verdict: Verdict | None = _ask(stream, chosen, states, outputs, verdicts)
        if not isinstance(verdict, Proved):
            ready, chosen, verdict = chosen, [], None
            blocked: set[str] = set()
            for s in ready:
                if _read(s.body, states) & blocked:
                    blocked.add(s.name)
                    continue
                answer = _ask(stream, [*chosen, s], states, outputs, verdicts)
                if isinstance(answer, Proved):
                    chosen, verdict = [*chosen, s], answer
                else:
                    blocked.add(s.name)
                    notes.append(f"{s.name} takes a pass of its own over {stream.name}: {answer} ({s.origin})")
        if not isinstance(verdict, Proved):  # a stage alone, that reads nothing unfinished, is a plain reduction
            raise InternalError(f"no pass over {stream.name} can begin with any of {[s.name for s in todo]}")
        told = _told(stream, chosen, states, [p.certificate for p in done], verdict.certificate, odd)
        done.append(Pass(verdict.certificate, tuple(s.name for s in chosen)))
        todo = [s for s in todo if s not in chosen]
        if told:
            odd |= {r for ref in told for r in refs(ref)}
            todo = [replace(s, body=substitute(s.body, told)) for s in todo]
            new = {s.name: s for s in todo}
            states = tuple(new.get(s.name, s) for s in states)
            outputs = tuple(replace(o, body=substitute(o.body, told)) for o in outputs)
    return Passes(states, outputs, tuple(done), tuple(verdicts), tuple(notes))


def _told(
    stream: Axis,
    chosen: list[State],
    states: tuple[State, ...],
    before: list[Certificate],
    own: Certificate,
    odd: Collection[str],
) -> dict[Expr, Expr]:
    """How results of a pass are read that are NaN where it visits nothing."""
    told: dict[Expr, Expr] = {}
    done = {s.name for c in before for s in c.cascade.stages}
    for s in chosen:
        read = [t for t in states if t.name in refs(s.body) & done]
        slots = tuple(t for t in own.slots if t.name in refs(own.link(s.name).value))
        nan = lost(stream.name, s, slots, read, before, odd) if read else FALSE
        if nan is not None and nan is not FALSE:
            told[Ref(s.name)] = apply("select", nan, Const(math.nan), Ref(s.name))
    return told


def _read(e: Expr, states: Iterable[State]) -> frozenset[str]:
    """The states that are read, running ones too."""
    return refs(e) | ({x.tensor for x in loads(e)} & {s.name for s in states if s.monoid == "scan"})


def _ask(
    stream: Axis,
    states: list[State],
    others: tuple[State, ...],
    outputs: tuple[Output, ...],
    verdicts: list[tuple[tuple[str, ...], Verdict]],
) -> Verdict:
    names = {s.name for s in states}
    stages = tuple(s.stage for s in states)
    later = [s.body for s in others if s.name not in names and _read(s.body, states) & names]
    read = (*(o.body for o in outputs if _read(o.body, states) & names), *later)
    verdict = decide(Cascade(stream.name, stream.extent, stages, read))
    verdicts.append((tuple(s.name for s in states), verdict))
    return verdict


# ---- statistics first ------------------------------------------------------------------------------------------------
def _statistics_first(frame: Frame, plan: Passes) -> Passes | None:
    """The stages that have fewer large slots once what they read is known, after it; None where there are none."""
    states = list(plan.states)
    late: dict[str, str] = {}
    for p in plan.passes:
        if any(s.scan for s in p.certificate.cascade.stages):
            continue  # what runs along the axis is read in its own pass
        together = _carried(frame, states, p.certificate)
        for name in p.stages:
            s = next(s for s in states if s.name == name)
            s = replace(s, body=rowwise(frame.stream.name, s.body))
            read = [t for t in states if t.name in refs(s.body) and t.name in p.stages]
            verdict = _ask(frame.stream, [s], plan.states, plan.outputs, [])
            if not read or not isinstance(verdict, Proved):
                continue
            alone = _carried(frame, states, verdict.certificate)
            merged = sum(n for slot, n in together.items() if slot in refs(p.certificate.link(name).value))
            repeats = _repeats(frame, plan, p, name)
            if merged - sum(alone.values()) < (1 if repeats else max(alone.values())):
                continue
            if lost(frame.stream.name, s, verdict.certificate.slots, read, [p.certificate], late) is None:
                continue
            why = (
                "in their pass every block of rows makes sums again that are the same for all"
                if repeats
                else f"in their pass it takes {merged >> 10} KB of registers, once they are known "
                f"{sum(alone.values()) >> 10} KB"
            )
            after = ", ".join(t.name for t in read)
            late[name] = f"{name} takes a pass of its own over {frame.stream.name}, after {after}: {why} ({s.origin})"
            states = [s if t.name == name else t for t in states]
    if not late:
        return None
    made = _arranged(frame.stream, tuple(states), plan.outputs, late)
    return replace(made, notes=(*made.notes, *late.values()))


def _repeats(frame: Frame, plan: Passes, p: Pass, name: str) -> bool:
    """Has a stage sums along the points that do not vary along the rows, so that every block of rows makes them again,
    in a pass that holds nothing but reads and what is done to them (a product inside it would be made twice)?"""
    if any(isinstance(n, Fold) for s in p.certificate.cascade.stages for n in walk(s.body)):
        return False
    tiled, points = ({a.name for a in axes} for axes in (frame.tiled, frame.points))
    read = refs(p.certificate.link(name).value)
    over = _spread(plan.states, p.certificate)
    return bool(tiled) and any(s in read and axes & points and not axes & tiled for s, axes in over.items())


def _spread(states: Iterable[State], certificate: Certificate) -> dict[str, frozenset[str]]:
    """The axes along which each slot varies."""
    table = {s.name: s for s in states}
    own: dict[str, frozenset[str]] = {}
    for s in certificate.slots:
        moved = (own.get(r, frozenset()) for g in s.gauges for r in refs(certificate.gauge(g).value))
        own[s.name] = free_axes(s.body, table).union(*moved)
    return own


def _carried(frame: Frame, states: Iterable[State], certificate: Certificate) -> dict[str, int]:
    """The bytes that each slot takes in an instance, as far as lengths are literal."""
    table = {s.name: s for s in states}
    lengths = {f.axis: f.extent for s in table.values() for f in walk(s.body) if isinstance(f, Fold)}
    lengths |= {a.name: int(a.extent.value) for a in frame.points if isinstance(a.extent, Const)}
    lengths |= {a.name: min(ROWS, int(a.extent.value)) if isinstance(a.extent, Const) else ROWS for a in frame.tiled}
    over = _spread(table.values(), certificate)
    return {name: 4 * prod(lengths.get(a, 1) for a in axes) for name, axes in over.items()}
