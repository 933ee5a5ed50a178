"""The shim as a registered backend, so that whole programs run through it."""

from __future__ import annotations

import pytest

from flashlight import backend as registry
from flashlight import runtime


@pytest.fixture
def shim(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a backend that runs CUDA C++ on CPU tensors, emitted for a Hopper GPU."""
    from tests.backends.cupy.shim import TARGET

    detect = runtime.detect
    monkeypatch.setitem(registry.BUILTIN, "cupy_shim", "tests.backends.cupy.shim:ShimBackend")
    monkeypatch.setattr(runtime, "detect", lambda device, name: TARGET if name == "cupy_shim" else detect(device, name))
    return "cupy_shim"
