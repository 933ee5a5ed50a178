"""What may not be fused, or skipped, is refused with a witness, and is right all the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import flashlight
from flashlight.algebra import Refuted
from tests.processes import printed
from tests.programs import CASES, error_within_twice_eager, inputs


def column_softmax(x, w):
    return (torch.softmax(x @ w, dim=-2)).sum(-1)


def test_column_softmax_feeding_a_row_sum():
    x, w = torch.randn(300, 16), torch.randn(16, 70)
    long = torch.randn(16, 513)
    for args in ((x, w), (x, long)):
        out = flashlight.optimize(column_softmax, strict=True)(*args)
        torch.testing.assert_close(out, column_softmax(*args))
    report = flashlight.explain(column_softmax, x, long)
    assert report.launches == 2
    assert any("written to memory" in n and "test_refusals.py" in n for n in report.notes)


def absolute_deviation(x):
    return (x - x.mean(-1, keepdim=True)).abs().sum(-1)


def test_absolute_deviation_is_refuted_and_takes_two_passes():
    x = torch.randn(5, 700)
    report = flashlight.explain(absolute_deviation, x)
    refuted = [p.verdict for p in report.proofs if isinstance(p.verdict, Refuted)]
    assert refuted
    assert refuted[0].witness
    assert report.launches == 1
    torch.testing.assert_close(flashlight.optimize(absolute_deviation)(x), absolute_deviation(x))


def finite_fill(q, k, v):
    n = q.shape[-2]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    s = (q @ k.transpose(-2, -1)).masked_fill(~((j <= i - 5) | (i < 0)), -1e9)
    return torch.softmax(s, -1) @ v


def test_a_finite_fill_is_not_skipped():
    """The first five rows see nothing but the fill: they average over every key, so no tile may be skipped."""
    args = inputs("causal", 200)
    report = flashlight.explain(finite_fill, *args)
    assert any("visited" in t and "-1e+09" in t for t in report.tiles), report.tiles
    ok, ours, eager = error_within_twice_eager(finite_fill, args, flashlight.optimize(finite_fill)(*args))
    assert ok, (ours, eager)


def test_a_changed_certificate_is_rejected():
    from flashlight.algebra.check import check
    from flashlight.expr import Const, apply

    report = flashlight.explain(CASES["causal"].fn, *inputs("causal", 40))
    proved = next(p.verdict.certificate for p in report.proofs if hasattr(p.verdict, "certificate"))
    assert check(proved) == ()
    link = proved.links[-1]
    wrong = dataclasses.replace(link, value=apply("mul", link.value, Const(2.0)))
    assert check(dataclasses.replace(proved, links=(*proved.links[:-1], wrong)))
    slot = next(s for s in proved.slots if s.gauges)
    name, row = slot.row[0]
    wrong_slot = dataclasses.replace(slot, row=((name, apply("mul", row, Const(2.0))),))
    assert check(dataclasses.replace(proved, slots=tuple(wrong_slot if s is slot else s for s in proved.slots)))


@pytest.mark.parametrize("name", ["causal", "layer_norm"])
def test_two_processes_emit_the_same_text(name):
    code = (
        "import flashlight; from tests.programs import CASES, inputs;"
        f"r = flashlight.explain(CASES[{name!r}].fn, *inputs({name!r}, 33));"
        "print(r.kernels['cpu'].source, r.kernels['triton'].source, r.program, r.schedule, *r.tiles)"
    )
    (out,) = printed(code)
    assert "@triton.jit" in out
