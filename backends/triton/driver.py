"""Machine code on a GPU, launched by the CUDA driver.

Triton's own launcher is C that some of its versions (3.6) have a C compiler make for every signature, which takes about
half as long as the kernel; the driver's function takes any signature, and is called from here as cheaply.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flashlight.errors import BackendUnavailable

WARP = 32  # threads
SLOT = 8  # bytes of an argument; shorter ones lie at its beginning
OWN = 4  # arguments after ours, at most: Triton's pointers to scratch memory, null where there is none
NO_CONTEXT = 201  # the driver's code where a thread has not touched the GPU yet
Grid = tuple[int, int, int]
Start = Callable[[Grid, int, Sequence[int]], None]


@dataclass(frozen=True)
class Code:
    """A kernel that a GPU holds.

    ``function``: the driver's handle.  ``spills``: bytes of local memory a thread; ``shared``: bytes of shared memory a
    program.  ``withheld``: it has fewer registers than it asked for.
    """

    name: str
    device: int
    function: int
    registers: int
    spills: int
    warps: int
    shared: int
    withheld: bool = False


def loaded(kernel: Any, device: int, cubin: bytes | None = None) -> Code:
    """What Triton compiled, on a GPU; or other machine code of the same kernel.

    Raises BackendUnavailable: it needs scratch memory, as none does unless Triton was told to instrument it.
    """
    from triton.runtime import driver

    about = kernel.metadata
    if getattr(about, "global_scratch_size", 0) or getattr(about, "profile_scratch_size", 0):
        raise BackendUnavailable(
            f"Triton instrumented kernel {kernel.name}, which then needs memory of its own: flashlight does not launch "
            "such kernels; unset TRITON_INSTRUMENTATION_MODE, or use backend='cupy'"
        )
    _, function, registers, words, _ = driver.active.utils.load_binary(
        kernel.name, cubin or kernel.asm["cubin"], about.shared, device
    )
    return Code(kernel.name, device, function, registers, 4 * words, about.num_warps, about.shared)


def launching(code: Code, leading: int, rest: Sequence[int]) -> Start:
    """What launches a kernel: given the numbers of programs along each dimension, a stream, and the first ``leading``
    arguments (addresses, sizes), which ``rest`` follows.

    Raises (from the launch) RuntimeError: the driver refuses, or an earlier kernel failed.
    """
    from triton import knobs

    hooks, function = knobs.runtime, code.function
    threads, shared = WARP * code.warps, code.shared
    values = (ctypes.c_int64 * (leading + len(rest) + OWN))()
    values[leading : leading + len(rest)] = list(rest)
    first = ctypes.addressof(values)
    places = (ctypes.c_void_p * len(values))(*(first + SLOT * k for k in range(len(values))))
    launch, alone = _libcuda().cuLaunchKernel, threading.Lock()

    def start(grid: Grid, stream: int, arguments: Sequence[int]) -> None:
        if not (_hooked(hooks.launch_enter_hook) or _hooked(hooks.launch_exit_hook)):
            return once(grid, stream, arguments)
        from triton.compiler.compiler import LazyDict  # a profiler is listening

        about = LazyDict({"name": code.name, "function": function, "stream": stream})
        _heard(hooks.launch_enter_hook, about)
        once(grid, stream, arguments)
        _heard(hooks.launch_exit_hook, about)
        return None

    def once(grid: Grid, stream: int, arguments: Sequence[int]) -> None:
        x, y, z = grid
        with alone:  # another thread may come with other arguments
            values[:leading] = arguments  # type: ignore[call-overload]
            failure = launch(function, x, y, z, threads, 1, 1, shared, stream, places, None)
            if failure == NO_CONTEXT:
                import torch

                torch.cuda.set_device(code.device)
                failure = launch(function, x, y, z, threads, 1, 1, shared, stream, places, None)
        if failure:
            raise RuntimeError(f"kernel {code.name} could not be launched: {_meaning(failure)}")

    return start


@cache
def _libcuda() -> Any:
    lib = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    handle, number = ctypes.c_void_p, ctypes.c_uint
    lib.cuLaunchKernel.argtypes = [handle, *[number] * 7, handle, handle, handle]
    lib.cuGetErrorString.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    return lib


def _meaning(failure: int) -> str:
    """The driver's words for one of its codes."""
    text = ctypes.c_char_p()
    _libcuda().cuGetErrorString(failure, ctypes.byref(text))
    return f"CUDA error {failure}: {(text.value or b'unknown').decode()}"


def _heard(hook: Any, about: Any) -> None:
    if _hooked(hook):
        hook(about)


def _hooked(hook: Any) -> bool:
    """Does anyone listen to Triton's launches?"""
    return bool(getattr(hook, "calls", hook))
