"""Loads and stores as views: slices where an index follows one axis, gathers only where there is no view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flashlight.backends.cpu_map import Speller
from flashlight.backends.cpu_values import Linear, State, linear
from flashlight.backends.queries import INTS, axes_in, names_in
from flashlight.backends.scalar import bare, number
from flashlight.errors import InternalError
from flashlight.tile import Const, Expr, LoadOp, Store


@dataclass(frozen=True)
class Place:
    """One dimension of a buffer: its length, and its index (None: the whole of it stands for ``axis``)."""

    length: Expr
    index: Expr | None
    axis: str = ""


@dataclass(frozen=True)
class View:
    """A loaded tensor: its text, the axes it varies along, and whether it is a copy."""

    text: str
    axes: frozenset[str]
    copied: bool


@dataclass(frozen=True)
class _Part:
    """A place with what is known of its index; ``kind``: number, slice, select (one axis), lattice or gather."""

    place: Place
    axes: tuple[str, ...]
    form: Linear | None
    kind: str


def load(state: State, text: str, places: Sequence[Place], op: LoadOp, order: tuple[str, ...]) -> View:
    """``text[places]`` as a tensor with dimensions ``order``, of length 1 along axes it does not vary along."""
    parts = _untangled([_part(state, p) for p in places])
    axes = frozenset(a for p in parts for a in p.axes)
    if unknown := axes - set(order):
        raise InternalError(f"kernel {state.kernel.name}: {op} varies along {sorted(unknown)}, its value does not")
    if any(p.kind == "lattice" for p in parts):
        return View(_lattice(state, text, parts, order), axes, False)
    text, selects = _sliced(state, text, parts, _other(state, op))
    for dim, p in selects:
        text = _selected(state, text, p, dim, op)
    kept = [p for p in parts if p.kind != "number"]
    gathers = [p for p in kept if p.kind == "gather"]
    if not gathers:
        return View(_canonical(text, [p.axes[0] for p in kept], order), axes, bool(selects))
    copied = any(p.axes for p in gathers)  # at a place that is one number PyTorch gives a view
    return View(_gathered(state, text, kept, op, order), axes, copied)


def store(state: State, s: Store, dims: tuple[str, ...], value: str) -> None:
    """Print the assignment of ``value``, a tensor with dimensions (batch axes..., dims...)."""
    buffer = state.kernel.buffer(s.buffer)
    order = (*state.batch, *dims)
    parts = [_part(state, Place(n, e)) for n, e in zip(buffer.shape, s.index, strict=True)]
    target = state.names[s.buffer]
    times = Counter(a for p in parts for a in p.axes)
    if any(p.kind not in ("number", "slice") for p in parts) or max(times.values(), default=0) > 1:
        if all(p.form is not None for p in parts):
            state.writer.line(f"{_lattice(state, target, parts, order)}[...] = {value}")
            return
        index = ", ".join(_coordinates(state, p, order, clamp=False) for p in parts)
        state.writer.line(f"{target}[{index}] = {value}.to({target}.dtype)")
        return
    text, _ = _sliced(state, target, parts, "None", exact=True)
    have = [p.axes[0] for p in parts if p.kind == "slice"]
    if any(a not in have for a in order):
        value = f"{value}[{', '.join(':' if a in have else '0' for a in order)}]"
    kept = [a for a in order if a in have]
    if (inner := [a for a in have if a in kept]) != kept:
        value += f".permute({', '.join(str(kept.index(a)) for a in inner)})"
    if inner != have:
        first = next(k for k, a in enumerate(have) if a not in inner)
        value += f"[..., {', '.join(':' if a in inner else 'None' for a in have[first:])}]"
    state.writer.line(f"{text if text != target else f'{target}[...]'} = {value}")


# ---- what an index is ------------------------------------------------------------------------------------------------
def _part(state: State, p: Place) -> _Part:
    if p.index is None:
        return _Part(p, (p.axis,), None, "slice")
    axes = dict.fromkeys(axes_in(p.index))
    for n in names_in(p.index):
        v = state.value(n)
        axes |= dict.fromkeys(a for a in (*state.batch, *v.dims) if a in v.axes)
    form = linear(p.index)
    if form is not None and all(step > 0 for _, step in form.steps):
        kind = ("number", "slice", "lattice")[min(len(form.steps), 2)]
        return _Part(p, tuple(a for a, _ in form.steps), form, kind)
    single = len(axes) == 1 and not names_in(p.index)
    return _Part(p, tuple(axes), None, "select" if single else "gather")


def _untangled(parts: list[_Part]) -> list[_Part]:
    """Dimensions that share an axis are taken together: in one strided view if all indices are linear, else in one
    gather."""
    times = Counter(a for p in parts for a in p.axes)
    if max(times.values(), default=0) <= 1 and all(p.kind not in ("lattice", "gather") for p in parts):
        return parts
    if all(p.form is not None for p in parts):
        return [_Part(p.place, p.axes, p.form, "lattice") for p in parts]
    kinds = ["gather" if p.kind == "lattice" else p.kind for p in parts]
    while True:
        tangled = {a for k, p in zip(kinds, parts, strict=True) for a in p.axes if times[a] > 1 or k == "gather"}
        wider = ["gather" if set(p.axes) & tangled else k for k, p in zip(kinds, parts, strict=True)]
        if wider == kinds:
            return [_Part(p.place, p.axes, p.form, k) for p, k in zip(parts, kinds, strict=True)]
        kinds = wider


def _other(state: State, op: LoadOp) -> str:
    """The value outside the buffer: it matters along a streamed axis only."""
    if not any(state.roles.get(a) == "stream" for a in op.guard):
        return "None"
    dtype = state.kernel.buffer(op.buffer).dtype
    value = bool(op.other) if dtype == "bool" else int(op.other) if dtype in INTS else float(op.other)
    return bare(number(value))


# ---- texts -----------------------------------------------------------------------------------------------------------
def _sliced(
    state: State, text: str, parts: Sequence[_Part], other: str, exact: bool = False
) -> tuple[str, list[tuple[int, _Part]]]:
    """Numbers and slices applied (``exact``: slices that are proved inside); what remains to be selected, with its
    dimension."""
    items: list[str] = []
    windows: list[str] = []
    selects: list[tuple[int, _Part]] = []
    dim = 0
    for p in parts:
        item = ":"
        if p.kind == "number" and p.form is not None:
            items.append(state.integer(p.form.offset))
            continue
        if p.kind == "select":
            selects.append((dim, p))
        elif p.kind == "slice" and p.form is not None:
            axis, step = p.form.steps[0]
            lo, hi = state.span(axis)
            extent = state.extents[axis]
            if step == 1 and p.form.offset is Const(0) and _fits(extent, p.place.length):
                item = f"{lo}:{hi}" if lo != "0" else ":" if extent is p.place.length else f":{hi}"
            else:
                base = "" if p.form.offset is Const(0) else f" + {state.atom(p.form.offset)}"
                start = f"{lo}{base}" if step == 1 else f"{lo} * {step}{base}"
                stop = f"{hi}{base}" if step == 1 else f"({hi} - 1) * {step}{base} + 1"
                if exact:
                    item = f"{start}:{stop}" + (f":{step}" if step != 1 else "")
                else:
                    windows.append(f"{dim}, {start}, {stop}, {step}, {other}")
        items.append(item)
        dim += 1
    while items and items[-1] == ":":
        items.pop()
    if items:
        text += f"[{', '.join(items)}]"
    for w in windows:
        text = f"window({text}, {w.removesuffix(', None').removesuffix(', 1') if other == 'None' else w})"
    return text, selects


def _fits(extent: Expr, length: Expr) -> bool:
    if extent is length:
        return True
    return isinstance(extent, Const) and isinstance(length, Const) and extent.value <= length.value


def _selected(state: State, text: str, p: _Part, dim: int, op: LoadOp) -> str:
    """One dimension taken at a function of one axis's coordinates, clamped to the buffer."""
    at = _coordinates(state, p, p.axes, clamp=False)
    length = state.atom(p.place.length)
    taken = f"{text}.index_select({dim}, {at}.clamp(0, {length} - 1))"
    other = _other(state, op)
    return taken if other == "None" else f"outside({taken}, {bare(at)}, {length}, {dim}, {other})"


def _gathered(state: State, text: str, kept: list[_Part], op: LoadOp, order: tuple[str, ...]) -> str:
    """Advanced indexing: gathered dimensions first, then the sliced ones are moved to their places."""
    ranks = sorted(range(len(kept)), key=lambda n: kept[n].kind != "gather")
    if ranks != sorted(ranks):
        text += f".permute({', '.join(map(str, ranks))})"
    gathers = [p for p in kept if p.kind == "gather"]
    simple = [p.axes[0] for p in kept if p.kind != "gather"]
    # Loaded indices are the user's, and checked by torch: no coordinate is virtual here that could have spoilt them.
    own = {p.place: p.place.index is not None and not names_in(p.place.index) for p in gathers}
    index = [_coordinates(state, p, order, clamp=own[p.place]) for p in gathers]
    text += f"[{', '.join(map(bare, index))}]"
    for n, a in enumerate(simple):  # the gather left length 1 where these belong
        text += f".transpose({order.index(a)}, {len(order) + n})"
    if simple:
        text += f"[..., {', '.join('0' for _ in simple)}]"
    other = _other(state, op)
    if other != "None":
        for p in (p for p in gathers if own[p.place]):
            if any(state.roles.get(a) == "stream" and a in op.guard for a in p.axes):
                at, length = _coordinates(state, p, order, clamp=False), state.atom(p.place.length)
                text = f"torch.where(({at} >= 0) & ({at} < {length}), {text}, {other})"
    return text


def _coordinates(state: State, p: _Part, order: tuple[str, ...], clamp: bool) -> str:
    """The index tensor of one dimension, with dimensions ``order``."""
    index = p.place.index
    if index is None:
        raise InternalError(f"kernel {state.kernel.name}: a gather along the whole of {p.axes[0]}")
    out = Speller(state, order, index, lambda v: False).spell(index)
    text = out.text if not out.scalar else f"torch.tensor({bare(out.text)})"
    if out.rank < len(order):
        text += f"[{', '.join(['None'] * (len(order) - out.rank))}]"
    return f"{text}.clamp(0, {state.atom(p.place.length)} - 1)" if clamp and not out.scalar else text


def _lattice(state: State, text: str, parts: Sequence[_Part], order: tuple[str, ...]) -> str:
    """A strided view: every index is linear in the axes."""
    first: list[str] = []
    steps: dict[str, list[int]] = {a: [0] * len(parts) for a in order}
    for d, p in enumerate(parts):
        if p.form is None:
            raise InternalError(f"kernel {state.kernel.name}: no linear index in dimension {d} of {text}")
        terms = [] if p.form.offset is Const(0) else [state.atom(p.form.offset)]
        for axis, step in p.form.steps:
            steps[axis][d] = step
            lo, _ = state.span(axis)
            if lo != "0":
                terms.append(lo if step == 1 else f"{lo} * {step}")
        first.append(" + ".join(terms) or "0")
    shape = []
    for a in order:
        length = bare(state.length(a)) if any(steps[a]) else "1"
        shape.append(f"({length}, {tuple(steps[a])})")
    return f"lattice({text}, ({', '.join(first)},), {', '.join(shape)})"


def _canonical(text: str, have: list[str], order: tuple[str, ...]) -> str:
    """Permute dimensions ``have`` into ``order`` and insert the missing ones."""
    kept = [a for a in order if a in have]
    if kept != have:
        text += f".permute({', '.join(str(have.index(a)) for a in kept)})"
    if len(kept) < len(order):
        last = max(k for k, a in enumerate(order) if a not in have)
        text += f"[{', '.join(':' if a in have else 'None' for a in order[: last + 1])}]"
    return text
