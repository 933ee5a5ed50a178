"""The triton backend's text run by Triton's interpreter, on CPU tensors.

The interpreter is chosen when triton is imported, so the tests run in a process of their own.  To look at one:
``TRITON_INTERPRET=1 pytest tests/backends/test_triton_interpreter.py -k causal``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flashlight
from flashlight._conformance import attention
from flashlight.backend import Source, Target
from flashlight.backends.cpu import CpuBackend
from flashlight.backends.triton import TritonBackend
from flashlight.backends.triton.compile import load
from flashlight.testing import CASES, Case, assert_close, run_case
from flashlight.tile import Kernel
from tests import programs

pytest.importorskip("triton")
INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INSIDE, reason="run by test_in_the_interpreter")
TRITON, HERE = TritonBackend(), Target("cpu", interpret=True)


@pytest.mark.skipif(INSIDE, reason="this is the interpreter's process")
def test_in_the_interpreter() -> None:
    here = Path(__file__).resolve()
    files = [
        str(here.with_name(f"test_triton_{n}.py"))
        for n in ("interpreter", "operators", "shapes", "calls", "passes", "strips", "caches")
    ]
    files += [str(here.parents[1] / "end_to_end" / f"test_{n}.py") for n in ("beyond_the_end", "running_sums")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, at infinities
        yield


def call(kernel: Kernel, inputs: Sequence[torch.Tensor], shape: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    out = torch.full(tuple(shape), 7, dtype=getattr(torch, kernel.outputs[0].dtype))
    TRITON.build(TRITON.emit(kernel, HERE))(list(inputs), [out], list(sizes))
    return out


# ---- the suite ------------------------------------------------------------------------------------------------------
@inside
@pytest.mark.parametrize("case", [c for c in CASES if "float64" not in c.name], ids=str)
def test_conformance(case: Case) -> None:
    run_case(case, TRITON, HERE)


@inside
def test_float64() -> None:
    """The suite holds float64 to two roundings where nothing is more exact; a running maximum costs a few more."""
    case = next(c for c in CASES if c.name == "full_float64")
    inputs = case.inputs(torch.Generator().manual_seed(0), *case.sizes[0])
    (expected,) = case.reference(*inputs)
    assert (call(case.kernel, inputs, expected.shape, case.sizes[0]) - expected).abs().max() < 2e-15


@inside
def test_zeros_stay_zeros_in_bfloat16() -> None:
    """Rounding to bfloat16 added bits below its last one, which the interpreter took for another number than 0."""
    q = torch.randn(1, 1, 20, 32, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, 1, 1, 32, dtype=torch.bfloat16).unbind()
    centred = lambda q, k, v: ((p := (q @ k.mT).softmax(-1)) - p.mean(-1, keepdim=True)) @ v  # noqa: E731
    assert (flashlight.optimize(centred, backend="triton", strict=True)(q, k, v) == 0).all()


@inside
@pytest.mark.parametrize("causal", [False, True])
def test_a_flat_grid_gives_the_same(causal: bool) -> None:
    """What launches fall back to where an axis is longer than the second dimension of a grid may be."""
    q, k, v = torch.randn(3, 2, 3, 33, 16).unbind()
    kernel, sizes = attention(causal=causal), [2, 3, 33, 33]
    module = load(TRITON.emit(kernel, HERE))
    out = torch.full_like(q, 7)
    strides = [(q, k, v, out)[b].stride(d) for b, d, _ in module.strides]
    x, y, z = module.programs(*sizes)
    module.function[(x * y * z, 1, 1)](q, k, v, out, *sizes, *strides, FLAT=True, **module.options)
    assert torch.equal(out, call(kernel, (q, k, v), q.shape, sizes))


class Wrong(TritonBackend):
    """The backend with its text tampered with."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def emit(self, kernel: Kernel, target: Target) -> Source:
        source = super().emit(kernel, target)
        assert self.old in source.text
        return replace(source, text=source.text.replace(self.old, self.new))


@inside
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("causal", "j[None, :] <= i[:, None]", "j[None, :] < i[:, None]"),
        ("full", "s * 0.36067376022224085", "s * 0.3607"),
        ("logsumexp_nan", "propagate_nan=tl.PropagateNan.ALL", "propagate_nan=tl.PropagateNan.NONE"),
        ("depth_80", "mask=i_inside[:, None] & e_inside[None, :]", "mask=e_inside[None, :] & (i[:, None] < N - 1)"),
        ("grouped_heads", "(h // 2)", "(h // 4)"),
    ],
)
def test_the_suite_notices(name: str, old: str, new: str) -> None:
    case = next(c for c in CASES if c.name == name)
    with pytest.raises(AssertionError):
        run_case(case, Wrong(old, new), HERE)


# ---- against the cpu backend -----------------------------------------------------------------------------------------
@inside
@pytest.mark.parametrize(
    "case", [c for c in CASES if "16" in c.name or c.name in ("causal", "slopes", "gather")], ids=str
)
def test_agrees_with_the_cpu_backend(case: Case) -> None:
    cpu, sizes = CpuBackend(), list(case.sizes[0])
    inputs = case.inputs(torch.Generator().manual_seed(1), *sizes)
    outs = [[torch.empty_like(x) for x in case.reference(*inputs)] for _ in range(2)]
    exact = case.reference(*(x.double() if x.is_floating_point() else x for x in inputs))
    TRITON.build(TRITON.emit(case.kernel, HERE))(inputs, outs[0], sizes)
    cpu.build(cpu.emit(case.kernel, Target()))(inputs, outs[1], sizes)
    for ours, theirs, reference in zip(*outs, exact, strict=True):
        assert_close(ours, reference, theirs, what=case.name)


# ---- programs as users write them ------------------------------------------------------------------------------------
QUICK = ("causal", "alibi", "soft_cap", "sdpa_masked", "layer_norm", "weighted_variance")


@inside
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=() if name in QUICK and dtype is torch.float32 else pytest.mark.slow)
        for name in programs.CASES
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ],
    ids=str,
)
def test_programs(name: str, dtype: torch.dtype) -> None:
    """From plain PyTorch to the interpreter: nothing falls back, and the error rule holds."""
    args = programs.inputs(name, 20, 24, dtype=dtype)
    fn = programs.CASES[name].fn
    with torch.no_grad():
        out = flashlight.optimize(fn, backend="triton", strict=True)(*args)
    ok, ours, eager = programs.error_within_twice_eager(fn, args, out)
    assert ok, (ours, eager)
