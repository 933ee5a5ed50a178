"""What holds of launches on a GPU, whichever backend printed the kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flashlight import backend
from flashlight._conformance import CASES, Case, attention, rms_norm
from flashlight.backend import Backend, Run, Target
from flashlight.targets import detect
from flashlight.testing import run_case
from flashlight.tile import Kernel

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["triton", "cupy"])
def made(request: pytest.FixtureRequest) -> tuple[Backend, Target]:
    found, target = backend.get(request.param), detect(torch.device("cuda"), request.param)
    if declined := found.supports(target):
        pytest.skip(declined.reason)
    return found, target


@pytest.fixture
def built(made: tuple[Backend, Target]) -> Callable[[Kernel], Run]:
    found, target = made
    return lambda kernel: found.build(found.emit(kernel, target))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(made: tuple[Backend, Target], case: Case) -> None:
    found, target = made
    assert found.supports(target, case.kernel) is None
    run_case(case, found, target, "cuda")


def test_grids_beyond_65535(built: Callable[[Kernel], Run]) -> None:
    x, w = torch.randn(1_200_000, 80, device="cuda"), torch.randn(80, device="cuda")
    y = torch.empty_like(x)
    built(rms_norm())([x, w], [y], [len(x)])
    torch.testing.assert_close(y, x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w)


def test_other_streams_and_graphs(built: Callable[[Kernel], Run]) -> None:
    run = built(attention(dtype="bfloat16", depth=64, row=64, stream=64))
    q, k, v = (torch.randn(1, 2, 128, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = torch.empty_like(q)
    run([q, k, v], [out], [1, 2, 128, 128])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run([q, k, v], [out], [1, 2, 128, 128])
    q.normal_()
    graph.replay()
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, exact, rtol=2e-2, atol=2e-2)
