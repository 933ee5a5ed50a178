"""Level 3: the tile program, which is all that a backend ever sees.

A kernel is a grid of program instances.  Each computes on *blocks*: values typed by a tuple of named block
dimensions and a dtype.  There are no pointers, no warps and no layouts here: those are the backend's.

Semantics.  One instance runs per point of ``grid``.  A grid axis with ``block == 1`` is a *batch* axis: its ``Index``
is a scalar (a backend may also run several instances at once, as the cpu backend does).  A grid axis with
``block > 1`` gives the block dimension of that name: its ``Index`` is the block ``[start, start + block)``, whose tail
may lie beyond the extent; such *virtual* points are computed and never stored (loads clamp them, see ``Load``).
Dimensions that are not on the grid are *point* dimensions (the whole extent in one block) or the streamed dimension
of an enclosing :class:`Loop`, whose Index is ``[t*block, (t+1)*block)`` at trip ``t``.  A backend that needs powers
of two pads point dimensions, and pads with the monoid's identity before a reduction and with 0 before a dot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from flashlight.expr import Apply as Apply
from flashlight.expr import Const as Const
from flashlight.expr import Expr as Expr
from flashlight.expr import Index as Index
from flashlight.expr import Load as Load
from flashlight.expr import Ref as Ref
from flashlight.expr import Size as Size
from flashlight.expr import children as children
from flashlight.expr import kind as kind
from flashlight.expr import walk as walk

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""What an element of each dtype of the language takes in memory."""


@dataclass(frozen=True)
class Dim:
    """A block dimension: its axis, the block's length, and the axis's extent.

    ``role``: "row" (tiled on the grid), "stream" (tiled by a loop), "point" (whole).  ``block`` of a point dimension
    is the extent itself, unpadded.
    """

    axis: str
    block: int
    extent: Expr
    role: str

    def __str__(self) -> str:
        return f"{self.axis}:{self.block}"


@dataclass(frozen=True)
class Buffer:
    """A tensor argument: ``shape`` in sizes and literals."""

    name: str
    dtype: str
    shape: tuple[Expr, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class LoadOp:
    """``buffer[index]``: an element for each point of the block dims that occur in ``index`` (integer expressions over
    Index, Size, Const and scalar or block Refs of integers).

    ``guard`` names the axes whose coordinate may lie outside the buffer at this place.  Outside, a load of a *row*
    axis may give any value (clamp the index to extent - 1); outside a *stream* axis it must give ``other``.
    Axes not in ``guard`` are proved inside: no bounds code for them.
    """

    buffer: str
    index: tuple[Expr, ...]
    guard: tuple[str, ...] = ()
    other: float = 0.0

    def __str__(self) -> str:
        guard = f" guard {','.join(self.guard)}" if self.guard else ""
        return f"load {self.buffer}[{', '.join(map(str, self.index))}]{guard}"


@dataclass(frozen=True)
class MapOp:
    """A scalar body applied point by point; leaves: Ref (blocks, broadcast by dimension name), Index, Size, Const."""

    body: Expr

    def __str__(self) -> str:
        return str(self.body)


@dataclass(frozen=True)
class DotOp:
    """``sum over contract of left * right (+ acc)``.  The dims of left and right other than ``contract`` are disjoint
    but for batch dims; the result's dims are given by the Let.  Operands are in their own dtype (narrow operands
    feed the tensor cores), accumulation is in the Let's dtype.  ``acc`` names a value of the result's type."""

    left: str
    right: str
    contract: str
    acc: str | None = None

    def __str__(self) -> str:
        return f"dot{{{self.contract}}} {self.left} * {self.right}{f' + {self.acc}' if self.acc else ''}"


@dataclass(frozen=True)
class ReduceOp:
    """``monoid`` ("sum", "max", "min", "prod") over one block dimension.  max and min propagate NaN."""

    monoid: str
    value: str
    axis: str

    def __str__(self) -> str:
        return f"{self.monoid}{{{self.axis}}} {self.value}"


@dataclass(frozen=True)
class ScanOp:
    """The running sum of a block along one of its dimensions, each element itself included."""

    value: str
    axis: str

    def __str__(self) -> str:
        return f"running sum{{{self.axis}}} {self.value}"


@dataclass(frozen=True)
class CastOp:
    """The value in another dtype (the place where the user's program rounds, or a dot operand is narrowed)."""

    value: str

    def __str__(self) -> str:
        return f"cast {self.value}"


BlockOp: TypeAlias = LoadOp | MapOp | DotOp | ReduceOp | ScanOp | CastOp


@dataclass(frozen=True)
class Let:
    """``name: dtype[dims] = op``.  ``dims`` are axis names in a canonical order (row, stream, point); a scalar has
    none.  dtype is "float32", "bfloat16", "float16", "float64", "int32", "int64" or "bool"."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    op: BlockOp
    note: str = field(default="", compare=False)

    def __str__(self) -> str:
        note = f"    # {self.note}" if self.note else ""
        return f"{self.name}: {self.dtype}[{','.join(self.dims)}] = {self.op}{note}"


@dataclass(frozen=True)
class Store:
    """``buffer[index] = value`` (converted to the buffer's dtype) at the points whose ``guard`` axes lie inside."""

    buffer: str
    index: tuple[Expr, ...]
    value: str
    guard: tuple[str, ...] = ()

    def __str__(self) -> str:
        guard = f" guard {','.join(self.guard)}" if self.guard else ""
        return f"store {self.buffer}[{', '.join(map(str, self.index))}] = {self.value}{guard}"


@dataclass(frozen=True)
class Carry:
    """A state carried round a loop: ``name`` in the body is the value before the trip, ``next`` names the value after
    it (defined in every segment's body); after the loop ``name`` holds the last value.  ``init`` is a constant."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    init: float
    next: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{','.join(self.dims)}] = {self.init} -> {self.next}"


@dataclass(frozen=True)
class Segment:
    """Trips ``lo <= t < hi`` (integer expressions over Index of *grid blocks*, Size, Const, and Load of elements of
    integer buffers).

    In bounds, ``Index(axis)`` of a blocked grid axis means the block's number (start // block), and that of a batch
    axis its coordinate.  ``kind`` is "full" (no mask code in the body), "partial" or "map" (no carried state).
    ``tile``: the block of the streamed axis that a trip takes, in the same terms and over ``Index`` of that axis, which
    means the trip's number; None where it is that number.  What it gives ascends; it may be asked for the trip ``hi``,
    too, and then gives any number.
    """

    kind: str
    lo: Expr
    hi: Expr
    body: tuple[Stmt, ...]
    tile: Expr | None = None

    @property
    def places(self) -> tuple[Expr, ...]:
        """What says which blocks are taken."""
        return (self.lo, self.hi) if self.tile is None else (self.lo, self.hi, self.tile)


@dataclass(frozen=True)
class Loop:
    """Stream ``axis`` in blocks, segment after segment, carrying ``carries``.

    Bodies hold for trips of any length: a backend may take neighbouring blocks of a segment as one long one, and clip
    the last to the axis (the cpu backend does both), so the block's length must not occur in them as a number.
    ``free``: trips may be taken in any order (the states' merge commutes).
    """

    axis: str
    carries: tuple[Carry, ...]
    segments: tuple[Segment, ...]
    free: bool = False


Stmt: TypeAlias = "Let | Store | Loop"


@dataclass(frozen=True)
class GridAxis:
    """An axis of the grid: ``ceil(extent / block)`` instances.  ``reverse``: later blocks do more work, start there."""

    axis: str
    extent: Expr
    block: int = 1
    reverse: bool = False


@dataclass(frozen=True)
class Kernel:
    """One launch.  ``grid`` is slowest axis first.  ``sizes``: the symbolic lengths it is called with, in order."""

    name: str
    sizes: tuple[str, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    grid: tuple[GridAxis, ...]
    dims: tuple[Dim, ...]
    body: tuple[Stmt, ...]
    warps: int = 4
    stages: int = 3

    def dim(self, axis: str) -> Dim:
        return next(d for d in self.dims if d.axis == axis)

    def buffer(self, name: str) -> Buffer:
        return next(b for b in (*self.inputs, *self.outputs) if b.name == name)

    def __str__(self) -> str:
        grid = ", ".join(f"{g.axis}<{g.extent}" + (f" by {g.block}" if g.block > 1 else "") for g in self.grid)
        head = [f"kernel {self.name}({', '.join(self.sizes)})", f"  grid {grid}"]
        head += [f"  dim {d} of {d.extent} ({d.role})" for d in self.dims]
        head += [f"  in {b}" for b in self.inputs] + [f"  out {b}" for b in self.outputs]
        return "\n".join([*head, *_lines(self.body, "  ")])


def leaves(body: Iterable[Stmt]) -> list[Let | Store]:
    """Every definition and store, those in loops included, in order."""
    out: list[Let | Store] = []
    for s in body:
        out += [x for g in s.segments for x in leaves(g.body)] if isinstance(s, Loop) else [s]
    return out


def lets(body: Iterable[Stmt]) -> list[Let]:
    """Every definition, those in loops included, in order."""
    return [s for s in leaves(body) if isinstance(s, Let)]


def reads(s: Stmt) -> list[str]:
    """The names a statement reads, with repetitions; for a loop, all that its bodies read."""
    match s:
        case Let(_, _, _, op):
            match op:
                case LoadOp(_, index):
                    return names_in(*index)
                case MapOp(body):
                    return names_in(body)
                case DotOp(left, right, _, acc):
                    return [left, right, *([acc] if acc is not None else [])]
                case ReduceOp(_, value, _) | ScanOp(value) | CastOp(value):
                    return [value]
        case Store(_, index, value):
            return [value, *names_in(*index)]
        case Loop(_, carries, segments):
            return [c.next for c in carries] + [n for g in segments for x in g.body for n in reads(x)]


def names_in(*es: Expr) -> list[str]:
    return [n.name for e in es for n in walk(e) if isinstance(n, Ref)]


def _lines(body: tuple[Stmt, ...], pad: str) -> list[str]:
    out: list[str] = []
    for s in body:
        if isinstance(s, Loop):
            out.append(f"{pad}loop {s.axis}")
            out += [f"{pad}  carry {c}" for c in s.carries]
            for g in s.segments:
                listed = "" if g.tile is None else f" at {g.tile}"
                out.append(f"{pad}  {g.kind} for t in [{g.lo}, {g.hi}){listed}")
                out += _lines(g.body, pad + "    ")
        else:
            out.append(f"{pad}{s}")
    return out
