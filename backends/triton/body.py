"""Scalar bodies over blocks as Triton expressions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flashlight.backends.arith import LANE, START
from flashlight.backends.queries import COMPARE, LOGIC, ROUNDING, between, integral, kind_of, lowest
from flashlight.backends.scalar import TRITON, bare, fill
from flashlight.backends.triton.state import State
from flashlight.expr import OPS
from flashlight.tile import Apply, Const, Expr, Index, Ref, Size, children, walk


@dataclass(frozen=True)
class Spelled:
    """The text of a node and its dtype; ``literal``: the number it is, which takes any dtype of its kind."""

    text: str
    dtype: str
    axes: frozenset[str] = frozenset()
    literal: bool | int | float | None = None

    @property
    def kind(self) -> str:
        return kind_of(self.dtype)


class Body:
    """Spells one body for a block with dimensions ``order``.

    ``coordinates``: texts that stand for the coordinates of some axes.  ``quick``: results are rounded to 16 bits in
    the end, so a division may be off by a few units in the last place of float32.
    """

    def __init__(
        self,
        state: State,
        order: tuple[str, ...],
        body: Expr,
        coordinates: Mapping[str, str] | None = None,
        quick: bool = False,
    ) -> None:
        self.state, self.order, self.quick = state, order, quick
        self.coordinates = coordinates or {}
        self.done: dict[Expr, Spelled] = {}
        self.uses: Counter[Expr] = Counter()
        for n in walk(body):
            self.uses.update(children(n))

    # ---- shapes --------------------------------------------------------------------------------------------------
    def whole(self, out: Spelled, dtype: str) -> str:
        """The body's text with all of ``order``'s dimensions, in ``dtype``."""
        shape = self.state.shape(self.order)
        text = bare(self.converted(out, dtype).text)
        if out.literal is not None:
            return f"tl.full({shape}, {text}, tl.{'int1' if dtype == 'bool' else dtype})"
        return text if out.axes == frozenset(self.order) else f"tl.broadcast_to({text}, {shape})"

    # ---- nodes ---------------------------------------------------------------------------------------------------
    def spell(self, e: Expr) -> Spelled:
        if e not in self.done:
            out = self.node(e)
            if isinstance(e, Apply) and self.uses[e] > 1 and out.literal is None and (out.axes or out.kind == "real"):
                name = self.state.names.fresh("shared")
                self.state.page.assign(name, out.text)
                out = Spelled(name, out.dtype, out.axes)
            self.done[e] = out
        return self.done[e]

    def node(self, e: Expr) -> Spelled:
        match e:
            case Const(bool(value)):
                return Spelled(str(value), "bool", literal=value)
            case Const(int(value)):
                dtype = "int32" if -(2**31) <= value < 2**31 else "int64"
                return Spelled(constant(value, dtype), dtype, literal=value)
            case Const(value):
                return Spelled(constant(value, "float32"), "float32", literal=value)
            case Size(name):
                return Spelled(self.state.names[name], "int32")
            case Index(axis):
                return self.index(axis)
            case Ref(name):
                v = self.state.value(name)
                return Spelled(placed(self.state, v.text, v.dims, self.order), v.dtype, frozenset(v.dims))
            case Apply("and") if (within := self.within(e)) is not None:
                return within
            case Apply(op, args):
                return self.apply(op, args)
        raise self.state.error(f"{e} does not belong in a tile program")

    def within(self, e: Expr) -> Spelled | None:
        """A conjunction of two bounds of one number as one comparison; None where there are none."""
        if (found := between(e)) is None or (inside := self.spell(found[0])).dtype != "int32" or not inside.axes:
            return None
        self.state.helpers.add("_within")
        out = Spelled(f"_within({bare(inside.text)}, {found[1]})", "bool", inside.axes)
        for c in map(self.spell, found[2]):
            text = fill(TRITON, "and", out.text, self.converted(c, "bool").text)
            out = Spelled(text, "bool", out.axes | c.axes)
        return out

    def index(self, axis: str) -> Spelled:
        if axis.endswith(START):
            return Spelled(self.state.start(axis.removesuffix(START)), "int32")
        lane, axis = axis.endswith(LANE), axis.removesuffix(LANE)
        text = self.coordinates.get(axis) or (self.state.lane(axis) if lane else self.state.coordinate(axis))
        if self.state.axis(axis).role == "batch":
            return Spelled(text, "int32")
        if axis not in self.order:
            raise self.state.error(f"a value without dimension {axis} reads its index")
        return Spelled(placed(self.state, text, (axis,), self.order), "int32", frozenset((axis,)))

    def apply(self, op: str, args: tuple[Expr, ...]) -> Spelled:
        parts = [self.spell(a) for a in args]
        axes = frozenset().union(*(p.axes for p in parts))
        values = parts[1:] if op == "select" else parts
        match op:
            case "real":
                return self.converted(parts[0], self.real(parts))
            case "int":
                whole = {"real": "int64", "bool": "int32"}.get(parts[0].kind, parts[0].dtype)
                return self.converted(parts[0], whole)
            case "bool":
                return self.converted(parts[0], "bool")
        if op in LOGIC:
            return Spelled(fill(TRITON, op, *(self.converted(p, "bool").text for p in parts)), "bool", axes)
        real = OPS[op].kind == "real" or any(p.kind == "real" for p in values)
        dtype = (
            self.real(values)
            if real
            else integral(op, [p.dtype for p in values], any(p.literal is not None for p in values))
        )
        if op == "pow" and isinstance(args[1], Const) and (power := self.power(parts[0], args[1].value, dtype)):
            return Spelled(power, dtype, axes)
        texts = [self.converted(p, dtype).text for p in values]
        if op in COMPARE or op == "isnan":
            return Spelled(fill(TRITON, op, *texts), "bool", axes)
        if op == "select":
            condition = self.converted(parts[0], "bool").text
            texts = [strong(t, p, dtype) for t, p in zip(texts, values, strict=True)]
            return Spelled(fill(TRITON, op, bare(condition), *map(bare, texts)), dtype, axes)
        if not real:
            if op in ROUNDING:
                return self.converted(parts[0], dtype)
            if op not in ("sign", "pow", "fmod"):
                return Spelled(self.state.integral(op, args, texts), dtype, axes)
        if all(p.literal is not None for p in values):
            texts[0] = f"tl.full((), {texts[0]}, tl.{dtype})"
        return Spelled(self.call(op, texts, args, values, dtype), dtype, axes)

    def call(self, op: str, texts: list[str], args: tuple[Expr, ...], values: list[Spelled], dtype: str) -> str:
        """An operator over reals (or integers where Triton makes no difference) by the table."""
        if op == "div" and self.quick and dtype == "float32" and values[0].literal is not None and lowest(args[1]) >= 1:
            return f"libdevice.fast_dividef({texts[0]}, {bare(texts[1])})"
        if kind_of(dtype) == "real" and op in ("floordiv", "mod"):
            op = f"{op}_real"
        text = fill(TRITON, op, *texts)
        self.state.helpers.update(h for h in HELPERS if f"{h}(" in text)
        return text

    def power(self, x: Spelled, exponent: float, dtype: str) -> str:
        """x**2, x**3 and the like as torch computes them; "" if there is no such form."""
        text = self.converted(x, dtype).text
        if x.literal is not None:
            return ""
        if kind_of(dtype) == "int":
            whole = isinstance(exponent, int) and 1 <= exponent <= 8
            return f"({' * '.join([text] * int(exponent))})" if whole else ""
        match float(exponent):
            case 2.0:
                return f"({text} * {text})"
            case 3.0:
                return f"({text} * {text} * {text})"
            case -1.0:
                return f"(1.0 / {text})"
            case 0.5:
                return f"tl.sqrt({bare(text)})"
        return ""

    # ---- dtypes --------------------------------------------------------------------------------------------------
    def real(self, parts: list[Spelled]) -> str:
        """The dtype in which these are computed with: the widest real one among them."""
        found = {p.dtype for p in parts if p.kind == "real" and p.literal is None}
        return "float64" if "float64" in found or (not found and self.wide) else "float32"

    @property
    def wide(self) -> bool:
        return any(b.dtype == "float64" for b in (*self.state.kernel.inputs, *self.state.kernel.outputs))

    def converted(self, p: Spelled, dtype: str) -> Spelled:
        if p.literal is not None:
            value = p.literal
            kind = kind_of(dtype)
            value = float(value) if kind == "real" else bool(value) if kind == "bool" else int(value)
            return Spelled(constant(value, dtype), dtype, literal=value)
        return p if p.dtype == dtype else Spelled(converted(self.state, p.text, p.dtype, dtype), dtype, p.axes)


def converted(state: State, text: str, source: str, dtype: str) -> str:
    """A text of dtype ``source`` in another."""
    if source == dtype:
        return text
    if dtype == "bool":
        return f"({text} != 0)"
    if dtype == "bfloat16" and state.target.interpret:
        state.helpers.add("_bfloat16")
        return f"_bfloat16({bare(converted(state, text, source, 'float32'))})"
    return f"{text}.to(tl.{dtype})"


def placed(state: State, text: str, dims: tuple[str, ...], order: tuple[str, ...]) -> str:
    """A tensor with dimensions ``dims`` as one that broadcasts to ``order``."""
    if not dims or dims == order:
        return text
    kept = tuple(d for d in order if d in dims)
    if set(kept) != set(dims):
        raise state.error(f"{text}[{','.join(dims)}] does not fit a block [{','.join(order)}]")
    if kept != dims:
        text = permuted(text, tuple(dims.index(d) for d in kept))
    if kept != order:
        text += f"[{', '.join(':' if d in kept else 'None' for d in order)}]"
    return text


HELPERS: Mapping[str, str] = {
    "_max": "return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)",
    "_min": "return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)",
    "_product": "return a * b",
    "_within": "return a.to(tl.uint32, bitcast=True) <= b",
    "_floordiv": "q = a // b\nreturn q - ((a % b != 0) & ((a < 0) != (b < 0))).to(q.dtype)",
    "_mod": "r = a % b\nreturn r + tl.where((r != 0) & ((r < 0) != (b < 0)), b, 0)",
    "_floordiv_real": (
        "r = libdevice.fmod(a, b)\n"
        "q = (a - r) / b\n"
        "q = tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)\n"
        "return tl.floor(q + 0.5)"
    ),
    "_mod_real": "r = libdevice.fmod(a, b)\nreturn tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)",
    "_bfloat16": (
        "bits = a.to(tl.int32, bitcast=True)\n"
        "bits = tl.where(a == a, (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000, bits)\n"
        "return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)"
    ),
}
"""Functions the emitted text may need: their bodies, over ``a`` and (all but _bfloat16) ``b``.

``//`` and ``%`` of Triton truncate.  The interpreter truncates where it should round to bfloat16, and makes other
numbers of subnormal ones: the bits it would cut off are cleared, so that zeros stay zeros.
"""


def constant(value: bool | int | float, dtype: str) -> str:
    """A literal; for float64 a typed one, since Triton keeps others in float32."""
    if isinstance(value, float):
        if math.isnan(value):
            return 'float("nan")'
        if math.isinf(value):
            return 'float("inf")' if value > 0 else 'float("-inf")'
        if dtype == "float64":
            return f"tl.full((), {value!r}, tl.float64)"
    return repr(value) if value >= 0 else f"({value!r})"


def strong(text: str, p: Spelled, dtype: str) -> str:
    """A literal in a place where Triton would choose its dtype by its value."""
    return f"tl.full((), {text}, tl.{dtype})" if p.literal is not None and dtype == "int64" else text


def permuted(text: str, order: tuple[int, ...]) -> str:
    return f"tl.trans({text})" if order == (1, 0) else f"tl.permute({text}, {order})"
