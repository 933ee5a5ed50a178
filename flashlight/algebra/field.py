"""From expressions to terms.

Two fields serve one cascade.  In the *cut* field the maximal one-sided subtrees (of elements only, or of results and
the row only) are atoms kept by reference: nothing in them is expanded, and slot bodies come back as the user wrote
them.  In the *full* field everything is multiplied out: zero tests and bounds are decided there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from flashlight.algebra.terms import (
    EXPONENTIAL,
    HALF,
    LOGARITHM,
    ONE,
    TWO,
    UNIT,
    Atom,
    E,
    Expo,
    Mono,
    Powers,
    Term,
    TooLarge,
    add,
    atoms_of,
    content,
    number,
    power_of,
    product,
    raised,
    scale,
    subtract,
    times,
    total,
)
from flashlight.algebra.terms import multiply as multiply_out
from flashlight.expr import Apply, Const, Expr, Fold, Load, Ref, apply, axes, kind, refs, rewrite, walk

Oracle = Callable[[Term], int]


class Field:
    """The atoms of one cascade.  ``nonnegative(e)`` and ``sign(term)`` (+1, -1, 0 = unknown) ask the bounds."""

    def __init__(self, axis: str, results: frozenset[str], cut: bool):
        self.axis, self.results, self.cut = axis, results, cut
        self.atoms: list[Atom] = []
        self.numbers: dict[object, int] = {}
        self.memo: dict[tuple[Expr, bool], Term] = {}
        self.inside = False  # an exponent
        self.conditions: dict[int, tuple[Expr, bool]] = {}
        self.nonnegative: Callable[[Expr], bool] = lambda e: False
        self.sign: Oracle = lambda t: 0

    # ---- sides and atoms ---------------------------------------------------------------------------------------
    def side(self, e: Expr) -> str:
        return ("x" if self.axis in axes(e) else "") + ("r" if refs(e) & self.results else "") or "p"

    def sides(self, m: Mono) -> str:
        found = {s for a in atoms_of(m) for s in self.atoms[a].side}
        return ("x" if "x" in found else "") + ("r" if "r" in found else "") or "p"

    def atom(self, e: Expr, condition: tuple[Expr, bool] | None = None) -> int:
        if e not in self.numbers:
            self.numbers[e] = len(self.atoms)
            if condition is not None:
                self.conditions[len(self.atoms)] = condition
            self.atoms.append(Atom(e, self.side(e), None, condition))
        return self.numbers[e]

    def generator(self, e: Expr) -> Term:
        return {(((self.atom(e), ONE),), ()): ONE}

    def sum_atom(self, t: Term) -> int:
        key = tuple(sorted(t.items()))
        if key not in self.numbers:
            self.numbers[key] = len(self.atoms)
            found = {s for m in t for s in self.sides(m)}
            side = ("x" if "x" in found else "") + ("r" if "r" in found else "") or "p"
            self.atoms.append(Atom(self.expr(t), side, t))
        return self.numbers[key]

    def indicator(self, c: Expr, live: bool) -> Term:
        e = apply("select", c, number(int(live)), number(int(not live)))
        return {(((self.atom(e, (c, live)), ONE),), ()): ONE}

    def multiply(self, s: Term, t: Term) -> Term:
        out = multiply_out(s, t)
        return self._choices(out) if self.conditions else out

    def _choices(self, t: Term) -> Term:
        """An indicator is its own square, and its product with its opposite is nothing."""
        out: Term = {}
        for (powers, expo), c in t.items():
            chosen = {self.conditions[a] for a, n in powers if a in self.conditions and n > 0}
            if not any((condition, not live) in chosen for condition, live in chosen):
                once = tuple((a, ONE if a in self.conditions and n > 0 else n) for a, n in powers)
                out = add(out, {(once, expo): c})
        return out

    # ---- expression -> term ------------------------------------------------------------------------------------
    def term(self, e: Expr) -> Term:
        key = (e, self.inside)
        if key not in self.memo:
            self.memo[key] = self._term(e)
        return self.memo[key]

    def _term(self, e: Expr) -> Term:
        if isinstance(e, Const):
            if not math.isfinite(e.value):
                return self.generator(e)
            return {UNIT: Fraction(e.value)} if e.value else {}
        if not isinstance(e, Apply):
            return self.generator(e)
        if self.cut and self.side(e) != "xr" and not self._open(e):
            return self.generator(e)
        a = e.args
        match e.op:
            case "add" | "sub" | "neg":
                return self._chain(e)
            case "mul":
                return self.multiply(self.term(a[0]), self.term(a[1]))
            case "div":
                return self.multiply(self.term(a[0]), self.power(self.term(a[1]), -ONE))
            case "real" if kind(a[0]) == "int":
                return self.term(a[0])
            case "sqrt" | "rsqrt":
                return self.power(self.term(a[0]), HALF if e.op == "sqrt" else -HALF)
            case "pow" if isinstance(a[1], Const) and math.isfinite(a[1].value):
                return self.power(self.term(a[0]), Fraction(a[1].value))
            case "pow" if isinstance(a[0], Const) and a[0].value == 2:
                return self._exponential(a[1], TWO)
            case "pow" if isinstance(a[0], Const) and 0 < a[0].value < math.inf:
                return self.exp(self.multiply(self.generator(apply("log", a[0])), self.term(a[1])), E)
            case "exp" | "exp2":
                return self._exponential(a[0], EXPONENTIAL.index(e.op))
            case "expm1":
                return add(self._exponential(a[0], E), {UNIT: -ONE})
            case "log" | "log2":
                return self.log(self.term(a[0]), LOGARITHM.index(e.op))
            case "log1p":
                return self.log(add({UNIT: ONE}, self.term(a[0])), E)
            case "select":
                return self._select(e)
        return self._mixed(e) if self.side(e) == "xr" else self.generator(e)

    def _open(self, e: Apply) -> bool:
        """Results that must not be hidden in an atom: a row's logarithm meets the exponential that undoes it
        (m + log(l)), and so do the parts of an exponent (exp(-m) is a factor of exp(x - m))."""
        if self.side(e) != "r":
            return False
        if e.op in EXPONENTIAL or (self.inside and e.op in ("add", "sub", "neg")):
            return True
        if e.op not in ("add", "sub", "neg", "mul", "div"):
            return False
        return any(isinstance(n, Apply) and n.op in LOGARITHM and self.side(n) == "r" for n in walk(e))

    def _chain(self, e: Apply) -> Term:
        """A sum; the parts made of elements only become one atom, so that (a + b - mean)**2 stays a square."""
        parts: list[tuple[int, Expr]] = []

        def flatten(e: Expr, sign: int) -> None:
            opened = isinstance(e, Apply) and e.op in ("add", "sub", "neg")
            if isinstance(e, Apply) and opened and (not self.cut or self.side(e) == "xr" or self._open(e)):
                flatten(e.args[0], -sign if e.op == "neg" else sign)
                if e.op != "neg":
                    flatten(e.args[1], sign if e.op == "add" else -sign)
            else:
                parts.append((sign, e))

        flatten(e, 1)
        own = [(s, p) for s, p in parts if self.side(p) == "x"] if self.cut else []
        if len(own) > 1:
            sign = 1 if any(s > 0 for s, _ in own) else -1
            own.sort(key=lambda part: -sign * part[0])
            at = parts.index(next(q for q in parts if self.side(q[1]) == "x"))
            parts = [q for q in parts if self.side(q[1]) != "x"]
            parts.insert(min(at, len(parts)), (sign, total((Fraction(sign * s), p) for s, p in own)))
        out: Term = {}
        for s, p in parts:
            out = add(out, scale(self.term(p), s))
        return out

    def _exponential(self, u: Expr, base: int) -> Term:
        """exp of a choice is the choice of exps (exp(-inf) is 0: a mask may stand inside or outside)."""
        if isinstance(u, Const) and u.value == -math.inf:
            return {}
        if isinstance(u, Apply) and self._choice(u):
            c, a, b = u.args
            return self._either(c, self._exponential(a, base), self._exponential(b, base))
        if isinstance(u, Apply) and u.op in ("add", "sub") and self._choice(u.args[0]):
            rest = u.args[1] if u.op == "add" else apply("neg", u.args[1])
            return self.multiply(self._exponential(u.args[0], base), self._exponential(rest, base))
        if isinstance(u, Apply) and u.op == "add" and self._choice(u.args[1]):
            return self.multiply(self._exponential(u.args[0], base), self._exponential(u.args[1], base))
        before, self.inside = self.inside, True
        linear = self.term(u)
        self.inside = before
        return self.exp(linear, base)

    def _choice(self, e: Expr) -> bool:
        return isinstance(e, Apply) and e.op == "select" and self.side(e) == "xr" and self.side(e.args[0]) != "xr"

    def _either(self, c: Expr, a: Term, b: Term) -> Term:
        """``a`` where c, else ``b``.  Guards of a row (``abs(m) == inf``) are no matter of algebra: the full field is
        about finite numbers, while the cut field keeps what the program says of the others."""
        if not self.cut and "x" not in self.side(c) and (known := at_finite(c)) is not None:
            return a if known else b
        left = self.multiply(self.indicator(c, True), a) if a else {}
        right = self.multiply(self.indicator(c, False), b) if b else {}
        return add(left, right)

    def _select(self, e: Apply) -> Term:
        c, a, b = e.args
        if not self.cut and "x" not in self.side(c) and (known := at_finite(c)) is not None:
            return self.term(a if known else b)
        if self._choice(e) or (not self.cut and "x" not in self.side(e)):
            return self._either(c, self.term(a), self.term(b))
        return self.generator(e)

    def _mixed(self, e: Apply) -> Term:
        one: Term = {UNIT: ONE}
        match e.op:
            case "tanh":
                q = self.exp(scale(self.term(e.args[0]), -2), E)
                return self.multiply(subtract(one, q), self.power(add(one, q), -ONE))
            case "sigmoid":
                return self.power(add(one, self.exp(scale(self.term(e.args[0]), -1), E)), -ONE)
            case "abs":
                inner = self.term(e.args[0])
                if s := self.sign(inner):
                    return scale(inner, s)
                if len(inner) == 1:
                    (((powers, expo), c),) = inner.items()
                    out: Term = {((), expo): abs(c)}
                    for a, n in powers:
                        out = self.multiply(out, self.power(self.generator(apply("abs", self.atoms[a].expr)), n))
                    return out
                if (part := self._signed_by(inner)) is not None:
                    return self._either(apply("lt", part, number(0)), scale(inner, -1), inner)
            case "maximum" | "minimum":
                left, right = map(self.term, e.args)
                difference = subtract(left, right)
                if s := self.sign(difference):
                    kept = (s > 0) == (e.op == "maximum")
                    if _inputs(e.args[kept]) <= _inputs(e.args[not kept]):  # the other's NaN must not be lost
                        return left if kept else right
                if (part := self._signed_by(difference)) is not None:
                    # no comparison holds for NaN: then what is taken must be the one that has it
                    up = e.op == "maximum"
                    if _inputs(e.args[1]) <= _inputs(e.args[0]):
                        return self._either(apply("le" if up else "ge", part, number(0)), right, left)
                    if _inputs(e.args[0]) <= _inputs(e.args[1]):
                        return self._either(apply("ge" if up else "le", part, number(0)), left, right)
        return self.generator(e)

    def _signed_by(self, t: Term) -> Expr | None:
        """An expression of elements that has the sign of ``t``: t divided by a factor >= 0 of results, if there is one
        (max(exp(x - m) - exp(-m), 0) is exp(x - m) - exp(-m) where exp(x) > 1)."""
        parts: Term = {}
        shared: Mono | None = None
        for (powers, expo), c in t.items():
            if any(self.atoms[a].side == "xr" for a in atoms_of((powers, expo))):
                return None
            r = (
                tuple(p for p in powers if self.atoms[p[0]].side == "r"),
                tuple(key for key in expo if self.sides(key[0][1]) == "r"),
            )
            if any(self.sides(key[0][1]) == "xr" for key in expo) or (shared is not None and r != shared):
                return None
            shared = r
            parts[times((powers, expo), r, -1)] = c
        if shared is None or not all(self.nonnegative(self.atoms[a].expr) for a, _ in shared[0]):
            return None
        return self.expr(parts)

    # ---- functions of terms ------------------------------------------------------------------------------------
    def power(self, t: Term, n: Fraction) -> Term:
        if n.denominator == 1 and 0 <= n <= 8:
            out: Term = {UNIT: ONE}
            for _ in range(int(n)):
                out = self.multiply(out, t)
            return out
        if not t:
            raise TooLarge  # a division by what is identically zero
        if len(t) == 1:
            ((m, c),) = t.items()
            rooted = c == 1 and all(self.nonnegative(self.atoms[a].expr) for a, _ in m[0])
            if n.denominator == 1 or rooted:
                return {raised(m, n): c ** int(n) if n.denominator == 1 else ONE}
        unit, t = content(t)
        factor = ONE
        if n.denominator == 1:  # 2a + 2b and a + b are one atom
            lead = t[min(t)]
            factor, t = lead ** int(n), scale(t, 1 / lead)
        return {times((((self.sum_atom(t), n),), ()), raised(((), unit), n)): factor}

    def exp(self, u: Term, base: int) -> Term:
        out: Term = {UNIT: ONE}
        for m, c in u.items():
            inverse = self._inverse(m, LOGARITHM[base])
            out = self.multiply(out, self.power(inverse, c) if inverse is not None else {((), (((base, m), c),)): ONE})
        return out

    def _inverse(self, m: Mono, name: str) -> Term | None:
        if len(m[0]) == 1 and not m[1] and m[0][0][1] == 1:
            e = self.atoms[m[0][0][0]].expr
            if isinstance(e, Apply) and e.op == name and self.nonnegative(e.args[0]):  # else log is NaN and e is not
                return self.term(e.args[0])
        return None

    def log(self, u: Term, base: int) -> Term:
        out: Term = {}
        unit, rest = content(u)
        if any(b != base for (b, _), _ in unit):
            unit, rest = (), u
        for (_, m), c in unit:
            out = add(out, {m: c})
        if len(rest) == 1:
            (((powers, expo), c),) = rest.items()
            odd = len(powers) == 1 and abs(powers[0][1]) == 1
            if c == 1 and not expo and (odd or all(self.nonnegative(self.atoms[a].expr) for a, _ in powers)):
                for a, n in powers:
                    out = add(out, scale(self.generator(apply(LOGARITHM[base], self.atoms[a].expr)), n))
                return out
        return add(out, self.generator(apply(LOGARITHM[base], self.atoms[self.sum_atom(rest)].expr)))

    # ---- term -> expression ------------------------------------------------------------------------------------
    def expo_expr(self, expo: Expo) -> list[tuple[Expr, Fraction]]:
        """One exponential for each base that occurs."""
        out: list[tuple[Expr, Fraction]] = []
        for base, op in enumerate(EXPONENTIAL):
            parts = [(c, self.mono_expr(m)) for (b, m), c in expo if b == base]
            if parts:
                out.append((apply(op, total(parts)), ONE))
        return out

    def mono_expr(self, m: Mono) -> Expr | None:
        chosen = [a for a, n in m[0] if n == 1 and a in self.conditions]
        value = product([*((self.atoms[a].expr, n) for a, n in m[0] if a not in chosen), *self.expo_expr(m[1])])
        return self.chosen(value, chosen)

    def chosen(self, e: Expr | None, indicators: list[int]) -> Expr | None:
        """Indicators come back as selects: 0 * inf is not 0."""
        for a in indicators:
            c, live = self.conditions[a]
            value = Const(1.0) if e is None else e
            e = apply("select", c, value, Const(0.0)) if live else apply("select", c, Const(0.0), value)
        return e

    def expr(self, t: Term) -> Expr:
        return total((c, self.mono_expr(m)) for m, c in t.items())

    # ---- questions ---------------------------------------------------------------------------------------------
    def is_zero(self, t: Term) -> bool:
        """Multiply every sum atom out, newest first; what is left is zero only if it is empty."""
        while sums := {a for m in t for a, _ in m[0] if self.atoms[a].term is not None}:
            a = max(sums)
            inner = self.atoms[a].term or {}
            classes: dict[Fraction, Term] = {}
            for m, c in t.items():
                classes.setdefault(dict(m[0]).get(a, Fraction(0)) % 1, {})[m] = c
            if len(classes) > 1:
                return all(self.is_zero(part) for part in classes.values())
            low = min(dict(m[0]).get(a, Fraction(0)) for m in t)
            out: Term = {}
            for m, c in t.items():
                rest: Powers = tuple(p for p in m[0] if p[0] != a)
                grown = self.power(inner, dict(m[0]).get(a, Fraction(0)) - low)
                out = add(out, self.multiply({(rest, m[1]): c}, grown))
            t = out
        return not t


def _inputs(e: Expr) -> set[Expr]:
    return {n for n in walk(e) if isinstance(n, Load | Fold | Ref)}


def at_finite(c: Expr) -> bool | None:
    """The truth of a predicate where every leaf is finite: ``abs(m) == inf`` guards numbers, not algebra."""
    match c:
        case Const(bool(v)):
            return v
        case Apply("eq" | "ne" as op, (a, b)):
            sizes = [x.value if isinstance(x, Const) else 0.0 for x in (a, b)]
            return op == "ne" if sum(map(math.isinf, sizes)) == 1 else None
        case Apply("isnan", _):
            return False
        case Apply("lt" | "le" | "gt" | "ge" as op, (a, b)):
            left, right = (x.value if isinstance(x, Const) else 0.0 for x in (a, b))
            return (left < right) == (op in ("lt", "le")) if math.isinf(left) != math.isinf(right) else None
        case Apply("not", (a,)):
            inner = at_finite(a)
            return None if inner is None else not inner
        case Apply("and" | "or" as op, (a, b)):
            both = (at_finite(a), at_finite(b))
            if (op == "or") in both:
                return op == "or"
            return op == "and" if None not in both else None
    return None


def where_finite(e: Expr) -> Expr:
    """The expression with guards against infinities taken out."""

    def rule(n: Expr) -> Expr | None:
        if isinstance(n, Apply) and n.op == "select" and (known := at_finite(n.args[0])) is not None:
            return where_finite(n.args[1 if known else 2])
        return None

    return rewrite(e, rule)


__all__ = ["Field", "TooLarge", "at_finite", "power_of", "where_finite"]
