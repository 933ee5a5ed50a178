"""Exponents printed as their proof: sums of k * (low - high), each difference at most 0, never flattened.

exp(a) * exp(-b) overflows where exp(a - b) does not, and s*k - m*k loses the digits that (s - m)*k keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flashlight.algebra.bounds import RANGE, Bound
from flashlight.algebra.draft import Draft
from flashlight.algebra.field import Field
from flashlight.algebra.proof import Fact
from flashlight.algebra.terms import (
    UNIT,
    Mono,
    Term,
    TooLarge,
    add,
    atoms_of,
    multiply,
    product,
    scale,
    subtract,
    times,
    total,
)
from flashlight.expr import Const, Expr, Ref, apply

Keys = tuple[tuple[Mono, Fraction], ...]  # the linear form in one exponential: (monomial, coefficient)
Multiplier = tuple[Fraction, Mono]
Used = tuple[tuple[Fraction, Mono, Fact], ...]


@dataclass(frozen=True)
class Exponent:
    """``body``: over gauges.  ``pulls``: per gauge g the (coefficient, factor) with which it stands in the exponent,
    so that moving from g to h multiplies by exp(sum coefficient * factor * (h - g)).  ``proof``: multipliers that
    bound it by 0, or nothing.  ``grounded``: the gauges whose emptiness makes the exponent -inf."""

    body: Expr
    pulls: tuple[tuple[str, tuple[Multiplier, ...]], ...]
    proof: tuple[tuple[Expr, Fact], ...]
    grounded: frozenset[str]


def bounded(draft: Draft, keys: Keys) -> bool:
    bound = draft.bounds.above(_form(draft, keys))
    return bound is not None and bound.top <= 0


def exponent(draft: Draft, own: Keys, moved: Keys) -> Exponent:
    """``own``: of elements (and the row), ``moved``: of results, which become gauges."""
    form = _form(draft, (*own, *moved))
    bound = draft.bounds.above(form)
    sure = bound is not None and bound.top <= 0
    if not sure:
        bound = draft.bounds.above(form, loose=True)
    if bound is None:
        return _as_written(draft, own, moved, None, frozenset())
    pieces = _chained(draft, bound.used)
    finals = tuple(e for inner, _ in moved if (e := _halves(draft, inner)[0]) is not None)
    rest = None if _tangled(draft, pieces, bound.rest) else _rest(draft, own, moved, form, bound)
    if rest is not None:
        out = _as_proof(draft, pieces, finals, rest)
        return Exponent(*out, _proof(draft, bound) if sure else (), frozenset(name for name, _ in out[1]))
    return _as_written(draft, own, moved, bound if sure else None, _falling(draft, pieces, form, finals))


def _tangled(draft: Draft, pieces: list[_Piece], rest: Term) -> bool:
    """Are the elements of the differences left over, a little of them (0.3 is not 3 * 0.1)?  At -inf the two would
    meet as -inf + inf."""
    low = {a for p in pieces for m in draft.full.term(p.low) for a in atoms_of(m)}
    return any(a in low and "x" in draft.full.atoms[a].side for m in rest for a in atoms_of(m))


def _falling(draft: Draft, pieces: list[_Piece], form: Term, finals: tuple[Expr, ...]) -> frozenset[Expr]:
    """The results above elements that take the whole exponent to -inf with them."""
    out = []
    for p in pieces:
        low = draft.full.term(p.low)
        falls = all(c * form.get(times(m, p.factor), Fraction(0)) > 0 for m, c in low.items())
        if p.size > 0 and len(low) == 1 and falls:
            out += [f for f in finals if _proportional(draft.full.term(f), draft.full.term(p.high))]
    return frozenset(out)


def _proportional(a: Term, b: Term) -> bool:
    ratios = {a[m] / b[m] for m in a if m in b}
    return a.keys() == b.keys() and len(ratios) == 1 and min(ratios) > 0


def _form(draft: Draft, keys: Keys) -> Term:
    form: Term = {}
    for inner, c in keys:
        form = add(form, scale(draft.full.term(draft.cut.mono_expr(inner) or Const(1.0)), c))
    return form


def _halves(draft: Draft, inner: Mono) -> tuple[Expr | None, Mono]:
    """The results' part of a monomial as an expression, and the row's."""
    cut = draft.cut
    own = (
        tuple(p for p in inner[0] if cut.atoms[p[0]].side == "r"),
        tuple(k for k in inner[1] if cut.sides(k[0][1]) == "r"),
    )
    rest = times(inner, own, -1)
    return (cut.mono_expr(own) if own != UNIT else None), rest


def _rest(draft: Draft, own: Keys, moved: Keys, form: Term, bound: Bound) -> Term | None:
    """What the differences leave over, as the program wrote it if it is no longer that way.  None: results are left,
    or elements of a fact that are none of this exponent's."""
    if any("r" in draft.full.sides(m) or m not in form for m in bound.rest):
        return None
    cut: Term = {}
    for inner, c in (*own, *moved):
        cut = add(cut, {inner: c})
    for size, factor, fact in bound.used:
        weight: Term = {UNIT: size}
        for a, n in factor[0]:
            weight = multiply(weight, draft.cut.power(draft.cut.generator(draft.full.atoms[a].expr), n))
        difference = subtract(draft.cut.term(fact.low), draft.cut.term(fact.high))
        cut = subtract(cut, multiply(weight, difference))
    expanded = draft.cut.term(draft.full.expr(bound.rest))
    faithful = bound.rest and len(cut) <= len(expanded) and not any("r" in draft.cut.sides(m) for m in cut)
    return cut if faithful else expanded


@dataclass(frozen=True)
class _Piece:
    size: Fraction
    factor: Mono
    low: Expr
    high: Expr


def _chained(draft: Draft, used: Used) -> list[_Piece]:
    """x <= m and m <= M with the same multiplier are x <= M."""
    pieces = [_Piece(size, factor, fact.low, fact.high) for size, factor, fact in used]
    joined = True
    while joined:
        joined = False
        for p in pieces:
            q = next((q for q in pieces if q.low is p.high and (q.size, q.factor) == (p.size, p.factor)), None)
            if q is not None:
                pieces[pieces.index(p)] = _Piece(p.size, p.factor, p.low, q.high)
                pieces.remove(q)
                joined = True
                break
    return pieces


def _as_proof(
    draft: Draft, pieces: list[_Piece], finals: tuple[Expr, ...], rest: Term
) -> tuple[Expr, tuple[tuple[str, tuple[Multiplier, ...]], ...]]:
    pulls: dict[str, list[Multiplier]] = {}

    def place(e: Expr, upper: bool, p: _Piece) -> Expr:
        if draft.full.side(e) != "r":
            return e
        same = next((f for f in finals if draft.full.term(f) == draft.full.term(e)), e)
        name = draft.gauge(same, upper).name
        pulls.setdefault(name, []).append((-p.size if upper else p.size, p.factor))
        return Ref(f"g:{name}")

    parts: list[tuple[Fraction, Expr | None]] = []
    for p in pieces:
        difference = apply("sub", place(p.low, False, p), place(p.high, True, p))
        parts.append((p.size, product([(difference, Fraction(1)), *_factors(draft, p.factor)])))
    parts += [(c, draft.cut.mono_expr(m)) for m, c in rest.items()]
    return total(parts), tuple((name, tuple(p)) for name, p in pulls.items())


def _factors(draft: Draft, m: Mono) -> list[tuple[Expr, Fraction]]:
    return _factors_of(draft.full, m)


def _factors_of(field: Field, m: Mono) -> list[tuple[Expr, Fraction]]:
    return [*((field.atoms[a].expr, n) for a, n in m[0]), *field.expo_expr(m[1])]


def _proof(draft: Draft, bound: Bound) -> tuple[tuple[Expr, Fact], ...]:
    out = [(total([(size, product(_factors(draft, factor)))]), fact) for size, factor, fact in bound.used]
    if any("r" in draft.full.sides(m) for m in bound.rest):  # -log(l) <= 0, since l >= 1
        out.append((Const(1.0), Fact(draft.full.expr(bound.rest), Const(0.0), RANGE)))
    return tuple(out)


def _as_written(draft: Draft, own: Keys, moved: Keys, bound: Bound | None, falling: frozenset[Expr]) -> Exponent:
    """Elements minus results, each side as the program has it."""
    pulls: dict[str, list[Multiplier]] = {}
    names: list[tuple[Expr, str]] = []
    right: list[tuple[Fraction, Expr | None]] = []
    for inner, c in moved:
        final, row = _halves(draft, inner)
        if final is None:
            right.append((c, draft.cut.mono_expr(inner)))
            continue
        name = draft.gauge(final, (c < 0) if bound is not None else None).name
        names.append((final, name))
        expr = draft.cut.mono_expr(row)
        right.append((c, product([(Ref(f"g:{name}"), Fraction(1)), *_factors_of(draft.cut, row)])))
        factor = draft.full.term(expr) if expr is not None else {UNIT: Fraction(1)}
        if len(factor) != 1:
            raise TooLarge
        ((m, k),) = factor.items()
        pulls.setdefault(name, []).append((c * k, m))
    left = [(c, draft.cut.mono_expr(m)) for m, c in own]
    if left and all(c < 0 for c, _ in right):
        body = apply("sub", total(left), total((-c, e) for c, e in right))
    else:
        body = total([*left, *right])
    grounded = frozenset(n for final, n in names if bound is not None or final in falling)
    proof = _proof(draft, bound) if bound is not None else ()
    return Exponent(body, tuple((n, tuple(p)) for n, p in pulls.items()), proof, grounded)


def shift(draft: Draft, pulls: tuple[tuple[str, tuple[Multiplier, ...]], ...]) -> Expr:
    """The exponent of the factor with which sums follow their gauges from g to h."""
    parts: list[tuple[Fraction, Expr | None]] = []
    for name, multipliers in pulls:
        g, h = Ref(f"g:{name}"), Ref(f"h:{name}")
        for c, factor in multipliers:
            difference = apply("sub", g, h) if c < 0 else apply("sub", h, g)
            parts.append((abs(c), product([(difference, Fraction(1)), *_factors(draft, factor)])))
    return total(parts)
