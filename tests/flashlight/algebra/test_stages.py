"""Running values, places in an order, constants for a maximum, and several states at once."""

from __future__ import annotations

import math
import random

import pytest

from flashlight.algebra import Certificate, Proved, Unknown
from flashlight.algebra.arithmetic import precise
from flashlight.algebra.check import check
from flashlight.algebra.derive import decide
from flashlight.algebra.room import anchored
from flashlight.algebra.scans import with_actions
from flashlight.expr import kind
from tests.flashlight.algebra.data import WAYS, program, same, streamed, values
from tests.flashlight.algebra.mutate import mutants
from tests.flashlight.algebra.stages import BOUNDED, LOOPS, PLACES, PRODUCTS, REFUSED, SCANS, UNBOUNDED
from tests.flashlight.algebra.test_mutations import SAME

DIGITS = precise(60)
CASCADES = {**SCANS, **LOOPS, **PLACES, **PRODUCTS, **{name: c for name, (c, _, _) in BOUNDED.items()}}


def proved(name: str) -> Certificate:
    """As it may be merged, where it can be."""
    verdict = decide(CASCADES[name])
    assert isinstance(verdict, Proved), verdict
    cert = with_actions(verdict.certificate)
    return cert if isinstance(cert, Certificate) else verdict.certificate


def numbers(name: str, n: int, seed: int, few: bool = False) -> dict:
    """Leaves at 60 digits.  ``few``: scores are often equal, and some are infinitely far down."""
    v, rng = values(CASCADES[name], n, seed, 1.0), random.Random(seed)
    for e, x in v.items():
        if isinstance(x, list) and kind(e) == "real":
            v[e] = [
                DIGITS.constant(rng.choice((-math.inf, 0.0, 1.0, 1.0, 2.0)) if few and str(e)[0] == "s" else t)
                for t in x
            ]
        elif kind(e) == "real":
            v[e] = DIGITS.constant(x)
    return v


def compare(name: str, cert: Certificate, v: dict, how: str, seed: int, leave: tuple[str, ...] = ()) -> None:
    rng, n = random.Random(seed), len(next(x for x in v.values() if isinstance(x, list)))
    cuts = [rng.randrange(n) for _ in range(rng.randrange(7))]
    want, got = program(CASCADES[name], v, DIGITS), streamed(cert, v, cuts, how, DIGITS, seed)
    assert {k: (want[k], got[k]) for k in want if k not in leave and not same(want[k], got[k], 1e-40)} == {}


@pytest.mark.parametrize("name", CASCADES)
def test_a_certificate_is_found_and_is_right(name):
    verdict = decide(CASCADES[name])
    assert isinstance(verdict, Proved), verdict
    assert check(verdict.certificate) == ()
    assert check(proved(name)) == ()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", CASCADES)
def test_streaming_equals_the_program(name, how):
    """On random partitions of the axis, at 60 digits."""
    for seed in range(4 if name not in LOOPS or how == "loop" else 0):
        compare(name, proved(name), numbers(name, 21, seed), how, seed)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", PLACES)
def test_equal_keys(name, how):
    for seed in range(12 if name != "most likely value" else 0):
        compare(name, proved(name), numbers(name, 11, seed, few=True), how, seed)


def test_places_are_those_of_torch():
    import torch

    rows = [[1.0, 3.0, 3.0, 2.0], [math.nan, 1.0, math.nan, 0.0], [-math.inf] * 4, [2.0, -math.inf, 5.0, math.nan]]
    v = values(PLACES["argmax"], 4)
    for row in rows:
        for name, f in (("argmax", torch.argmax), ("argmin of what is kept", torch.argmin)):
            every = {e: row if kind(e) == "real" else x for e, x in values(PLACES[name], 4).items()}
            every |= {e: [True] * 4 for e in every if kind(e) == "bool"}
            want = float(f(torch.tensor(row)))
            assert program(PLACES[name], every)["a"] == want
            for how in WAYS:
                assert streamed(proved(name), every, [1, 3], how)["a"] == want, (row, how)
    assert len(v) == 2


@pytest.mark.parametrize("name", SCANS)
def test_the_order_and_the_action_of_a_scan(name):
    cert = proved(name)
    reverse = next(s.scan for s in SCANS[name].stages if s.scan).reverse
    assert cert.order == ("backward" if reverse else "forward")
    assert not any(s.action for s in decide(SCANS[name]).certificate.slots), "a loop needs none"


ACTIONS = {
    "running sum": {"o'": ["o'", "o.1", "o.2"], "o.1": ["o.1", "o.2"]},
    "stick breaking": {"o'": ["o'"]},
    "forgetting, from the end": {"m'": ["m'"], "l'": ["l'"], "o'": ["o'"]},
}


@pytest.mark.parametrize("name", ACTIONS)
def test_what_an_action_takes_from(name):
    found = {s.name: sorted(k for k, _ in s.action) for s in proved(name).slots if s.action}
    assert found == ACTIONS[name]


@pytest.mark.parametrize("name", LOOPS)
def test_what_does_not_separate_is_not_merged(name):
    verdict = with_actions(decide(LOOPS[name]).certificate)
    assert isinstance(verdict, Unknown)
    assert "does not separate in what precedes its part" in verdict.reason


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    c, why = REFUSED[name]
    verdict = decide(c)
    assert not isinstance(verdict, Proved)
    assert verdict.reason
    assert why in verdict.reason


# ---- constants in the place of a maximum -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_scores_need_no_maximum(name):
    cascade, middle, reach = BOUNDED[name]
    cert = decide(cascade).certificate
    (gauge,) = [g for g in cert.gauges if g.name == "m"]
    assert (gauge.constant, gauge.reach) == (pytest.approx(middle), pytest.approx(reach))
    there = anchored(cert, "bfloat16")
    assert check(there) == ()
    assert not any(g.name == "m" for g in there.gauges)
    assert not any(s.monoid == "max" for s in there.slots)
    assert len(there.slots) == len(cert.slots) - 1
    outputs = [k.stage for k in there.links if k.form != "constant"]
    for seed, how in enumerate(WAYS):
        v = numbers(name, 17, seed)
        v |= {e: [DIGITS.constant(math.tanh(float(t))) for t in x] for e, x in v.items() if "sqrt" in str(e)}
        compare(name, there, v, how, seed, leave=tuple(v for v in program(cascade, v, DIGITS) if v not in ("o", "V")))
    assert outputs


@pytest.mark.parametrize("name", UNBOUNDED)
def test_others_keep_it(name):
    assert [g.constant for g in decide(UNBOUNDED[name]).certificate.gauges] == [None]


def test_a_constant_needs_room():
    """float16 holds exp(9.7): a soft cap at 30 keeps its maximum there."""
    cert = decide(BOUNDED["soft cap"][0]).certificate
    assert anchored(cert, "float16") is cert
    assert anchored(cert, "bfloat16") is not cert
    assert anchored(decide(BOUNDED["sigmoid"][0]).certificate, "float16").gauges == ()


# ---- mutations -------------------------------------------------------------------------------------------------------
# Changes that leave the meaning alone, beside those of ``test_mutations``.
ALSO = {
    "scan inclusive": "it is right for that program too: running values are read as they come",
    "action entry dropped": "a certificate for a loop",
}
ORDERED = (*PLACES, "softmax, argmax and variance")
ALSO_EXPRESSIONS = {
    **{(name, "row entry doubled"): "a choice between nothing and all is its own double" for name in ORDERED},
    ("soft cap", "restore dropped"): "the maximum of what is capped is never -inf",
    ("sigmoid", "restore dropped"): "a sigmoid is never -inf",
    ("decay to the end", "restore dropped"): "a gauge that is empty before the first element only",
    ("weighted variance", "restore dropped"): "NaN by itself: l is, and is read",
    ("forgetting, from the start", "link value: reference"): "0 * C is infinite where F is",
    ("forgetting, from the start", "link value: add -> sub"): "0 * F",
    ("decay to the end", "slot body: constant + 1"): "was there any: 2 is as good as 1",
    ("decay to the end", "slot body: constant negated"): "was there any: -n is as good as n",
    ("decay to the end", "slot monoid"): "was there any: max 1 is as good as sum 1",
    ("argmin of what is kept", "slot body: constant negated"): "isnan of one infinity or the other",
    ("argmin of what is kept", "link value: reference"): "the least of what is kept is infinite where nothing is",
    ("most likely value", "row: g <-> h"): "with NaN among the scores every probability is NaN",
    ("weighted variance", "gauge value: constant + 1"): "any reference will do for nothing",
    ("weighted variance", "gauge value: reference"): "any reference will do for nothing",
}


def attempt(name: str, cert: Certificate) -> None:
    for what, mutant in mutants(cert):
        if not check(mutant):
            known = what in SAME or what in ALSO or (name, what) in ALSO_EXPRESSIONS
            assert known, (name, what, str(cert), str(mutant))
            if what not in ALSO:
                assert means_the_same(name, cert, mutant), (name, what, str(cert), str(mutant))


def means_the_same(name: str, cert: Certificate, other: Certificate) -> bool:
    for seed, how in ((1, "loop"), (2, "loop"), (3, "tree")) if name not in LOOPS else ((1, "loop"),):
        v = numbers(name, 9, seed)
        a, b = streamed(cert, v, [2, 5], how, DIGITS), streamed(other, v, [2, 5], how, DIGITS)
        if not all(same(a[k], b[k], 1e-40) for k in a):
            return False
    return True


@pytest.mark.parametrize("name", [n for n in CASCADES if n != "two largest"])
def test_changed_certificates_are_rejected(name):
    attempt(name, proved(name))


@pytest.mark.slow
def test_changed_certificates_of_places_are_rejected():
    attempt("two largest", proved("two largest"))


@pytest.mark.parametrize("name", BOUNDED)
def test_changed_constants_are_rejected(name):
    attempt(name, anchored(decide(BOUNDED[name][0]).certificate, "bfloat16"))
