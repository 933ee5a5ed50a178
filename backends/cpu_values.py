"""What the cpu emitter knows while it prints: axes, values, which storage may be written over, and index texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

from flashlight.backends.queries import axes_in, lets, names_in
from flashlight.backends.scalar import PYTHON, bare, spell
from flashlight.backends.source import Names, Writer
from flashlight.errors import InternalError
from flashlight.tile import (
    Apply,
    Const,
    Expr,
    Index,
    Kernel,
    Load,
    Loop,
    Size,
    Stmt,
)

HELPERS = (
    "dot", "dot_into", "filled", "fit", "joined", "lattice", "listed", "most", "outside", "packed", "spans", "trips",
    "window",
)  # fmt: skip
RESERVED = ("torch", "inf", "nan", "inputs", "outputs", "sizes", "LONG", *HELPERS)


@dataclass(frozen=True)
class Value:
    """A tensor of the emitted text: dimensions (batch axes..., ``dims``...), of length 1 along what is not in
    ``axes``.  16-bit values are held in float32.  ``scope`` is the body that owns its memory; None if no one may
    write there (views of inputs).  ``rounded``: not exactly what the user passed.  ``decided``: the boolean that it is
    at every point, known by clipping.  ``scaled``: a factor of its only use that it has already."""

    text: str
    dims: tuple[str, ...]
    axes: frozenset[str]
    dtype: str
    storage: int
    scope: int | None
    rounded: bool = True
    decided: bool | None = None
    scaled: Const | None = None


@dataclass
class State:
    """The emitter's moving parts; ``coordinates``: the axes whose index tensor an earlier pass found to be needed, with
    the scope of their loop."""

    kernel: Kernel
    coordinates: frozenset[tuple[str, int]]
    writer: Writer = field(default_factory=Writer)
    names: Names = field(default_factory=lambda: Names(RESERVED))
    values: dict[str, Value] = field(default_factory=dict)
    wanted: set[tuple[str, int]] = field(default_factory=set)
    opened: dict[str, int] = field(default_factory=dict)
    scope: int = 0
    later: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        k = self.kernel
        blocks = {d.axis for d in k.dims}
        self.batch = tuple(g.axis for g in k.grid if g.axis not in blocks)
        self.extents: dict[str, Expr] = {g.axis: g.extent for g in k.grid} | {d.axis: d.extent for d in k.dims}
        self.roles = dict.fromkeys(self.batch, "batch") | {d.axis: d.role for d in k.dims}
        wide = any(b.dtype == "float64" for b in (*k.inputs, *k.outputs))
        self.real = "float64" if wide or any(x.dtype == "float64" for x in lets(k.body)) else "float32"
        self.fresh_storage = count()
        self.fresh_scope = count(1)
        for name in (*k.sizes, *(b.name for b in (*k.inputs, *k.outputs))):
            _ = self.names[name]
        self.starts = {a: (self.names.fresh(f"{a}0"), self.names.fresh(f"{a}1")) for a in self.extents}
        self.indices = {a: self.names.fresh(a) for a in self.extents}

    # ---- axes ----------------------------------------------------------------------------------------------------
    def span(self, axis: str) -> tuple[str, str]:
        """The present range of an axis, as texts."""
        if axis not in self.roles:
            raise InternalError(f"kernel {self.kernel.name}: axis {axis} is neither on the grid nor a dimension")
        if self.roles[axis] == "point":
            return "0", self.integer(self.extents[axis])
        return self.starts[axis]

    def length(self, axis: str) -> str:
        lo, hi = self.span(axis)
        return hi if lo == "0" else f"{hi} - {lo}"

    def coordinate(self, axis: str) -> str:
        """The name of the axis's index tensor (one dimension, int64)."""
        self.span(axis)
        self.wanted.add((axis, self.opened.get(axis, 0)))
        return self.indices[axis]

    def define_coordinate(self, axis: str) -> None:
        self.opened[axis] = self.scope
        if (axis, self.scope) in self.coordinates:
            lo, hi = self.span(axis)
            self.writer.line(f"{self.coordinate(axis)} = torch.arange({', '.join([lo, hi] if lo != '0' else [hi])})")

    def integer(self, e: Expr, leaf: Mapping[str, str] | None = None) -> str:
        """An integer expression over sizes and constants (and, in bounds, grid coordinates) as Python text; ``leaf``:
        what stands for some axes."""
        return bare(spell(e, PYTHON, lambda x: self._number(x, leaf)))

    def atom(self, e: Expr) -> str:
        """The same, to stand in other arithmetic."""
        return spell(e, PYTHON, self._number)

    def _number(self, e: Expr, leaf: Mapping[str, str] | None = None) -> str:
        match e:
            case Size(name):
                return self.names[name]
            case Index(axis) if leaf and axis in leaf:
                return leaf[axis]
            case Index(axis):
                start, _ = self.span(axis)
                block = next((g.block for g in self.kernel.grid if g.axis == axis), 1)
                return start if block == 1 else f"({start} // {block})"
            case Load(buffer, index):
                return f"int({self.names[buffer]}[{', '.join(self.integer(i, leaf) for i in index) or '()'}])"
        raise InternalError(f"kernel {self.kernel.name}: {e} is no number that is known here")

    # ---- values --------------------------------------------------------------------------------------------------
    def value(self, name: str) -> Value:
        if name not in self.values:
            raise InternalError(f"kernel {self.kernel.name}: {name} is used before it is defined")
        return self.values[name]

    def owned(self, text: str, dims: tuple[str, ...], axes: frozenset[str], dtype: str) -> Value:
        """A value with memory of its own, in the present scope."""
        return Value(text, dims, axes, dtype, next(self.fresh_storage), self.scope)

    def dead(self, v: Value) -> bool:
        """May its memory be written over, since nothing after the present statement reads it?"""
        return v.scope == self.scope and not any(
            n in self.later and w.storage == v.storage for n, w in self.values.items()
        )

    def arranged(self, v: Value, want: tuple[str, ...]) -> str:
        """The value's text with dimensions (batch axes..., want...), new ones of length 1."""
        have = v.dims
        if have == want:
            return v.text
        nb, text = len(self.batch), v.text
        kept = tuple(d for d in want if d in have)
        if set(kept) != set(have):
            raise InternalError(f"kernel {self.kernel.name}: {v.text}[{','.join(have)}] does not fit {','.join(want)}")
        if kept != have:
            if len(have) >= 2 and kept == (*have[:-2], have[-1], have[-2]):
                text += ".mT"
            else:
                order = [*range(nb), *(nb + have.index(d) for d in kept)]
                text += f".permute({', '.join(map(str, order))})"
        if kept != want:
            first = next(k for k, d in enumerate(want) if d not in have)
            text += f"[..., {', '.join(':' if d in have else 'None' for d in want[first:])}]"
        return text


def loops(body: Iterable[Stmt]) -> list[Loop]:
    out: list[Loop] = []
    for s in body:
        if isinstance(s, Loop):
            out += [s, *(x for g in s.segments for x in loops(g.body))]
    return out


@dataclass(frozen=True)
class Linear:
    """``sum of step * axis, + offset`` with literal steps; ``offset`` is a number over sizes."""

    steps: tuple[tuple[str, int], ...]
    offset: Expr


def linear(e: Expr) -> Linear | None:
    """The index as a linear form of its axes; None if it is not one."""
    match e:
        case Const() | Size():
            return Linear((), e)
        case Index(axis):
            return Linear(((axis, 1),), Const(0))
        case Apply("add" | "sub" as op, (a, b)):
            x, y = linear(a), linear(b)
            if x is None or y is None:
                return None
            steps = dict(x.steps)
            for axis, step in y.steps:
                steps[axis] = steps.get(axis, 0) + (step if op == "add" else -step)
            return Linear(tuple((a, n) for a, n in steps.items() if n), _sum(op, x.offset, y.offset))
        case Apply("mul", (a, b)):
            x, y = linear(a), linear(b)
            if x is None or y is None:
                return None
            x, y = (y, x) if x.steps else (x, y)
            if not y.steps:
                return Linear((), e)
            if x.steps or not isinstance(x.offset, Const) or not isinstance(x.offset.value, int):
                return None
            n = x.offset.value
            return Linear(tuple((a, n * k) for a, k in y.steps if n), _product(x.offset, y.offset))
        case Apply():
            return None if axes_in(e) or names_in(e) else Linear((), e)
    return None


def _sum(op: str, a: Expr, b: Expr) -> Expr:
    return a if b is Const(0) else b if a is Const(0) and op == "add" else Apply(op, (a, b))


def _product(a: Expr, b: Expr) -> Expr:
    return Const(0) if b is Const(0) else Apply("mul", (a, b))
