"""What the Triton emitter knows while it prints: axes, values, integer arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flashlight.backend import Target
from flashlight.backends.queries import COMPARE, LOGIC, lets, nonnegative, pow2
from flashlight.backends.scalar import TRITON, bare, fill, number
from flashlight.backends.source import Names
from flashlight.backends.triton.page import Page
from flashlight.errors import InternalError
from flashlight.tile import (
    Apply,
    Const,
    DotOp,
    Expr,
    Index,
    Kernel,
    Load,
    Ref,
    Size,
)

SMALLEST_CONTRACTION = 16  # the shortest sum that tl.dot takes
RESERVED = ("triton", "tl", "libdevice", "pid", "whole", "FLAT", "STRIDES", "OPTIONS", "programs")

Number = bool | int | float


@dataclass(frozen=True)
class Value:
    """A block of the emitted text: its dimensions in the tensor's order and its dtype.

    ``pads``: what lies beyond the extent along padded point dimensions, where that is known.  ``level``: the loop it
    is defined in.
    """

    text: str
    dims: tuple[str, ...]
    dtype: str
    pads: tuple[tuple[str, Number], ...] = ()
    level: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis and the variables that stand for it.

    ``block``: elements of a block, padded to a power of two (0 for a batch axis).  ``index``: the coordinates (a
    scalar for a batch axis).  ``start``: the first of them; ``lane``: coordinates less the start; ``number``: which
    block (grid) or trip (loop) this is.
    """

    name: str
    role: str
    block: int
    extent: Expr
    padded: bool
    index: str
    start: str
    lane: str
    number: str


@dataclass
class State:
    """The emitter's moving parts."""

    kernel: Kernel
    target: Target
    names: Names = field(init=False)
    page: Page = field(init=False)
    values: dict[str, Value] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)  # of open loops' axes
    helpers: set[str] = field(default_factory=set)
    strides: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)  # (buffer, dimension): name, reach

    def __post_init__(self) -> None:
        k = self.kernel
        self.names = Names(RESERVED)
        for name in (*(b.name for b in (*k.inputs, *k.outputs)), *k.sizes):
            _ = self.names[name]
        self.page = Page(self.names)
        contracted = {x.op.contract for x in lets(k.body) if isinstance(x.op, DotOp)}
        dims = {d.axis: d for d in k.dims}
        for g in k.grid:
            if g.axis not in dims:
                name = self.names.fresh(g.axis)
                self.axes[g.axis] = Axis(g.axis, "batch", 0, g.extent, False, name, name, name, name)
        for d in k.dims:
            block = d.block
            if d.role == "point":
                block = max(pow2(block), SMALLEST_CONTRACTION if d.axis in contracted else 1)
            index = self.names.fresh(d.axis)
            start, lane, number_ = (self.names.fresh(f"{d.axis}{s}") for s in ("0", "_lane", "_block"))
            lane = index if d.role == "point" else lane
            self.axes[d.axis] = Axis(d.axis, d.role, block, d.extent, block != d.block, index, start, lane, number_)

    # ---- values --------------------------------------------------------------------------------------------------
    def value(self, name: str) -> Value:
        if name not in self.values:
            raise self.error(f"{name} is used before it is defined")
        return self.values[name]

    def error(self, what: str) -> InternalError:
        return InternalError(f"kernel {self.kernel.name}: {what}")

    def shape(self, dims: Iterable[str]) -> str:
        return f"[{', '.join(str(self.axis(a).block) for a in dims)}]"

    # ---- axes ----------------------------------------------------------------------------------------------------
    def axis(self, name: str) -> Axis:
        if name not in self.axes:
            raise self.error(f"axis {name} is neither on the grid nor a dimension")
        return self.axes[name]

    def level(self, axis: str) -> int:
        """The level at which the coordinates of an axis are known."""
        a = self.axis(axis)
        if a.role != "stream":
            return 0
        if axis not in self.levels:
            raise self.error(f"the coordinates of {axis} are read outside its loop")
        return self.levels[axis]

    def lane(self, axis: str) -> str:
        """Coordinates counted from the block's start."""
        a = self.axis(axis)
        self.page.once(a.lane, f"tl.arange(0, {a.block})", 0)
        return a.lane

    def start(self, axis: str) -> str:
        """The first coordinate of the block of a row or streamed axis."""
        a = self.axis(axis)
        text = a.number if a.block == 1 else f"{a.number} * {a.block}"
        if a.role == "stream" and self.target.interpret:
            text = f"tl.full((), {text}, tl.int32)"  # there, trips are counted in Python's numbers
        self.page.once(a.start, text, self.level(axis))
        return a.start

    def coordinate(self, axis: str) -> str:
        """The coordinates of an axis: a vector, or a scalar for a batch axis."""
        a = self.axis(axis)
        if a.role == "batch":
            return a.index
        if a.role == "point":
            return self.lane(axis)
        self.page.once(a.index, f"{self.start(axis)} + {self.lane(axis)}", self.level(axis))
        return a.index

    # ---- integers ------------------------------------------------------------------------------------------------
    def integer(self, e: Expr, leaf: dict[str, str] | None = None) -> str:
        """A scalar integer expression over sizes, constants and scalar coordinates (``leaf``: what stands for an
        axis instead of its coordinates)."""
        match e:
            case Const(value):
                return number(value)
            case Size(name):
                return self.names[name]
            case Index(axis):
                return (leaf or {}).get(axis) or self.coordinate(axis)
            case Ref(name):
                return self.value(name).text
            case Load():
                return self.element(e, leaf)
            case Apply(op, args):
                text = self.integral(op, args, [self.integer(a, leaf) for a in args])
                return self.page.find(text) or text
        raise self.error(f"{e} is no integer that is known here")

    def element(self, e: Load, leaf: dict[str, str] | None) -> str:
        """One element of an integer buffer, at an index that is the same for the whole program instance."""
        buffers = [b.name for b in (*self.kernel.inputs, *self.kernel.outputs)]
        if e.tensor not in buffers:
            raise self.error(f"{e.tensor} is no buffer")
        place = [self.names[e.tensor]]
        for d, i in enumerate(e.index):
            place.append(f"{self.integer(i, leaf)} * {self.stride(buffers.index(e.tensor), d)}")
        return f"tl.load({' + '.join(place)})"

    def stride(self, buffer: int, d: int, reach: int = 1) -> str:
        """The argument that holds a buffer's stride along a dimension; ``reach``: up to what it is multiplied by in 32
        bits (0: by any index of the dimension), unless it is a 64-bit argument itself."""
        known = (*self.kernel.inputs, *self.kernel.outputs)[buffer]
        name, before = self.strides.get((buffer, d)) or (self.names.fresh(f"{self.names[known.name]}_s{d}"), 1)
        self.strides[buffer, d] = name, 0 if 0 in (reach, before) else max(reach, before)
        return name

    def integral(self, op: str, args: tuple[Expr, ...], texts: list[str]) -> str:
        """An integer operator over texts; ``//`` and ``%`` of Triton truncate, ours round towards minus infinity."""
        match op:
            case _ if op in ALIKE:
                return fill(TRITON, op, *texts)
            case "floordiv" | "mod":
                sign = "//" if op == "floordiv" else "%"
                if nonnegative(args[0]) and nonnegative(args[1]):
                    return f"({texts[0]} {sign} {texts[1]})"
                self.helpers.add(f"_{op}")
                return f"_{op}({bare(texts[0])}, {bare(texts[1])})"
            case "minimum" | "maximum":
                return f"tl.{op}({bare(texts[0])}, {bare(texts[1])})"
            case "abs":
                return f"tl.abs({bare(texts[0])})"
            case "select":
                return f"tl.where({', '.join(map(bare, texts))})"
            case "int":
                return texts[0]
        raise self.error(f"no integer spelling of {op}")


ALIKE = ("add", "sub", "mul", "neg", *COMPARE, *LOGIC, "xor", "bitand", "lshift", "rshift")
"""What is spelled for integers as for reals."""
