"""Where loads, stores and copies reach: a pointer to the instance's part of a buffer, and offsets in 64 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashlight.backends.cupy.body import Body, Element, Spelled, constant, converted
from flashlight.backends.cupy.dtypes import WIDE
from flashlight.backends.cupy.exchange import alone, packed
from flashlight.backends.cupy.operands import Tile
from flashlight.backends.cupy.state import Place, State, Value, constant_over
from flashlight.backends.queries import kind_of
from flashlight.backends.scalar import bare
from flashlight.backends.uses import axes_in
from flashlight.tile import Const, Expr, Index, Let, LoadOp, Store


@dataclass(frozen=True)
class Where:
    """A place in a buffer: ``base`` pointer, ``offset`` in elements ("" for none), ``lines`` needed before."""

    base: str
    offset: str
    lines: tuple[str, ...]

    @property
    def pointer(self) -> str:
        return f"{self.base} + {self.offset}" if self.offset else self.base


def where(state: State, buffer: str, index: Sequence[Expr], at: Element) -> Where:
    """The place of one element."""
    name = state.names[buffer]
    constant_parts, parts, lines = [], [], []
    for d, e in enumerate(index):
        if e is Const(0):
            continue
        if constant_over(e, state.axes):
            far = _far(Body(state, Element({}, {}), e, share=False).spell(e))
            constant_parts += [] if far == "0" else [f"{far} * {name}_s{d}"]
        else:
            body = Body(state, at, e)
            far = _far(body.spell(e))
            parts += [] if far == "0" else [f"{far} * {name}_s{d}"]
            lines += body.lines
    base = name
    if constant_parts:
        base = state.named(f"{name}_at", f"{name} + {' + '.join(constant_parts)}")
    return Where(base, " + ".join(parts), tuple(lines))


def _far(x: Spelled) -> str:
    """In 64 bits."""
    return "0" if bare(x.text) == "0" else converted(x, "int64").text


def run_axis(state: State, index: Sequence[Expr], dims: tuple[str, ...], place: Place) -> str:
    """The axis along which registers hold neighbours in memory; "" if there is none."""
    if not index or not dims or not isinstance(index[-1], Index) or index[-1].axis != dims[-1]:
        return ""
    axis = dims[-1]
    return axis if place[axis].run > 1 and axis not in axes_in(*index[:-1]) else ""


def limit(state: State, buffer: str, index: Sequence[Expr], axis: str) -> str:
    """The number of coordinates that lie both on the axis and in the buffer."""
    own = state.integer(state.axes[axis].extent)
    shape = state.plan.kernel.buffer(buffer).shape
    for e, length in zip(index, shape, strict=True):
        if isinstance(e, Index) and e.axis == axis and length is not state.axes[axis].extent:
            return f"lesser({own}, {state.integer(length)})"
    return own if own.isidentifier() or own.isdigit() else f"({own})"


# ---- registers -------------------------------------------------------------------------------------------------------
def load(state: State, s: Let, op: LoadOp, v: Value) -> None:
    """Print the load of a block into registers; ``v`` is declared already."""
    page, dims = state.page, v.dims
    along = run_axis(state, op.index, dims, v.place)
    run = v.place[along].run if along else 1
    index = state.axes[along].index if along else ""
    registers = {along: f"{index} * {run}"} if along and run < v.place[along].local else {along: "0"} if along else {}
    at = state.at(v, registers)
    clamped: dict[str, str] = {}
    conditions: list[str] = []
    inside = ""
    for a in dims:
        p, axis = v.place[a], state.axes[a]
        text = state.coordinate(a, at)
        checks = [f"{state.inside(a, at)} < {axis.block}"] if state.padded(a, p) else []
        rooms = [f"{axis.block} - {state.inside(a, at)}"] if state.padded(a, p) else []
        if a in op.guard:
            if axis.role == "row" and a != along:
                clamped[a] = f"lesser({bare(text)}, {bare(limit(state, op.buffer, op.index, a))} - 1)"
                checks = []
            elif axis.role != "point":
                checks.append(f"{bare(text)} < {limit(state, op.buffer, op.index, a)}")
                rooms.append(f"{limit(state, op.buffer, op.index, a)} - {text}")
        if a == along and rooms:
            inside = rooms[0] if len(rooms) == 1 else f"lesser({', '.join(rooms)})"
        elif a != along:
            conditions += checks
    place = where(state, op.buffer, op.index, replace(at, coordinates=clamped))
    dtype = state.plan.kernel.buffer(op.buffer).dtype
    step = f"{state.names[op.buffer]}_s{len(op.index) - 1}"
    other = constant(op.other if kind_of(dtype) == "real" else int(op.other), "float32" if dtype in WIDE else dtype)
    other = f"narrow<{WIDE[dtype]}>({other})" if dtype in WIDE else other
    if along:
        state.align(op.buffer)
        per = 2 if v.pairs else 1
        slots = [state.axes[a].index for a in dims[:-1]]
        slots.append(f"{index} * {run // per}" if registers[along] != "0" else "0")
        if conditions:
            inside = f"{' && '.join(conditions)} ? {inside or run} : 0"
        more = f", {inside}" if inside else ""
        more += f", {other}" if op.other != 0 else ""
        target = f"&{v.text}{''.join(f'[{x}]' for x in slots)}"
        text = f"load_run<{state.alignment(op.buffer)}, {run}>({target}, {place.pointer}, {step}{more});"
        several = [(index, v.place[along].local // run)] if registers[along] != "0" else []
        loops = [*state.loops(v, dims[:-1]), *several]
        page.loops(loops, [*place.lines, text])
        return
    value = f"{place.base}[{place.offset or '0'}]"
    if conditions:
        value = f"{' && '.join(conditions)} ? {value} : {other}"
    if v.pairs:
        target = v.text + "".join(f"[{state.axes[a].index}]" for a in dims[:-1])
        page.loops(state.loops(v), [*place.lines, f"put({target}, {state.axes[dims[-1]].index}, {value});"])
    else:
        page.loops(state.loops(v), [*place.lines, f"{state.read(v, state.at(v)).text} = {value};"])


def store(state: State, s: Store, v: Value) -> None:
    """Print the store of a block; each element is written by one of the threads that hold it."""
    page, dims = state.page, v.dims
    dtype = state.plan.kernel.buffer(s.buffer).dtype
    along = run_axis(state, s.index, dims, v.place)
    if along and v.dtype != dtype:
        v = cast(state, v, dtype, state.names.fresh(v.text))
    run = v.place[along].run if along else 1
    index = state.axes[along].index if along else ""
    several = bool(along) and run < v.place[along].local
    registers = {along: f"{index} * {run}" if several else "0"} if along else {}
    at = state.at(v, registers)
    conditions = [c for c in (alone(state, v),) if c]
    inside = ""
    for a in dims:
        axis = state.axes[a]
        checks = [f"{state.inside(a, at)} < {axis.block}"] if state.padded(a, v.place[a]) else []
        rooms = [f"{axis.block} - {state.inside(a, at)}"] if state.padded(a, v.place[a]) else []
        if a in s.guard and axis.role != "point":
            end, text = limit(state, s.buffer, s.index, a), state.coordinate(a, at)
            checks.append(f"{bare(text)} < {end}")
            rooms.append(f"{end} - {text}")
        if a == along and rooms:
            inside = rooms[0] if len(rooms) == 1 else f"lesser({', '.join(rooms)})"
        elif a != along:
            conditions += checks
    place = where(state, s.buffer, s.index, at)
    guard = f"if ({' && '.join(conditions)}) " if conditions else ""
    if along:
        state.align(s.buffer)
        per = 2 if v.pairs else 1
        slots = [*(state.axes[a].index for a in dims[:-1]), f"{index} * {run // per}" if several else "0"]
        source = f"&{v.text}{''.join(f'[{x}]' for x in slots)}"
        step = f"{state.names[s.buffer]}_s{len(s.index) - 1}"
        more = f", {inside}" if inside else ""
        text = f"{guard}store_run<{state.alignment(s.buffer)}, {run}>({place.pointer}, {source}, {step}{more});"
        loops = [*state.loops(v, dims[:-1]), *([(index, v.place[along].local // run)] if several else [])]
        page.loops(loops, [*place.lines, text])
        return
    text = bare(converted(state.read(v, at), dtype).text)
    page.loops(state.loops(v), [*place.lines, f"{guard}{place.base}[{place.offset or '0'}] = {text};"])


def cast(state: State, v: Value, dtype: str, name: str) -> Value:
    """Print the value in another dtype."""
    to = state.new(name, v.dims, dtype, v.place, v.zeros)
    page = state.page
    if not to.dims:
        page.line(f"const {to.type} {name} = {bare(converted(state.read(v, state.at(v)), dtype).text)};")
        return to
    page.line(to.declared)
    if to.pairs:
        return packed(state, to, lambda at: bare(converted(state.read(v, at), "float32").text))
    at = state.at(v)
    page.loops(state.loops(v), [f"{state.read(to, at).text} = {bare(converted(state.read(v, at), dtype).text)};"])
    return to


# ---- shared memory ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Copy:
    """How a tile is copied.

    ``before``: lines that are printed once, ahead of all copies.  ``text``: the copy, given the tile's text.
    """

    before: tuple[str, ...]
    text: str

    def into(self, tile: str) -> str:
        return self.text.replace("@", tile)


def copy(state: State, tile: Tile, op: LoadOp, guard: frozenset[str]) -> Copy:
    """The copy of a tile; where a streamed axis begins is said by its start's variable, in ``text`` alone."""
    state.align(op.buffer)

    def room(axis: str) -> str:
        block = state.axes[axis].block
        if axis not in guard or state.axes[axis].role == "point":
            return str(block)
        return f"lesser({block}, {limit(state, op.buffer, op.index, axis)} - {state.start(axis)})"

    rows, columns, index = tile.outer, tile.inner, op.index[:-1]
    name = state.names[op.buffer]
    last = f"{name}_s{len(index)}"
    start, begin = state.start(rows), state.start(columns)
    align = state.alignment(op.buffer)
    sizes = f"{room(rows)}, {room(columns)}, {last}"
    streams = [a for a in (rows, columns) if state.axes[a].role == "stream"]
    found = [d for d, e in enumerate(index) if rows in axes_in(e)]
    if len(found) != 1 or not isinstance(index[found[0]], Index) or set(axes_in(*index)) & set(streams) - {rows}:
        place = where(state, op.buffer, index, Element({}, {}, {rows: f"({start} + r)"}))
        body = " ".join((*place.lines, f"return {place.offset or '0ll'};"))
        first = place.base if begin == "0" else f"{place.base} + (long long){begin} * {last}"
        return Copy((), f"copy_rows<{align}, THREADS>(@, {first}, [&](int r) {{ {body} }}, {sizes});")
    apart = f"{name}_s{found[0]}"
    ahead = {rows: "0" if rows in streams else start}
    place = where(state, op.buffer, index, Element({}, {}, ahead))
    first, moves = place.pointer, []
    for axis, text, stride in ((rows, start, apart), (columns, begin, last)):
        if axis in streams:
            moves.append(f" + (long long){text} * {stride}")
        elif axis == columns and text != "0":
            first += f" + (long long){text} * {stride}"
    own = state.names.fresh(f"{name}_own")
    before = f"const auto {own} = own_part<{tile.type}, {align}, THREADS>({first}, {apart}, {last});"
    whole = "true" if room(columns) == str(tile.shape[1]) else "false"
    text = f"copy_tile<{align}, THREADS, {whole}>(@, {own}{''.join(moves)}, {apart}, {sizes});"
    return Copy((*place.lines, before), text)
