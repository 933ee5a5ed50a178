from __future__ import annotations

import unittest
from dataclasses import replace

import pytest
import torch

from flashlight.backend import Source, Target
from flashlight.backends.cpu import CpuBackend
from flashlight.testing import CASES, Check, assert_close, conformance, run_case, tolerance
from flashlight.tile import Kernel


@pytest.mark.parametrize("check", conformance("cpu"), ids=str)
def test_conformance(check: Check) -> None:
    check()


class Wrong(CpuBackend):
    """A backend whose text was tampered with."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def emit(self, kernel: Kernel, target: Target) -> Source:
        source = super().emit(kernel, target)
        assert self.old in source.text
        return replace(source, text=source.text.replace(self.old, self.new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("causal", "j > i[:, None]", "j >= i[:, None]"),
        ("full", "alpha=0.25", "alpha=0.2500003"),
        ("logsumexp_nan", ".amax(-1)", ".nan_to_num(0.0).amax(-1)"),
        ("layer_norm", "trips(M // 16", "trips(1 + M // 16"),
        ("matmul", "spans(C, f_step)", "spans(C - 1, f_step)"),
    ],
)
def test_the_suite_notices(name: str, old: str, new: str) -> None:
    case = next(c for c in CASES if c.name == name)
    with pytest.raises(AssertionError, match=name):
        run_case(case, Wrong(old, new), Target())


def test_declined_kernels_are_skipped() -> None:
    with pytest.raises(unittest.SkipTest, match="cuda"):
        run_case(CASES[0], CpuBackend(), Target("cuda"))


def test_tolerance_is_twice_eagers_error() -> None:
    reference = torch.tensor([1.0, -2.0, float("inf")], dtype=torch.float64)
    eager = torch.tensor([1.001, -2.0, float("inf")])
    assert tolerance(reference, eager) == pytest.approx(0.002, rel=1e-3)
    assert_close(torch.tensor([1.0019, -2.0, float("inf")]), reference, eager)
    for wrong in ([1.0021, -2.0, float("inf")], [1.0, -2.0, 5.0], [float("nan"), -2.0, float("inf")]):
        with pytest.raises(AssertionError):
            assert_close(torch.tensor(wrong), reference, eager)
