"""Loops: states carried round, segments, and rings of tiles that are copied ahead of the trips that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flashlight.backends.cupy.address import copy
from flashlight.backends.cupy.exchange import SYNC, packed, placed
from flashlight.backends.cupy.operands import Tile
from flashlight.backends.cupy.state import State, Value
from flashlight.tile import Apply, Carry, Expr, Let, LoadOp, Loop, Segment

if TYPE_CHECKING:
    from flashlight.backends.cupy.emit import Emitter


@dataclass(frozen=True)
class Ring:
    """A load that every segment has, as tiles copied ahead.  ``name``: of the load; ``offset``: into shared memory."""

    name: str
    op: LoadOp
    tile: Tile
    guard: frozenset[str]
    offset: int

    def at(self, stage: str) -> str:
        """Where the tile of a stage begins."""
        base = f"shared + {self.offset}" if self.offset else "shared"
        return f"{base} + {stage} * {self.tile.once.bytes}" if self.tile.stages > 1 else base


def loop(emitter: Emitter, s: Loop) -> None:
    """Print a loop with all its segments."""
    from flashlight.backends.cupy.emit import initial

    st, page = emitter.state, emitter.state.page
    page.note(f"loop {s.axis}: {', '.join(c.name for c in s.carries) or 'no state'}")
    states: list[Value] = []
    for c in s.carries:
        if s.axis in c.dims:
            raise st.error(f"state {c.name} varies along its own loop's axis")
        v = st.new(st.names[c.name], c.dims, c.dtype, emitter.plan.places[id(c)])
        initial(st, v, c.init)
        states.append(v)
        define_state(st, c, v)
    a = st.axes[s.axis]
    numbers = {g.axis: st.axes[g.axis].number for g in emitter.kernel.grid}
    numbers |= {x: st.axes[x].number for x in st.open}
    bounds = [(bound(st, g.lo, numbers), bound(st, g.hi, numbers)) for g in s.segments]
    trip_number = st.names.fresh(f"{s.axis}_listed") if any(g.tile is not None for g in s.segments) else a.number

    def block(g: Segment, number: str) -> str:
        """The block that a trip takes."""
        return number if g.tile is None else st.integer(g.tile, numbers | {s.axis: number})

    st.open.add(s.axis)
    rings = rings_of(emitter, s)
    stages = rings[0].tile.stages if rings else 0
    if rings:
        fetch, stage = (st.names.fresh(f"{s.axis}_{w}") for w in ("fetch", "stage"))
        copies = [copy(st, r.tile, r.op, r.guard) for r in rings]
        for line in (line for made in copies for line in made.before):
            page.line(line)
        with page.block(f"const auto {fetch} = [&](int {a.number}, int {stage})", "};"):
            page.line(f"const int {a.start} = {a.number} * {a.block};")
            for r, made in zip(rings, copies, strict=True):
                page.line(made.into(f"{r.tile.type}{{{r.at(stage)}}}"))
        page.line(f"int {stage} = 0;  // of the tiles that a trip reads")
    last = ""
    for k, (g, (lo, hi)) in enumerate(zip(s.segments, bounds, strict=True)):
        if rings and stages > 1 and not follows(s, k):
            last = run_end(st, s, k, [hi for _, hi in bounds])
            page.line(SYNC)
            with page.block(f"for ({stage} = 0; {stage} < {stages - 1}; ++{stage})"):
                first = stage if lo == "0" else f"{lo} + {stage}"
                page.line(f"if ({first} < {last}) {fetch}({block(g, first)}, {stage});")
                page.line("copies_commit();")
            page.line(f"{stage} = 0;")
        number = a.number if g.tile is None else trip_number
        with page.block(f"for (int {number} = {lo}; {number} < {hi}; ++{number})"), scope(st):
            page.note(f"{g.kind} blocks of {s.axis}")
            if g.tile is not None:
                page.line(f"const int {a.number} = {block(g, number)};")
            if rings and stages > 1:
                page.line(f"copies_wait<{stages - 2}>();")
                page.line(SYNC)
                slot = f"({stage} + {stages - 1}) % {stages}"
                ahead = f"{number} + {stages - 1}"
                page.line(f"if ({ahead} < {last}) {fetch}({block(g, ahead)}, {slot});")
                page.line("copies_commit();")
            elif rings:
                page.line(SYNC)
                page.line(f"{fetch}({a.number}, 0);")
                page.line("copies_commit();")
                page.line("copies_wait<0>();")
                page.line(SYNC)
            page.line(f"const int {a.start} = {a.number} * {a.block};")
            trip(emitter, s, g, rings, stage if rings else "", states)
            if rings and stages > 1:
                page.line(f"{stage} = ({stage} + 1) % {stages};")
    st.open.discard(s.axis)
    for c, v in zip(s.carries, states, strict=True):
        define_state(st, c, v)


def bound(state: State, e: Expr, numbers: dict[str, str]) -> str:
    """An end as an operand of a comparison or a sum: a choice binds less than these do."""
    text = state.integer(e, numbers)
    return f"({text})" if isinstance(e, Apply) and e.op == "select" else text


def follows(s: Loop, k: int) -> bool:
    """Does the k-th segment begin where the one before it ends?  (Then copies run ahead over that end.)"""
    if k == 0 or not s.segments[k - 1].tile is s.segments[k].tile is None:
        return False
    return s.segments[k - 1].hi is s.segments[k].lo


def run_end(state: State, s: Loop, k: int, ends: list[str]) -> str:
    """Where the segments end that follow each other from the k-th on: an empty one may end before it begins."""
    more = k + 1
    while more < len(s.segments) and follows(s, more):
        more += 1
    text = ends[k]
    for end in ends[k + 1 : more]:
        text = f"larger({text}, {end})"
    if text.isidentifier() or text.isdigit():
        return text
    name = state.names.fresh(f"{s.axis}_end")
    state.page.line(f"const int {name} = {text};")
    return name


class scope:
    """Values that are defined in a block end with it."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __enter__(self) -> None:
        st = self.state
        self.saved = dict(st.values), dict(st.defined), dict(st.variants), dict(st.tiles), dict(st.ready)

    def __exit__(self, *_: object) -> None:
        st = self.state
        st.values, st.defined, st.variants, st.tiles, st.ready = self.saved


def define_state(state: State, c: Carry, v: Value) -> None:
    state.values[c.name], state.defined[c.name] = v, c
    for key in [k for k in state.variants if k[0] == c.name]:
        del state.variants[key]


def trip(emitter: Emitter, s: Loop, g: Segment, rings: list[Ring], stage: str, states: list[Value]) -> None:
    """The body of a segment, and the states after it."""
    st, page = emitter.state, emitter.state.page
    for c, v in zip(s.carries, states, strict=True):
        define_state(st, c, v)
    st.ready = {}
    for load in (x for x in g.body if isinstance(x, Let) and id(x) in emitter.plan.tiles):
        r = next((r for r in rings if same(load, r.op)), None)
        if r is not None:
            text = st.names[f"{load.name}_shared"]
            page.line(f"const {r.tile.type} {text}{{{r.at(stage)}}};")
            st.ready[load.name] = text
    emitter.body(g.body)
    moves: list[tuple[Value, Value]] = []
    changed = {c.name for c in s.carries}
    for c, v in zip(s.carries, states, strict=True):
        x = placed(st, c.next, v.place)
        if x.dims != v.dims or x.dtype != v.dtype:
            from flashlight.backends.cupy.address import cast
            from flashlight.backends.cupy.dots import ordered

            x = ordered(st, cast(st, x, v.dtype, st.names.fresh(v.text)), v.dims)
        if x.text != v.text:
            moves.append((v, x))
    if any(c.next in changed for c in s.carries):  # states that change places
        moves = [(v, held(st, x)) for v, x in moves]
    if moves:
        page.note("the states after this trip")
    for v, x in moves:
        where = "".join(f"[{st.axes[a].index}]" for a in v.dims)
        loops = [(st.axes[a].index, n) for a, n in zip(v.dims, v.shape(), strict=True)]
        page.loops(loops, [f"{v.text}{where} = {x.text}{where};"])


def held(state: State, x: Value) -> Value:
    """A copy."""
    to = replace(x, text=state.names.fresh(x.text))
    state.page.line(to.declared)
    if to.pairs:
        return packed(state, to, lambda at: state.read(x, at).text)
    state.page.loops(state.loops(x), [f"{state.read(to, state.at(to)).text} = {state.read(x, state.at(x)).text};"])
    return to


# ---- rings -----------------------------------------------------------------------------------------------------------
def same(x: Let, op: LoadOp) -> bool:
    return isinstance(x.op, LoadOp) and x.op.buffer == op.buffer and x.op.index == op.index


def rings_of(emitter: Emitter, s: Loop) -> list[Ring]:
    """The tiles that every segment of the loop loads from the same places."""
    plan = emitter.plan
    out: list[Ring] = []

    def tiles(g: Segment) -> list[tuple[Let, LoadOp]]:
        return [(x, x.op) for x in g.body if isinstance(x, Let) and isinstance(x.op, LoadOp) and id(x) in plan.tiles]

    for x, op in tiles(s.segments[0]) if s.segments else []:
        found = [[o for y, o in tiles(g) if same(y, op) and y.dims == x.dims] for g in s.segments]
        if all(found) and not any(same(x, r.op) for r in out):
            guard = frozenset(a for ops in found for o in ops for a in o.guard)
            t = plan.tiles[id(x)]
            out.append(Ring(x.name, op, t, guard, emitter.room(t.bytes)))
    return out
