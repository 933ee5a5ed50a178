"""What every emitter asks of a tile program and of its expressions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from flashlight.expr import OPS, conjuncts, kind
from flashlight.tile import (
    Apply,
    Const,
    DotOp,
    Expr,
    Index,
    Let,
    LoadOp,
    Size,
    Stmt,
    Store,
    leaves,
    walk,
)
from flashlight.tile import lets as lets
from flashlight.tile import names_in as names_in
from flashlight.tile import reads as reads

NARROW = ("bfloat16", "float16")
INTS = ("int64", "int32", "int16", "int8", "uint8")
DTYPES = ("float64", "float32", *NARROW, *INTS, "bool")
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")
LOGIC = ("and", "or", "not")
ROUNDING = ("floor", "ceil", "round", "trunc")


def kind_of(dtype: str) -> str:
    return "bool" if dtype == "bool" else "int" if dtype in INTS else "real"


def integral(op: str, dtypes: Sequence[str], literals: bool) -> str:
    """The dtype of an operator over integers of these; ``literals``: one of them is a number."""
    if "int64" in dtypes:
        return "int64"
    if op in ("select", *COMPARE) and all(d == "bool" for d in dtypes):
        return "bool"
    far = op == "mul" and not literals  # a product of two lengths may be long
    return "int64" if far or op in ("pow", "lshift", "rshift") else "int32"


def between(e: Expr) -> tuple[Expr, int, list[Expr]] | None:
    """``(f, n, others)`` where two of the comparisons of integers that ``e`` is a conjunction of say ``0 <= f <= n``:
    one unsigned comparison does for both.  None where there are no such two."""
    parts = conjuncts(e)
    gaps = [_gap(c) for c in parts]
    for k, one in enumerate(gaps):
        for m, other in enumerate(gaps[k + 1 :], k + 1):
            if one is None or other is None or one[1] != {t: -n for t, n in other[1].items()} or not one[1]:
                continue
            most = one[2] + other[2]
            if most >= 0:
                return one[0], most, [c for i, c in enumerate(parts) if i not in (k, m)]
    return None


def _gap(c: Expr) -> tuple[Expr, dict[Expr, int], int] | None:
    """What a comparison says is not negative: as it is, and as terms (how often each) and a number."""
    match c:
        case Apply("le" | "lt" as op, (small, large)) | Apply("ge" | "gt" as op, (large, small)):
            if kind(small) != "int" or kind(large) != "int":
                return None
            terms: Counter[Expr] = Counter()
            rest = -1 if op in ("lt", "gt") else 0
            for t, sign in (*signed(large), *signed(small, -1)):
                if isinstance(t, Const):
                    rest += sign * int(t.value)
                else:
                    terms[t] += sign
            gap = Apply("sub", (large, small))
            if op in ("lt", "gt"):
                gap = Apply("sub", (gap, Const(1)))
            return gap, {t: n for t, n in terms.items() if n}, rest
    return None


def signed(e: Expr, sign: int = 1) -> list[tuple[Expr, int]]:
    """The terms of a sum, each with 1 or -1."""
    match e:
        case Apply("add" | "sub" as op, (a, b)):
            return [*signed(a, sign), *signed(b, sign if op == "add" else -sign)]
        case Apply("neg", (a,)):
            return signed(a, -sign)
    return [(e, sign)]


def pow2(n: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(0, n - 1).bit_length()


# ---- statements ------------------------------------------------------------------------------------------------------
def stores(body: Iterable[Stmt]) -> list[Store]:
    """Every store, those in loops included."""
    return [s for s in leaves(body) if isinstance(s, Store)]


def fetched(body: Iterable[Stmt]) -> list[Let]:
    """Loads of a loop's body from which the left or right operand of one of its dots is computed.

    What is only added to a dot's result, and what loops within do, do not matter.
    """
    trip = [s for s in body if isinstance(s, Let)]
    wanted: set[str] = set()
    for s in reversed(trip):
        if isinstance(s.op, DotOp):
            wanted |= {s.op.left, s.op.right}
        elif s.name in wanted:
            wanted.update(reads(s))
    return [s for s in trip if isinstance(s.op, LoadOp) and s.name in wanted]


def gathers(body: Iterable[Stmt]) -> list[Let]:
    """Loads that stand between two dots of a loop's body: such as are :func:`fetched`, and take their place from a dot
    of the same trip.

    In trips that overlap, the first dot would belong to an earlier trip than the second.
    """
    made: set[str] = set()  # computed from a dot
    for s in body:
        if isinstance(s, Let) and (isinstance(s.op, DotOp) or not made.isdisjoint(reads(s))):
            made.add(s.name)
    return [s for s in fetched(body) if s.name in made]


# ---- expressions -----------------------------------------------------------------------------------------------------
def axes_in(*es: Expr) -> list[str]:
    return [n.axis for e in es for n in walk(e) if isinstance(n, Index)]


def nonnegative(e: Expr) -> bool:
    """Is an integer expression certainly not below zero?  (Coordinates and lengths never are.)"""
    match e:
        case Index() | Size():
            return True
        case Const(value):
            return value >= 0
        case Apply("add" | "mul" | "floordiv" | "minimum", (a, b)):
            return nonnegative(a) and nonnegative(b)
        case Apply("mod", (_, b)):
            return isinstance(b, Const) and b.value > 0
        case Apply("maximum", (a, b)):
            return nonnegative(a) or nonnegative(b)
        case Apply("select", (_, a, b)):
            return nonnegative(a) and nonnegative(b)
        case Apply("abs"):
            return True
    return False


def lowest(e: Expr) -> float:
    """A lower bound of a real expression, NaN aside."""
    match e:
        case Const(value):
            return float(value)
        case Apply("add", (a, b)):
            return lowest(a) + lowest(b)
        case Apply("maximum", (a, b)):
            return max(lowest(a), lowest(b))
        case Apply(op, _):
            return OPS[op].range[0]
    return -math.inf
