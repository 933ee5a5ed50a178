"""Values in other places: read again, computed again, or exchanged between threads through shared memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from flashlight.backends.cupy.body import Element, constant, converted
from flashlight.backends.cupy.dtypes import CTYPES, SIZES, WIDE
from flashlight.backends.cupy.operands import Tile
from flashlight.backends.cupy.state import Place, State, Value
from flashlight.backends.scalar import bare
from flashlight.tile import Let, LoadOp, MapOp

SYNC = "__syncthreads();"


def placed(state: State, name: str, place: Place) -> Value:
    """The value where ``place`` has its axes; the lines that bring it there are printed if need be."""
    v = state.value(name)
    if all(v.place[a] == place[a] for a in v.dims if a in place):
        return v
    key = name, str([(a, place[a]) for a in v.dims])
    if key not in state.variants:
        state.variants[key] = _moved(state, name, v, place)
    return state.variants[key]


def _moved(state: State, name: str, v: Value, place: Place) -> Value:
    from flashlight.backends.cupy.emit import define

    s = state.defined.get(name)
    place = {a: place[a] for a in v.dims}
    if isinstance(s, Let) and isinstance(s.op, LoadOp | MapOp) and not _dear(state, s):
        return define(state, s, place, state.names.fresh(v.text))
    to = state.new(state.names.fresh(v.text), v.dims, v.dtype, place)
    page = state.page
    page.note(f"{name} for threads that hold other parts of it")
    pitch = pitches(state, v.dims)
    page.line(SYNC)
    write(state, v, pitch, v.dtype)
    page.line(SYNC)
    page.line(to.declared)
    index = dense(state, to, pitch)
    source = f"{array(v.dtype)}[{index}]"
    target = state.at(to)
    if to.pairs:
        last = target.registers[to.dims[-1]]
        start = "".join(f"[{target.registers[a]}]" for a in to.dims[:-1])
        page.loops(state.loops(to), [f"put({to.text}{start}, {last}, {source});"])
    else:
        page.loops(state.loops(to), [f"{state.read(to, target).text} = {source};"])
    return to


def _dear(state: State, s: Let) -> bool:
    """Does computing a definition again cost more than an exchange, or read what is not there?"""
    operands = state.plan.uses.operands[id(s)]
    return any(state.defined.get(n) is not d or state.values[n].dims for n, d in operands.items())


# ---- dense arrays ----------------------------------------------------------------------------------------------------
def pitches(state: State, dims: tuple[str, ...]) -> dict[str, int]:
    """How far neighbours along each axis lie apart in a dense array."""
    out, n = {}, 1
    for a in reversed(dims):
        out[a] = n
        n *= state.axes[a].block
    return out


def reserve(state: State, size: int) -> None:
    state.scratch = max(state.scratch, -(-size // 16) * 16)


def dense(state: State, v: Value, pitch: dict[str, int]) -> str:
    """The place of an element in a dense array; padding repeats the last one."""
    at, terms = state.at(v), []
    for a in v.dims:
        inside = state.inside(a, at)
        if state.padded(a, v.place[a]):
            inside = f"lesser({inside}, {state.axes[a].block - 1})"
        terms.append(inside if pitch[a] == 1 else f"{inside} * {pitch[a]}")
    return " + ".join(terms) or "0"


def alone(state: State, v: Value) -> str:
    """The condition under which a thread is the only one that holds its elements; "" if every thread is."""
    taken = frozenset().union(*(v.place[a].bits for a in v.dims))
    parts = []
    for where, bits in (("lane", 5), ("warp", state.plan.warps.bit_length() - 1)):
        mask = sum(1 << k for k in range(bits) if (where, k) not in taken)
        if mask:
            parts.append(f"{where} == 0" if mask == (1 << bits) - 1 else f"(warp & {mask}) == 0".replace("warp", where))
    return " && ".join(parts)


def real_points(state: State, v: Value) -> list[str]:
    """Conditions under which an element is no padding."""
    at = state.at(v)
    return [f"{state.inside(a, at)} < {state.axes[a].block}" for a in v.dims if state.padded(a, v.place[a])]


def array(dtype: str, offset: int = 0) -> str:
    """The scratch memory from a byte on, as numbers of a dtype."""
    return f"(({CTYPES[dtype]}*){f'(scratch + {offset})' if offset else 'scratch'})"


def write(state: State, v: Value, pitch: dict[str, int], dtype: str, offset: int = 0) -> int:
    """Print the stores of a block to a dense array in scratch memory; returns where the array ends."""
    end = offset + prod(state.axes[a].block for a in v.dims) * SIZES[dtype]
    reserve(state, end)
    text = converted(state.read(v, state.at(v)), dtype).text
    place = f"{array(dtype, offset)}[{dense(state, v, pitch)}]"
    state.page.loops(state.loops(v), [f"{only(state, v)}{place} = {bare(text)};"])
    return -(-end // 16) * 16


def only(state: State, v: Value) -> str:
    """``if`` one of the threads that hold an element, and it is no padding."""
    conditions = [c for c in (alone(state, v), *real_points(state, v)) if c]
    return f"if ({' && '.join(conditions)}) " if conditions else ""


# ---- tiles -----------------------------------------------------------------------------------------------------------
def staged(state: State, v: Value, tile: Tile, name: str) -> str:
    """Put a block into shared memory as a tile for the tensor cores; returns the tile's name."""
    page = state.page
    text = state.names.fresh(name)
    reserve(state, replace(tile, stages=0).bytes)
    page.line(f"const {tile.type} {text}{{shared_at(scratch)}};")
    page.line(SYNC)
    blocks = tuple(state.axes[a].block for a in (tile.outer, tile.inner))
    if blocks != tile.shape:
        page.line(f"clear_tile<THREADS>({text});")
        page.line(SYNC)
    at = state.at(v)
    where = f"{text}.at({state.inside(tile.outer, at)}, {state.inside(tile.inner, at)})"
    page.loops(state.loops(v), [f"{only(state, v)}{where} = {bare(converted(state.read(v, at), tile.dtype).text)};"])
    page.line(SYNC)
    return text


def cleared(state: State, v: Value, axis: str) -> Value:
    """The value with zeros in the padding along an axis."""
    if not state.padded(axis, v.place[axis]) or axis in v.zeros:
        return v
    to = replace(v, text=state.names.fresh(v.text), zeros=v.zeros | {axis})
    page = state.page
    page.line(to.declared)
    if not v.pairs:
        at = state.at(v)
        inside = f"{state.inside(axis, at)} < {state.axes[axis].block}"
        zero = constant(0.0 if v.dtype.startswith("float") else 0, v.dtype)
        page.loops(state.loops(v), [f"{state.read(to, at).text} = {inside} ? {state.read(v, at).text} : {zero};"])
        return to
    return packed(state, to, lambda at: f"({state.inside(axis, at)} < {state.axes[axis].block} "
                                        f"? {state.read(v, at).text} : 0.0f)")  # fmt: skip


def packed(state: State, to: Value, text: object) -> Value:
    """Print the definition of a block of pairs (already declared) from the text of an element."""
    last = to.dims[-1]
    index = state.axes[last].index
    ats: list[Element] = [state.at(to, {last: f"2 * {index}"}), state.at(to, {last: f"2 * {index} + 1"})]
    where = "".join(f"[{state.axes[a].index}]" for a in to.dims)
    first, second = (text(at) for at in ats)  # type: ignore[operator]
    loops = [*state.loops(to, to.dims[:-1]), (index, to.place[last].local // 2)]
    state.page.loops(loops, [f"{to.text}{where} = pair<{WIDE[to.dtype]}>({first}, {second});"])
    return to
