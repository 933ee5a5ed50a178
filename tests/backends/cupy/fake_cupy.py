"""A CuPy whose driver is the shim: what the launcher hands to the driver is run on the CPU."""

from __future__ import annotations

import ctypes
import sys
import threading
import types
from typing import Any

import pytest
import torch

from flashlight.backend import Source
from flashlight.backends.cupy import launch
from flashlight.backends.cupy.compile import Compiled
from flashlight.backends.cupy.launch import Defines
from tests.backends.cupy import shim


class FakeCupy:
    """``compiled``: the layouts that were compiled; ``shared_limits``: functions that asked for more shared memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
        self.source, self.compiled, self.launches = source, list[Defines](), 0
        self.bound: list[int] = []  # threads that the driver has a context for
        self.shared_limits: dict[int, int] = {}
        driver = types.ModuleType("cupy_backends.cuda.api.driver")
        driver.launchKernel, driver.funcSetAttribute = self.launch, self.set_attribute  # type: ignore[attr-defined]
        driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # type: ignore[attr-defined]
        function = types.ModuleType("cupy.cuda.function")
        function.Module = lambda: FakeModule(self)  # type: ignore[attr-defined]
        for package in ("cupy", "cupy.cuda", "cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api"):
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        monkeypatch.setattr(sys.modules["cupy.cuda"], "function", function, raising=False)
        monkeypatch.setattr(sys.modules["cupy_backends.cuda.api"], "driver", driver, raising=False)
        monkeypatch.setattr(launch, "compiled", self.compile)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
        monkeypatch.setattr(launch, "_thread", threading.local())
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.bound.append(threading.get_ident()))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))

    def compile(self, text: str, arch: int, defines: Defines) -> Compiled:
        assert (text, arch) == (self.source.text, 90)
        self.compiled.append(defines)
        call = launch.Call(self.source)
        return Compiled(arch, 100, 0, call.shared, call.threads, repr(len(self.compiled) - 1).encode())

    def set_attribute(self, function: int, attribute: int, value: int) -> None:
        assert attribute == 8
        self.shared_limits[function] = value

    def launch(self, function: int, *given: Any) -> None:
        assert threading.get_ident() in self.bound
        blocks, y, z, threads, ty, tz, shared, stream, arguments, extra = given
        call = launch.Call(self.source)
        assert (y, z, ty, tz, threads, stream, extra) == (1, 1, 1, 1, call.threads, 77, 0)
        assert shared == call.shared
        assert shared <= self.shared_limits.get(function, 48 << 10)
        lib = shim.library(shim.host_text(self.source, self.compiled[function]))
        assert lib.launch(ctypes.c_void_p(arguments), blocks, ctypes.c_ulonglong(0)) is None
        self.launches += 1


class FakeModule:
    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy = cupy

    def load(self, cubin: bytes) -> None:
        self.number = int(cubin)

    def get_function(self, name: str) -> Any:
        assert name == self.cupy.source.entry
        return types.SimpleNamespace(ptr=self.number)
