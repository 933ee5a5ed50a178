"""Dots: on tensor cores by tl.dot, or multiplied and summed where that has no such shape."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from flashlight.backends.queries import NARROW, kind_of
from flashlight.backends.scalar import bare
from flashlight.backends.triton.address import real_points
from flashlight.backends.triton.body import constant, converted, permuted, placed
from flashlight.backends.triton.state import SMALLEST_CONTRACTION, State, Value
from flashlight.tile import DotOp, Let

PRECISION = {"highest": "bf16x6", "high": "bf16x6", "medium": "tf32"}
"""Six products of bfloat16 parts err as float32 does and run on tensor cores (docs/decisions/0007-float32-products.md).
"""


def dot(state: State, s: Let, op: DotOp) -> tuple[str, tuple[str, ...], str]:
    """The text of a dot with the dimensions it has and its dtype.

    Raises InternalError: the operands' dimensions do not make the result's.
    """
    left, right = state.value(op.left), state.value(op.right)
    c = op.contract
    shared = tuple(d for d in s.dims if d in left.dims and d in right.dims)
    ms = tuple(d for d in s.dims if d in left.dims and d not in shared)
    ns = tuple(d for d in s.dims if d in right.dims and d not in shared)
    if c not in left.dims or c not in right.dims or {*shared, *ms, *ns} != {*left.dims, *right.dims} - {c}:
        raise state.error(f"{s} does not contract {left.dims} with {right.dims}")
    if ms and ns and s.dims.index(ns[0]) < s.dims.index(ms[0]):
        left, right, ms, ns = right, left, ns, ms
    dtype = common(left.dtype, right.dtype, s.dtype)
    left, right = (operand(state, v, c, dtype) for v in (left, right))
    made = (*shared, *ms, *ns)
    if state.axis(c).block < SMALLEST_CONTRACTION or kind_of(dtype) != "real":
        text = summed(state, left, right, c, made, s.dtype)
        if op.acc is not None:
            text = f"({arranged(state, state.value(op.acc), made)} + {text})"
        return text, made, s.dtype
    a = matrix(state, arranged(state, left, (*shared, *ms, c)), shared, ms, (c,))
    b = matrix(state, arranged(state, right, (*shared, c, *ns)), shared, (c,), ns)
    out = "float64" if dtype == "float64" else "float32"
    extra = ""
    if dtype == "float32":
        precision = "ieee" if state.target.interpret else PRECISION[state.target.precision]
        extra = f', input_precision="{precision}"'
    elif dtype == "float64":
        extra = ", out_dtype=tl.float64"
    acc = ""
    apart = op.acc is not None and (s.dtype != out or dtype == "float32")
    if op.acc is not None and not apart:
        acc = f", {matrix(state, arranged(state, state.value(op.acc), made), shared, ms, ns)}"
    text = f"tl.dot({a}, {b}{acc}{extra})"
    if len(shared) > 1 or len(ms) != 1 or len(ns) != 1:
        text = f"tl.reshape({text}, {state.shape(made)})"
    if op.acc is not None and apart:  # in float32 a block's own sum comes first: one long sum would err more
        text = text if s.dtype == out else f"{text}.to(tl.{s.dtype})"
        return f"({arranged(state, state.value(op.acc), made)} + {text})", made, s.dtype
    return text, made, out


def common(left: str, right: str, out: str) -> str:
    """The dtype of both operands: their own where it is one, else the result's."""
    if out == "float64" and (left != out or right != out):
        return out
    return left if left == right else out


def operand(state: State, v: Value, c: str, dtype: str) -> Value:
    """A value in the dot's dtype, 0 in the padding of the contracted axis.

    The interpreter multiplies the bits of bfloat16: there narrow operands are widened, which loses nothing.
    """
    text = v.text
    if state.axis(c).padded and (c, 0.0) not in v.pads:
        inside = placed(state, real_points(state, c), (c,), v.dims)
        text = f"tl.where({inside}, {bare(text)}, {constant(0.0 if kind_of(v.dtype) == 'real' else 0, v.dtype)})"
        if v.dtype in NARROW:
            text = f"{text}.to(tl.{v.dtype})"
    text = converted(state, text, v.dtype, dtype)
    if dtype in NARROW and state.target.interpret:
        text = f"{text}.to(tl.float32)"
    return replace(v, text=text, dtype=dtype)


def arranged(state: State, v: Value, want: tuple[str, ...]) -> str:
    """The value's text with its dimensions in another order."""
    if v.dims == want:
        return v.text
    if set(v.dims) != set(want):
        raise state.error(f"{v.text}[{','.join(v.dims)}] has not the dimensions {want}")
    return permuted(bare(v.text), tuple(v.dims.index(d) for d in want))


def matrix(state: State, text: str, shared: tuple[str, ...], rows: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """A tensor [*shared, *rows, *columns] as a matrix, or as one a point of the shared dimensions taken together."""
    if len(shared) <= 1 and len(rows) == len(columns) == 1:
        return text
    sizes = [prod(state.axis(a).block for a in group) for group in ([shared] if shared else []) + [rows, columns]]
    return f"tl.reshape({text}, [{', '.join(map(str, sizes))}])"


def summed(state: State, left: Value, right: Value, c: str, made: tuple[str, ...], dtype: str) -> str:
    """A product over all dimensions, summed over the contracted one: for shapes that tl.dot does not take."""
    order = (*made, c)
    a, b = (converted(state, placed(state, v.text, v.dims, order), v.dtype, dtype) for v in (left, right))
    return f"tl.sum({a} * {b}, axis={len(made)})"
