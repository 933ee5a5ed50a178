"""Every variant of the catalogue: right values, Triton text, kernels, passes and refusals as its table says; and its
page is up to date."""

from __future__ import annotations

import itertools
import re
import warnings

import pytest

from docs import generate_variants
from tests.variants import VARIANTS
from tests.variants.outcome import outcome


def marked():
    """Variants as parameters; what is known to fail has to fail, so that the table is told when it does not."""

    def marks(v):
        return [pytest.mark.xfail(strict=True, reason=v.fails)] * bool(v.fails) + [pytest.mark.slow] * v.slow

    return [pytest.param(v, marks=marks(v), id=v.key) for v in VARIANTS.values()]


def agrees(reason, mark):
    """Both are there, and the reason has the words of the mark; or neither is."""
    return mark in reason and bool(mark) == bool(reason)


@pytest.mark.parametrize("v", marked())
def test_what_becomes_of_it(v):
    with warnings.catch_warnings():
        if not v.unfused:
            warnings.simplefilter("error", UserWarning)
        o = outcome(v)
    assert not o.wrong
    assert (o.kernels, o.passes) == (v.kernels, v.passes), "tell the table"
    assert any(map(agrees, o.reasons or ("",), itertools.repeat(v.unfused))), o.reasons
    assert agrees(o.declined, v.declined), o.declined


def test_the_catalogue_is_whole():
    assert {v.number for v in VARIANTS.values()} == {*range(93)}


def test_the_page_is_up_to_date():
    text = generate_variants.PAGE.read_text()
    assert generate_variants.again(text) == text, "run docs/generate_variants.py"
    assert not re.search(r"not measured|\*\*wrong", text), "run docs/generate_variants.py"
