"""Refusing with a witness, and the two last resorts: a minor in many digits, and lowest terms over the rationals.

mpmath and sympy are imported where they are used: neither is on the way of a program that is proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flashlight.algebra.arithmetic import FLOATS, precise
from flashlight.algebra.bounds import Bounds
from flashlight.algebra.field import Field
from flashlight.algebra.proof import Refuted, Unknown
from flashlight.algebra.terms import UNIT, Mono, Term, add, scale
from flashlight.expr import Const, Expr, Fold, Index, Load, Ref, Size, axes, children, kind, refs, walk

LIMIT = 8  # ranks up to this may be carried
DIGITS = 100
Point = dict[Expr, Fraction]


@dataclass(frozen=True)
class _Grid:
    """``a(x_i, r_j)``: element points, result points, values of the row, and the matrix."""

    elements: tuple[Point, ...]
    results: tuple[Point, ...]
    row: Point
    values: list[list[Any]]


def refute(stage: str, body: Expr, axis: str, bounds: Bounds, below: bool, atom: str) -> Refuted | int:
    """A nonzero minor of a(x_i, r_j) proves that the separation rank exceeds LIMIT; otherwise the rank found."""
    grid = _sample(body, axis, bounds, below)
    if grid is None:
        return 0
    rank, determinant = _eliminate(grid.values)
    if rank <= LIMIT:
        return rank
    why = f"{atom} mixes elements and results: {body} is no sum of {LIMIT} products G(element)*H(results)"
    return Refuted(stage, why, f"{_show(grid)}: the {rank} x {rank} determinant is {determinant} and not 0")


def refute_order(stage: str, body: Expr, axis: str, bounds: Bounds, why: str) -> Refuted | Unknown:
    """Each element wins for some results: then none may be forgotten before the results are known."""
    grid = _sample(body, axis, bounds, False)
    if grid is not None:
        pairs = ((i, k, j, n) for i in range(LIMIT) for k in range(i) for j in range(LIMIT) for n in range(j))
        for i, k, j, n in pairs:
            v = grid.values
            if (v[i][j] - v[k][j]) * (v[i][n] - v[k][n]) < 0:
                some = _Grid((grid.elements[i], grid.elements[k]), (grid.results[j], grid.results[n]), grid.row, [])
                return Refuted(
                    stage,
                    f"{why}: which element is the largest depends on the result, so none may be dropped before it",
                    f"{_show(some)}: the first element is the {'larger' if v[i][j] > v[k][j] else 'smaller'} one at the"
                    f" first results and the {'larger' if v[i][n] > v[k][n] else 'smaller'} one at the second",
                )
    return Unknown(stage, why)


# ---- points --------------------------------------------------------------------------------------------------------
def _sample(body: Expr, axis: str, bounds: Bounds, below: bool) -> _Grid | None:
    """Interleaved points (random ones miss the rank of max(x - r, 0)); elements stay below results where facts say
    so.  Values are short decimals that can be substituted by hand."""
    leaves = list(dict.fromkeys(_leaves(body)))
    numbers = precise(DIGITS)
    for live in (True, False):
        for positive in (False, True):
            grid = _grid(body, leaves, axis, bounds, below, positive, live, numbers.evaluate)
            if all(v == v and abs(v) < math.inf for line in grid.values for v in line):
                return grid
    return None


def _grid(
    body: Expr,
    leaves: list[Expr],
    axis: str,
    bounds: Bounds,
    below: bool,
    positive: bool,
    live: bool,
    evaluate: Callable[..., Any],
) -> _Grid:
    n = LIMIT + 1
    x = [e for e in leaves if axis in axes(e)]
    r: list[Expr] = [e for e in leaves if isinstance(e, Ref) and e not in x]
    p = [e for e in leaves if e not in x and e not in r]
    steep = {e: _steepness(body, e, axis) for e in r}

    def value(e: Expr, i: int, which: int, result: bool) -> Fraction:
        if kind(e) == "bool":
            return Fraction(live)
        if kind(e) == "int":
            return Fraction(i + which + 1) if e in x else Fraction(5)
        jitter = (7 * i * i + 13 * which * (i + 1) + 5 * result) % 17
        step = Fraction(4 * i, n) + Fraction(jitter, 50) + (0 if result else Fraction(2, n)) - 2
        at = step / 2 + (1 if result else -2) if below else step
        if result and e in steep:
            at *= steep[e]
        if positive or bounds.interval(e)[0] >= 0:
            return Fraction(round(100 * math.exp(float(at) / 2)) + 3 * i + 1, 100)
        return Fraction(round(1000 * at), 1000)

    elements: tuple[Point, ...] = tuple({e: value(e, i, k, False) for k, e in enumerate(x)} for i in range(n))
    results: tuple[Point, ...] = tuple({e: value(e, i, k, True) for k, e in enumerate(r)} for i in range(n))
    row: Point = {e: value(e, k + 3, k, True) for k, e in enumerate(p)}

    def at(i: int, j: int) -> Any:
        env: Point = {}
        for point in (elements[i], results[j], row):
            env.update(point)

        def leaf(e: Expr) -> Any:
            q = env[e]
            if kind(e) == "bool":
                return bool(q)
            return evaluate(Const(float(q.numerator)), leaf) / q.denominator

        return evaluate(body, leaf)

    return _Grid(elements, results, row, [[at(i, j) for j in range(n)] for i in range(n)])


def _steepness(body: Expr, ref: Expr, axis: str) -> int:
    """How much larger than an element a result is by nature: S where it occurs as S / 4096."""
    found = 1
    for e in walk(body):
        if refs(e) == refs(ref) and axis not in axes(e):
            low = FLOATS.evaluate(e, lambda n: 0.0 if n is ref else 5.0)
            high = FLOATS.evaluate(e, lambda n: 1.0 if n is ref else 5.0)
            if 0 < abs(high - low) < 1:
                found = max(found, round(1 / abs(high - low)))
    return found


def _leaves(e: Expr) -> Iterator[Expr]:
    if isinstance(e, (Load, Fold, Index, Size, Ref)):
        yield e
    else:
        for c in children(e):
            yield from _leaves(c)


def _show(grid: _Grid) -> str:
    def column(points: tuple[Point, ...], e: Expr) -> str:
        return f"{e} = " + ", ".join(f"{float(p[e]):g}" for p in points)

    parts = [*(column(grid.elements, e) for e in grid.elements[0]), *(column(grid.results, e) for e in grid.results[0])]
    return "; ".join([*parts, *(f"{e} = {float(v):g}" for e, v in grid.row.items())])


def _eliminate(matrix: list[list[Any]]) -> tuple[int, str]:
    """Rank and determinant by elimination with full pivoting; what is below half the digits is zero."""
    a = [line[:] for line in matrix]
    n = len(a)
    sign = 1
    largest = max(abs(v) for line in a for v in line)
    determinant: Any = 1
    for k in range(n):
        size, i, j = max((abs(a[i][j]), -i, -j) for i in range(k, n) for j in range(k, n))
        i, j = -i, -j
        if not size or size < largest * 10.0 ** (-DIGITS // 2):
            return k, "0"
        if i != k:
            a[k], a[i], sign = a[i], a[k], -sign
        if j != k:
            for line in a:
                line[k], line[j] = line[j], line[k]
            sign = -sign
        determinant = determinant * a[k][k]
        for line in a[k + 1 :]:
            ratio = line[k] / a[k][k]
            for q in range(k, n):
                line[q] -= ratio * a[k][q]
    mantissa, exponent = _decimal(determinant * sign)
    return n, f"{mantissa:.3f}e{exponent}"


def _decimal(v: Any) -> tuple[float, int]:
    exponent = 0
    while abs(v) < 1:
        v, exponent = v * 10, exponent - 1
    while abs(v) >= 10:
        v, exponent = v / 10, exponent + 1
    return float(v), exponent


# ---- lowest terms ----------------------------------------------------------------------------------------------------
def lowest_terms(field: Field, term: Term) -> Term | None:
    """Cancel what mixes elements and results: (x^2 - r^2)/(x + r) is x - r.  None if a factor of the denominator that
    mixes them is left (then no finite rank exists, as a finite sum of G(x)*H(r) has a denominator D(x)*E(r)), or if
    the term is no rational function of its atoms."""
    symbols: dict[tuple[str, object], Any] = {}
    steps: dict[tuple[int, Mono], int] = {}  # exponents of exp: the common denominator per exponential

    def measure(t: Term) -> bool:
        for powers, expo in t:
            for key, c in expo:
                steps[key] = math.lcm(steps.get(key, 1), c.denominator)
                if field.sides(key[1]) == "xr":
                    return False
            for a, n in powers:
                atom = field.atoms[a]
                if n.denominator != 1 or (atom.side == "xr" and atom.term is None):
                    return False
                if atom.side == "xr" and not measure(atom.term or {}):
                    return False
        return True

    def rational(t: Term) -> Any:
        parts = []
        for (powers, expo), c in t.items():
            factors = [sympy.Rational(c.numerator, c.denominator)]
            for a, n in powers:
                atom = field.atoms[a]
                base = rational(atom.term or {}) if atom.side == "xr" else symbol(("atom", a))
                factors.append(base ** int(n))
            factors += [symbol(("exp", key)) ** int(c * steps[key]) for key, c in expo]
            parts.append(sympy.Mul(*factors))
        return sympy.Add(*parts)

    def symbol(key: tuple[str, object]) -> Any:
        return symbols.setdefault(key, sympy.Symbol(f"s{len(symbols)}", positive=True))

    def back(e: Any) -> Term:
        out: Term = {}
        for exponents, c in sympy.Poly(e, *symbols.values()).terms():
            t: Term = {UNIT: Fraction(int(c.p), int(c.q))}
            for (sort, key), n in zip(symbols, exponents, strict=True):
                if n and sort == "atom" and isinstance(key, int):
                    t = field.multiply(t, {(((key, Fraction(n)),), ()): Fraction(1)})
                elif n and isinstance(key, tuple):
                    t = field.multiply(t, {((), ((key, Fraction(n, steps[key])),)): Fraction(1)})
            out = add(out, t)
        return out

    if not measure(term):
        return None
    import sympy

    top, bottom = sympy.fraction(sympy.cancel(rational(term)))
    if not symbols:
        return back(top)
    c, factors = sympy.factor_list(bottom)
    out = scale(back(top), Fraction(int(c.q), int(c.p)))
    for factor, n in factors:
        divisor = back(factor)
        if len({s for m in divisor for s in field.sides(m)} - {"p"}) > 1:
            return None
        out = field.multiply(out, field.power(divisor, Fraction(-n)))
    return out
