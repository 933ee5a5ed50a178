"""Whole calls through Triton's interpreter: kernels that read what others of the same call have found out or begun."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight import runtime
from flashlight.testing import assert_close
from tests.end_to_end import test_loaded_masks as loaded
from tests.end_to_end import test_statistics_first as first
from tests.end_to_end.test_parts import decode, gated_product, norm_args, parts, pieces, variance_product
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "program", [first.layer_norm_product, variance_product, gated_product], ids=lambda p: p.__name__
)
def test_passes_one_by_one(program, dtype, many_processors):
    fast = flashlight.optimize(program, backend="triton", strict=True)
    for rows, width in ((3, 1100), (70, 600)):
        args = norm_args(rows, width, dtype)
        assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    statistics, product = pieces(fast)
    assert len(product.divided) == 2
    assert not statistics.divided  # a row is read by one program in long stretches


def first_row_empty(q, k, v, lam):
    s = first.scores(q, k)
    live = torch.arange(s.shape[-1]) < 300 * torch.arange(s.shape[-2])[:, None]
    p = torch.softmax(s.masked_fill(~live, -first.INF), -1)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


@pytest.mark.parametrize("program", [first.of_weights, first_row_empty], ids=lambda p: p.__name__)
def test_wide_heads_pass_by_pass(program, many_processors):
    args = first.inputs(530, rows=3)
    fast = flashlight.optimize(program, backend="triton", strict=True)
    out = fast(*args)
    assert_close(out, program(*(x.double() for x in args)), program(*args))
    assert bool(out[:, :, 0].isnan().all()) == (program is first_row_empty)
    assert [len(p.divided) for p in pieces(fast)] == [2, 2]
