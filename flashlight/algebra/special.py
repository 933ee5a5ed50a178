"""Values in IEEE arithmetic where only some of them are known: what becomes of -inf, of 0/0, of a guard.

Special values are no matter of algebra (it calls exp(x - m) at x = m = -inf one), so they are asked of the program
itself, in the order in which it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flashlight.expr import OPS, Apply, Const, Expr, Fold

FINITE = None  # some finite number, unknown which
Value = float | None | str  # an exact value, FINITE, or ANY
ANY = "any"


def extended(e: Expr, known: Mapping[Expr, Value]) -> Value:
    """The value of ``e`` where ``known`` gives those of some subtrees and every other leaf is finite."""
    memo: dict[Expr, Value] = {}

    def go(e: Expr) -> Value:
        if e not in memo:
            memo[e] = known[e] if e in known else _value(e, go)
        return memo[e]

    return go(e)


def fold(monoid: str, value: Value) -> Value:
    """The reduction of one or more elements that all have this value."""
    if monoid in ("max", "min") or not isinstance(value, float) or value == 0 or not math.isfinite(value):
        return value
    return FINITE


def is_nan(value: Value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _value(e: Expr, go: Callable[[Expr], Value]) -> Value:
    match e:
        case Const(value):
            return float(value)
        case Fold(monoid, _, _, body):
            return fold(monoid, go(body))
        case Apply("select", (c, a, b)):
            chosen = go(c)
            if isinstance(chosen, float):
                return go(a) if chosen else go(b)
            left, right = go(a), go(b)
            if left == right or (is_nan(left) and is_nan(right)):
                return left
            return FINITE if _plain(left) and _plain(right) else ANY
        case Apply(op, args):
            values = [go(a) for a in args]
            if any(map(is_nan, values)) and OPS[op].kind != "bool":
                return math.nan
            numbers = [v for v in values if isinstance(v, float)]
            if len(numbers) == len(values):
                return _exact(op, numbers)
            return ANY if ANY in values else _partly(op, values)
    return FINITE


def _plain(v: Value) -> bool:
    return v is None or (isinstance(v, float) and math.isfinite(v))


def _exact(op: str, numbers: list[float]) -> Value:
    try:
        return float(OPS[op].evaluate(*numbers))
    except (OverflowError, ValueError, ZeroDivisionError):
        return ANY


def _partly(op: str, values: list[Value]) -> Value:
    """At least one argument is finite and unknown, the others are exact and no NaN."""
    exact = next((v for v in values if isinstance(v, float)), None)
    if exact is None:
        return FINITE
    infinite = math.isinf(exact)
    first = isinstance(values[0], float)
    match op:
        case "add" | "sub" if infinite:
            return exact if first or op == "add" else -exact
        case "mul":
            return ANY if infinite else 0.0 if exact == 0 else FINITE
        case "div":
            if first:
                return ANY if infinite else 0.0 if exact == 0 else FINITE
            return 0.0 if infinite else ANY if exact == 0 else FINITE
        case "maximum" | "minimum" if infinite:
            return exact if (exact > 0) == (op == "maximum") else FINITE
        case "eq" | "ne" if infinite:
            return float(op == "ne")
        case "lt" | "le" | "gt" | "ge" if infinite:
            return float((exact < 0) == (first == (op in ("lt", "le"))))
        case "and" | "or":
            return exact if bool(exact) == (op == "or") else FINITE
    return ANY if infinite else FINITE
