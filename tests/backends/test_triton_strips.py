"""Contractions in strips in Triton's interpreter: a loop within a loop."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight import runtime
from tests.end_to_end.test_long_contractions import PROGRAMS, agrees, arguments, attention, causal, heads

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton_interpreter.test_in_the_interpreter"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda f: f.__name__)
def test_agrees(fn, dtype):
    fast = flashlight.optimize(fn, backend="triton", strict=True)
    agrees(fn, arguments(70, 150, 640, dtype), fast)
    assert "contracted 64 at a time" in str(fast.explain(*arguments(70, 150, 640, dtype)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", [attention, causal], ids=lambda f: f.__name__)
def test_values_beside_it(fn, dtype):
    agrees(fn, heads(130, 640, dtype), flashlight.optimize(fn, backend="triton", strict=True))


@pytest.mark.parametrize("fn", PROGRAMS[:3], ids=lambda f: f.__name__)
def test_in_parts(fn, monkeypatch):
    """Few rows: each part of the streamed axis contracts in strips, too."""
    detect = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(detect(device, name), processors=132))
    agrees(fn, arguments(3, 600, 640, torch.float32), flashlight.optimize(fn, backend="triton", strict=True))
