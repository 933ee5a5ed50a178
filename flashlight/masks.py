"""Which points of the streamed axis contribute exactly nothing, and so need not be visited.

A condition *kills* when fixing it one way turns the body of every slot of a pass into that slot's identity.  The
conjunction of the killing conditions is where the pass is live; the polyhedral layer turns it into tile ranges.
A fill that merely underflows does not kill: -1e9 is the identity of nothing (a row of nothing else averages over it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flashlight.algebra import Slot
from flashlight.algebra.special import Value, extended
from flashlight.expr import (
    FALSE,
    TRUE,
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    apply,
    axes,
    children,
    kind,
    loads,
    substitute,
    walk,
)
from flashlight.polyhedral.affine import is_affine

INF = math.inf
Known = float | None  # an extended real the body is known to equal, or None: some finite number


@dataclass(frozen=True)
class Kill:
    """A killing condition, and the value it must have where a point is live."""

    condition: Expr
    live: bool

    @property
    def predicate(self) -> Expr:
        return self.condition if self.live else apply("not", self.condition)

    @property
    def affine(self) -> bool:
        return is_affine(self.condition)

    def parts(self) -> Iterator[Kill]:
        """The same as conditions that each kill: what is affine stays together."""
        match self.condition:
            case Apply("and" | "or" as op, args) if (op == "and") == self.live and not self.affine:
                for a in args:
                    yield from Kill(a, self.live).parts()
            case Apply("not", (a,)):
                yield from Kill(a, not self.live).parts()
            case _:
                yield self


@dataclass(frozen=True)
class Refusal:
    """A condition that selects, but does not kill: the slot, and what it adds at a masked point."""

    condition: Expr
    slot: str
    reason: str

    def __str__(self) -> str:
        return f"points where not ({self.condition}) are visited: {self.slot} {self.reason}"


def kills(slots: tuple[Slot, ...], stream: str) -> tuple[tuple[Kill, ...], tuple[Refusal, ...]]:
    """The conditions under which all slots keep their identity."""
    found: dict[Kill, None] = {}
    refused: list[Refusal] = []
    todo = list(dict.fromkeys(c for s in slots for c in conditions(s.body)))
    while todo:
        c = todo.pop(0)
        if not axes(c):
            continue
        blame = {}
        for live in (True, False):
            fixed = {c: FALSE if live else TRUE}
            guilty = [(s, known(substitute(s.body, fixed))) for s in slots if _adds(s, substitute(s.body, fixed))]
            if not guilty:
                found |= dict.fromkeys(Kill(c, live).parts())
                break
            blame[live] = guilty[0]
        else:
            if not is_affine(c):  # a part of it may
                todo[:0] = [p for a in children(c) for p in conditions(a)]
            slot, value = blame[True]
            fills = [f for s in slots for f in _fills(s.body, c)]
            if fills and any(stream in axes(s.body) for s in slots):
                refused.append(Refusal(c, slot.name, _witness(slot, value, fills[0])))
    return tuple(found), tuple(refused)


def conditions(body: Expr) -> tuple[Expr, ...]:
    """The maximal boolean subtrees that are known before a tile is computed, in order of appearance."""
    out: dict[Expr, None] = {}
    seen: set[Expr] = set()

    def go(e: Expr) -> None:
        if e in seen:
            return
        seen.add(e)
        if kind(e) == "bool" and not isinstance(e, Const) and not any(isinstance(n, Ref | Fold) for n in walk(e)):
            out[e] = None
            return
        for c in children(e):
            go(c)

    go(body)
    return tuple(out)


def _witness(slot: Slot, value: Known, fill: float) -> str:
    if value is not None:
        return f"adds {value:g} there, and its identity is {slot.identity:g}"
    if slot.gauges:
        return f"adds exp(0) = 1 times its factors in a row that holds nothing but the fill {fill:g}"
    return f"adds a finite number there, and its identity is {slot.identity:g}"


def _adds(slot: Slot, body: Expr) -> bool:
    value = known(body)
    return value is None or value != slot.identity


def _fills(body: Expr, condition: Expr) -> list[float]:
    """The constants that this condition selects."""
    out = []
    stack = [body]
    while stack:
        e = stack.pop()
        if isinstance(e, Apply) and e.op == "select" and e.args[0] is condition:
            out += [float(a.value) for a in e.args[1:] if isinstance(a, Const)]
        stack.extend(children(e))
    return out


def known(e: Expr, memo: dict[Expr, Known] | None = None) -> Known:
    """The extended-real value of ``e`` if it is the same whatever finite values loads and references have.

    0 * finite is 0: this is where a NaN or inf in a masked value row is left behind (a documented exception).
    """
    memo = {} if memo is None else memo
    if e not in memo:
        memo[e] = _known(e, lambda a: known(a, memo))
    return memo[e]


def _known(e: Expr, go: Callable[[Expr], Known]) -> Known:
    match e:
        case Const(value):
            return float(value)
        case Fold("sum", _, extent, body):
            inner = go(body)
            return inner * extent if inner is not None and (inner == 0 or math.isinf(inner)) else None
        case Fold(_, _, _, body):
            return go(body)
        case Ref() | Load() | Index():
            return None
        case Apply("select", (c, a, b)):
            left, right = go(a), go(b)
            if isinstance(c, Const):
                return left if c.value else right
            return left if left == right else None
        case Apply("add", (a, b)) | Apply("sub", (a, b)):
            x, y = go(a), go(b)
            y = -y if y is not None and isinstance(e, Apply) and e.op == "sub" else y
            if x is not None and y is not None:
                return None if math.isinf(x) and x == -y else x + y
            return next((v for v in (x, y) if v is not None and math.isinf(v)), None)
        case Apply("mul", (a, b)):
            x, y = go(a), go(b)
            if x == 0 or y == 0:
                return None if INF in (abs(x or 0), abs(y or 0)) else 0.0
            return x * y if x is not None and y is not None else None
        case Apply("div", (a, b)):
            x, y = go(a), go(b)
            if x == 0 and (y is None or y != 0):
                return 0.0
            if x is not None and y is not None and y != 0 and not (math.isinf(x) and math.isinf(y)):
                return x / y
            return None
        case Apply("exp" | "exp2", (a,)):
            x = go(a)
            return {-INF: 0.0, INF: INF, 0.0: 1.0}.get(x) if x is not None else None
        case Apply("sigmoid", (a,)):
            x = go(a)
            return {-INF: 0.0, INF: 1.0}.get(x) if x is not None else None
        case Apply("maximum", (a, b)):
            x, y = go(a), go(b)
            if x is not None and y is not None:
                return max(x, y)
            return INF if INF in (x, y) else None
        case Apply("minimum", (a, b)):
            x, y = go(a), go(b)
            if x is not None and y is not None:
                return min(x, y)
            return -INF if -INF in (x, y) else None
        case Apply("neg", (a,)):
            x = go(a)
            return None if x is None else -x
        case Apply("abs", (a,)):
            x = go(a)
            return None if x is None else abs(x)
        case Apply("real", (a,)):
            return go(a)
    return None


# ---- beyond the end --------------------------------------------------------------------------------------------------
def is_wild(body: Expr, stream: str) -> bool:
    """May a body be infinite or no number where everything loaded along the streamed axis is 0, as it is beyond the
    axis's end?  A power may: the maximum that is taken off elsewhere is the one of what lies inside."""
    nothing: dict[Expr, Value] = {x: 0.0 for x in loads(body) if stream in axes(x)}

    def bad(e: Expr) -> bool:
        match e:
            case Apply("div", (_, by)) | Apply("log" | "log2" | "rsqrt", (by,)) | Apply("pow", (by, _)):
                at = extended(by, nothing)
                return not nothing.keys().isdisjoint(loads(by)) and (not isinstance(at, float) or at == 0)
            case Apply("exp" | "exp2" | "expm1", (by,)) if stream in axes(by):
                at = extended(by, nothing)
                return not isinstance(at, float) or at > 0
        return False

    return any(map(bad, walk(body)))
