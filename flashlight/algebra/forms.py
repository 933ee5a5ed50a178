"""One group of a separated term becomes slots: late, rescaled, centred or scaled, by three exact tests.

exponentials whose argument a fact bounds travel with the running result          overflow       rescaled
a core that depends on y - k*c only is kept at the running c (Chan et al. 1983)   cancellation   centred
powers y^p * r^-p with abs(y) <= r, p >= 2, are kept as (y/r)^p                    overflow       scaled
everything else of a result's factors is applied once, after the loop                             late
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from flashlight.algebra.draft import Draft, Undecided
from flashlight.algebra.exponent import Exponent, bounded, exponent, shift
from flashlight.algebra.proof import Fact, Unknown
from flashlight.algebra.separation import Group, taylor
from flashlight.algebra.terms import (
    EXPONENTIAL,
    UNIT,
    Expo,
    Mono,
    Powers,
    Term,
    add,
    atoms_of,
    join_expo,
    join_powers,
    power_of,
    product,
    representable,
    times,
    total,
)
from flashlight.expr import Const, Expr, Ref, apply, walk

ONE = Fraction(1)


@dataclass(frozen=True)
class Placed:
    """A group's value, ``size * value`` over slots (results and the row beside them), and the forms it took."""

    size: Fraction
    value: Expr | None
    forms: tuple[str, ...]


def carry(draft: Draft, owner: str, group: Group) -> list[Placed]:
    """Make the slots of a group."""
    over = _scalable(draft, group)
    moved = _needed(draft, group)
    for c in group.partners:
        loose = draft.ordered(draft.cut.atoms[c].expr)
        if loose and not any(c in set(atoms_of(m)) for (_, m), _ in moved):
            return [p for g in _without(group, c) for p in carry(draft, owner, g)]
    return [_Carrier(draft, owner, group, over, moved).run()]


def _without(group: Group, c: int) -> list[Group]:
    """The group with a centre put back among the factors of results."""
    parts: dict[Fraction, Term] = {}
    for (powers, expo), k in group.core.items():
        n = dict(powers).get(c, Fraction(0))
        rest: Powers = tuple(p for p in powers if p[0] != c)
        parts[n] = add(parts.get(n, {}), {(rest, expo): k})
    left = {a: p for a, p in group.partners.items() if a != c}
    return [Group(times(group.unit, (((c, n),), ()) if n else UNIT), core, left) for n, core in parts.items()]


def _needed(draft: Draft, group: Group) -> Expo:
    """The exponentials of results that the bound needs; a late one costs nothing in the loop."""
    moved: Expo = tuple(key for key in group.unit[1] if draft.cut.sides(key[0][1]) == "r")
    if not any(m[1] for m in group.core):
        return ()
    for key in moved:
        fewer: Expo = tuple(k for k in moved if k != key)
        if all(_all_bounded(draft, m[1], fewer) for m in group.core):
            moved = fewer
    return moved


def _all_bounded(draft: Draft, own: Expo, moved: Expo) -> bool:
    forms = [tuple((m, c) for (b, m), c in (*own, *moved) if b == base) for base in range(len(EXPONENTIAL))]
    return all(bounded(draft, form) for form in forms if form)


def _scalable(draft: Draft, group: Group) -> dict[int, tuple[int, Fraction]]:
    """Per element atom y: the result r >= abs(y) by which y^p is divided in the loop, and p."""
    out: dict[int, tuple[int, Fraction]] = {}
    atoms = draft.cut.atoms
    for r, n in group.unit[0]:
        if n > -2 or atoms[r].side != "r":
            continue
        for y in dict.fromkeys(a for m in group.core for a, _ in m[0]):
            enough = all(dict(m[0]).get(y, Fraction(0)) >= -n for m in group.core)
            if enough and y not in out and y not in {p for p, _ in group.partners.values()} and _below(draft, y, r):
                out[y] = (r, -n)
                break
    return out


def _below(draft: Draft, y: int, r: int) -> bool:
    e, result = draft.cut.atoms[y].expr, draft.full.term(draft.cut.atoms[r].expr)
    for size in (apply("abs", e), e) if draft.bounds.nonnegative(e) else (apply("abs", e),):
        bound = draft.bounds.above(add(draft.full.term(size), {m: -c for m, c in result.items()}))
        if bound is not None and bound.top <= 0 and bound.used:
            return True
    return False


def _leading(t: Term) -> Fraction:
    """What a slot's body is divided by, so that stages share it: the first coefficient, if that leaves constants."""
    first = next(iter(t.values()))
    return first if all(representable(c / first) for c in t.values()) else ONE


class _Carrier:
    def __init__(self, draft: Draft, owner: str, group: Group, over: dict[int, tuple[int, Fraction]], moved: Expo):
        self.draft, self.owner, self.group = draft, owner, group
        self.over, self.moved = over, moved
        self.atoms = draft.cut.atoms
        self.exponents: dict[Expr, tuple[tuple[Expr, Fact], ...]] = {}
        self.pulls: dict[int, tuple[tuple[str, tuple[tuple[Fraction, Mono], ...]], ...]] = {}

    def run(self) -> Placed:
        draft = self.draft
        centres = list(self.group.partners)
        coefficients = taylor(self.group.core, centres)
        weights = {m: self.weights(m) for t in coefficients.values() for m in t}  # gauges of exponents come first
        scales = {y: draft.gauge(self.atoms[r].expr, True, scaled=True).name for y, (r, _) in self.over.items()}
        at = {c: self.centre(c, coefficients, weights) for c in centres}
        shifts: dict[int, Expr] = {}
        for c, (y, k) in self.group.partners.items():
            reference = total([(k, Ref(f"g:{at[c]}"))])
            shifts[y] = apply("sub", shifts.get(y, self.atoms[y].expr), reference)
        lead = {alpha: _leading(t) for alpha, t in coefficients.items()}
        bodies = {
            alpha: total((k / lead[alpha], self.place(m, weights[m], shifts, scales)) for m, k in t.items())
            for alpha, t in coefficients.items()
        }
        factor = self.factor(scales)
        names: dict[tuple[int, ...], str] = {}
        zero = (0,) * len(centres)
        for alpha in bodies:
            bound = tuple(self.exponents[e] for e in walk(bodies[alpha]) if e in self.exponents)
            names[alpha] = draft.slot(self.owner, "sum", bodies[alpha], (), bound).name
        for alpha in bodies:
            slot = draft.slots[names[alpha]]
            if slot.gauges and not slot.row:
                row: dict[str, list[tuple[Fraction, Expr | None]]] = {}
                for beta in bodies:
                    if all(b >= a for a, b in zip(alpha, beta, strict=True)):
                        size = lead[beta] / lead[alpha]
                        steps: list[tuple[Expr, Fraction]] = list(factor)
                        for c, a, b in zip(centres, alpha, beta, strict=True):
                            size *= math.comb(b, a) * (-1) ** (b - a)
                            if b > a:
                                step = apply("sub", Ref(f"g:{at[c]}"), Ref(f"h:{at[c]}"))
                                steps.append((step, Fraction(b - a)))
                        row.setdefault(names[beta], []).append((size, product(steps)))
                draft.set_row(slot.name, tuple((name, total(parts)) for name, parts in row.items()))
        forms = [f for f, on in (("rescaled", self.moved), ("centred", centres), ("scaled", scales)) if on]
        return Placed(*self.finished(lead[zero], Ref(names[zero])), tuple(forms) or ("late",))

    def centre(self, c: int, coefficients: dict[tuple[int, ...], Term], weights: dict[Mono, list[Expr]]) -> str:
        """The gauge of a centre.  What is no mean of the prefix by itself (S / length, with a length that is loaded)
        is a bad centre while the prefix is short: there the elements' own weighted mean serves, and the sums are
        moved to the centre the program has when all are known."""
        draft, final = self.draft, self.atoms[c].expr
        if len(self.group.partners) > 1 or draft.ordered(final) or draft.of_prefix(final):
            return draft.gauge(final, None).name
        y, k = self.group.partners[c]
        ((top, term),) = list(coefficients.items())[-1:]
        lead = _leading(term)
        weight = total((q / lead, self.place(m, weights[m], {}, {})) for m, q in term.items())
        values = total((q / lead, self.place(times(m, (((y, ONE),), ())), weights[m], {}, {})) for m, q in term.items())
        if not top[0] or draft.bounds.interval(weight)[0] < 0:
            return draft.gauge(final, None).name
        sums = [draft.slot(self.owner, "sum", weight), draft.slot(self.owner, "sum", values)]
        draft.follow(sums, self.factor({}))
        over, under = Ref(sums[1].name), Ref(sums[0].name)
        mean = total([(1 / k, apply("div", over, under))])
        return draft.gauge(final, None, own=apply("select", apply("eq", under, Const(0.0)), Const(0.0), mean)).name

    # ---- bodies ------------------------------------------------------------------------------------------------
    def weights(self, m: Mono) -> list[Expr]:
        """The exponentials of one monomial, each with its proof kept in mind."""
        out = []
        for base, op in enumerate(EXPONENTIAL):
            own = tuple((inner, c) for (b, inner), c in m[1] if b == base)
            moved = tuple((inner, c) for (b, inner), c in self.moved if b == base)
            if own or moved:
                made = exponent(self.draft, own, moved)
                self.agree(base, made)
                e = apply(op, made.body)
                if moved:
                    self.exponents[e] = made.proof
                out.append(e)
        return out

    def agree(self, base: int, made: Exponent) -> None:
        """All terms of a slot must follow their gauges by one factor, and vanish while a gauge is empty."""
        if self.pulls.setdefault(base, made.pulls) != made.pulls:
            raise Undecided(Unknown(self.owner, "terms of one sum follow the running results differently"))
        for g in self.draft.gauges.values():
            named = any(g.name == name for name, _ in made.pulls)
            if named and math.isinf(g.empty) and g.name not in made.grounded:
                why = f"{g.final} may be infinite where exp({made.body}) is not 0"
                raise Undecided(Unknown(self.owner, why))

    def place(self, m: Mono, weights: list[Expr], shifts: dict[int, Expr], scales: dict[int, str]) -> Expr | None:
        cut = self.draft.cut
        factors: list[tuple[Expr, Fraction]] = [(w, ONE) for w in weights]
        indicators: list[int] = []
        for a, n in m[0]:
            if a in cut.conditions and n == 1:
                indicators.append(a)
                continue
            e = shifts.get(a, self.atoms[a].expr)
            if a in scales:
                p = self.over[a][1]
                factors.append((power_of(apply("div", e, Ref(f"g:{scales[a]}")), p), ONE))
                n -= p
            if n:
                factors.append((e, n))
        plain = all(n > 0 for _, n in factors) and not any(isinstance(e, Const) for e, _ in factors)
        if plain and len(factors) > 1:  # the mask on the weight alone: a product stays a product, for dots
            weight = cut.chosen(product(factors[:1]), indicators)
            return product([(weight, ONE), *factors[1:]]) if weight is not None else None
        return cut.chosen(product(factors), indicators)

    # ---- rows and values ---------------------------------------------------------------------------------------
    def factor(self, scales: dict[int, str]) -> list[tuple[Expr, Fraction]]:
        out: list[tuple[Expr, Fraction]] = []
        for base, pulls in sorted(self.pulls.items()):
            if pulls:
                out.append((apply(EXPONENTIAL[base], shift(self.draft, pulls)), ONE))
        for y, name in scales.items():
            ratio = apply("div", Ref(f"g:{name}"), Ref(f"h:{name}"))
            out.append((power_of(ratio, self.over[y][1]), ONE))
        return out

    def finished(self, lead: Fraction, slot: Expr) -> tuple[Fraction, Expr | None]:
        """The slot times everything that is late."""
        unit = self.group.unit
        scaled = tuple(sorted((r, -p) for r, p in self.over.values()))
        powers, expo = join_powers(unit[0], scaled, -1), join_expo(unit[1], self.moved, -1)
        factors: list[tuple[Expr, Fraction]] = [(slot, ONE)]
        indicators = [a for a, n in powers if n == 1 and a in self.draft.cut.conditions]
        factors += [(self.atoms[a].expr, n) for a, n in powers if a not in indicators]
        factors += self.draft.cut.expo_expr(expo)
        value = product(factors)
        if value is not None and value is not slot and self.counts():
            # how often it is chosen; never, and a result that is infinite or NaN does not matter
            value = apply("select", apply("eq", slot, Const(0.0)), Const(0.0), value)
        return lead, self.draft.cut.chosen(value, indicators)

    def counts(self) -> bool:
        """Is the group's sum a number of elements, those that satisfy a condition?"""
        return all(not m[1] and m[0] and all(a in self.draft.cut.conditions for a, _ in m[0]) for m in self.group.core)
