"""Which statements share a nest, what is relaxed, what is recomputed, what is written to memory.

A *nest* is one launch: a grid of parallel axes, one streamed axis (or none), and passes along it.  Reductions over the
streamed axis are the nest's *stages*; reductions over bounded axes are folded where they are used (recomputed a tile);
a reduction over any other unbounded axis is *cut*: an earlier nest computes it and writes it.  Every stage would need a
pass of its own after the stages it reads; the algebra's certificates merge passes, and nothing else does.
"""

from __future__ import annotations

from dataclasses import replace

from flashlight.draft import Draft
from flashlight.errors import InternalError
from flashlight.expr import Apply, Expr, Index, Load, Ref, rewrite, substitute, walk
from flashlight.index import Extents, simplify
from flashlight.nests import Nest, Output, Plan, State
from flashlight.normal import normal
from flashlight.passes import Frame, Passes, passes
from flashlight.program import Program
from flashlight.shape import Shape


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
        draft = Draft(program, program[name], short=not merge)
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
        _nest(f"nest{k}", [drafts[n].shape for n in names], notes, merge) for k, names in enumerate(groups.values())
    )
    temporaries = tuple(program[n].tensor for n in written if n not in roots)
    return Plan(program, nests, temporaries, tuple(notes))


def _nest(name: str, drafts: list[Shape], notes: list[str], merge: bool) -> Nest:
    """Merge roots that share grid and streamed axis, and group their states into passes."""
    first = drafts[0]
    states: dict[str, State] = {}
    outputs, points = [], {}
    lengths = {a.name: a.extent for a in (*first.grid, *(a for d in drafts for a in d.points))}
    for d in drafts:
        rename: dict[Expr, Expr] = {}
        for s in d.states.values():
            s = replace(s, body=_placed(substitute(s.body, rename), lengths.get))
            twin = next((t for t in states.values() if _same(t, s)), None)
            if twin is None:
                fresh = s.name if s.name not in states else f"{s.name}_{len(states)}"
                states[fresh] = twin = replace(s, name=fresh)
            rename[Ref(s.name)] = Ref(twin.name)
            if d.stream:
                at = (Index(d.stream.name),)
                rename[Load(s.name, at)] = Load(twin.name, at)
        outputs.append(
            Output(d.root.tensor, d.axes, d.index, _placed(substitute(d.body, rename), lengths.get), d.root.origin)
        )
        points.update({a.name: a for a in d.points})
    made = Passes(tuple(states.values()), tuple(outputs))
    if first.stream:
        tiled = tuple(a for a in first.grid if a.name in first.blocked)
        made = passes(Frame(first.stream, tiled, tuple(points.values())), made.states, made.outputs, merge)
        notes += made.notes
    return Nest(
        name,
        first.grid,
        first.blocked,
        first.stream,
        tuple(points.values()),
        made.states,
        made.passes,
        made.outputs,
        made.verdicts,
    )


def _same(s: State, t: State) -> bool:
    return (s.monoid, s.place, s.body, s.statement) == (t.monoid, t.place, t.body, t.statement)


def _placed(e: Expr, extents: Extents) -> Expr:
    """Loads with what they divide worked out: ``k[h*2 // 2]`` and ``k[(h*2 + 1) // 2]`` are one block."""

    def rule(n: Expr) -> Expr | None:
        match n:
            case Load(tensor, index, kind) if any(_divides(i) for i in index):
                return Load(tensor, tuple(simplify(i, extents) if _divides(i) else i for i in index), kind)
        return None

    return rewrite(e, rule)


def _divides(e: Expr) -> bool:
    return any(isinstance(n, Apply) and n.op in ("floordiv", "mod") for n in walk(e))
