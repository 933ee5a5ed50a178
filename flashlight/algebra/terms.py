"""The prover's normal form: sums of monomials  prod a_i^n_i * exp(sum c_j u_j)  with rational coefficients.

Atoms are subtrees of the program, numbered by first appearance (so nothing depends on hash seeds); powers and the
coefficients of exponents are rational; floats become exact fractions at the door.  These monomials form a
torsion-free abelian group, so a term is zero exactly when its dictionary is empty: no gcd, no simplify.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from flashlight.expr import Const, Expr, apply

Powers: TypeAlias = "tuple[tuple[int, Fraction], ...]"  # (atom number, power), sorted
Expo: TypeAlias = "tuple[tuple[tuple[int, Mono], Fraction], ...]"  # ((base, monomial), coefficient), sorted
Mono: TypeAlias = "tuple[Powers, Expo]"
Term: TypeAlias = "dict[Mono, Fraction]"

UNIT: Mono = ((), ())
ONE, HALF = Fraction(1), Fraction(1, 2)
E, TWO = 0, 1  # the bases of exponentials: exp and exp2 are kept apart and come back as they were written
EXPONENTIAL, LOGARITHM = ("exp", "exp2"), ("log", "log2")


@dataclass(frozen=True)
class Atom:
    """``side``: "x" an element, "r" a result, "p" the row, "xr" an element and a result in one.  ``term``: for a sum
    under a root or in a denominator, what it stands for.  ``condition``: for an indicator, (predicate, value at
    which it is 1)."""

    expr: Expr
    side: str
    term: Term | None = None
    condition: tuple[Expr, bool] | None = None


class TooLarge(Exception):
    """A term that would not fit: the question is left undecided."""


def join_powers(a: Powers, b: Powers, sign: int = 1) -> Powers:
    if not b:
        return a
    merged = dict(a)
    for atom, n in b:
        merged[atom] = merged.get(atom, Fraction(0)) + sign * n
    return tuple(sorted((atom, n) for atom, n in merged.items() if n))


def join_expo(a: Expo, b: Expo, sign: int = 1) -> Expo:
    if not b:
        return a
    merged = dict(a)
    for key, c in b:
        merged[key] = merged.get(key, Fraction(0)) + sign * c
    return tuple(sorted((key, c) for key, c in merged.items() if c))


def times(a: Mono, b: Mono, sign: int = 1) -> Mono:
    return join_powers(a[0], b[0], sign), join_expo(a[1], b[1], sign)


def raised(m: Mono, n: Fraction) -> Mono:
    return tuple((a, k * n) for a, k in m[0]), tuple((key, c * n) for key, c in m[1])


def scale(t: Term, c: Fraction | int) -> Term:
    return {m: c * k for m, k in t.items()} if c else {}


def add(s: Term, t: Term) -> Term:
    out = dict(s)
    for m, c in t.items():
        out[m] = out.get(m, Fraction(0)) + c
        if not out[m]:
            del out[m]
    return out


def subtract(s: Term, t: Term) -> Term:
    return add(s, scale(t, -1))


def multiply(s: Term, t: Term) -> Term:
    if len(s) * len(t) > 2000:
        raise TooLarge
    out: Term = {}
    for m, a in s.items():
        for n, b in t.items():
            key = times(m, n)
            out[key] = out.get(key, Fraction(0)) + a * b
    return {m: c for m, c in out.items() if c}


def derivative(t: Term, a: int) -> Term:
    """With respect to an atom where it stands as a factor (exponents are somebody else's business)."""
    out: Term = {}
    for (powers, expo), c in t.items():
        if n := dict(powers).get(a):
            key = (join_powers(powers, ((a, ONE),), -1), expo)
            out[key] = out.get(key, Fraction(0)) + c * n
    return out


def atoms_of(m: Mono) -> Iterable[int]:
    """Every atom of a monomial, those of its exponents included."""
    for a, _ in m[0]:
        yield a
    for (_, inner), _ in m[1]:
        yield from atoms_of(inner)


def content(t: Term) -> tuple[Expo, Term]:
    """Take out the exponential that all of ``t`` is measured against, so that e^d*a + e^d*b and a + b agree."""
    if not t:
        return (), t
    atoms = sorted({a for m in t for a, _ in m[0]})
    keys = sorted({key for m in t for key, _ in m[1]})

    def order(m: Mono) -> list[Fraction]:  # lexicographic on exponent vectors: an order of the group
        powers, expo = dict(m[0]), dict(m[1])
        zero = Fraction(0)
        return [powers.get(a, zero) for a in atoms] + [expo.get(k, zero) for k in keys]

    unit = min(t, key=order)[1]
    return unit, {(p, join_expo(e, unit, -1)): c for (p, e), c in t.items()}


# ---- terms -> expressions ----------------------------------------------------------------------------------------
def representable(c: Fraction) -> bool:
    """Is it a double, exactly?"""
    return Fraction(float(c)) == c


def number(c: Fraction | int) -> Expr:
    """A constant.  What is no double (a product of two, a third) is written as a sum or a quotient of doubles: a
    rounded constant would be another program."""
    c = Fraction(c)
    if representable(c):
        return Const(float(c))
    if c.denominator & (c.denominator - 1):
        return apply("div", number(c.numerator), number(c.denominator))
    first = float(c)
    return apply("add", Const(first), number(c - Fraction(first)))


def power_of(e: Expr, n: Fraction) -> Expr:
    """``e ** n`` for n > 0, small whole powers as products (what a dot, and a reader, can see into)."""
    if n.denominator == 1 and n <= 4:
        square = apply("mul", e, e)
        return (e, square, apply("mul", square, e), apply("mul", square, square))[int(n) - 1]
    return apply("sqrt", e) if n == HALF else apply("pow", e, number(n))


def product(factors: Iterable[tuple[Expr, Fraction]]) -> Expr | None:
    """Left-associated, numerators before denominators, each in the order given; None for the empty product."""
    factors = tuple(factors)
    out: Expr | None = None
    for e, n in factors:
        if n > 0:
            out = power_of(e, n) if out is None else apply("mul", out, power_of(e, n))
    for e, n in factors:
        if n == -HALF:
            root = apply("rsqrt", e)
            out = root if out is None else apply("mul", out, root)
        elif n < 0:
            out = apply("div", Const(1.0) if out is None else out, power_of(e, -n))
    return out


def total(parts: Iterable[tuple[Fraction, Expr | None]]) -> Expr:
    """``sum c * e`` (``e`` None: the number 1), with subtractions where coefficients are negative."""
    out: Expr | None = None
    for c, e in parts:
        size = number(abs(c)) if e is None else e if abs(c) == 1 else apply("mul", number(abs(c)), e)
        if out is None:
            out = size if c > 0 else number(c) if e is None else apply("neg", size)
        else:
            out = apply("sub" if c < 0 else "add", out, size)
    return Const(0.0) if out is None else out
