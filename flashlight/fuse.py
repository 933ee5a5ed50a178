"""Which statements share a nest, what is relaxed, what is recomputed, what is written to memory.

A *nest* is one launch: a grid of parallel axes, one streamed axis (or none), and passes along it.  Reductions over the
streamed axis are the nest's *stages*; reductions over bounded axes are folded where they are used (recomputed a tile);
a reduction over any other unbounded axis is *cut*: an earlier nest computes it and writes it.  Every stage would need a
pass of its own after the stages it reads; the algebra's certificates merge passes, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from flashlight.algebra import Cascade, Proved, Verdict
from flashlight.algebra.derive import decide
from flashlight.draft import Draft
from flashlight.errors import InternalError
from flashlight.expr import (
    Expr,
    Index,
    Load,
    Ref,
    loads,
    refs,
    substitute,
)
from flashlight.nests import Nest, Output, Pass, Plan, State
from flashlight.normal import normal
from flashlight.program import Axis, Program


def fuse(program: Program, merge: bool = True) -> Plan:
    """Plan a program as few nests; only on ``Proved`` do stages share a pass.

    Without ``merge`` a stage that reads others has a pass after theirs: right for short axes, where a pass costs little
    and what is exact from the start need not be moved.
    """
    program = normal(program)
    roots = list(dict.fromkeys(program.outputs))
    written: dict[str, int] = {}  # statement -> the round it is written in
    drafts: dict[str, Draft] = {}
    notes: list[str] = []

    def plan_root(name: str) -> int:
        if name in written:
            return written[name]
        draft = Draft(program, program[name])
        if name in draft.cuts:
            raise InternalError(f"{name} cannot be planned: it would be written before itself")
        rounds = [plan_root(cut) for cut in draft.cuts]
        for cut, why in draft.cuts.items():
            notes.append(f"{cut} is written to memory and read again: {why} ({program[cut].origin})")
        drafts[name], written[name] = draft, 1 + max(rounds, default=0)
        return written[name]

    for name in roots:
        plan_root(name)
    groups: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(drafts, key=lambda n: written[n]):
        groups.setdefault((written[name], *drafts[name].key), []).append(name)
    nests = tuple(
        _nest(f"nest{k}", [drafts[n] for n in names], notes, merge) for k, names in enumerate(groups.values())
    )
    temporaries = tuple(program[n].tensor for n in written if n not in roots)
    return Plan(program, nests, temporaries, tuple(notes))


def _nest(name: str, drafts: list[Draft], notes: list[str], merge: bool) -> Nest:
    """Merge roots that share grid and streamed axis, and group their states into passes."""
    first = drafts[0]
    states: dict[str, State] = {}
    outputs, points = [], {}
    for d in drafts:
        rename: dict[Expr, Expr] = {}
        for s in d.states.values():
            s = replace(s, body=substitute(s.body, rename))
            twin = next((t for t in states.values() if _same(t, s)), None)
            if twin is None:
                fresh = s.name if s.name not in states else f"{s.name}_{len(states)}"
                states[fresh] = twin = replace(s, name=fresh)
            rename[Ref(s.name)] = Ref(twin.name)
            if d.stream:
                at = (Index(d.stream.name),)
                rename[Load(s.name, at)] = Load(twin.name, at)
        outputs.append(Output(d.root.tensor, d.axes, d.index, substitute(d.body, rename), d.root.origin))
        points.update({a.name: a for a in d.points})
    passes, verdicts = (
        _passes(first.stream, tuple(states.values()), tuple(outputs), notes, merge) if first.stream else ((), ())
    )
    return Nest(
        name,
        first.grid,
        first.blocked,
        first.stream,
        tuple(points.values()),
        tuple(states.values()),
        passes,
        tuple(outputs),
        verdicts,
    )


def _read(e: Expr, states: Iterable[State]) -> frozenset[str]:
    """The states that are read, running ones too."""
    return refs(e) | ({x.tensor for x in loads(e)} & {s.name for s in states if s.monoid == "scan"})


def _same(s: State, t: State) -> bool:
    return (s.monoid, s.place, s.body, s.statement) == (t.monoid, t.place, t.body, t.statement)


def _passes(
    stream: Axis, states: tuple[State, ...], outputs: tuple[Output, ...], notes: list[str], merge: bool
) -> tuple[tuple[Pass, ...], tuple[tuple[tuple[str, ...], Verdict], ...]]:
    """All states in one pass if the algebra proves it; else the states it can prove first, and the rest after them."""
    todo, passes = list(states), list[Pass]()
    verdicts: list[tuple[tuple[str, ...], Verdict]] = []
    while todo:
        chosen: list[State] = []
        ready = todo if merge else [s for s in todo if not _read(s.body, states) & {t.name for t in todo}]
        verdict: Verdict | None = _ask(stream, ready, states, outputs, verdicts)
        if isinstance(verdict, Proved):
            chosen = ready
        else:
            verdict = None
            blocked: set[str] = set()
            for s in todo:
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
        passes.append(Pass(verdict.certificate, tuple(s.name for s in chosen)))
        todo = [s for s in todo if s not in chosen]
    return tuple(passes), tuple(verdicts)


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
