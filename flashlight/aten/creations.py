"""Tensors made of indices and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, kind_of
from flashlight.aten.table import Node, row
from flashlight.aten.views import ONE, At, agree, expr
from flashlight.errors import UnsupportedOperator
from flashlight.expr import Const, Expr, apply, kind
from flashlight.index import add, mul, sub
from flashlight.scalars import cast, op


def made(n: Node, fn: Callable[[At], Expr]) -> Array:
    k = kind_of(n.dtype)
    return Array(n.shape, n.dtype, lambda i: cast(fn(i), k))


@row("arange")
def _arange(b: Builder, n: Node, start: Any = 0, end: Any = None, step: Any = 1, **_: Any) -> Array:
    first, by = expr(start) if not isinstance(start, float) else Const(start), Const(step)
    if kind(first) == "int" and isinstance(step, int):
        if step > 0 and not isinstance(end, float):
            count, _rest = index.divmod_(add(sub(expr(end), first), Const(step - 1)), by, b.names.extent)
            agree(b, n.shape[0], count)
        return made(n, lambda i: add(mul(i[0], by), first))
    return made(n, lambda i: op("add", cast(first, "real"), op("mul", cast(i[0], "real"), cast(by, "real"))))


@row("linspace")
def _linspace(b: Builder, n: Node, start: Any, end: Any, steps: Any, **_: Any) -> Array:
    if not isinstance(start, int | float) or not isinstance(end, int | float):
        raise UnsupportedOperator("linspace between tensors")
    last = cast(sub(expr(steps), ONE), "real")
    span = Const(float(end) - float(start))
    return made(n, lambda i: op("add", Const(float(start)), op("div", op("mul", cast(i[0], "real"), span), last)))


def _filled(value: Any) -> Callable[..., Array]:
    return lambda b, n, **_: made(n, lambda i: Const(value))


for _stem, _value in (("ones", 1), ("zeros", 0), ("empty", 0)):
    row(_stem, f"{_stem}_like", f"new_{_stem}")(_filled(_value))
row("empty_strided", "new_empty_strided")(_filled(0))


@row("full", "full_like", "new_full", "scalar_tensor")
def _full(b: Builder, n: Node, fill_value: Any = None, s: Any = None, **_: Any) -> Array:
    value = s if fill_value is None else fill_value
    return made(n, lambda i: Const(value) if isinstance(value, bool | int | float) else value)


@row("eye")
def _eye(b: Builder, node: Node, /, **_: Any) -> Array:
    return made(node, lambda i: op("eq", i[0], i[1]))


def _triangle(name: str, keep: str) -> None:
    def fn(b: Builder, n: Node, self: Array, diagonal: Any = 0) -> Array:
        zero = cast(Const(False), kind_of(n.dtype))

        def element(i: At) -> Expr:
            inside = op(keep, i[-1], add(i[-2], expr(diagonal)))
            x = self[i]
            if kind(x) == "bool":
                return apply("and", inside, x)
            return op("select", inside, x, zero)

        return Array(n.shape, n.dtype, element, self.hints)

    row(name)(fn)


_triangle("tril", "le")
_triangle("triu", "ge")
