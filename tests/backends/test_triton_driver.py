"""Launches through the CUDA driver, without a GPU: what the driver's function is called with."""

from __future__ import annotations

import ctypes
import re
from types import SimpleNamespace

import pytest
import torch

from flashlight._conformance import attention
from flashlight.backend import Target
from flashlight.backends.triton import TritonBackend, driver
from flashlight.backends.triton import compile as made
from flashlight.errors import BackendUnavailable

CODE = driver.Code("k", 0, 1234, 128, 0, warps=4, shared=4096)


class Driver:
    """Notes what each launch is given, and answers with codes."""

    def __init__(self, *codes: int):
        self.codes, self.launches, self.heard = list(codes), [], []

    def cuLaunchKernel(self, *given):  # type: ignore[no-untyped-def]
        places = given[9]
        values = [ctypes.cast(p, ctypes.POINTER(ctypes.c_int64))[0] for p in places]
        self.launches.append((*given[:9], values))
        return self.codes.pop(0) if self.codes else 0

    def cuGetErrorString(self, code, text):  # type: ignore[no-untyped-def]
        text._obj.value = b"no such luck"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Driver:
    pytest.importorskip("triton")
    found = Driver()
    monkeypatch.setattr(driver, "_libcuda", lambda: found)
    return found


def test_arguments_lie_where_the_kernel_reads_them(gpu: Driver) -> None:
    start = driver.launching(CODE, leading=3, rest=[-64, 1 << 40])
    start((5, 6, 7), 99, [0x7F00_0000_0000, 0x7F00_0000_0200, 4096])
    start((1, 1, 1), 98, [16, 32, 48])
    assert gpu.launches[0] == (
        *(1234, 5, 6, 7, 128, 1, 1, 4096, 99),
        [0x7F00_0000_0000, 0x7F00_0000_0200, 4096, -64, 1 << 40, *[0] * driver.OWN],
    )
    assert gpu.launches[1][1:4] == (1, 1, 1)
    assert gpu.launches[1][-1] == [16, 32, 48, -64, 1 << 40, *[0] * driver.OWN]


def test_what_the_driver_refuses_is_said(gpu: Driver) -> None:
    gpu.codes = [701]
    with pytest.raises(RuntimeError, match="kernel k could not be launched: CUDA error 701: no such luck"):
        driver.launching(CODE, 1, [])((1, 1, 1), 0, [0])


def test_a_thread_without_a_context_gets_one(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    gpu.codes = [driver.NO_CONTEXT, 0]
    driver.launching(CODE, 1, [])((1, 1, 1), 0, [0])
    assert devices == [0]
    assert len(gpu.launches) == 2


def test_profilers_hear_of_launches(gpu: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    heard = []
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", lambda about: heard.append(("enter", about.get()["name"])))
    monkeypatch.setattr(knobs.runtime, "launch_exit_hook", lambda about: heard.append(("exit", len(gpu.launches))))
    driver.launching(CODE, 1, [])((1, 1, 1), 0, [0])
    assert heard == [("enter", "k"), ("exit", 1)]


def test_instrumented_kernels_are_refused() -> None:
    pytest.importorskip("triton")
    about = SimpleNamespace(global_scratch_size=0, profile_scratch_size=64)
    with pytest.raises(BackendUnavailable, match="TRITON_INSTRUMENTATION_MODE"):
        driver.loaded(SimpleNamespace(name="k", metadata=about), 0)


def test_parameters_are_those_of_the_layout() -> None:
    """Addresses, sizes and the strides that are no literals; then what Triton adds."""
    pytest.importorskip("triton")
    kernel = attention(dtype="bfloat16", depth=64, row=64, stream=64)
    source = TritonBackend().emit(kernel, Target("cuda", 90, 132, 232448))
    module = made.load(source)
    layout = made.contiguous(module)
    passed = [n for n in layout.strides if not n.isdigit()]
    bits = [64] * len(layout.aligned) + [64 if n.startswith("i64") else 32 for n in (*layout.sizes, *passed)]
    (entry,) = re.findall(r"\.entry\s+\w+\s*\(([^)]*)\)", made.compile_only(source).ptx)
    found = list(map(int, re.findall(r"\.param\s+\.[usbf](\d+)", entry)))
    assert found[: len(bits)] == bits
    assert found[len(bits) :] in ([64] * n for n in range(driver.OWN + 1))
