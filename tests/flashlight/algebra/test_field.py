"""The normal form, the bounds, special values, and the numeric rank, each by itself."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest

from flashlight.algebra import rank
from flashlight.algebra.arithmetic import FLOATS, precise
from flashlight.algebra.bounds import Bounds
from flashlight.algebra.draft import Draft
from flashlight.algebra.field import Field, at_finite, where_finite
from flashlight.algebra.special import ANY, FINITE, extended
from flashlight.algebra.terms import number, subtract
from flashlight.expr import Apply, Const, Load, Ref, apply
from tests.flashlight.algebra.catalogue import (
    PROVED,
    E,
    absolute,
    exp,
    exp2,
    keep,
    log,
    maximum,
    op,
    r,
    s,
    sqrt,
    tanh,
    where,
    wrap,
    x,
    y,
)

INF = math.inf
m, total, g, h = r("m"), r("l"), r("g"), r("h")


def field(results=("m", "l", "g", "h"), cut=False) -> Field:
    f = Field("j", frozenset(results), cut)
    f.nonnegative = lambda e: e in (wrap(total), wrap(g), wrap(h))
    return f


EQUAL = [
    (exp(s - m) * exp(m), exp(s)),
    (exp(s - (m + log(total))), exp(s - m) / total),
    (op("pow", s - m, 2.0), s * s - 2.0 * s * m + m * m),
    (log(exp(s - m) / total), s - m - log(total)),
    (sqrt(total * total), total),
    (1.0 / (2.0 * s + 2.0 * m), 0.5 / (s + m)),
    (op("pow", 2.0, s - m), exp2(s) / exp2(m)),
    (op("expm1", s), exp(s) - 1.0),
    (op("log1p", total), log(1.0 + total)),
    (g + log(total), h + log(exp(g - h) * total)),
    ((exp(g - h) * x) / (exp(g - h) * total + exp(s - h)), x / (total + exp(s - g))),
    (where(keep, s - m, 0.0) * where(keep, 0.0, s - m), E(0.0)),
    (op("pow", where(keep, s - m, 0.0), 2.0), where(keep, (s - m) * (s - m), 0.0)),
    (op("real", Load("n", (), "int")) * 1.0, op("real", Load("n", (), "int"))),
    (x / total / total, x * op("pow", total, -2.0)),
    (op("rsqrt", total), 1.0 / sqrt(total)),
    (where(op("eq", absolute(m), INF), 0.0, m), m),
]
DIFFERENT = [
    (exp(s - m), exp(m - s)),
    (log(x * x), 2.0 * log(x)),
    (sqrt(x * x), x),
    (absolute(s - m), s - m),
    (exp(s) * exp2(m), exp(s + m)),
    (maximum(s, m), s),
]


@pytest.mark.parametrize("k", range(len(EQUAL)))
def test_equal_terms(k):
    f = field()
    a, b = map(wrap, EQUAL[k])
    assert f.is_zero(subtract(f.term(a), f.term(b)))


@pytest.mark.parametrize("k", range(len(DIFFERENT)))
def test_different_terms(k):
    f = field()
    a, b = map(wrap, DIFFERENT[k])
    assert not f.is_zero(subtract(f.term(a), f.term(b)))


@pytest.mark.parametrize("cut", [False, True])
def test_terms_come_back_with_the_same_value(cut):
    """term -> expression keeps the value, in both fields."""
    rng = random.Random(0)
    for a, b in EQUAL + DIFFERENT:
        for e in (wrap(a), wrap(b)):
            f = field(cut=cut)
            back = f.expr(f.term(e))
            for _ in range(3):
                at = {}

                def leaf(n, at=at):
                    return at.setdefault(n, rng.random() < 0.5 if n is keep else 0.2 + rng.random())

                assert FLOATS.evaluate(back, leaf) == pytest.approx(FLOATS.evaluate(e, leaf), abs=1e-9), (e, back)


def test_the_cut_field_keeps_elements_whole():
    f = field(cut=True)
    body = wrap(op("pow", x + y - m, 2.0))
    atoms = {str(a.expr) for t in (f.term(body),) for _ in t for a in f.atoms}
    assert "x[i, j] + y[i, j]" in atoms


def test_guards_of_rows():
    assert at_finite(wrap(op("eq", absolute(m), INF))) is False
    assert at_finite(wrap(op("lt", m, INF))) is True
    assert at_finite(wrap(op("isnan", m))) is False
    assert at_finite(wrap(op("lt", m, 1.0))) is None
    assert where_finite(wrap(where(op("eq", absolute(m), INF), 0.0, m))) is wrap(m)


INTERVALS = [
    (exp(s), (0.0, INF)),
    (30.0 * tanh(s / 30.0), (-30.0, 30.0)),
    (op("sigmoid", s) * 2.0 - 1.0, (-1.0, 1.0)),
    (absolute(s) + 1.0, (1.0, INF)),
    (s * s, (0.0, INF)),
    (op("pow", s, 4.0), (0.0, INF)),
    (1.0 / (1.0 + exp(s)), (0.0, 1.0)),
    (op("rsqrt", s * s + 4.0), (0.0, 0.5)),
    (where(keep, tanh(s), -INF), (-INF, 1.0)),
    (op("real", keep), (0.0, 1.0)),
    (maximum(s, 0.0), (0.0, INF)),
    (op("minimum", exp(s), 1.0), (0.0, 1.0)),
    (op("floor", tanh(s)), (-1.0, 1.0)),
    (-(s * s), (-INF, 0.0)),
    (s - s, (-INF, INF)),
]


@pytest.mark.parametrize("k", range(len(INTERVALS)))
def test_intervals(k):
    e, want = INTERVALS[k]
    assert Bounds(field()).interval(wrap(e)) == pytest.approx(want)


def test_farkas():
    """x <= m <= M bounds 2x - 2M + 1 - exp(y) by 1, and nothing bounds x - 2m."""
    f = field(("m", "M"))
    b = Bounds(f)
    b.learn(wrap(x), Ref("m"), "m")
    b.read(wrap(maximum(m, r("M"))))
    top = wrap(maximum(m, r("M")))
    bound = b.above(f.term(wrap(2.0 * x - 2.0 * E(top) + 1.0 - exp(y))))
    assert bound is not None
    assert bound.top == 1
    assert sorted((float(k), str(fact.low)) for k, _, fact in bound.used) == [(2.0, "m"), (2.0, "x[i, j]")]
    assert b.above(f.term(wrap(x - 2.0 * m))) is None
    assert b.sign(f.term(wrap(x - m))) == -1
    assert b.sign(f.term(wrap(m - x))) == 1
    assert b.sign(f.term(wrap(x - r("M")))) == 0


def test_values_that_are_known_in_part():
    known = {wrap(s): -INF, wrap(m): -INF}
    cases = [
        (exp(s - m), "nan"),
        (exp(s - 1.0), 0.0),
        (exp(s - y), 0.0),
        (exp(s) * y, 0.0),
        (y - s, INF),
        (where(keep, s, s), -INF),
        (where(keep, s, 1.0), ANY),
        (where(op("eq", absolute(m), INF), 0.0, m), 0.0),
        (maximum(s, y), FINITE),
        (y / exp(s), ANY),
        (op("lt", s, y), 1.0),
        (y, FINITE),
        (m * y, ANY),
        (0.0 * y, 0.0),
    ]
    for e, want in cases:
        got = extended(wrap(e), known)
        assert (str(got) == want) if want == "nan" else got == want, (e.e, got)


def test_precise_numbers_agree_with_floats():
    numbers, rng = precise(40), random.Random(1)
    for name in FLOATS.operators:
        if name in ("floordiv", "mod", "fmod", "xor", "bitand", "lshift", "rshift", "and", "or", "not", "select", "int",
                    "bool"):  # fmt: skip
            continue
        for _ in range(5):
            args = [rng.uniform(0.1, 3.0) for _ in range(2)]
            arity = 2 if name in ("add", "sub", "mul", "div", "maximum", "minimum", "pow", *COMPARISONS) else 1
            a = FLOATS.apply(name, *args[:arity])
            b = numbers.apply(name, *map(numbers.constant, args[:arity]))
            assert float(b) == pytest.approx(float(a), rel=1e-12), name


COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


def test_ieee_where_python_raises():
    assert FLOATS.apply("div", 1.0, 0.0) == INF
    assert math.isnan(FLOATS.apply("div", 0.0, 0.0))
    assert FLOATS.apply("pow", 0.0, -1.0) == INF
    assert FLOATS.apply("pow", -0.0, -1.0) == -INF
    assert math.isnan(FLOATS.apply("pow", -8.0, 0.5))
    assert FLOATS.apply("pow", 1e200, 2.0) == INF
    assert FLOATS.apply("log", 0.0) == -INF
    assert math.isnan(FLOATS.apply("sin", INF))


@pytest.mark.parametrize(
    ("body", "want"),
    [
        (exp(x - m), 1),
        (op("pow", x - m, 2.0), 3),
        (op("pow", x - m, 3.0), 4),
        (op("cos", x - m), 2),
        ((x * x - m * m) / (x + m), 2),
        (x * m + y, 2),
    ],
)
def test_numeric_rank(body, want):
    bounds = Draft(PROVED["denominator"]).bounds
    assert rank.refute("o", wrap(body), "j", bounds, False, "it") == want


def test_lowest_terms():
    f = field()
    reduced = rank.lowest_terms(f, f.term(wrap((x * x - m * m) / (x + m) * exp(0.5 * y))))
    assert reduced is not None
    assert f.is_zero(subtract(reduced, f.term(wrap((x - m) * exp(0.5 * y)))))
    assert rank.lowest_terms(f, f.term(wrap(1.0 / (x + m)))) is None
    assert rank.lowest_terms(f, f.term(wrap(op("cos", x - m)))) is None


def test_floats_become_exact_fractions():
    f = field()
    term = f.term(Apply("mul", (Const(0.1), Load("x", ()))))
    assert list(term.values()) == [Fraction(0.1)]
    assert f.expr(term) is apply("mul", Const(0.1), Load("x", ()))


@pytest.mark.parametrize(
    "c", [Fraction(1, 3), Fraction(0.1) * Fraction(0.3), Fraction(-5, 7), Fraction(2) ** 70 + 1, Fraction(3)]
)
def test_constants_are_exact(c):
    numbers = precise(60)
    got = numbers.evaluate(number(c), lambda e: None)
    assert got == numbers.constant(c.numerator) / c.denominator
