"""What values an expression takes over a tile, from the ends of what it reads: interval arithmetic (Moore, 1966).

The question is when a predicate over loaded values (documents, lengths, limits) may hold at some point of a tile, and
when it must hold at all of them.  Both answers are expressions again, over the number of the tile, of the blocks of
rows, and the *ends* of what is loaded there, which the call itself finds out (:mod:`flashlight.classes`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import prod

from flashlight.expr import (
    FALSE,
    OPS,
    TRUE,
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    Size,
    apply,
    axes,
    children,
    kind,
    loads,
    substitute,
    walk,
)
from flashlight.program import Axis

STREAM, ROWS, ONE = "stream", "rows", "one"
# Increasing or decreasing in floating point as well (a rounding is monotone; approximations of functions are not).
MONOTONE = ("add", "sub", "neg", "maximum", "minimum", "floor", "ceil", "round", "trunc", "sign", "real")
LOGIC = ("and", "or", "not")
ELEMENTS = 16  # of tables that one tile reads, at most, to be looked at one by one
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass(frozen=True)
class Ends:
    """``lo <= value <= hi`` at every point of a tile; of a truth value: it *must* hold, it *may* hold."""

    lo: Expr
    hi: Expr


UNKNOWN = Ends(FALSE, TRUE)


@dataclass(frozen=True)
class Leaf:
    """A subtree that reads memory and varies along one side only: its ends are found out when called.

    ``side``: "stream" (a pair of ends a tile), "rows" (one a block of rows), "one" (it is the same for all points, and
    its ends are one).
    """

    expr: Expr
    side: str
    number: int

    @property
    def placeholders(self) -> tuple[Expr, Expr]:
        """What stands for the ends: Sizes for an integer's (isl can reason about those), Refs for a real's."""
        names = (f"value{self.number}",) * 2 if self.side == ONE else (f"least{self.number}", f"most{self.number}")
        least, most = (Ref(n) if kind(self.expr) == "real" else Size(n) for n in names)
        return least, most

    @property
    def ends(self) -> Ends:
        least, most = self.placeholders
        if kind(self.expr) == "bool":
            return Ends(apply("gt", least, Const(0)), apply("gt", most, Const(0)))
        return Ends(least, most)


class Intervals:
    """Ends of expressions over a tile of ``stream`` (``block`` points) and a block of each of ``rows``.

    In the answers, Index(axis) of the streamed axis is the number of the tile, that of a row axis the number of its
    block, that of a batch axis its coordinate.  ``leaves``: what has to be found out, as far as it has been asked for.
    """

    def __init__(self, stream: Axis, block: int, rows: tuple[tuple[Axis, int], ...], batch: tuple[Axis, ...]):
        self.stream, self.batch = stream.name, frozenset(a.name for a in batch)
        self.rows = frozenset(a.name for a, _ in rows)
        self.blocks = {stream.name: (stream, block)} | {a.name: (a, b) for a, b in rows}
        self.leaves: dict[Expr, Leaf] = {}
        self._memo: dict[Expr, Ends | None] = {}

    def truth(self, e: Expr) -> Ends:
        """When a predicate must, and when it may, hold."""
        return self.ends(e) or UNKNOWN

    def ends(self, e: Expr) -> Ends | None:
        """None: nothing is known of a number (of a truth value something always is)."""
        if e not in self._memo:
            out = self._leaf(e) or self._ends(e)
            self._memo[e] = self._few_elements(e) if out is None and kind(e) == "bool" else out
        return self._memo[e]

    def _leaf(self, e: Expr) -> Ends | None:
        read = loads(e)
        if not read or any(isinstance(n, Ref | Fold) for n in walk(e)):
            return None
        if axes(e) - self.batch and not any(axes(x) - self.batch for x in read):
            return None  # an index beside what is one for the whole tile: its ends are known without a look
        tiled = axes(e) - self.batch
        side = ONE if not tiled else STREAM if tiled == {self.stream} else ROWS if tiled <= self.rows else ""
        if not side:
            return None
        return self.leaves.setdefault(e, Leaf(e, side, len(self.leaves))).ends

    def _ends(self, e: Expr) -> Ends | None:
        match e:
            case Const() | Size():
                return Ends(e, e)
            case Index(axis) if axis in self.batch:
                return Ends(e, e)
            case Index(axis) if axis in self.blocks:
                a, block = self.blocks[axis]
                first = apply("mul", e, Const(block))
                last = apply("add", first, Const(block - 1))
                if not (isinstance(a.extent, Const) and a.extent.value % block == 0):
                    last = apply("minimum", last, apply("sub", a.extent, Const(1)))
                return Ends(first, last)
            case Apply("select", (c, a, b)):
                return self._select(self.truth(c), self.ends(a), self.ends(b), kind(e) == "bool")
            case Apply(op, args):
                parts = [self.ends(a) for a in args]
                if op not in LOGIC:
                    parts = [_as_number(p) if kind(a) == "bool" else p for a, p in zip(args, parts, strict=True)]
                known = [p for p in parts if p is not None]
                return _apply(op, args, known) if len(known) == len(parts) else None
        return None

    def _few_elements(self, e: Expr) -> Ends:
        """A truth value that varies with elements of tables only, tables with an element a block of points: what it is
        with each of the few elements that the points of a tile read."""
        read = _outermost_loads(e)
        rest = substitute(e, {x: Const(0) for x in read})
        if axes(rest) - self.batch or any(isinstance(n, Ref | Fold) for x in (rest, *read) for n in walk(x)):
            return UNKNOWN
        places: dict[Expr, list[Expr]] = {}
        for i in (i for x in read for i in x.index):
            ends, many = self.ends(i), self._values(i)
            if ends is None or many > ELEMENTS:
                return UNKNOWN
            some = (apply("minimum", apply("add", ends.lo, Const(k)), ends.hi) for k in range(many - 1))
            places[i] = [*some, ends.hi]
        if prod(map(len, places.values())) > ELEMENTS:
            return UNKNOWN
        must: Expr = TRUE
        may: Expr = FALSE
        for at in product(*places.values()):
            where = dict(zip(places, at, strict=True))
            table: dict[Expr, Expr] = {x: Load(x.tensor, tuple(where[i] for i in x.index), x.kind) for x in read}
            value = substitute(e, table)
            must, may = apply("and", must, value), apply("or", may, value)
        return Ends(must, may)

    def _values(self, e: Expr) -> int:
        """How many values from its lower to its upper end an index has over a tile, at most: more than ELEMENTS where
        points hardly share any."""
        match e:
            case Index(axis) if axis in self.blocks:
                return self.blocks[axis][1]
            case Apply("floordiv", (Index(axis), Const(int(by)))) if axis in self.blocks and by > 0:
                block = self.blocks[axis][1]  # where one length divides the other they begin together
                return max(1, block // by) if block % by == 0 or by % block == 0 else (block - 2) // by + 2
            case Apply("floordiv", (x, Const(int(by)))) if by > 0:
                return (self._values(x) - 2) // by + 2
            case Apply("add" | "sub", (a, b)) if not axes(a) & axes(b) - self.batch:
                return self._values(a) + self._values(b) - 1
            case Apply("minimum" | "maximum", (a, b)):
                return max(self._values(a), self._values(b))
            case Apply("mod", (a, Const(int(by)))) if by > 0:
                return max(self._values(a), by)
        return 1 if not axes(e) - self.batch else ELEMENTS + 1

    def _select(self, c: Ends, a: Ends | None, b: Ends | None, truth: bool) -> Ends | None:
        if a is None or b is None:
            return None
        if truth:
            yes, no = _apply("and", (), [c, a]), _apply("and", (), [_not(c), b])
            return _apply("or", (), [x for x in (yes, no) if x is not None])
        pairs = ((a.lo, b.lo, apply("minimum", a.lo, b.lo)), (a.hi, b.hi, apply("maximum", a.hi, b.hi)))
        low, high = (apply("select", c.lo, x, apply("select", c.hi, both, y)) for x, y, both in pairs)
        return Ends(low, high)


def _outermost_loads(e: Expr) -> list[Load]:
    return [e] if isinstance(e, Load) else [x for a in children(e) for x in _outermost_loads(a)]


def _as_number(p: Ends | None) -> Ends | None:
    one, none = Const(1), Const(0)
    return p and Ends(apply("select", p.lo, one, none), apply("select", p.hi, one, none))


def _not(p: Ends) -> Ends:
    return Ends(apply("not", p.hi), apply("not", p.lo))


def _apply(op: str, args: tuple[Expr, ...], p: list[Ends]) -> Ends | None:
    real = any(kind(a) == "real" for a in args)
    match op:
        case "and" | "or":
            return Ends(apply(op, p[0].lo, p[1].lo), apply(op, p[0].hi, p[1].hi))
        case "not":
            return _not(p[0])
        case "bool":
            return _not(_compare("eq", p[0], Ends(Const(0), Const(0)), real))
        case op if op in COMPARE:
            return _compare(op, p[0], p[1], real)
        case "int":
            return None if real else p[0]
        case "abs":
            x = p[0]
            nearest = apply("maximum", x.lo, apply("neg", x.hi))
            return Ends(
                apply("maximum", nearest, Const(0.0 if real else 0)), apply("maximum", apply("neg", x.lo), x.hi)
            )
        case "mul":
            products = [apply("mul", x, y) for x, y in product(*((q.lo, q.hi) for q in p))]
            return Ends(_extreme("minimum", products), _extreme("maximum", products))
        case "floordiv" | "mod" if not real and p[1].lo is p[1].hi and _positive(p[1].lo):
            return _quotient(p[0], p[1].lo) if op == "floordiv" else _remainder(p[0], p[1].lo)
        case op if op in MONOTONE:
            pairs = [(q.lo, q.hi) if s > 0 else (q.hi, q.lo) for q, s in zip(p, OPS[op].monotone, strict=True)]
            return Ends(apply(op, *(low for low, _ in pairs)), apply(op, *(high for _, high in pairs)))
    return None


def _quotient(x: Ends, by: Expr) -> Ends:
    return Ends(apply("floordiv", x.lo, by), apply("floordiv", x.hi, by))


def _remainder(x: Ends, by: Expr) -> Ends:
    """Increasing within one period; over more than one, anything."""
    within, last = _quotient(x, by), apply("sub", by, Const(1))
    one = apply("eq", within.lo, within.hi)
    low, high = apply("mod", x.lo, by), apply("mod", x.hi, by)
    return Ends(apply("select", one, low, Const(0)), apply("select", one, high, last))


def _compare(op: str, a: Ends, b: Ends, real: bool) -> Ends:
    """Of reals, that something may hold is written as that its opposite need not: a NaN end then says so, too."""
    if op in ("gt", "ge"):
        return _compare("lt" if op == "gt" else "le", b, a, real)
    if op == "ne":
        return _not(_compare("eq", a, b, real))
    if op == "eq":
        must = apply("and", apply("eq", a.lo, b.hi), apply("eq", a.hi, b.lo))
        return Ends(must, apply("and", _not_less(a.hi, b.lo), _not_less(b.hi, a.lo)))
    opposite = "ge" if op == "lt" else "gt"
    may = apply("not", apply(opposite, a.lo, b.hi)) if real else apply(op, a.lo, b.hi)
    return Ends(apply(op, a.hi, b.lo), may)


def _not_less(a: Expr, b: Expr) -> Expr:
    return apply("not", apply("lt", a, b)) if "real" in (kind(a), kind(b)) else apply("ge", a, b)


def _extreme(op: str, terms: Iterable[Expr]) -> Expr:
    first, *rest = dict.fromkeys(terms)
    for t in rest:
        first = apply(op, first, t)
    return first


def _positive(e: Expr) -> bool:
    return isinstance(e, Size) or (isinstance(e, Const) and e.value > 0)
