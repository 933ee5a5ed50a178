"""Scalar bodies as C++: what one element of a block is, given where its coordinates and operands are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

from flashlight.backends.arith import LANE, START
from flashlight.backends.cupy.dtypes import CTYPES, WIDE
from flashlight.backends.cupy.place import Placement
from flashlight.backends.queries import COMPARE, LOGIC, ROUNDING, between, integral, kind_of, lowest, nonnegative
from flashlight.backends.scalar import CUDA, bare, fill
from flashlight.expr import OPS
from flashlight.tile import Apply, Const, Expr, Index, Load, Ref, Size, children, walk

if TYPE_CHECKING:
    from flashlight.backends.cupy.state import State


@dataclass(frozen=True)
class Spelled:
    """The text of a node and its dtype; ``literal``: the number it is, which takes any dtype of its kind."""

    text: str
    dtype: str
    literal: bool | int | float | None = None

    @property
    def kind(self) -> str:
        return kind_of(self.dtype)


@dataclass(frozen=True)
class Element:
    """Which element is meant: for each axis where its block lies and the text of the register's number.

    ``coordinates``: texts that stand for the coordinates of some axes instead.
    """

    place: Mapping[str, Placement]
    registers: Mapping[str, str]
    coordinates: Mapping[str, str] = field(default_factory=dict)


class Body:
    """Spells bodies for one element.

    ``lines``: definitions of what occurs more than once, where ``share`` lets it have one.  ``quick``: results are
    rounded to 16 bits in the end, so a division may be off by a few units in the last place of float32, and a divisor
    below float32's normal numbers counts as 0.
    """

    def __init__(self, state: State, at: Element, body: Expr, quick: bool = False, share: bool = True) -> None:
        self.state, self.at, self.quick, self.share = state, at, quick, share
        self.lines: list[str] = []
        self.done: dict[Expr, Spelled] = {}
        self.uses: Counter[Expr] = Counter()
        for n in walk(body):
            self.uses.update(children(n))

    def text(self, e: Expr, dtype: str) -> str:
        """The expression in a dtype (a 16-bit one: in float32, which is then rounded)."""
        return bare(converted(self.spell(e), "float32" if dtype in WIDE else dtype).text)

    # ---- nodes ---------------------------------------------------------------------------------------------------
    def spell(self, e: Expr) -> Spelled:
        if e not in self.done:
            out = self.node(e)
            if self.share and isinstance(e, Apply) and self.uses[e] > 1 and out.literal is None:
                name = self.state.names.fresh("shared")
                self.lines.append(f"const {CTYPES[out.dtype]} {name} = {bare(out.text)};")
                out = Spelled(name, out.dtype)
            self.done[e] = out
        return self.done[e]

    def node(self, e: Expr) -> Spelled:
        match e:
            case Const(bool(value)):
                return Spelled(constant(value, "bool"), "bool", value)
            case Const(int(value)):
                dtype = "int32" if -(2**31) <= value < 2**31 else "int64"
                return Spelled(constant(value, dtype), dtype, value)
            case Const(value):
                return Spelled(constant(value, "float32"), "float32", value)
            case Size(name):
                return Spelled(self.state.names[name], "int32")
            case Index(axis):
                return Spelled(self.coordinate(axis), "int32")
            case Ref(name):
                return self.state.element(name, self.at)
            case Load(buffer, index):
                return self.loaded(buffer, index)
            case Apply("and") if (within := self.within(e)) is not None:
                return within
            case Apply(op, args):
                return self.apply(op, args)
        raise self.state.error(f"{e} does not belong in a tile program")

    def within(self, e: Expr) -> Spelled | None:
        """A conjunction of two bounds of one number as one comparison; None where there are none."""
        if (found := between(e)) is None or (inside := self.spell(found[0])).dtype != "int32":
            return None
        texts = [f"within({bare(inside.text)}, {found[1]})"]
        texts += [converted(self.spell(c), "bool").text for c in found[2]]
        return Spelled(reduce(partial(fill, CUDA, "and"), texts), "bool")

    def loaded(self, buffer: str, index: tuple[Expr, ...]) -> Spelled:
        """An element of an integer buffer in a loop's bounds."""
        name = self.state.names[buffer]
        terms = [f"{converted(self.spell(e), 'int64').text} * {name}_s{d}" for d, e in enumerate(index)]
        return Spelled(f"(int){name}[{' + '.join(terms) or 0}]", "int32")

    def coordinate(self, axis: str) -> str:
        if axis.endswith(START):
            return self.state.start(axis.removesuffix(START))
        if axis.endswith(LANE):
            return self.state.inside(axis.removesuffix(LANE), self.at)
        return self.at.coordinates.get(axis) or self.state.coordinate(axis, self.at)

    def apply(self, op: str, args: tuple[Expr, ...]) -> Spelled:
        parts = [self.spell(a) for a in args]
        values = parts[1:] if op == "select" else parts
        match op:
            case "real":
                return converted(parts[0], self.real(parts))
            case "int":
                whole = {"real": "int64", "bool": "int32"}.get(parts[0].kind, parts[0].dtype)
                return converted(parts[0], whole)
            case "bool":
                return converted(parts[0], "bool")
        if op in LOGIC:
            return Spelled(fill(CUDA, op, *(converted(p, "bool").text for p in parts)), "bool")
        real = OPS[op].kind == "real" or any(p.kind == "real" for p in values)
        dtype = (
            self.real(values)
            if real
            else integral(op, [p.dtype for p in values], any(p.literal is not None for p in values))
        )
        typed = [converted(p, dtype) for p in values]
        if op == "pow" and isinstance(args[1], Const) and (power := powered(typed[0], args[1].value)):
            return Spelled(power, dtype)
        texts = [p.text for p in typed]
        if op in COMPARE or op == "isnan":
            return Spelled(fill(CUDA, op, *texts), "bool")
        if op == "select":
            condition = converted(parts[0], "bool").text
            if not real:  # what is not chosen may divide by 0
                return Spelled(f"({condition} ? {texts[0]} : {texts[1]})", dtype)
            return Spelled(fill(CUDA, op, bare(condition), *map(bare, texts)), dtype)
        if not real and op in ROUNDING:
            return typed[0]
        if not real and op in ("floordiv", "mod") and nonnegative(args[0]) and positive(args[1]):
            return Spelled(f"({texts[0]} {'/' if op == 'floordiv' else '%'} {texts[1]})", dtype)
        if op == "div" and self.quick and dtype == "float32" and parts[0].literal is not None and lowest(args[1]) >= 1:
            return Spelled(f"divided({texts[0]}, {bare(texts[1])})", dtype)
        if op == "div" and self.quick and dtype == "float32" and self.axes(args[1]) < set(self.at.place):
            return Spelled(f"({texts[0]} * reciprocal({bare(texts[1])}))", dtype)  # one division for a whole row
        if op in CALLS:
            texts = [bare(t) for t in texts]
        return Spelled(fill(CUDA, op, *texts), dtype)

    def axes(self, e: Expr) -> set[str]:
        """The block dimensions that an expression varies along."""
        found: set[str] = set()
        for n in walk(e):
            if isinstance(n, Index):
                found.add(n.axis.partition(".")[0])
            elif isinstance(n, Ref):
                found.update(self.state.value(n.name).dims)
        return found

    # ---- dtypes --------------------------------------------------------------------------------------------------
    def real(self, parts: list[Spelled]) -> str:
        """The dtype in which these are computed with: the widest real one among them."""
        found = {p.dtype for p in parts if p.kind == "real" and p.literal is None}
        return "float64" if "float64" in found or (not found and self.state.double) else "float32"


CALLS = frozenset(op for op, text in CUDA.items() if isinstance(text, str) and not text.startswith(("(", "{")))


def powered(x: Spelled, exponent: float) -> str:
    """x**2, x**3 and the like as torch computes them; "" if there is no such form."""
    if x.literal is not None:
        return ""
    if x.kind == "int":
        whole = isinstance(exponent, int) and 1 <= exponent <= 8
        return f"({' * '.join([x.text] * int(exponent))})" if whole else ""
    match float(exponent):
        case 2.0:
            return f"({x.text} * {x.text})"
        case 3.0:
            return f"({x.text} * {x.text} * {x.text})"
        case -1.0:
            return f"(1 / {x.text})"
        case 0.5:
            return f"sqrt({bare(x.text)})"
    return ""


def converted(p: Spelled, dtype: str) -> Spelled:
    """The same in another dtype."""
    if p.literal is not None:
        kind = kind_of(dtype)
        value = float(p.literal) if kind == "real" else bool(p.literal) if kind == "bool" else int(p.literal)
        return Spelled(constant(value, dtype), dtype, value)
    if p.dtype == dtype:
        return p
    if dtype == "bool":
        return Spelled(f"({p.text} != 0)", dtype)
    if dtype in WIDE:
        return Spelled(f"narrow<{WIDE[dtype]}>({bare(converted(p, 'float32').text)})", dtype)
    if p.dtype in WIDE:
        return converted(replace(p, text=f"wide({bare(p.text)})", dtype="float32"), dtype)
    return Spelled(f"({CTYPES[dtype]}){p.text if atom(p.text) else f'({p.text})'}", dtype)


def atom(text: str) -> bool:
    """Does a cast before this text take all of it?"""
    return (text.startswith("(") and bare(text) != text) or text.replace("_", "").isalnum()


def constant(value: bool | int | float, dtype: str) -> str:
    """A C++ literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        text = f"{abs(value)}ll" if dtype == "int64" else str(abs(value))
        return f"(-{text})" if value < 0 else text
    if not math.isfinite(value):
        text = "NOT_A_NUMBER" if math.isnan(value) else "INF"
        text = f"double({text})" if dtype == "float64" else text
        return f"(-{text})" if value < 0 else text
    text = f"{abs(value)!r}{'' if dtype == 'float64' else 'f'}"
    return f"(-{text})" if value < 0 or (value == 0 and math.copysign(1, value) < 0) else text


def positive(e: Expr) -> bool:
    """Is an integer expression certainly above zero?  (Nothing is launched where a length is 0.)"""
    return isinstance(e, Size) or (isinstance(e, Const) and e.value > 0)
