"""What is known of sizes: interval arithmetic on expressions, and linear facts used as Farkas' lemma uses them.

A fact ``low <= high`` holds for every element because of how a result was made (``x <= max x``).  An exponent is
bounded by subtracting non-negative multiples of ``low - high`` until only elements and the row are left; the
multipliers are the proof (Schrijver, Theory of Linear and Integer Programming, section 7.8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from flashlight.algebra import cauchy
from flashlight.algebra.field import Field
from flashlight.algebra.proof import Fact
from flashlight.algebra.terms import Mono, Term, atoms_of, multiply, number, scale, subtract, times
from flashlight.expr import INF, OPS, Apply, Const, Expr, Fold, Index, Load, Ref, Size, apply, axes, walk

Range = tuple[float, float]
EVERYTHING: Range = (-INF, INF)
ROW = "row definition"  # how the source of a fact begins that is no reduction of elements
RANGE = "range"  # the source of a fact that intervals give


@dataclass(frozen=True)
class Bound:
    """``form <= top``: ``form = sum factor * (low - high) + rest`` with ``rest <= top`` by intervals."""

    top: float
    used: tuple[tuple[Fraction, Mono, Fact], ...]
    rest: Term


class Bounds:
    """Ranges of results, and facts about them, as they become known stage by stage."""

    def __init__(self, full: Field):
        self.full = full
        self.ranges: dict[Expr, Range] = {}
        self.facts: list[tuple[Term, Fact]] = []
        self.relied: list[Fact] = []  # the facts that signs of differences rested on, for Link.given
        self._memo: dict[Expr, Range] = {}
        self._read: set[Expr] = set()

    # ---- intervals ---------------------------------------------------------------------------------------------
    def interval(self, e: Expr) -> Range:
        if e not in self._memo:
            self._memo[e] = self._interval(e)
        return self._memo[e]

    def nonnegative(self, e: Expr) -> bool:
        return self.interval(e)[0] >= 0

    def _interval(self, e: Expr) -> Range:
        if e in self.ranges:
            return self.ranges[e]
        match e:
            case Const(value):
                return (float(value), float(value)) if value == value else EVERYTHING
            case Load(_, _, "bool"):
                return 0.0, 1.0
            case Index() | Size():
                return 0.0, INF
            case Ref() | Load():
                return EVERYTHING
            case Fold("sum", _, extent, body):
                low, high = self.interval(body)
                return self._short(e, (_times(low, extent), _times(high, extent)))
            case Fold("max" | "min", _, _, body):
                return self.interval(body)
            case Fold(_, _, _, body):
                return (0.0, INF) if self.interval(body)[0] >= 0 else EVERYTHING
            case Apply(op, args):
                low, high = self._apply(op, args)
                floor, ceiling = (0.0, 1.0) if OPS[op].kind == "bool" else OPS[op].range
                ends = max(low, floor), min(high, ceiling)
                return self._short(e, ends) if op in ("mul", "div") else ends

    def _short(self, e: Expr, ends: Range) -> Range:
        """Where intervals leave a sum of products open, the lengths of its vectors may not."""
        if max(map(abs, ends)) < INF:
            return ends
        size = cauchy.bound(e, self.interval)
        return max(ends[0], -size), min(ends[1], size)

    def _apply(self, op: str, args: tuple[Expr, ...]) -> Range:
        parts = [self.interval(a) for a in args]
        match op:
            case "mul" if args[0] is args[1]:
                return _even_power(parts[0], 2)
            case "mul":
                return _product(*parts)
            case "div":
                return _product(parts[0], _reciprocal(parts[1]))
            case "rsqrt":
                return _reciprocal(self._apply("sqrt", args))
            case "abs":
                low, high = parts[0]
                return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
            case "pow":
                return self._power(parts[0], args[1])
            case "select":
                return min(parts[1][0], parts[2][0]), max(parts[1][1], parts[2][1])
            case "real" | "bool" | "int":
                return parts[0] if op == "real" else OPS[op].range
        monotone = OPS[op].monotone
        if len(monotone) != len(args) or 0 in monotone:
            return EVERYTHING
        ends = [(p if up > 0 else p[::-1]) for p, up in zip(parts, monotone, strict=True)]
        low, high = (OPS[op].evaluate(*(end[k] for end in ends)) for k in (0, 1))
        return (-INF if low != low else low), (INF if high != high else high)

    def _power(self, base: Range, exponent: Expr) -> Range:
        if isinstance(exponent, Const) and math.isfinite(exponent.value):
            n = float(exponent.value)
            if n > 0 and n % 2 == 0:
                return _even_power(base, n)
            if base[0] >= 0:
                ends = sorted(_raised(end, n) for end in base)
                return ends[0], ends[1]
        return (0.0, INF) if base[0] >= 0 else EVERYTHING

    # ---- facts -------------------------------------------------------------------------------------------------
    def learn(self, low: Expr, high: Expr, source: str) -> None:
        self.facts.append((subtract(self.full.term(low), self.full.term(high)), Fact(low, high, source)))

    def read(self, body: Expr) -> None:
        """A row's maximum or minimum of several things is a fact about each of them."""
        for e in walk(body):
            if isinstance(e, Apply) and e.op in ("maximum", "minimum") and e not in self._read:
                self._read.add(e)
                if self.full.side(e) == "r":
                    for a in e.args:
                        low, high = (a, e) if e.op == "maximum" else (e, a)
                        self.learn(low, high, f"{ROW} {e}")

    def above(self, form: Term, depth: int = 6, loose: bool = False) -> Bound | None:
        """An upper bound of a term of the full field.  ``loose``: facts may be used with factors of unknown sign and
        the bound may be infinite; it then says only how the term splits into differences."""
        full = self.full
        late = next((m for m in form if "r" in full.sides(m)), None)
        if late is None:
            top = sum(self._range_of(m, c)[1] for m, c in form.items())
            return Bound(top, (), form) if top < INF or loose else None
        c = form[late]
        for fact_form, fact in self.facts if depth else ():
            for known, k in fact_form.items():
                if "r" not in full.sides(known):
                    continue
                factor, size = times(late, known, -1), c / k
                if any(full.atoms[a].side != "p" for a in atoms_of(factor)):
                    continue
                if not loose and (size < 0 or self._range_of(factor, Fraction(1))[0] < 0):
                    continue
                rest = self.above(subtract(form, multiply(fact_form, {factor: size})), depth - 1, loose)
                if rest is not None:
                    return Bound(rest.top, ((size, factor, fact), *rest.used), rest.rest)
        top = self._range_of(late, c)[1]
        if top < INF and (rest := self.above({m: k for m, k in form.items() if m != late}, depth, loose)):
            return Bound(rest.top + top, rest.used, {**rest.rest, late: c})
        return None

    def sign(self, t: Term) -> int:
        """-1: never positive, +1: never negative, 0: not known."""
        for answer, form in ((-1, t), (1, scale(t, -1))):
            bound = self.above(form)
            if bound is not None and bound.top <= 0:
                self.relied += [fact for _, _, fact in bound.used if fact not in self.relied]
                return answer
        return 0

    def _range_of(self, m: Mono, c: Fraction) -> Range:
        e = self.full.mono_expr(m)
        return self.interval(number(c) if e is None else apply("mul", number(c), e))


def attained(bounds: Bounds, body: Expr, axis: str) -> bool:
    """Is ``body`` exp(k*(x - m)) with m = max x, k > 0?  Then some element of a row with a live one is exp(0)."""
    form = bounds.full.term(body)
    if len(form) != 1 or axis not in axes(body):
        return False
    (((powers, expo), c),) = form.items()
    if powers or c != 1 or len({base for (base, _), _ in expo}) != 1:
        return False
    bound = bounds.above({m: k for (_, m), k in expo})
    return bound is not None and not bound.rest and len(bound.used) == 1 and not bound.used[0][2].source.startswith(ROW)


# ---- arithmetic of extended numbers ----------------------------------------------------------------------------------
def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _product(a: Range, b: Range) -> Range:
    ends = [_times(p, q) for p in a for q in b]
    return min(ends), max(ends)


def _reciprocal(a: Range) -> Range:
    if a[0] < 0 < a[1] or a == (0.0, 0.0):
        return EVERYTHING
    ends = sorted((1 / end) if end else (INF if a[1] > 0 else -INF) for end in a)
    return ends[0], ends[1]


def _raised(base: float, n: float) -> float:
    if base == 0:
        return 0.0 if n > 0 else INF
    try:
        return float(base**n)
    except OverflowError:
        return INF


def _even_power(base: Range, n: float) -> Range:
    ends = sorted((abs(base[0]), abs(base[1])))
    return (0.0 if base[0] <= 0 <= base[1] else _raised(ends[0], n)), _raised(ends[1], n)
