"""Two passes through Triton's interpreter: wide values after the statistics of their weights."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from tests.end_to_end.test_statistics_first import PROGRAMS, empty_rows, inputs, right

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton_interpreter.test_in_the_interpreter"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_values(program, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, at infinities
        right(program, inputs(130, dtype), "triton")


def test_rows_without_live_points():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        right(empty_rows, inputs(257), "triton")
