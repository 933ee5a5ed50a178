"""Whole calls through Triton's interpreter: kernels that read what others of the same call have found out or begun."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight import runtime
from tests.end_to_end import test_loaded_masks as loaded
from tests.end_to_end.test_parts import decode, parts
from tests.programs import CASES, error_within_twice_eager, inputs

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton_interpreter.test_in_the_interpreter"
)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, at infinities
        yield


@pytest.fixture
def many_processors(monkeypatch):
    detect = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(detect(device, name), processors=1000))


@pytest.mark.parametrize(
    "program", [loaded.document_and_causal, loaded.lengths, loaded.blocks], ids=lambda p: p.__name__
)
def test_masks_over_loaded_values(program):
    args = loaded.inputs(200, heads=1)
    out = flashlight.optimize(program, backend="triton", strict=True)(*args)
    ok, ours, eager = error_within_twice_eager(program, args, out)
    assert ok, (ours, eager)


@pytest.mark.parametrize("name", ["soft_cap", "dense_bias"])
def test_parts(name, many_processors):
    args = inputs(name, 3, 520)
    fast = flashlight.optimize(CASES[name].fn, backend="triton", strict=True)
    ok, ours, eager = error_within_twice_eager(CASES[name].fn, args, fast(*args))
    assert ok, (ours, eager)
    assert parts(fast) > 1


def test_one_query_with_grouped_keys(many_processors):
    q, (k, v) = torch.randn(1, 8, 1, 32), torch.randn(2, 1, 2, 600, 32).unbind()
    fast = flashlight.optimize(decode, backend="triton", strict=True)
    ok, ours, eager = error_within_twice_eager(decode, (q, k, v), fast(q, k, v))
    assert ok, (ours, eager)
    assert parts(fast) > 1
