"""What the emitter knows while it prints: names, axes, values and where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from flashlight.backend import Target
from flashlight.backends.cupy.body import Body, Element, Spelled
from flashlight.backends.cupy.dtypes import CTYPES, WIDE
from flashlight.backends.cupy.operands import Tile
from flashlight.backends.cupy.page import Page
from flashlight.backends.cupy.place import Placement
from flashlight.backends.cupy.plan import Plan
from flashlight.backends.scalar import bare
from flashlight.backends.source import Names
from flashlight.backends.uses import Definition
from flashlight.errors import InternalError
from flashlight.tile import Apply, Expr, Index, Ref

Place = Mapping[str, Placement]
_CPP = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch compl char class const constexpr continue
default delete do double else enum explicit export extern false float for friend goto if inline int long mutable
namespace new noexcept not not_eq nullptr operator or or_eq private protected public register return short signed
sizeof static struct switch template this throw true try typedef typename union unsigned using virtual void volatile
while xor xor_eq
"""
_HEADERS = """
each each_after_first bf16 f16 Pair Held Tile Word Sum Prod Max Min INF NOT_A_NUMBER DEVICE THREADS SHARED STRIDE
Shared lane warp at shared shared_memory scratch r in_shared shared_at wide narrow pair put get element larger
lesser within magnitude sign raised pick divided reciprocal nonzero power_of_two floor_div floor_mod remainder_of dot
mma copy_tile load_run store_run as_float exp exp2 expm1 log log2 log1p sqrt rsqrt tanh sin cos erf atan floor ceil
rint trunc abs min max main threadIdx blockIdx blockDim gridDim int2 uint2 uint4 unix linux MMA Right across_lanes
across_warps as_bits bf16_pair chunk clear_tile copies_commit copies_wait copy_async copy_async_16 copy_chunk
copy_rows f16_pair forgotten from_f16 further load_matrices load_matrices_turned mma_bf16 mma_f16 mma_tf32 of operand
own_part row_of_products steps_of_products Right32 Parts parts rest dot_apart TOGETHER place one tf32 turned
run_over_registers run_over_lanes run_over_warps type
"""
RESERVED = (*_CPP.split(), *_HEADERS.split())


@dataclass(frozen=True)
class Value:
    """A block in registers: an array over the registers of its dimensions, in their order.

    ``pairs``: 16-bit elements, two neighbours along the last dimension in one register.  ``zeros``: axes along which
    the padding is known to be 0.
    """

    text: str
    dims: tuple[str, ...]
    dtype: str
    place: Place
    pairs: bool = False
    zeros: frozenset[str] = frozenset()

    def shape(self) -> list[int]:
        sizes = [self.place[a].local for a in self.dims]
        return [*sizes[:-1], sizes[-1] // 2] if self.pairs else sizes

    @property
    def type(self) -> str:
        return f"Pair<{WIDE[self.dtype]}>" if self.pairs else CTYPES[self.dtype]

    @property
    def declared(self) -> str:
        return f"{self.type} {self.text}{''.join(f'[{n}]' for n in self.shape())};"

    @property
    def count(self) -> int:
        return prod(self.shape())

    @property
    def start(self) -> str:
        """The address of the first register."""
        return f"&{self.text}{'[0]' * len(self.dims)}"


@dataclass(frozen=True)
class Axis:
    """An axis and the variables that stand for it: ``index`` of a register, ``number`` of the block or trip, ``start``
    of the block.  The coordinate of a batch axis is its number."""

    name: str
    role: str
    block: int
    extent: Expr
    index: str
    number: str
    start: str


@dataclass
class State:
    """The emitter's moving parts."""

    plan: Plan
    target: Target
    names: Names = field(default_factory=lambda: Names(RESERVED))
    page: Page = field(default_factory=Page)
    values: dict[str, Value] = field(default_factory=dict)
    defined: dict[str, Definition] = field(default_factory=dict)
    variants: dict[tuple[str, str], Value] = field(default_factory=dict)
    tiles: dict[str, tuple[str, Tile]] = field(default_factory=dict)  # by the load's name: text, what it is
    ready: dict[str, str] = field(default_factory=dict)  # tiles that are copied ahead of this trip
    axes: dict[str, Axis] = field(default_factory=dict)
    lanes: dict[tuple[str, Placement], str] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)  # axes of the loops that are open
    scratch: int = 0  # bytes of shared memory that exchanges between threads need
    aligned: list[str] = field(default_factory=list)  # buffers whose runs or tiles are read or written
    _named: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        k = self.plan.kernel
        for name in (*(b.name for b in (*k.inputs, *k.outputs)), *k.sizes):
            _ = self.names[name]
        dims = {d.axis: d for d in k.dims}
        for g in k.grid:
            if g.axis not in dims:
                name = self.names.fresh(g.axis)
                self.axes[g.axis] = Axis(g.axis, "batch", 0, g.extent, name, name, name)
        for d in k.dims:
            index = self.names.fresh(d.axis)
            number = self.names.fresh(f"{d.axis}_{'trip' if d.role == 'stream' else 'block'}")
            self.axes[d.axis] = Axis(d.axis, d.role, d.block, d.extent, index, number, self.names.fresh(f"{d.axis}0"))

    @property
    def double(self) -> bool:
        k = self.plan.kernel
        return any(b.dtype == "float64" for b in (*k.inputs, *k.outputs))

    def error(self, what: str) -> InternalError:
        return InternalError(f"kernel {self.plan.kernel.name}: {what}")

    # ---- axes ----------------------------------------------------------------------------------------------------
    def axis(self, name: str) -> Axis:
        if name not in self.axes:
            raise self.error(f"axis {name} is neither on the grid nor a dimension")
        a = self.axes[name]
        if a.role == "stream" and name not in self.open:
            raise self.error(f"the coordinates of {name} are read outside its loop")
        return a

    def start(self, axis: str) -> str:
        """The first coordinate of the block."""
        a = self.axis(axis)
        return "0" if a.role == "point" else a.start

    def inside(self, axis: str, at: Element) -> str:
        """The coordinate less the block's start."""
        if axis not in at.place:
            raise self.error(f"a value without dimension {axis} reads its index")
        return f"{self.lane(axis, at.place[axis])}({at.registers[axis]})"

    def lane(self, axis: str, p: Placement) -> str:
        """The function from registers to coordinates within the block."""
        if (axis, p) not in self.lanes:
            name = self.lanes[axis, p] = self.names.fresh(f"{axis}_in")
            self.page.top.append(f"const auto {name} = [=](int r) {{ return {p.text('r')}; }};")
        return self.lanes[axis, p]

    def coordinate(self, axis: str, at: Element) -> str:
        a = self.axis(axis)
        if a.role == "batch":
            return a.number
        inside = self.inside(axis, at)
        return inside if a.role == "point" else f"({a.start} + {inside})"

    def padded(self, axis: str, p: Placement) -> bool:
        """Does a block's placement have more coordinates than the block?"""
        return p.length > self.axes[axis].block

    # ---- buffers -------------------------------------------------------------------------------------------------
    def align(self, buffer: str) -> None:
        """Note that a buffer's runs or tiles are read or written, which is faster where they are aligned."""
        if buffer not in self.aligned:
            self.aligned.append(buffer)

    def alignment(self, buffer: str) -> str:
        return f"ALIGN_{self.names[buffer]}"

    def named(self, stem: str, text: str) -> str:
        """The name of a value that is computed once, before everything else."""
        if text not in self._named:
            self._named[text] = self.names.fresh(stem)
            self.page.top.append(f"const auto {self._named[text]} = {text};")
        return self._named[text]

    # ---- values --------------------------------------------------------------------------------------------------
    def value(self, name: str) -> Value:
        if name not in self.values:
            raise self.error(f"{name} is used before it is defined")
        return self.values[name]

    def new(
        self, name: str, dims: tuple[str, ...], dtype: str, place: Place, zeros: frozenset[str] = frozenset()
    ) -> Value:
        """A value that is about to be defined; ``name`` is the C++ one."""
        pairs = dtype in WIDE and bool(dims) and place[dims[-1]].run % 2 == 0
        return Value(name, dims, dtype, {a: place[a] for a in dims}, pairs, zeros)

    def at(self, v: Value, registers: Mapping[str, str] | None = None) -> Element:
        """The element of a value whose registers the axes' own variables number."""
        return Element(v.place, {a: self.axes[a].index for a in v.dims} | dict(registers or {}))

    def loops(self, v: Value, dims: tuple[str, ...] | None = None) -> list[tuple[str, int]]:
        """The loops over a value's registers along ``dims``."""
        return [(self.axes[a].index, v.place[a].local) for a in (v.dims if dims is None else dims)]

    def element(self, name: str, at: Element) -> Spelled:
        """The text of an element of a named value."""
        from flashlight.backends.cupy.exchange import placed

        return self.read(placed(self, name, at.place), at)

    def read(self, v: Value, at: Element) -> Spelled:
        index = [at.registers[a] for a in v.dims]
        if not v.pairs:
            return Spelled(v.text + "".join(f"[{i}]" for i in index), v.dtype)
        last = index[-1] if index[-1].isidentifier() or index[-1].isdigit() else f"({index[-1]})"
        where = "".join(f"[{i}]" for i in (*index[:-1], f"{last} / 2"))
        return Spelled(f"element({v.text}{where}, {last} % 2)", "float32")

    # ---- integers ------------------------------------------------------------------------------------------------
    def integer(self, e: Expr, leaf: Mapping[str, str] | None = None) -> str:
        """A scalar integer expression; ``leaf``: what stands for the coordinates of some axes."""
        return bare(Body(self, Element({}, {}, leaf or {}), e, share=False).spell(e).text)


def constant_over(e: Expr, axes: Mapping[str, Axis]) -> bool:
    """Is an index the same for the whole run of a kernel's instance: sizes and batch axes only?"""
    match e:
        case Index(axis):
            return axes[axis].role == "batch"
        case Ref():
            return False
        case Apply(_, args):
            return all(constant_over(a, axes) for a in args)
    return True
