"""What the cupy backend says where it cannot run: one sentence each, and everything else works."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flashlight
from flashlight._conformance import CASES, attention
from flashlight.backend import Target
from flashlight.backends.cupy import CupyBackend
from flashlight.errors import BackendUnavailable
from tests.programs import causal

CUPY, HOPPER = CupyBackend(), Target("cuda", 90, 132, 232448)
RUNTIME = """
def driverGetVersion(): return {driver}
def runtimeGetVersion(): return {wanted}
def getDeviceCount(): {count}
"""


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, runtime: str) -> None:
    """A package called cupy whose CUDA runtime is this text."""
    (folder / "cupy").mkdir()
    (folder / "cupy" / "__init__.py").touch()
    inner = folder / "cupy_backends" / "cuda" / "api"
    inner.mkdir(parents=True)
    for package in (inner, inner.parent, inner.parent.parent):
        (package / "__init__.py").touch()
    (inner / "runtime.py").write_text(runtime)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("cupy", "cupy_backends")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for name in [n for n in sys.modules if n.partition(".")[0] in ("cupy", "cupy_backends")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("runtime", "sentence"),
    [
        (RUNTIME.format(driver=0, wanted=13000, count="return 0"), "there is no CUDA driver here"),
        (
            RUNTIME.format(driver=12040, wanted=13020, count="return 1"),
            "the CUDA driver here is for CUDA 12.4, and CuPy was built for CUDA 13.2: update the driver, or install "
            "cupy-cuda12x",
        ),
        (RUNTIME.format(driver=13000, wanted=13020, count="return 0"), "there is no CUDA device here"),
        (
            RUNTIME.format(driver=13000, wanted=13020, count="raise RuntimeError('no\\n  device')"),
            "CuPy finds no CUDA device here: no device",
        ),
        ("raise ImportError('libcudart.so.13: cannot open')", "CuPy is installed but does not load here: libcudart.so"),
    ],
)
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str, sentence: str) -> None:
    install(monkeypatch, tmp_path, runtime)
    declined = CUPY.supports(HOPPER)
    assert declined is not None
    assert declined.reason.startswith(sentence)
    assert "\n" not in declined.reason


def test_a_device_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, RUNTIME.format(driver=13000, wanted=13020, count="return 1"))
    assert CUPY.supports(HOPPER) is None


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    declined = CUPY.supports(HOPPER)
    assert declined is not None
    assert "needs the package CuPy, which is not installed (pip install cupy-cuda13x)" in declined.reason


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (Target("cpu"), "the cupy backend runs on CUDA tensors, not on cpu"),
        (Target("cuda", 75), "the cupy backend needs compute capability 8.0 or later, not 7.5"),
    ],
)
def test_other_targets(target: Target, sentence: str) -> None:
    for kernel in (None, CASES[0].kernel):
        declined = CUPY.supports(target, kernel)
        assert declined is not None
        assert declined.reason == sentence


def test_kernels_that_do_not_fit() -> None:
    def reason(kernel, target=HOPPER):
        declined = CUPY.supports(target, kernel)
        return declined.reason if declined else ""

    assert reason(CASES[0].kernel) == ""
    assert "q_tile[i, d] has 131072 elements" in reason(attention(row=1024, depth=128))
    small = replace(HOPPER, shared_bytes=16 << 10)
    assert "a thread block has 16384" in reason(attention(row=64, stream=64, depth=64), small)
    kernel = attention()
    odd = replace(kernel, inputs=(replace(kernel.inputs[0], dtype="complex64"), *kernel.inputs[1:]))
    assert "the cupy backend has no complex64 (q)" in reason(odd)


def test_a_call_says_why_and_the_text_is_there_all_the_same() -> None:
    args = tuple(torch.randn(1, 2, 9, 16) for _ in range(3))
    with pytest.raises(
        BackendUnavailable, match=r"^backend 'cupy': the cupy backend runs on CUDA tensors, not on cpu$"
    ):
        flashlight.optimize(causal, backend="cupy")(*args)
    report = flashlight.explain(causal, *args)
    text = report.kernels["cupy"].source
    assert "// One thread block for each of" in text
    assert "mma" not in text  # instructions are the headers' business
    assert text == flashlight.explain(causal, *args, backend="cupy").kernels["cupy"].source
