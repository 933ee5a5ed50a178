"""Exponents printed as their proof: sums of k * (low - high), each difference at most 0, never flattened.

exp(a) * exp(-b) overflows where exp(a - b) does not, and s*k - m*k loses the digits that (s - m)*k keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flashlight.algebra.bounds import RANGE, Bound
from flashlight.algebra.draft import Draft, at_gauge
from flashlight.algebra.proof import Fact
from flashlight.algebra.terms import UNIT, Mono, Term, add, multiply, product, scale, subtract, total
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
    if bound is not None:
        rest = _rest(draft, own, moved, form, bound)
        if rest is not None:
            pieces = _chained(draft, bound.used)
            finals = {id(e): e for inner, _ in moved if (e := _result(draft, inner)) is not None}
            out = _as_proof(draft, pieces, tuple(finals.values()), rest)
            return Exponent(*out, _proof(draft, bound) if sure else (), frozenset(name for name, _ in out[1]))
    return _as_written(draft, own, moved, bound if sure else None)


def _form(draft: Draft, keys: Keys) -> Term:
    form: Term = {}
    for inner, c in keys:
        form = add(form, scale(draft.full.term(draft.cut.mono_expr(inner) or Const(1.0)), c))
    return form


def _result(draft: Draft, inner: Mono) -> Expr | None:
    """The results' part of a monomial as an expression."""
    return product((draft.cut.atoms[a].expr, n) for a, n in inner[0] if draft.cut.atoms[a].side == "r")


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
    return [*((draft.full.atoms[a].expr, n) for a, n in m[0]), *draft.full.expo_expr(m[1])]


def _proof(draft: Draft, bound: Bound) -> tuple[tuple[Expr, Fact], ...]:
    out = [(total([(size, product(_factors(draft, factor)))]), fact) for size, factor, fact in bound.used]
    if any("r" in draft.full.sides(m) for m in bound.rest):  # -log(l) <= 0, since l >= 1
        out.append((Const(1.0), Fact(draft.full.expr(bound.rest), Const(0.0), RANGE)))
    return tuple(out)


def _as_written(draft: Draft, own: Keys, moved: Keys, bound: Bound | None) -> Exponent:
    """Elements minus results, each side as the program has it."""
    pulls: dict[str, list[Multiplier]] = {}
    names: list[tuple[Expr, str]] = []
    for inner, c in moved:
        final = _result(draft, inner)
        if final is None:
            continue
        name = draft.gauge(final, (c < 0) if bound is not None else None).name
        names.append((final, name))
        factor: Mono = (tuple(p for p in inner[0] if draft.cut.atoms[p[0]].side != "r"), ())
        pulls.setdefault(name, []).append((c, _in_full(draft, factor)))
    table = dict(names)
    left = [(c, draft.cut.mono_expr(m)) for m, c in own]
    right = [(c, _with_gauge(draft, m, table)) for m, c in moved]
    if left and all(c < 0 for c, _ in right):
        body = apply("sub", total(left), total((-c, e) for c, e in right))
    else:
        body = total([*left, *right])
    grounded = frozenset(n for _, n in names) if bound is not None else frozenset()
    proof = _proof(draft, bound) if bound is not None else ()
    return Exponent(body, tuple((n, tuple(p)) for n, p in pulls.items()), proof, grounded)


def _in_full(draft: Draft, m: Mono) -> Mono:
    return tuple(sorted((draft.full.atom(draft.cut.atoms[a].expr), n) for a, n in m[0])), ()


def _with_gauge(draft: Draft, m: Mono, names: dict[Expr, str]) -> Expr | None:
    final = _result(draft, m)
    rest = [(draft.cut.atoms[a].expr, n) for a, n in m[0] if draft.cut.atoms[a].side != "r"]
    if final is None:
        return product(rest)
    return product([(at_gauge(final, [(final, names[final])]), Fraction(1)), *rest])


def shift(draft: Draft, pulls: tuple[tuple[str, tuple[Multiplier, ...]], ...]) -> Expr:
    """The exponent of the factor with which sums follow their gauges from g to h."""
    parts: list[tuple[Fraction, Expr | None]] = []
    for name, multipliers in pulls:
        g, h = Ref(f"g:{name}"), Ref(f"h:{name}")
        for c, factor in multipliers:
            difference = apply("sub", g, h) if c < 0 else apply("sub", h, g)
            parts.append((abs(c), product([(difference, Fraction(1)), *_factors(draft, factor)])))
    return total(parts)
