"""Where loads and stores reach: a 64-bit scalar for the place of the block, 32-bit offsets within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashlight.backends.queries import axes_in, kind_of, names_in
from flashlight.backends.scalar import bare
from flashlight.backends.triton.body import Body, constant, placed
from flashlight.backends.triton.either import Either
from flashlight.backends.triton.page import tidy
from flashlight.backends.triton.state import State
from flashlight.expr import apply
from flashlight.tile import Apply, Const, Expr, Index, LoadOp, Store

WHOLE = 0


@dataclass(frozen=True)
class Linear:
    """``sum of step * axis, + offset`` with literal steps; ``offset`` is a scalar over sizes and batch axes."""

    steps: tuple[tuple[str, int], ...]
    offset: Expr


def load(state: State, op: LoadOp, order: tuple[str, ...]) -> str:
    """The text of a load as a tensor with dimensions ``order``."""
    place, masks = _reached(state, op, order)
    return _loaded(state, op, place, masks)


def load_either(state: State, one: Either, order: tuple[str, ...]) -> str:
    """The text of a load from one of two buffers: of the address that is chosen."""
    condition = Body(state, order, one.condition)
    (first, masks), (second, _) = (_reached(state, op, order, one.whole) for op in (one.first, one.second))
    chosen = f"tl.where({bare(condition.spell(one.condition).text)}, {first}, {second})"
    return _loaded(state, one.first, chosen, masks)


def _reached(state: State, op: LoadOp, order: tuple[str, ...], whole: bool = True) -> tuple[str, str]:
    """The addresses of a load, and which points lie inside ("" where all do).  ``whole``: see :class:`_Place`."""
    place = _Place(state, op.buffer, op.index, order, frozenset(op.guard), clamp=True, whole=whole)
    return place.text(), place.masks([a for a in op.guard if state.axis(a).role == "stream"])


def _loaded(state: State, op: LoadOp, place: str, masks: str) -> str:
    if not masks:
        return f"tl.load({place})"
    dtype = state.kernel.buffer(op.buffer).dtype
    other = float(op.other) if kind_of(dtype) == "real" else int(op.other)
    return f"tl.load({place}, mask={masks}, other={bare(constant(other, 'float32'))})"


def store(state: State, s: Store, text: str, order: tuple[str, ...]) -> None:
    """Print the store of ``text``, a tensor with dimensions ``order`` in the buffer's dtype."""
    place = _Place(state, s.buffer, s.index, order, frozenset(), clamp=False)
    masks = place.masks(s.guard)
    state.page.line(tidy(f"tl.store({place.text()}, {text}{f', mask={masks}' if masks else ''})"))


def linear(state: State, e: Expr) -> Linear | None:
    """The index as a linear form of block coordinates; None if it is not one."""
    if all(not state.value(n).dims for n in names_in(e)) and all(state.axis(a).role == "batch" for a in axes_in(e)):
        return Linear((), e)
    match e:
        case Index(axis):
            return Linear(((axis, 1),), Const(0))
        case Apply("add" | "sub" as op, (a, b)):
            x, y = linear(state, a), linear(state, b)
            if x is None or y is None:
                return None
            steps = dict(x.steps)
            for axis, step in y.steps:
                steps[axis] = steps.get(axis, 0) + (step if op == "add" else -step)
            return Linear(tuple((a, n) for a, n in steps.items() if n), apply(op, x.offset, y.offset))
        case Apply("mul", (a, Const(int(n))) | (Const(int(n)), a)):
            x = linear(state, a)
            if x is None:
                return None
            return Linear(tuple((axis, n * k) for axis, k in x.steps if n), apply("mul", x.offset, Const(n)))
    return None


class _Place:
    """The address of a block of a buffer.

    ``guard``: axes that may run over the buffer's end here; coordinates of rows are clamped (``clamp``), those of
    streamed axes are masked by the caller.  ``whole``: the buffer is read wherever its axes run; else addresses outside
    are made, and not used.
    """

    def __init__(
        self,
        state: State,
        buffer: str,
        index: Sequence[Expr],
        order: tuple[str, ...],
        guard: frozenset[str],
        clamp: bool,
        whole: bool = True,
    ) -> None:
        self.state, self.order, self.clamp, self.whole = state, order, clamp, whole
        self.guard = guard
        self.buffer = state.names[buffer]
        self.limits: dict[str, Expr] = {}
        names = [b.name for b in (*state.kernel.inputs, *state.kernel.outputs)]
        self.number = names.index(buffer)
        shape = state.kernel.buffer(buffer).shape
        self.bases: list[tuple[int, str]] = []  # (level, scalar offset in 64 bits)
        self.trips: list[str] = []  # where the present trips start
        self.lanes: list[tuple[int, str]] = []  # (level, block of offsets)
        for d, (e, length) in enumerate(zip(index, shape, strict=True)):
            if whole and isinstance(e, Index) and length is not state.axis(e.axis).extent:
                self.limits[e.axis] = length
            self.dimension(d, e)

    def dimension(self, d: int, e: Expr) -> None:
        st = self.state
        if e is Const(0):
            return
        form = linear(st, e)
        if form is None:
            refs = [st.value(n) for n in names_in(e)]
            body = Body(st, self.order, e, {a: self.clamped(a)[0] for a in axes_in(e) if self.clamps(a)})
            out = body.spell(e)
            level = max([0, *(st.level(a) for a in axes_in(e)), *(v.level for v in refs)])
            text = f"{out.text}.to(tl.int64) * {self.stride(d)}"
            (self.lanes if out.axes else self.bases).append((level, text))
            return
        match form.offset:
            case Const(value):
                if value:
                    self.bases.append((0, f"{value} * {self.stride(d, abs(int(value)))}"))
            case offset:
                level = max([0, *(st.value(n).level for n in names_in(offset))])
                self.bases.append((level, f"{st.integer(offset)}.to(tl.int64) * {self.stride(d)}"))
        for axis, step in form.steps:
            a = st.axis(axis)
            far = a.role == "stream" and not self.whole  # its trips may reach further than the buffer
            reach = abs(step) * a.block if far else {"batch": 1, "stream": WHOLE}.get(a.role, abs(step) * a.block)
            stride = self.stride(d, reach)
            stride = stride if step == 1 else f"{step} * {stride}"
            if a.role == "batch":
                self.bases.append((0, f"{st.coordinate(axis)}.to(tl.int64) * {stride}"))
                continue
            if a.role == "row":
                self.bases.append((0, f"{st.start(axis)}.to(tl.int64) * {stride}"))
            elif far:
                self.bases.append((st.level(axis), f"{st.start(axis)}.to(tl.int64) * {stride}"))
            elif a.role == "stream":
                self.trips.append(f"{st.start(axis)} * {stride}")
            lane = self.clamped(axis)[1] if self.clamps(axis) else st.lane(axis)
            level = st.level(axis) if self.clamps(axis) else 0
            self.lanes.append((level, f"{self.spread(lane, axis)} * {stride}"))

    def stride(self, d: int, reach: int = 1) -> str:
        return self.state.stride(self.number, d, reach)

    def spread(self, text: str, axis: str) -> str:
        return placed(self.state, text, (axis,), self.order)

    # ---- bounds --------------------------------------------------------------------------------------------------
    def clamps(self, axis: str) -> bool:
        return self.clamp and axis in self.guard and self.state.axis(axis).role == "row"

    def limit(self, axis: str) -> str:
        """The number of coordinates that lie both on the axis and in the buffer."""
        extent = self.state.integer(self.state.axis(axis).extent)
        if axis in self.limits:
            return f"tl.minimum({bare(extent)}, {bare(self.state.integer(self.limits[axis]))})"
        return extent

    def clamped(self, axis: str) -> tuple[str, str]:
        """Coordinates and lanes of a row axis whose virtual points repeat the last one."""
        st = self.state
        a = st.axis(axis)
        lane = st.page.hoist(
            f"tl.minimum({st.lane(axis)}, {self.limit(axis)} - 1 - {st.start(axis)})", f"{axis}_in", st.level(axis)
        )
        return f"({a.start} + {lane})", lane

    def masks(self, guard: Sequence[str]) -> str:
        """Which points lie inside: along the axes of ``guard``, and not in the padding of point dimensions."""
        st = self.state
        parts = []
        for axis in self.order:
            a = st.axis(axis)
            if axis in guard:
                inside = st.page.hoist(f"{st.coordinate(axis)} < {self.limit(axis)}", f"{axis}_inside", st.level(axis))
                parts.append(self.spread(inside, axis))
            elif a.padded:
                parts.append(self.spread(real_points(st, axis), axis))
        return " & ".join(parts)

    # ---- text ----------------------------------------------------------------------------------------------------
    def text(self) -> str:
        """The pointers: what is known outside the present loops is computed there."""
        page, here = self.state.page, self.state.page.level
        pointer = self.buffer
        for level in sorted({n for n, _ in self.bases}):
            terms = " + ".join(t for n, t in self.bases if n == level)
            pointer = page.hoist(f"{pointer} + {terms}", f"{self.buffer}_at", level)
        offsets = list(self.trips)
        if outer := [(n, t) for n, t in self.lanes if n < here or n == 0]:
            lanes = " + ".join(t for _, t in outer)
            offsets.append(page.hoist(bare(lanes), f"{self.buffer}_lanes", max(n for n, _ in outer)))
        offsets += [t for n, t in self.lanes if n == here and n > 0]
        return f"{pointer} + ({' + '.join(offsets)})" if offsets else pointer


def real_points(state: State, axis: str) -> str:
    """Which points of a padded point dimension exist."""
    extent = state.integer(state.axis(axis).extent)
    return state.page.hoist(f"{state.coordinate(axis)} < {extent}", f"{axis}_inside", 0)
