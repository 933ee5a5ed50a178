"""Ordered pairs: the largest elements with their places, and what else stands there.

The first r + 1 elements in the order (largest first, of equals the first, NaN before all) are a chain of reductions:

    M[r] = max{j} s[j] unless j in I[0..r-1]        I[r] = min{j} j where s[j] = M[r] unless j in I[0..r-1]
    P[r] = sum{j} (1 where j = I[r] else 0) * payload[j]

Each hangs on those before it as gauges, and moves by a row of zeros and infinities (of zeros and ones for sums): the
merge of two sorted lists, cut to r + 1.  A maximum with its payload is a monoid by ties decided by the place (as for
lexicographic pairs); cut merges are associative since what is cut is smaller than r + 1 elements of its own part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from flashlight.algebra import separation
from flashlight.algebra.draft import DUAL, Draft
from flashlight.algebra.proof import Slot
from flashlight.algebra.separation import Mixed
from flashlight.algebra.terms import UNIT
from flashlight.expr import INF, OPS, Apply, Const, Expr, Index, Ref, apply

ZERO, ONE = Const(0.0), Const(1.0)
STRICT = ("add", "sub", "neg", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "tanh", "sigmoid", "erf",
          "atan", "real")  # fmt: skip


DOMAIN = {"sqrt": 0.0, "rsqrt": 0.0, "log": 0.0, "log2": 0.0, "log1p": -1.0}  # where they begin


@dataclass(frozen=True)
class Key:
    """What elements are ordered by: the program's key is ``value`` of ``core`` (elements only), which is increasing if
    ``up``, so that its largest is ``value`` of the core's largest or smallest."""

    core: Expr
    up: bool
    around: tuple[tuple[Apply, int], ...]

    def value(self, of: Expr) -> Expr:
        for e, at in reversed(self.around):
            of = apply(e.op, *(of if k == at else a for k, a in enumerate(e.args)))
        return of


def key(draft: Draft, e: Expr, strict: bool) -> Key | None:
    """Take increasing and decreasing functions that results have a part in off the elements.  ``strict``: none that
    could make equals of two elements (an order of places does not survive that; the largest value does)."""
    if draft.cut.side(e) == "x":
        return Key(e, True, ())
    at = [k for k, a in enumerate(e.args) if "x" in draft.cut.side(a)] if isinstance(e, Apply) else []
    match e:
        case Apply("select", (c, a, Const(float(end)))) if math.isinf(end) and draft.cut.side(c) in "xp":
            inner = key(draft, a, strict)  # a mask: what is infinitely far off stays there under sums and scales
            if inner is None or not all(_keeps_infinity(draft, f, at) for f, at in inner.around):
                return None
            return Key(apply("select", c, inner.core, Const(end if inner.up else -end)), inner.up, inner.around)
        case Apply() if len(at) == 1:
            step = direction(draft, e, at[0])
            inner = key(draft, e.args[at[0]], strict) if step else None
            if inner is None or (strict and not _strictly(draft, e, at[0])):
                return None
            return Key(inner.core, inner.up == (step > 0), ((e, at[0]), *inner.around))
        case Apply("add" | "sub"):
            return _shifted(draft, e)
    return None


def _shifted(draft: Draft, e: Expr) -> Key | None:
    """x + (r - y) is (x - y) + r."""
    cut = draft.cut
    table = separation.rows(cut, cut.term(e))
    if isinstance(table, Mixed):
        return None
    core = {m: c for m, c in table.get(UNIT, {}).items() if m != UNIT}
    offset = {u: term.get(UNIT, Fraction(0)) for u, term in table.items() if UNIT in term}
    if any(set(term) - {UNIT} for u, term in table.items() if u != UNIT) or not core:
        return None
    x = cut.expr(core)
    return Key(x, True, ((Apply("add", (x, cut.expr(offset))), 0),))


def _keeps_infinity(draft: Draft, e: Apply, at: int) -> bool:
    if e.op in ("mul", "div"):
        return at == 0 and _strictly(draft, e, at)
    return e.op in ("add", "sub", "neg", "real")


def direction(draft: Draft, e: Apply, at: int) -> int:
    """+1 if increasing in that argument, -1 if decreasing, 0 if not known (or not everywhere a number: the largest of
    sqrt(x + r) is NaN if any is)."""
    monotone = OPS[e.op].monotone
    if e.op in DOMAIN and draft.bounds.interval(e.args[0])[0] < DOMAIN[e.op]:
        return 0
    if monotone and monotone[at]:
        return monotone[at]
    if e.op in ("mul", "div") and (e.op == "mul" or at == 0):
        low, high = draft.bounds.interval(e.args[1 - at])
        return 1 if low >= 0 else -1 if high <= 0 else 0
    return 0


def _strictly(draft: Draft, e: Apply, at: int) -> bool:
    if e.op in ("mul", "div"):
        other = e.args[1 - at]
        return positive(draft, other) or positive(draft, apply("neg", other))
    return e.op in STRICT


def positive(draft: Draft, e: Expr) -> bool:
    """Is it above 0 wherever it is a number?"""
    if draft.bounds.interval(e)[0] > 0:
        return True
    match e:
        case Apply("exp" | "exp2", _):
            return True
        case Apply("mul" | "div", (a, b)):
            return positive(draft, a) and positive(draft, b)
        case Apply("add", (a, b)):
            sides = ((a, b), (b, a))
            return any(positive(draft, p) and draft.bounds.interval(q)[0] >= 0 for p, q in sides)
        case Apply("sqrt" | "rsqrt", (a,)):
            return positive(draft, a)
    return False


@dataclass(frozen=True)
class Ladder:
    """Slots for the first places in an order of elements.

    ``exact``: elements that are infinitely far down have places too.  If not, they change nothing (so that masked
    blocks may be skipped), and a row of nothing else finds no place: its index stays infinite.
    """

    draft: Draft
    owner: str
    core: Expr
    monoid: str  # "max" or "min"
    exact: bool

    @property
    def last(self) -> Const:
        """What comes after all."""
        return Const(-INF if self.monoid == "max" else INF)

    @property
    def here(self) -> Expr:
        return apply("real", Index(self.draft.cascade.axis))

    def _gone(self, r: int) -> Expr | None:
        """Does the element at hand have one of the first r places?"""
        return _any(apply("eq", self.here, self._at(t, "g")) for t in range(r))

    def _used(self, s: int, r: int) -> Expr | None:
        """Has the element that was at place s one of the first r places now?  (One after s others has none of s.)"""
        return None if s == r else _any(apply("eq", self._at(s, "g"), self._at(t, "h")) for t in range(r))

    def _at(self, r: int, side: str) -> Ref:
        return Ref(f"{side}:{self.draft.gauge_of(self.place(r), True).name}")

    def _key(self, r: int, side: str) -> Ref:
        return Ref(f"{side}:{self.draft.gauge_of(self.value(r), self.exact).name}")

    def value(self, r: int) -> Slot:
        """The key at place r."""
        if (gone := self._gone(r)) is None:
            return self.draft.slot(self.owner, self.monoid, self.core)
        made = self.draft.slot(self.owner, self.monoid, apply("select", gone, self.last, self.core))
        if not made.row:
            row = [(self.value(s).name, _unless(self._used(s, r), ZERO, self.last)) for s in range(r)]
            self.draft.set_row(made.name, (*row, (made.name, ZERO)))
        return made

    def place(self, r: int) -> Slot:
        """The index of the element at place r."""
        same = apply("or", apply("eq", self.core, self._key(r, "g")), apply("isnan", self.core))
        gone = self._gone(r)
        chosen = same if gone is None else apply("and", apply("not", gone), same)
        made = self.draft.slot(self.owner, "min", apply("select", chosen, self.here, Const(INF)))
        if not made.row:
            row = []
            for s in range(r + 1):
                kept = apply("or", apply("eq", self._key(s, "g"), self._key(r, "h")), apply("isnan", self._key(s, "g")))
                if (used := self._used(s, r)) is not None:
                    kept = apply("and", apply("not", used), kept)
                row.append((made.name if s == r else self.place(s).name, apply("select", kept, ZERO, Const(INF))))
            self.draft.set_row(made.name, tuple(row))
        return made

    def payload(self, r: int, e: Expr) -> Slot:
        """What stands at place r; a product, so that many are one dot with a column of zeros and a one."""
        before = [self.payload(s, e).name for s in range(r)]
        weight = apply("select", apply("eq", self.here, self._at(r, "g")), ONE, ZERO)
        made = self.draft.slot(self.owner, "sum", apply("mul", weight, e))
        if not made.row:
            stays = [apply("eq", self._at(s, "g"), self._at(r, "h")) for s in range(r + 1)]
            row = zip((*before, made.name), (apply("select", c, ONE, ZERO) for c in stays), strict=True)
            self.draft.set_row(made.name, tuple(row))
        return made


def _any(conditions: Iterable[Expr]) -> Expr | None:
    out: Expr | None = None
    for c in conditions:
        out = c if out is None else apply("or", out, c)
    return out


def _unless(condition: Expr | None, value: Expr, otherwise: Expr) -> Expr:
    return value if condition is None else apply("select", condition, otherwise, value)


def monoid_of(monoid: str, up: bool) -> str:
    """Which end of the core the stage asks for."""
    end = "max" if monoid in ("max", "argmax") else "min"
    return end if up else DUAL[end]
