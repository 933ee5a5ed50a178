"""Evaluating expressions on numbers: float64 as IEEE 754 has it, or as many digits as one likes.

A value is a number, or a list of numbers along the streamed axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flashlight.expr import COMBINE, INF, OPS, Apply, Const, Expr

Leaf = Callable[[Expr], Any]


class Numbers(Protocol):
    """What a machine that runs certificates needs of its numbers."""

    def evaluate(self, e: Expr, leaf: Leaf) -> Any:
        """The value of ``e``; ``leaf`` answers for whatever is neither an operator nor a constant."""

    def apply(self, op: str, *args: Any) -> Any:
        """One operator of the table on values."""

    def fold(self, monoid: str, value: Any, size: int) -> Any:
        """Reduce ``size`` > 0 elements, given as one value."""


class Scalars:
    """Python objects, one at a time."""

    def __init__(self, operators: Mapping[str, Callable[..., Any]], constant: Callable[[Any], Any]):
        self.operators, self.constant = operators, constant

    def evaluate(self, e: Expr, leaf: Leaf) -> Any:
        memo: dict[Expr, Any] = {}

        def go(e: Expr) -> Any:
            if e not in memo:
                match e:
                    case Const(value):
                        memo[e] = value if isinstance(value, bool) else self.constant(value)
                    case Apply(op, args):
                        memo[e] = self.apply(op, *map(go, args))
                    case _:
                        memo[e] = leaf(e)
            return memo[e]

        return go(e)

    def apply(self, op: str, *args: Any) -> Any:
        f = self.operators[op]
        lists = [a for a in args if isinstance(a, list)]
        if not lists:
            return f(*args)
        n = len(lists[0])
        return [f(*each) for each in zip(*(a if isinstance(a, list) else [a] * n for a in args), strict=True)]

    def fold(self, monoid: str, value: Any, size: int) -> Any:
        values = value if isinstance(value, list) else [value] * size
        total, f = values[0], self.operators[COMBINE[monoid]]
        for v in values[1:]:
            total = f(total, v)
        return self.apply("real", total)


def _power(a: float, n: float) -> float:
    try:
        out = a**n
    except ZeroDivisionError:
        return -INF if math.copysign(1.0, a) < 0 and n % 2 == 1 else INF
    except OverflowError:
        return -INF if a < 0 and n % 2 == 1 else INF
    return out if not isinstance(out, complex) else math.nan


def _lenient(f: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return f(*args)
        except (OverflowError, ValueError, ZeroDivisionError):
            return math.nan

    return call


FLOATS = Scalars({name: _lenient(op.evaluate) for name, op in OPS.items()} | {"pow": _power}, float)
"""float64, with infinities and NaN where IEEE 754 has them and Python raises."""


def precise(digits: int) -> Scalars:
    """Numbers of so many digits, with infinities; the context is its own, so that nobody else's precision changes."""
    from mpmath.ctx_mp import MPContext

    mp = MPContext()
    mp.dps = digits

    def real(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                out = f(*args)
            except (OverflowError, ValueError, ZeroDivisionError):
                return mp.nan
            return mp.nan if isinstance(out, mp.mpc) else out

        return call

    def divide(a: Any, b: Any) -> Any:
        if b == 0:
            return mp.nan if a == 0 or a != a else mp.inf if a > 0 else -mp.inf
        return a / b

    def power(a: Any, n: Any) -> Any:
        return divide(mp.one, a ** (-n)) if n < 0 and a == 0 else a**n

    table = {name: op.evaluate for name, op in OPS.items()} | {
        "div": divide,
        "pow": power,
        "fmod": lambda a, b: mp.sign(a) * mp.fmod(abs(a), abs(b)),  # mpmath's has the sign of the divisor
        "floordiv": lambda a, b: mp.floor(a / b) if mp.isfinite(a) else mp.nan,  # mpf has no //
        "exp": mp.exp,
        "exp2": lambda a: mp.exp(a * mp.ln2),
        "expm1": mp.expm1,
        "log": lambda a: -mp.inf if a == 0 else mp.log(a),
        "log2": lambda a: -mp.inf if a == 0 else mp.log(a) / mp.ln2,
        "log1p": lambda a: -mp.inf if a == -1 else mp.log1p(a),
        "sqrt": mp.sqrt,
        "rsqrt": lambda a: divide(mp.one, mp.sqrt(a)),
        "tanh": mp.tanh,
        "sigmoid": lambda a: 1 / (1 + mp.exp(-a)),
        "sin": mp.sin,
        "cos": mp.cos,
        "erf": mp.erf,
        "atan": mp.atan,
        "floor": lambda a: mp.floor(a) if mp.isfinite(a) else a,
        "ceil": lambda a: mp.ceil(a) if mp.isfinite(a) else a,
        "round": lambda a: mp.nint(a) if mp.isfinite(a) else a,
        "trunc": lambda a: (mp.floor(a) if a > 0 else mp.ceil(a)) if mp.isfinite(a) else a,
        "sign": mp.sign,
        "real": mp.mpf,
        "int": lambda a: mp.mpf(int(a)),
    }
    return Scalars({name: real(f) for name, f in table.items()}, mp.mpf)
