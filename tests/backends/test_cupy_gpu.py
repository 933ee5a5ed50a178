"""The cupy backend on a GPU: results, layouts, streams, what a call costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

import flashlight
from flashlight._conformance import attention
from flashlight.backend import Run, Target
from flashlight.backends.cupy import CupyBackend
from flashlight.targets import detect
from flashlight.testing import assert_close, assert_equivalent
from flashlight.tile import Kernel
from tests import programs

pytestmark = pytest.mark.gpu
CUPY = CupyBackend()


@pytest.fixture(autouse=True)
def works() -> None:
    if declined := CUPY.supports(target()):
        pytest.skip(declined.reason)


def target() -> Target:
    return detect(torch.device("cuda"), "cupy")


def built(kernel: Kernel) -> Run:
    return CUPY.build(CUPY.emit(kernel, target()))


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = True) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def extended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention in x87 extended precision: eager in float64 is off by more than our kernels."""
    a, b, c = (x.double().cpu().numpy().astype(np.longdouble) for x in (q, k, v))
    s = a @ b.swapaxes(-1, -2) / np.sqrt(np.longdouble(q.shape[-1]))
    s = np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return torch.from_numpy((p @ c / p.sum(-1, keepdims=True)).astype(np.float64))


@pytest.mark.parametrize("depth", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_attention_of_real_sizes(depth: int, dtype: str) -> None:
    row, stream = {"float32": (64, 32), "float64": (32, 16)}.get(dtype, (64, 32 if depth == 256 else 64))
    kernel = attention(causal=True, dtype=dtype, depth=depth, row=row, stream=stream)
    q, k, v = (torch.randn(2, 3, 333, depth, device="cuda", dtype=getattr(torch, dtype)) for _ in range(3))
    out = torch.empty_like(q)
    built(kernel)([q, k, v], [out], [2, 3, 333, 333])
    assert_close(out.cpu(), extended(q, k, v), exact(q, k, v).cpu(), what="attention")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", programs.CASES)
def test_programs(name: str, dtype: torch.dtype) -> None:
    for n, m in ((130, 77), (1000, 513)):
        args = programs.inputs(name, n, m, dtype, "cuda")
        assert_equivalent(programs.CASES[name].fn, args, backends=["cupy"])


def test_layouts() -> None:
    run = built(attention(dtype="bfloat16", depth=64, row=64, stream=64))

    def call(n: int, inside: bool = False, shift: int = 0) -> None:
        def tensor() -> torch.Tensor:
            flat = torch.randn(2 * 3 * n * 64 + shift, device="cuda").bfloat16()[shift:]
            return flat.view(2, n, 3, 64).transpose(1, 2) if inside else flat.view(2, 3, n, 64)

        q, k, v = tensor(), tensor(), tensor()
        out = torch.empty(2, 3, n, 64, device="cuda", dtype=torch.bfloat16)
        run([q, k, v], [out], [2, 3, n, n])
        torch.testing.assert_close(out, exact(q.clone(), k.clone(), v.clone(), False), rtol=2e-2, atol=2e-2)

    for n in (64, 100, 1, 257, 1000):
        call(n)
        call(n, inside=True)
    for shift in (1, 2, 4):
        call(100, shift=shift)


def test_both_gpu_backends_agree() -> None:
    args = programs.inputs("causal", 700, dtype=torch.bfloat16, device="cuda")
    outs = [flashlight.optimize(programs.causal, backend=name, strict=True)(*args) for name in ("cupy", "triton")]
    torch.testing.assert_close(*outs, rtol=2e-2, atol=2e-2)


def test_a_call_costs_little() -> None:
    run = built(attention(dtype="bfloat16", depth=64, row=64, stream=64))
    q, k, v = (torch.randn(1, 2, 64, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = torch.empty_like(q)
    inputs, outputs, sizes = (q, k, v), (out,), (1, 2, 64, 64)

    def cost(call: Callable[[], object]) -> float:
        times = []
        for _ in range(30):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                call()
            times.append((time.perf_counter() - start) / 50)
        return statistics.median(times)

    run(inputs, outputs, sizes)
    assert cost(lambda: run(inputs, outputs, sizes)) < 30e-6
