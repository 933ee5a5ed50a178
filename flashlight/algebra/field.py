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
    E,
    EXPONENTIAL,
    HALF,
    LOGARITHM,
    ONE,
    TWO,
    UNIT,
    Atom,
    Expo,
    Mono,
    Powers,
    Term,
    TooLarge,
    add,
    atoms_of,
    content,
    multiply,
    number,
    power_of,
    product,
    raised,
    scale,
    subtract,
    times,
    total,
)
from flashlight.expr import Apply, Const, Expr, apply, axes, kind, refs, walk

Oracle = Callable[[Term], int]


class Field:
    """The atoms of one cascade.  ``nonnegative(e)`` and ``sign(term)`` (+1, -1, 0 = unknown) are asked of the bounds."""

    def __init__(self, axis: str, results: frozenset[str], cut: bool):
        self.axis, self.results, self.cut = axis, results, cut
        self.atoms: list[Atom] = []
        self.numbers: dict[object, int] = {}
        self.memo: dict[Expr, Term] = {}
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

    # ---- expression -> term ------------------------------------------------------------------------------------
    def term(self, e: Expr) -> Term:
        if e not in self.memo:
            self.memo[e] = self._term(e)
        return self.memo[e]

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
                return multiply(self.term(a[0]), self.term(a[1]))
            case "div":
                return multiply(self.term(a[0]), self.power(self.term(a[1]), -ONE))
            case "real" if kind(a[0]) == "int":
                return self.term(a[0])
            case "sqrt" | "rsqrt":
                return self.power(self.term(a[0]), HALF if e.op == "sqrt" else -HALF)
            case "pow" if isinstance(a[1], Const) and math.isfinite(a[1].value):
                return self.power(self.term(a[0]), Fraction(a[1].value))
            case "pow" if isinstance(a[0], Const) and a[0].value == 2:
                return self._exponential(a[1], TWO)
            case "pow" if isinstance(a[0], Const) and 0 < a[0].value < math.inf:
                return self.exp(multiply(self.generator(apply("log", a[0])), self.term(a[1])), E)
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
        """Results hidden in a row's logarithm must meet the exponential that undoes it: m + log(l) is not an atom."""
        if e.op not in ("add", "sub", "neg", "select") or self.side(e) != "r":
            return False
        if e.op == "select" and at_finite(e.args[0]) is None:
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
        if isinstance(u, Apply) and u.op == "select" and self.side(u) == "xr" and self.side(u.args[0]) != "xr":
            c, a, b = u.args
            if (known := at_finite(c)) is not None:
                return self._exponential(a if known else b, base)
            left, right = self._exponential(a, base), self._exponential(b, base)
            return add(multiply(self.indicator(c, True), left), multiply(self.indicator(c, False), right))
        return self.exp(self.term(u), base)

    def _select(self, e: Apply) -> Term:
        c, a, b = e.args
        if (known := at_finite(c)) is not None:
            return self.term(a if known else b)
        if self.side(e) != "xr" or self.side(c) == "xr":
            return self.generator(e)
        left, right = self.term(a), self.term(b)
        return add(
            multiply(self.indicator(c, True), left) if left else {},
            multiply(self.indicator(c, False), right) if right else {},
        )

    def _mixed(self, e: Apply) -> Term:
        one: Term = {UNIT: ONE}
        match e.op:
            case "tanh":
                q = self.exp(scale(self.term(e.args[0]), -2), E)
                return multiply(subtract(one, q), self.power(add(one, q), -ONE))
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
                        out = multiply(out, self.power(self.generator(apply("abs", self.atoms[a].expr)), n))
                    return out
            case "maximum" | "minimum":
                left, right = map(self.term, e.args)
                if s := self.sign(subtract(left, right)):
                    return left if (s > 0) == (e.op == "maximum") else right
        return self.generator(e)

    # ---- functions of terms ------------------------------------------------------------------------------------
    def power(self, t: Term, n: Fraction) -> Term:
        if n.denominator == 1 and 0 <= n <= 8:
            out: Term = {UNIT: ONE}
            for _ in range(int(n)):
                out = multiply(out, t)
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
            out = multiply(out, self.power(inverse, c) if inverse is not None else {((), (((base, m), c),)): ONE})
        return out

    def _inverse(self, m: Mono, name: str) -> Term | None:
        if len(m[0]) == 1 and not m[1] and m[0][0][1] == 1:
            e = self.atoms[m[0][0][0]].expr
            if isinstance(e, Apply) and e.op == name:
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
            known = len(powers) == 1 or all(self.nonnegative(self.atoms[a].expr) for a, _ in powers)
            if c == 1 and not expo and known:
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
        return product([*((self.atoms[a].expr, n) for a, n in m[0]), *self.expo_expr(m[1])])

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
            low, out = min(dict(m[0]).get(a, Fraction(0)) for m in t), Term()
            for m, c in t.items():
                rest: Powers = tuple(p for p in m[0] if p[0] != a)
                grown = self.power(inner, dict(m[0]).get(a, Fraction(0)) - low)
                out = add(out, multiply({(rest, m[1]): c}, grown))
            t = out
        return not t


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


__all__ = ["Field", "TooLarge", "at_finite", "power_of"]
