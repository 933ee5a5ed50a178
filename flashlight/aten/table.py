"""What PyTorch's operators mean: one row an operator.

A row is a function of a :class:`~flashlight.arrays.Builder`, the facts of the node (:class:`Node`), and the operator's
arguments by the names of its schema; tensors come as arrays.  A row that has no meaning for its arguments raises
UnsupportedOperator with the reason, and the node runs as it would have run without us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flashlight.arrays import Array, kind_of, pointwise, scalar
from flashlight.expr import Const, Expr, kind
from flashlight.scalars import cast

Row = Callable[..., Any]
R = TypeVar("R", bound=Row)
TABLE: dict[str, Row] = {}


@dataclass(frozen=True)
class Node:
    """The shape and dtype of what an operator gives (the first of its results)."""

    shape: tuple[Expr, ...]
    dtype: str


def row(*names: str) -> Callable[[R], R]:
    """Enter a function into the table under these operators' names."""
    return enter(TABLE, names)


def enter(table: dict[str, Row], names: Sequence[str]) -> Callable[[R], R]:
    def entered(fn: R) -> R:
        table.update(dict.fromkeys(names, fn))
        return fn

    return entered


def array(x: Any, dtype: str) -> Array:
    """An argument as an array: numbers take the dtype of the result."""
    return x if isinstance(x, Array) else scalar(x, dtype)


def literal(x: Any) -> Array:
    """An argument as an array: numbers keep their own kind."""
    if isinstance(x, Array):
        return x
    e = Const(x) if isinstance(x, bool | int | float) else x
    return Array((), {"bool": "bool", "int": "int64", "real": "float64"}[kind(e)], lambda i: e)


def elementwise(fn: Callable[..., Expr], n: Node, *args: Any) -> Array:
    """``fn`` of the elements, converted to the result's kind first."""
    k = kind_of(n.dtype)
    arrays = [array(x, n.dtype) for x in args]
    return pointwise(lambda *e: fn(*(cast(x, k) for x in e)), n.dtype, *arrays)


def dims_of(dim: Any, rank: int) -> tuple[int, ...]:
    """A ``dim`` argument as nonnegative dimensions; None and () mean all of them."""
    if dim is None or dim == ():
        return tuple(range(rank))
    return tuple(d % rank if rank else 0 for d in ((dim,) if isinstance(dim, int) else dim))


def wide(dtype: str) -> str:
    """The dtype in which PyTorch computes a normalisation of 16-bit values."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype
