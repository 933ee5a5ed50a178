"""Lengths that remember what they are: the integers a user's function sees as shapes while it is traced.

A :class:`Length` is an int (its value at the sizes of this trace) with the expression it stands for.  Arithmetic on it
gives lengths again, comparing it records a guard, and turning it into a plain number asks for the sizes to be literal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flashlight import index
from flashlight.errors import NeedsLiteral
from flashlight.expr import Apply, Const, Expr, Size, apply, evaluate, kind, walk


@dataclass(frozen=True)
class Guard:
    """The function asked whether ``condition`` holds, and went on as it does when the answer is ``outcome``."""

    condition: Expr
    outcome: bool

    def __str__(self) -> str:
        return str(self.condition) if self.outcome else f"not {self.condition}"


@dataclass
class Sizes:
    """The sizes of one trace: name -> value, the guards met, and every number that was derived from them.

    ``rounded``: quotients and remainders, which may come out the same at lengths that have nothing in common.
    """

    values: dict[str, int]
    guards: dict[Guard, None] = field(default_factory=dict)
    rounded: dict[Expr, None] = field(default_factory=dict)
    known: dict[int | float, dict[Expr, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            self.note(value, Size(name))

    def note(self, value: int | float, e: Expr) -> None:
        self.known.setdefault(value, {})[e] = None

    def value(self, e: Expr) -> Any:
        return value_at(e, self.values)

    def length(self, e: Expr) -> int:
        """The expression as an integer for the traced function: plain if no size is in it."""
        e = index.normal(e)
        value = int(self.value(e))
        if not sizes_of(e):
            return value
        self.note(value, e)
        return Length(value, e, self)

    def quotient(self, op: str, a: Expr, b: Expr) -> int:
        """``a // b`` or ``a % b``."""
        e = apply(op, a, b)
        if isinstance(b, Const) and b.value > 0:
            e = index.divmod_(a, b, lambda axis: None)[op == "mod"]
        if any(isinstance(n, Apply) and n.op in ("floordiv", "mod") for n in walk(e)) and sizes_of(e):
            self.rounded[index.normal(e)] = None
        return self.length(e)

    def real(self, e: Expr) -> float:
        value = float(self.value(e))
        if not sizes_of(e):
            return value
        self.note(value, e)
        return Real(value, e, self)

    def ask(self, condition: Expr) -> bool:
        outcome = bool(self.value(condition))
        if sizes_of(condition):
            self.guards[Guard(condition, outcome)] = None
        return outcome

    def dimension(self, n: int) -> int:
        """A dimension of a traced tensor: the length that has this value, if one does."""
        found = self.candidates(n)
        return self.length(found[0]) if found else n

    def candidates(self, value: int | float, depth: int = 2) -> tuple[Expr, ...]:
        """Expressions over the sizes with this value: derived ones, then products, sums and differences of them."""
        out = dict(self.known.get(value, {}))
        if isinstance(value, int) and value > 1 and depth and not out:
            for v, es in list(self.known.items()):
                if not isinstance(v, int) or v < 2:
                    continue
                e = next(iter(es))
                if value % v == 0 and value != v:
                    q = value // v
                    parts = self.candidates(q, depth - 1) or ((Const(q),) if q <= 1 << 16 else ())
                    out |= {index.mul(e, p): None for p in parts}
                if abs(value - v) <= 64:
                    out[index.add(e, Const(value - v))] = None
                if value - v in self.known:
                    out |= {index.add(e, p): None for p in self.known[value - v]}
                if v - value in self.known:
                    out |= {index.sub(e, p): None for p in self.known[v - value]}
        return tuple(out)


def sizes_of(e: Expr) -> frozenset[str]:
    return frozenset(n.name for n in walk(e) if isinstance(n, Size))


def value_at(e: Expr, sizes: dict[str, int]) -> Any:
    """The number an expression over sizes is."""
    return evaluate(e, lambda leaf: sizes[leaf.name])  # type: ignore[union-attr]


def expression_of(x: Any) -> Expr | None:
    """A Length's or Real's expression, or the constant; None for what is no number."""
    if isinstance(x, Length | Real):
        return x.expr
    return Const(x) if isinstance(x, int | float) else None


def _as_real(e: Expr) -> Expr:
    return Const(float(e.value)) if isinstance(e, Const) else apply("real", e)


def _binary(op: str, swap: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        e = expression_of(other)
        if e is None:
            return NotImplemented
        a, b = (e, self.expr) if swap else (self.expr, e)
        if op in ("lt", "le", "gt", "ge", "eq", "ne"):
            return self.sizes.ask(apply(op, a, b))
        integer = kind(a) == "int" and kind(b) == "int"
        whole = op in ("add", "sub", "mul", "floordiv", "mod")
        if op == "pow" and integer:
            whole = isinstance(b, Const) and 0 <= b.value <= 8
        if whole and integer:
            if op == "pow":
                return self.sizes.length(index.mul(*[a] * int(b.value))) if b.value else 1  # type: ignore[union-attr]
            if op in ("floordiv", "mod"):
                return self.sizes.quotient(op, a, b)
            return self.sizes.length(apply(op, a, b))
        return self.sizes.real(apply(op, _as_real(a), _as_real(b)))

    return method


def _unary(op: str) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        e = apply(op, self.expr)
        return self.sizes.length(e) if kind(e) == "int" else self.sizes.real(e)

    return method


def _rounded(op: str) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return self.sizes.length(apply("int", apply(op, self.expr)))

    return method


def _refuse(what: str) -> Callable[..., Any]:
    def method(self: Any, *_: Any) -> Any:
        raise NeedsLiteral(
            sizes_of(self.expr), f"the program turns the length {self.expr} into a plain number ({what})"
        )

    return method


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"__{n}__": _binary(n) for n in ("add", "sub", "mul", "mod", "pow", "lt", "le", "gt", "ge", "eq", "ne")
}
_ARITHMETIC |= {f"__r{n}__": _binary(n, swap=True) for n in ("add", "sub", "mul", "mod", "pow")}
_ARITHMETIC |= {"__floordiv__": _binary("floordiv"), "__rfloordiv__": _binary("floordiv", swap=True)}
_ARITHMETIC |= {"__truediv__": _binary("div"), "__rtruediv__": _binary("div", swap=True)}
_ARITHMETIC |= {"__neg__": _unary("neg"), "__abs__": _unary("abs"), "__pos__": lambda self: self}
_ARITHMETIC |= {"__bool__": lambda self: self.sizes.ask(apply("ne", self.expr, Const(0)))}
_ARITHMETIC |= {"__float__": _refuse("float"), "__int__": _refuse("int")}
_ARITHMETIC |= {f"__{n}__": _rounded(n) for n in ("floor", "ceil", "trunc")}


def _divmod(self: Any, other: Any) -> Any:
    return self // other, self % other


def _unhashable(self: Any) -> int:
    """A dictionary would compare plain values unseen; callers that cache by shape handle this error, as they must for
    PyTorch's own symbolic integers."""
    raise TypeError(f"the length {self.expr} is symbolic and cannot be hashed")


_ARITHMETIC |= {"__divmod__": _divmod, "__hash__": _unhashable}


class Length(int):
    """An integer expression over sizes, and its value in this trace."""

    expr: Expr
    sizes: Sizes

    def __new__(cls, value: int, e: Expr, sizes: Sizes) -> Length:
        out = super().__new__(cls, value)
        out.expr, out.sizes = e, sizes
        return out


class Real(float):
    """A real expression over sizes, and its value in this trace."""

    expr: Expr
    sizes: Sizes

    def __new__(cls, value: float, e: Expr, sizes: Sizes) -> Real:
        out = super().__new__(cls, value)
        out.expr, out.sizes = e, sizes
        return out


for _name, _method in _ARITHMETIC.items():
    setattr(Length, _name, _method)
    setattr(Real, _name, _method)


def plain(x: Any) -> Any:
    """An argument of an operator with its lengths as plain numbers."""
    match x:
        case Length():
            return int.__int__(x)
        case Real():
            return float.__float__(x)
        case slice():
            return slice(plain(x.start), plain(x.stop), plain(x.step))
        case dict():
            return {k: plain(v) for k, v in x.items()}
        case tuple() if hasattr(x, "_fields"):
            return type(x)(*map(plain, x))
        case list() | tuple():
            return type(x)(map(plain, x))
    return x


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
