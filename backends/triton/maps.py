"""Tensor maps: blocks that Hopper's copy engine (TMA) brings by their coordinates, with zeros beyond the tensor's end.

A load that it could serve is printed both ways; the launch passes a tensor map where the layout allows one, and None
where it does not (then the other way is compiled).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flashlight.backends.queries import lets, names_in
from flashlight.backends.triton.state import State
from flashlight.tile import Const, DotOp, Expr, Index, LoadOp

ALIGNED = 16  # bytes: of addresses, and of strides but the last
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
RANK = 5  # dimensions of a tensor map, at most
BOX = 256  # elements of a block along a dimension, at most


@dataclass(frozen=True)
class Place:
    """Which block of a buffer a load takes: a coordinate a dimension, the lengths of the block, and its dimensions."""

    coordinates: tuple[str, ...]
    box: tuple[int, ...]
    dims: tuple[str, ...]


def load(state: State, op: LoadOp, order: tuple[str, ...]) -> tuple[str, str] | None:
    """(the argument that holds the map or None, the text of the load by it); None where the engine has no such load."""
    place = _place(state, op, order)
    if place is None:
        return None
    number = [b.name for b in state.kernel.inputs].index(op.buffer)
    name = state.maps.get((number, place.box))
    if name is None:
        name = state.maps[number, place.box] = state.names.fresh(f"{state.names[op.buffer]}_map")
    text = f"tl.reshape({name}.load([{', '.join(place.coordinates)}]), {state.shape(place.dims)})"
    return name, text if place.dims == order else f"tl.trans({text})"


def _place(state: State, op: LoadOp, order: tuple[str, ...]) -> Place | None:
    buffer = state.kernel.buffer(op.buffer)
    if not state.target.interpret and state.target.arch < 90:
        return None
    if buffer.dtype not in BYTES or not 2 <= len(buffer.shape) <= RANK or len(order) != 2 or op.other != 0:
        return None
    if not any(isinstance(x.op, DotOp) for x in lets(state.kernel.body)):
        return None  # moved once and used once: the detour through shared memory gains nothing
    coordinates, box, dims = [], [], []
    for e, length in zip(op.index, buffer.shape, strict=True):
        match e:
            case Index(axis) if axis in order:
                a = state.axis(axis)
                if axis in dims or a.block > BOX or (axis in op.guard and length is not a.extent):
                    return None
                dims.append(axis)
                box.append(a.block)
                coordinates.append("0" if a.role == "point" else state.start(axis))
            case _:
                scalar = _scalar(state, e)
                if scalar is None:
                    return None
                box.append(1)
                coordinates.append(scalar)
    last = op.index[-1]
    if set(dims) != set(order) or not isinstance(last, Index) or last.axis != dims[-1]:
        return None  # a map's last dimension is the one whose elements lie side by side
    if box[-1] * BYTES[buffer.dtype] < ALIGNED:
        return None
    return Place(tuple(coordinates), tuple(box), tuple(dims))


def _scalar(state: State, e: Expr) -> str | None:
    """The text of an index that is one 32-bit number for the whole block; None if it is not."""
    from flashlight.backends.triton.address import linear  # which prints both kinds of loads

    if any(state.value(n).dims or state.value(n).dtype != "int32" for n in names_in(e)):
        return None
    form = linear(state, e)
    if form is None or form.steps:
        return None
    return state.integer(e)


# ---- launches --------------------------------------------------------------------------------------------------------
def fits(buffer: Any, shape: Sequence[int], strides: Sequence[int], pointer: int) -> bool:
    """May a tensor of this layout have a map?  ``buffer``: the kernel's, whose literal lengths of 1 need no stride."""
    size = BYTES[buffer.dtype]
    steps = [s for n, s in zip(buffer.shape, strides, strict=True) if not (isinstance(n, Const) and n.value == 1)]
    return (
        strides[-1] == 1
        and pointer % ALIGNED == 0
        and all(0 < n < 2**31 for n in shape)
        and all(s > 0 and s * size % ALIGNED == 0 and s * size < 2**40 for s in steps[:-1])
    )


@dataclass(frozen=True)
class Description:
    """A tensor as Triton's launcher reads it when it makes a map."""

    base: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str = "zero"
    round_f32_to_tf32: bool = False


@dataclass(frozen=True)
class Address:
    """Stands for a tensor whose map is wanted: only where it lies matters."""

    pointer: int

    def data_ptr(self) -> int:
        return self.pointer


def arguments(metadata: dict[str, Any], pointer: int, shape: Sequence[int], strides: Sequence[int]) -> list[Any]:
    """What a launch passes for one map: the map, lengths and strides."""
    from inspect import signature

    from triton.backends.nvidia.driver import make_tensordesc_arg

    own = tuple(s if n > 1 else ALIGNED for n, s in zip(shape[:-1], strides[:-1], strict=True))
    made = Description(Address(pointer), tuple(shape), (*own, 1))
    more = len(signature(make_tensordesc_arg).parameters) - 2  # Triton 3.7 has one more
    return list(make_tensordesc_arg(made, metadata, *[None] * more))


@dataclass(frozen=True)
class Expanded:
    """A compiled kernel's source with its maps as the launcher passes them, so that a launch need not make them."""

    fn: Any
    constants: dict[Any, Any]
    signature: dict[str, str]


def expanded(source: Any) -> Expanded:
    """``source``: Triton's ASTSource."""
    signature: dict[str, str] = {}
    for name, kind in source.signature.items():
        if not kind.startswith("tensordesc"):
            signature[name] = kind
            continue
        rank = kind.count(",") + 1
        signature[name] = "nvTmaDesc"
        signature |= {f"{name} length {k}": "i32" for k in range(rank)}
        signature |= {f"{name} stride {k}": "i64" for k in range(rank)}
    return Expanded(source.fn, source.constants, signature)
