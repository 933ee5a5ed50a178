"""Random cascades: sums built of known rank must be found; whatever is proved must be right."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashlight.algebra import Proved
from flashlight.algebra.check import check
from flashlight.algebra.derive import decide
from tests.flashlight.algebra.catalogue import (
    E,
    absolute,
    cascade,
    causal,
    exp,
    exp2,
    keep,
    log,
    maximum,
    op,
    qk,
    r,
    s,
    sink,
    soft,
    sqrt,
    tanh,
    tau,
    where,
    x,
    y,
)
from tests.flashlight.algebra.data import WAYS, masked, program, same, streamed, values

m, total, q = r("m"), r("l"), r("q")
stable = settings(max_examples=25, deadline=None, derandomize=True)

elements = st.sampled_from(
    [
        x,
        y,
        x * x,
        tanh(y),
        E(1.0),
        x - y,
        maximum(x, 0.0),
        where(keep, x, 0.0),
        op("real", keep),
        qk * 0.125,
        absolute(y),
    ]
)
results = st.sampled_from(
    [q, 1.0 / total, log(total), E(1.0), q * q, q - 1.0, 1.0 / (1.0 + q * q), sqrt(1.0 + total), tau, maximum(q, sink)]
)
weights = st.sampled_from(
    [
        E(1.0),
        exp(s - m),
        exp(2.0 * s - 2.0 * m),
        exp(0.5 * (s - m)),
        exp(s - (m + log(total))),
        exp2((s - m) * 1.5),
        where(causal, exp(s - m), 0.0),
        exp(where(keep, s - m, -float("inf"))),
    ]
)
products = st.tuples(st.integers(1, 5), elements, elements, results, results, weights)


def term(parts) -> E:
    out = None
    for c, a, b, h, k, w in parts:
        product = float(c) * a * b * h * k * w
        out = product if out is None else out + product
    return out


@stable
@given(st.lists(products, min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_sums_of_products_are_proved(parts, centred, seed):
    body = term(parts)
    if centred:
        body = body * (y - r("q"))
    c = cascade(*soft(s), ("q", "sum", exp(s - m) * y / total), ("o", "sum", body), out=r("o"))
    verdict = decide(c)
    assert isinstance(verdict, Proved), verdict
    assert check(verdict.certificate) == ()
    v = values(c, 32, seed, 1.0)
    rng = random.Random(seed)
    for how in WAYS:
        want, got = (
            program(c, v),
            streamed(verdict.certificate, v, [rng.randrange(32) for _ in range(4)], how, seed=seed),
        )
        assert all(same(want[k], got[k], 1e-6) for k in want), (want, got)
    hidden = masked(c, v, lambda j: j < 8)
    for how in WAYS:
        want, got = program(c, hidden), streamed(verdict.certificate, hidden, [8, 16], how)
        assert all(same(want[k], got[k], 1e-6) for k in want), (want, got)


leaves = st.sampled_from([x, y, s, m, total, q, tau, E(2.0), E(-0.5)])


def grow(children):
    unary = st.tuples(st.sampled_from(["exp", "neg", "tanh", "abs", "sigmoid", "sqrt", "log"]), children)
    binary = st.tuples(st.sampled_from(["add", "sub", "mul", "div", "maximum"]), children, children)
    choice = st.tuples(children, children).map(lambda ab: where(keep, *ab))
    return unary.map(lambda t: op(*t)) | binary.map(lambda t: op(*t)) | choice


@settings(stable, max_examples=60)
@given(st.recursive(leaves, grow, max_leaves=7), st.sampled_from(["sum", "max", "min"]), st.integers(0, 99))
def test_whatever_is_proved_is_right(body, monoid, seed):
    c = cascade(*soft(s), ("q", "sum", exp(s - m) * y / total), ("o", monoid, body), out=r("o"))
    verdict = decide(c)
    if isinstance(verdict, Proved):
        assert check(verdict.certificate) == ()
        for k in range(3):
            v = values(c, 16, seed + k, 0.7)
            want = program(c, v)
            for how in WAYS:
                got = streamed(verdict.certificate, v, [3, 4, 9], how)
                finite = [k for k in want if abs(want[k]) < 1e6]
                assert all(same(want[k], got[k], 1e-6) for k in finite), (want, got, str(verdict.certificate))


@pytest.mark.slow
@settings(stable, max_examples=400)
@given(st.recursive(leaves, grow, max_leaves=10), st.sampled_from(["sum", "max", "min", "prod"]), st.integers(0, 99))
def test_whatever_is_proved_is_right_at_length(body, monoid, seed):
    test_whatever_is_proved_is_right.hypothesis.inner_test(body, monoid, seed)
