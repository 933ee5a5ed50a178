"""The cupy backend: tile programs as CUDA C++, compiled by NVRTC and launched through CuPy on torch's tensors."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from math import prod

from flashlight.backend import Run, Source, Target, Unsupported
from flashlight.backends.cupy.dtypes import CTYPES
from flashlight.backends.cupy.emit import Printed, entry_of, printed
from flashlight.backends.queries import lets
from flashlight.tile import Kernel

LARGEST_BLOCK = 1 << 16  # elements of one value, which lies in the registers of at most 512 threads


class CupyBackend:
    """Prints a kernel as CUDA C++, for every NVIDIA GPU from sm_80 on."""

    name = "cupy"

    def supports(self, target: Target, kernel: Kernel | None = None) -> Unsupported | None:
        """None, or one sentence that says which limit ``target`` or the kernel runs into.

        Without a kernel the question is whether anything can run on ``target`` here; with one, whether it fits
        ``target``, wherever that is.
        """
        reason = _wrong(target) or (_missing() if kernel is None else _limit(kernel, target))
        return Unsupported(reason) if reason else None

    def emit(self, kernel: Kernel, target: Target) -> Source:
        """Pure: the same kernel gives the same text, and neither CuPy nor a driver is needed.

        Raises InternalError: the kernel is malformed.
        """
        return Source("cuda", entry_of(kernel), _printed(kernel, target).text, kernel, target)

    def build(self, source: Source) -> Run:
        """A launcher; each class of layouts is compiled when it is first met, unless the disk store has it."""
        from flashlight.backends.cupy.launch import launcher

        return launcher(source)

    def resources(self, source: Source) -> str:
        """What NVRTC makes of the text for its target: a report's line.  Raises BackendUnavailable: it is not here."""
        from flashlight.backends.cupy.compile import compile_only

        return f"{source.kernel.name}: {compile_only(source, source.target.arch)}"


@lru_cache(maxsize=64)
def _printed(kernel: Kernel, target: Target) -> Printed:
    return printed(kernel, target)


def _wrong(target: Target) -> str:
    """Why there is no CUDA for such a target."""
    if target.device != "cuda" or target.interpret:
        return f"the cupy backend runs on CUDA tensors, not on {target.device}"
    if target.arch < 80:
        return f"the cupy backend needs compute capability 8.0 or later, not {target.arch // 10}.{target.arch % 10}"
    return ""


def _missing() -> str:
    """What this machine lacks."""
    if importlib.util.find_spec("cupy") is None:
        return "the cupy backend needs the package CuPy, which is not installed (pip install cupy-cuda13x)"
    try:
        from cupy_backends.cuda.api import runtime
    except Exception as error:
        return f"CuPy is installed but does not load here: {' '.join(str(error).split())}"
    try:
        driver, wanted = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if driver == 0:
            return "there is no CUDA driver here"
        if driver // 1000 < wanted // 1000:
            return (
                f"the CUDA driver here is for CUDA {_version(driver)}, and CuPy was built for CUDA {_version(wanted)}: "
                f"update the driver, or install cupy-cuda{driver // 1000}x"
            )
        return "" if runtime.getDeviceCount() > 0 else "there is no CUDA device here"
    except Exception as error:
        return f"CuPy finds no CUDA device here: {' '.join(str(error).split())}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _limit(kernel: Kernel, target: Target) -> str:
    """Why the kernel does not fit."""
    values = lets(kernel.body)
    typed = {b.name: b.dtype for b in (*kernel.inputs, *kernel.outputs)} | {x.name: x.dtype for x in values}
    for name, dtype in typed.items():
        if dtype not in CTYPES:
            return f"the cupy backend has no {dtype} ({name}); it has {', '.join(CTYPES)}"
    for x in values:
        size = prod(kernel.dim(a).block for a in x.dims)
        if size > LARGEST_BLOCK:
            return f"{x.name}[{', '.join(x.dims)}] has {size} elements, more than the {LARGEST_BLOCK} registers hold"
    shared = _printed(kernel, target).shared
    if target.shared_bytes and shared > target.shared_bytes:
        return f"the kernel needs {shared} bytes of shared memory, and a thread block has {target.shared_bytes}"
    return ""
