"""Complex numbers as pairs of real ones: rotations are often written so (``view_as_complex(x) * polar(1, angle)``).

A complex value never has memory of its own.  Views and sums of it are those of both parts; results that are complex,
and operators without a row here, end the region.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from flashlight.arrays import Array, Builder, pointwise
from flashlight.aten.joins import stack
from flashlight.aten.table import TABLE, Node, Row, array, enter
from flashlight.errors import UnsupportedOperator
from flashlight.expr import Const, Expr
from flashlight.scalars import op

PARTS = {"complex64": "float32", "complex128": "float64"}
BY_PARTS = (  # linear, and the same for both parts
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "slice", "select",
    "clone", "contiguous", "alias", "detach", "flatten", "unflatten", "repeat", "cat", "stack", "sum", "mean", "neg",
    "index_select", "movedim", "narrow", "broadcast_to", "expand_as", "view_as", "lift_fresh_copy", "flip", "roll",
)  # fmt: skip
ROWS: dict[str, Row] = {}


@dataclass(frozen=True)
class Complex:
    """The arrays of the real and of the imaginary parts."""

    real: Array
    imag: Array

    @property
    def dtype(self) -> str:
        return self.real.dtype


def apply(name: str, b: Builder, n: Node, args: dict[str, Any]) -> Any:
    """An operator that takes or gives complex values.  Raises UnsupportedOperator: it has no meaning here."""
    dtype = PARTS.get(n.dtype, n.dtype)
    if name in ROWS:
        return ROWS[name](b, replace(n, dtype=dtype), **args)
    if name in BY_PARTS and name in TABLE:
        parts = [TABLE[name](b, replace(n, dtype=dtype), **_each(args, which)) for which in (0, 1)]
        return Complex(parts[0], parts[1])
    raise UnsupportedOperator("no meaning is known for it with complex numbers")


def is_complex(x: Any) -> bool:
    return isinstance(x, Complex) or (isinstance(x, list | tuple) and any(map(is_complex, x)))


def _each(x: Any, which: int) -> Any:
    """Arguments with the parts of complex values in their places."""
    if isinstance(x, Complex):
        return (x.real, x.imag)[which]
    if isinstance(x, dict):
        return {k: _each(v, which) for k, v in x.items()}
    if not isinstance(x, list | tuple):
        return x
    if which and is_complex(x):  # real arrays among complex ones have no imaginary parts
        x = [pointwise(lambda e: Const(0.0), v.dtype, v) if isinstance(v, Array) else v for v in x]
    return tuple(_each(v, which) for v in x)


def row(*names: str) -> Callable[[Row], Row]:
    return enter(ROWS, names)


def parts_of(x: Any, dtype: str) -> tuple[Array, Array]:
    """Real and imaginary parts of an argument, which may be a number or real."""
    if isinstance(x, Complex):
        return x.real, x.imag
    if isinstance(x, complex):
        return array(x.real, dtype), array(x.imag, dtype)
    return array(x, dtype), array(0.0, dtype)


# ---- from and to pairs -----------------------------------------------------------------------------------------------
@row("view_as_complex")
def of_pairs(b: Builder, n: Node, self: Array) -> Complex:
    def part(k: int) -> Array:
        return self.view(self.shape[:-1], lambda i: [*i, Const(k)], self.hints[:-1])

    return Complex(part(0), part(1))


@row("view_as_real")
def _pairs(b: Builder, n: Node, self: Complex) -> Array:
    return stack(b, n, (self.real, self.imag), -1)


@row("complex")
def _complex(b: Builder, n: Node, real: Array, imag: Array) -> Complex:
    return Complex(real, imag)


@row("polar")
def _polar(b: Builder, n: Node, abs: Array, angle: Array) -> Complex:
    def part(of: str) -> Array:
        return pointwise(lambda r, a: op("mul", r, op(of, a)), n.dtype, abs, angle)

    return Complex(part("cos"), part("sin"))


@row("real")
def _real(b: Builder, n: Node, self: Complex) -> Array:
    return self.real


@row("imag")
def _imag(b: Builder, n: Node, self: Complex) -> Array:
    return self.imag


# ---- arithmetic ------------------------------------------------------------------------------------------------------
@row("mul", "multiply")
def _mul(b: Builder, n: Node, self: Any, other: Any) -> Complex:
    four = (*parts_of(self, n.dtype), *parts_of(other, n.dtype))

    def part(fn: Callable[..., Expr]) -> Array:
        return pointwise(fn, n.dtype, *four)

    return Complex(
        part(lambda x, y, u, v: op("sub", op("mul", x, u), op("mul", y, v))),
        part(lambda x, y, u, v: op("add", op("mul", x, v), op("mul", y, u))),
    )


def _sum(which: str) -> Row:
    def fn(b: Builder, n: Node, self: Any, other: Any, alpha: Any = 1) -> Complex:
        if alpha != 1:
            raise UnsupportedOperator("a sum of complex numbers with a factor")
        left, right = parts_of(self, n.dtype), parts_of(other, n.dtype)
        x, y = (pointwise(lambda u, v: op(which, u, v), n.dtype, p, q) for p, q in zip(left, right, strict=True))
        return Complex(x, y)

    return fn


row("add")(_sum("add"))
row("sub", "subtract")(_sum("sub"))


def _bilinear(name: str) -> Row:
    """A product of matrices by those of the parts."""

    def fn(b: Builder, n: Node, self: Any, **more: Any) -> Complex:
        [(key, other)] = more.items()

        def product(x: Array, y: Array) -> Array:
            made: Array = TABLE[name](b, n, x, **{key: y})
            return made

        def both(which: str, x: Array, y: Array) -> Array:
            return pointwise(lambda u, v: op(which, u, v), n.dtype, x, y)

        if not isinstance(self, Complex):
            return Complex(product(self, other.real), product(self, other.imag))
        if not isinstance(other, Complex):
            return Complex(product(self.real, other), product(self.imag, other))
        return Complex(
            both("sub", product(self.real, other.real), product(self.imag, other.imag)),
            both("add", product(self.real, other.imag), product(self.imag, other.real)),
        )

    return fn


for _name in ("matmul", "mm", "bmm"):
    row(_name)(_bilinear(_name))


@row("conj", "_conj", "conj_physical", "_conj_physical")
def _conj(b: Builder, n: Node, self: Complex) -> Complex:
    return Complex(self.real, pointwise(lambda y: op("neg", y), self.dtype, self.imag))


@row("resolve_conj", "resolve_neg")
def _same(b: Builder, n: Node, self: Complex) -> Complex:
    return self


@row("abs")
def _abs(b: Builder, n: Node, self: Complex) -> Array:
    def fn(x: Expr, y: Expr) -> Expr:
        return op("sqrt", op("add", op("mul", x, x), op("mul", y, y)))

    return pointwise(fn, self.dtype, self.real, self.imag)


@row("exp")
def _exp(b: Builder, n: Node, self: Complex) -> Complex:
    def part(of: str) -> Array:
        return pointwise(lambda x, y: op("mul", op("exp", x), op(of, y)), n.dtype, self.real, self.imag)

    return Complex(part("cos"), part("sin"))
