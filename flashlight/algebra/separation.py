"""Separation of elements and results:  a(x, r) = sum_k G_k(x) * H_k(r)  with k finite.

Finite separation rank is what a reduction that reads results needs to be computed in one pass: the sums of the G's
do not depend on r.  (The rank-1 case is the test of Neptune, arXiv 2510.08726, and of RedFuser.)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flashlight.algebra.field import Field
from flashlight.algebra.terms import Expo, Mono, Powers, Term, add, atoms_of, derivative, join_powers, multiply, scale
from flashlight.expr import Expr

Rows = dict[Mono, Term]


@dataclass(frozen=True)
class Mixed:
    """Not separable as written: this atom holds elements and results at once."""

    atom: Expr


@dataclass(frozen=True)
class Group:
    """``unit * core``: a monomial of results and the row, and a term of elements and of centres, which are results
    that occur as powers.  ``partners``: per centre c the element atom y and k > 0 such that the core depends on
    y - k*c only."""

    unit: Mono
    core: Term
    partners: dict[int, tuple[int, Fraction]]


def rows(field: Field, term: Term) -> Rows | Mixed:
    """The monomials of results, each with the term of elements it is multiplied by."""
    out: Rows = {}
    for m, c in term.items():
        x, r = split(field, m)
        mixed = next((a for a in atoms_of(r) if field.atoms[a].side == "xr"), None)
        if mixed is not None:
            return Mixed(field.atoms[mixed].expr)
        stuck = next((inner for (_, inner), _ in r[1] if field.sides(inner) == "xr"), None)
        if stuck is not None:
            return Mixed(field.mono_expr((stuck[0], stuck[1])) or field.expr({m: c}))
        out[r] = add(out.get(r, {}), {x: c})
    return {r: x for r, x in out.items() if x}


def split(field: Field, m: Mono) -> tuple[Mono, Mono]:
    """The elements' part of a monomial and the rest.  Factors of the row are late; exponents of the row stay with the
    elements' (exp(c) alone may overflow where exp(x - m + c) does not)."""
    powers, expo = m
    own: Powers = tuple(p for p in powers if field.atoms[p[0]].side == "x")
    late: Powers = tuple(p for p in powers if field.atoms[p[0]].side != "x")
    sides = [field.sides(key[0][1]) for key in expo]
    kept = ("x", "p") if "x" in sides else ("x",)
    inner: Expo = tuple(key for key, s in zip(expo, sides, strict=True) if s in kept)
    outer: Expo = tuple(key for key, s in zip(expo, sides, strict=True) if s not in kept)
    return (own, inner), (late, outer)


def rank(table: Rows) -> int:
    """The number of linearly independent terms of elements: Gaussian elimination over the rationals."""
    columns = list(dict.fromkeys(m for term in table.values() for m in term))
    matrix = [[term.get(m, Fraction(0)) for m in columns] for term in table.values()]
    found = 0
    for j in range(len(columns)):
        pivot = next((i for i in range(found, len(matrix)) if matrix[i][j]), None)
        if pivot is None:
            continue
        matrix[found], matrix[pivot] = matrix[pivot], matrix[found]
        for row in matrix[found + 1 :]:
            if row[j]:
                ratio = row[j] / matrix[found][j]
                row[:] = [a - ratio * b for a, b in zip(row, matrix[found], strict=True)]
        found += 1
    return found


def groups(field: Field, table: Rows, may_centre: dict[int, bool]) -> list[Group]:
    """Group rows by monomial with centres taken out.

    c is a centre of y where the term depends on y - k*c only (k * d/dy + d/dc = 0): the state is then kept centred at
    the running c, since the late form would cancel.  ``may_centre``: atoms that may be centres, and whether only in a
    group that they also rescale.
    """
    candidates = {a for u in table for a, n in u[0] if a in may_centre and n > 0 and n.denominator == 1}
    while True:
        cores: dict[tuple[Mono, bool], Term] = {}
        for u, term in table.items():
            inner: Powers = tuple((a, n) for a, n in u[0] if a in candidates and n > 0)
            unit: Mono = (join_powers(u[0], inner, -1), u[1])
            for m, k in term.items():  # what is weighted by an exponential and what is not are moved differently
                key = (unit, bool(m[1]))
                cores[key] = add(cores.get(key, {}), multiply({m: k}, {(inner, ()): Fraction(1)}))
        found, bad = [], set()
        for (unit, _), core in cores.items():
            partners = {}
            rescaling = {a for (_, m), _ in unit[1] for a in atoms_of(m)}
            for c in sorted({a for m in core for a, _ in m[0]} & candidates):
                y = None if may_centre[c] and c not in rescaling else _partner(field, core, c)
                if y is None:
                    bad.add(c)
                else:
                    partners[c] = y
            found.append(Group(unit, core, partners))
        if not bad:
            return found
        candidates -= bad


def _partner(field: Field, core: Term, c: int) -> tuple[int, Fraction] | None:
    by_c = derivative(core, c)
    for y in dict.fromkeys(a for m in core for a, _ in m[0] if field.atoms[a].side == "x"):
        by_y = derivative(core, y)
        first = next(iter(by_y), None)
        if first is not None and first in by_c:
            k = -by_c[first] / by_y[first]
            if k > 0 and not add(by_c, scale(by_y, k)):
                return y, k
    return None


def taylor(core: Term, centres: list[int]) -> dict[tuple[int, ...], Term]:
    """The Taylor coefficients of the core in its centres, at 0; those that vanish are left out."""
    degrees = [max((int(dict(m[0]).get(c, 0)) for m in core), default=0) for c in centres]
    alphas: list[tuple[int, ...]] = [()]
    for d in degrees:
        alphas = [(*a, k) for a in alphas for k in range(d + 1)]
    out = {}
    for alpha in alphas:
        t = core
        for c, k in zip(centres, alpha, strict=True):
            for i in range(k):
                t = scale(derivative(t, c), Fraction(1, i + 1))
        t = {m: k for m, k in t.items() if not any(a in centres for a, _ in m[0])}
        if t:
            out[alpha] = t
    return out
