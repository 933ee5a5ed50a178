"""What is proved, in which form; what is refused, and whether the witness is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from flashlight.algebra import Cascade, Proved, Refuted, Stage, Unknown
from flashlight.algebra.arithmetic import precise
from flashlight.algebra.certificate_json import exponentials
from flashlight.algebra.check import check
from flashlight.algebra.derive import decide
from flashlight.expr import Apply, Const, Expr, Index, Load, Ref, apply, children, kind, refs, walk
from tests.flashlight.algebra.catalogue import PROVED, REFUTED, UNKNOWN

ROOT = Path(__file__).resolve().parents[3]

# cascade -> the last stage's separation rank and form
FORMS = {
    "divided inside": (1, "rescaled"),
    "through guarded logsumexp": (1, "rescaled"),
    "no maximum": (1, "late"),
    "sink in the maximum": (1, "rescaled"),
    "entropy": (2, "rescaled+centred"),
    "cross entropy, gathered": (2, "late"),
    "weighted mean and variance": (3, "rescaled+centred"),
    "dQ in the row sum D": (2, "rescaled+centred"),
    "dQ with saved statistics": (1, "direct"),
    "differential, one product": (2, "rescaled"),
    "differential, two sums": (1, "rescaled"),
    "difference of exponentials": (1, "rescaled+late"),
    "variance": (3, "centred"),
    "third central moment": (4, "centred"),
    "covariance": (4, "centred"),
    "layer norm, product": (3, "centred+late"),
    "layer norm, product, no bias": (2, "centred"),
    "rms norm, product": (1, "late"),
    "l2 norm, scaled": (1, "scaled"),
    "power mean": (1, "scaled"),
    "distance to the maximum": (2, "late"),
    "max of terms of unknown sign": (1, "late"),
    "sigmoid attention": (1, "direct"),
    "relu attention": (1, "late"),
}
# cascade -> the gauges that outputs do not notice
FREE = {
    "divided inside": {"m"},
    "denominator": set(),
    "logsumexp": {"m"},
    "entropy": {"m"},
    "off by one, true": {"m"},
    "off by one": set(),
    "differential, one product": {"m1", "m2"},
    "weighted mean and variance": {"m"},
    "l2 norm, scaled": {"m"},
    "power mean": {"m"},
    "variance": set(),
    "max of scaled terms": set(),
}


def proved(name: str):
    verdict = decide(PROVED[name])
    assert isinstance(verdict, Proved), verdict
    return verdict.certificate


@pytest.mark.parametrize("name", PROVED)
def test_a_certificate_is_found_and_is_right(name):
    assert check(proved(name)) == ()


@pytest.mark.parametrize("name", FORMS)
def test_rank_and_form(name):
    link = proved(name).links[-1]
    assert (link.rank, link.form) == FORMS[name]


@pytest.mark.parametrize("name", FREE)
def test_gauges_that_need_not_be_exact(name):
    assert {g.name for g in proved(name).gauges if not g.exact} == FREE[name]


SLOTS = {
    "divided inside": "m' l' o'",
    "entropy": "m' l' h'",
    "variance": "S' n' V' V.1",
    "weighted mean and variance": "m' l' mean' V' V.1",
    "dQ in the row sum D": "m' l' D' dq' dq.1",
    "max of probabilities": "m' l'",
    "layer norm, product, no bias": "S' n' V' V.1 o' o.1",
}


@pytest.mark.parametrize("name", SLOTS)
def test_stages_share_slots(name):
    cert = proved(name)
    assert " ".join(s.name for s in cert.slots) == SLOTS[name]
    assert len({(s.monoid, s.body) for s in cert.slots}) == len(cert.slots)


@pytest.mark.parametrize(
    "name", ["divided inside", "causal", "soft cap", "through logsumexp", "differential, one product"]
)
def test_elements_come_back_as_they_were_written(name):
    """No subtree of elements is expanded or reordered: every load's parent in a slot is one in the program."""
    cascade, cert = PROVED[name], proved(name)
    written = {e for s in cascade.stages for e in walk(s.body)}
    for s in cert.slots:
        for e in walk(s.body):
            if not refs(e) and "exp" not in str(e):
                assert e in written, e


@pytest.mark.parametrize("name", PROVED)
def test_exponents_are_differences(name):
    """Never exp(a) * exp(-b), never one long sum: a bounded exponent is a sum of k * (low - high)."""
    for s in proved(name).slots:
        for proof, e in zip(s.bound, exponentials(s.body), strict=True):
            inside = [n for n in walk(e) if isinstance(n, Apply) and n.op == "sub"]
            assert not proof or any("g:" in r for n in inside for r in refs(n)), e


@pytest.mark.parametrize("name", REFUTED)
def test_refusals_have_a_witness(name):
    verdict = decide(REFUTED[name])
    assert isinstance(verdict, Refuted), verdict
    assert verdict.stage == REFUTED[name].stages[-1].name
    assert any(law in verdict.reason for law in ("no sum of 8 products", "none may be dropped"))
    substitute_witness(REFUTED[name], verdict)


def substitute_witness(cascade: Cascade, verdict: Refuted) -> None:
    """Read the numbers off the text as a person would, and see that they do what is said of them."""
    body = next(s.body for s in cascade.stages if s.name == verdict.stage)
    points, claim = verdict.witness.rsplit(": ", 1)
    leaves = {str(e): e for e in walk(body) if isinstance(e, Load | Ref) or not children(e)}
    values: dict[Expr, list[Fraction]] = {}
    for part in points.split("; "):
        text, numbers = part.rsplit(" = ", 1)
        values[leaves[text]] = [Fraction(v) for v in numbers.split(", ")]
    size = max(map(len, values.values()))
    numbers = precise(100)
    axis = cascade.axis

    def at(i: int, j: int):
        def leaf(e: Expr):
            own = values[e]
            v = own[0] if len(own) == 1 else own[i] if f"{axis}" in re.findall(r"\w+", str(e)) else own[j]
            return bool(v) if kind(e) == "bool" else numbers.constant(v.numerator) / v.denominator

        return numbers.evaluate(body, leaf)

    matrix = [[at(i, j) for j in range(size)] for i in range(size)]
    if size == 2:
        assert (matrix[0][0] - matrix[1][0]) * (matrix[0][1] - matrix[1][1]) < 0
        return
    stated = float(re.search(r"is (\S+) and not 0", claim)[1])
    found = determinant(matrix)
    assert abs(found / numbers.constant(stated) - 1) < 1e-2 or abs(found) < 1e-300


def determinant(a):
    a, out = [row[:] for row in a], 1
    for k in range(len(a)):
        p = max(range(k, len(a)), key=lambda i: abs(a[i][k]))
        if p != k:
            a[k], a[p], out = a[p], a[k], -out
        out = out * a[k][k]
        for i in range(k + 1, len(a)):
            ratio = a[i][k] / a[k][k]
            a[i] = [x - ratio * y for x, y in zip(a[i], a[k], strict=True)]
    return out


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_says_why(name):
    verdict = decide(UNKNOWN[name])
    assert isinstance(verdict, Unknown), verdict
    assert verdict.reason


@pytest.mark.parametrize("monoid", ["scan", "argmax"])
def test_other_monoids_are_refused(monoid):
    x = Load("x", (), "real")
    assert isinstance(decide(Cascade("j", Const(8), (Stage("a", monoid, x),))), Unknown)


def test_an_empty_cascade_and_stages_out_of_order():
    assert isinstance(decide(Cascade("j", Const(8), ())), Proved)
    ahead = Cascade("j", Const(8), (Stage("a", "sum", Ref("b")), Stage("b", "sum", Const(1.0))))
    assert isinstance(decide(ahead), Unknown)


def test_what_is_too_large_is_not_known():
    x, body = Index("j"), Const(1.0)
    for k in range(12):
        body = apply(
            "mul",
            body,
            apply("add", apply("mul", Load(f"x{k}", (x,)), Ref("m")), apply("sub", Ref("m"), Load(f"y{k}", (x,)))),
        )
    verdict = decide(Cascade("j", Const(8), (Stage("m", "sum", Load("x", (x,))), Stage("o", "sum", body))))
    assert isinstance(verdict, Unknown)
    assert "too large" in verdict.reason


def run(code: str, seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_certificates_do_not_depend_on_hash_seeds():
    code = (
        "from tests.flashlight.algebra.catalogue import PROVED, REFUTED, UNKNOWN\n"
        "from flashlight.algebra.derive import decide\n"
        "for c in (*PROVED.values(), *REFUTED.values(), *UNKNOWN.values()):\n"
        "    v = decide(c)\n"
        "    print(repr(v))\n"
    )
    texts = {run(code, seed) for seed in ("0", "1", "42")}
    assert len(texts) == 1


def test_sympy_and_mpmath_stay_off_the_common_path():
    code = (
        "import sys\n"
        "from tests.flashlight.algebra.catalogue import PROVED\n"
        "from flashlight.algebra.derive import decide\n"
        "for name, c in PROVED.items():\n"
        "    if name != 'common factor':\n"
        "        decide(c)\n"
        "print([m for m in ('sympy', 'mpmath', 'torch', 'numpy') if m in sys.modules])\n"
    )
    assert run(code, "0").strip() == "[]"
