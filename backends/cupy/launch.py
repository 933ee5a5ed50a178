"""Launches through CuPy: torch's tensors and torch's stream, nothing copied."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flashlight.backend import Run, Source
from flashlight.backends.cupy.compile import alignments, compile_only, compiled, number
from flashlight.backends.cupy.dtypes import SIZES
from flashlight.backends.scalar import PYTHON, spell
from flashlight.errors import BackendUnavailable, InternalError
from flashlight.tile import Expr

__all__ = ["Call", "compile_only", "launcher"]

FAR = 2**31
ALIGNED = 16
REMEMBERED = 1024  # layouts of calls that are looked up and not examined
VARIANTS = 16  # layouts compiled with their own alignments; those that come after share one that assumes nothing
Defines = tuple[tuple[str, str], ...]
_thread = threading.local()


@dataclass(frozen=True)
class Call:
    """What a launch needs to know of an emitted text."""

    source: Source

    @cached_property
    def threads(self) -> int:
        return number(self.source.text, "THREADS")

    @cached_property
    def shared(self) -> int:
        return number(self.source.text, "SHARED")

    @cached_property
    def programs(self) -> Callable[..., int]:
        """How many thread blocks there are, given the sizes."""
        k = self.source.kernel
        names = {n: f"size_{d}" for d, n in enumerate(k.sizes)}

        def blocks(extent: Expr, block: int) -> str:
            n = spell(extent, PYTHON, lambda e: names[str(e)])
            return n if block == 1 else f"(({n} + {block - 1}) // {block})"

        text = " * ".join(blocks(g.extent, g.block) for g in k.grid) or "1"
        return eval(f"lambda {', '.join(names.values())}: {text}")  # type: ignore[no-any-return]

    @cached_property
    def aligned(self) -> tuple[tuple[str, int, int], ...]:
        """For each ALIGN_ macro: its name, the number of the buffer, the bytes of an element."""
        k = self.source.kernel
        buffers = (*k.inputs, *k.outputs)
        return tuple((name, n, SIZES[buffers[n].dtype]) for name, n in alignments(self.source.text))

    def defines(self, tensors: Sequence[Any], general: bool = False) -> Defines:
        """What the code depends on besides the text: up to how many bytes pointers and rows of each buffer are aligned
        (0: its last dimension has gaps, or ``general``), and whether strides take 64 bits."""
        out = []
        for name, n, size in self.aligned:
            strides, shape = tensors[n].stride(), tensors[n].shape
            bits = ALIGNED | tensors[n].data_ptr()
            for stride, length in zip(strides[:-1], shape[:-1], strict=True):
                bits |= stride * size if length > 1 else 0
            gaps = bool(shape) and shape[-1] > 1 and strides[-1] != 1
            out.append((name, str(0 if gaps or general else bits & -bits)))
        if any(abs(s) >= FAR for t in tensors for s in t.stride()):
            out.append(("STRIDE", "long long"))
        return tuple(out)

    def types(self, defines: Defines) -> list[Any]:
        """The ctypes of the arguments: pointers, sizes, then all strides."""
        k = self.source.kernel
        buffers = (*k.inputs, *k.outputs)
        stride = ctypes.c_longlong if ("STRIDE", "long long") in defines else ctypes.c_int
        pointers, sizes = [ctypes.c_void_p] * len(buffers), [ctypes.c_int] * len(k.sizes)
        return [*pointers, *sizes, *[stride] * sum(len(b.shape) for b in buffers)]

    def arguments(self, tensors: Sequence[Any], sizes: Sequence[int]) -> list[int]:
        """The arguments' values, in the order of :meth:`types`."""
        return [*(t.data_ptr() for t in tensors), *sizes, *(s for t in tensors for s in t.stride())]


def launcher(source: Source) -> Run:
    """``run(inputs, outputs, sizes)`` for the emitted text.  Raises BackendUnavailable where CuPy is missing."""
    return _Launcher(Call(source))


@dataclass(frozen=True)
class _Ready:
    """A loaded kernel for one layout: its handle, and its arguments as C values, of which calls change the first."""

    function: int
    values: tuple[Any, ...]
    pointers: Any
    address: int


class _Launcher:
    """The compiled layouts of one kernel, on every device it was called on."""

    def __init__(self, call: Call) -> None:
        try:
            import torch
            from cupy.cuda import function
            from cupy_backends.cuda.api import driver
        except ImportError as error:
            raise BackendUnavailable(f"the cupy backend launches through CuPy: {error}") from error
        self.call, self.driver, self.module = call, driver, function.Module
        self.programs, self.threads, self.shared = call.programs, call.threads, call.shared
        self.current_device, self.on, self.bind = torch.cuda.current_device, torch.cuda.device, torch.cuda.set_device
        self.current_stream, self.capability = torch.cuda.current_stream, torch.cuda.get_device_capability
        self.kernels: dict[tuple[int, Defines], tuple[Any, int]] = {}
        self.ready: dict[Any, _Ready] = {}
        self.lock = threading.Lock()
        self.sizes = len(call.source.kernel.sizes)

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> None:
        tensors = (*inputs, *outputs)
        device = tensors[-1].device.index
        if device != self.current_device():
            with self.on(device):
                return self(inputs, outputs, sizes)
        if getattr(_thread, "device", -1) != device:  # a new thread has no context yet, and the driver wants one
            self.bind(device)
            _thread.device = device
        programs = self.programs(*sizes)
        if programs == 0:
            return None
        if programs >= FAR:
            name = self.call.source.kernel.name
            raise InternalError(f"kernel {name}: {programs} thread blocks are too many for a grid")
        pointers = [t.data_ptr() for t in tensors]
        key = (device, *[p % ALIGNED for p in pointers], *[(t.stride(), *[n > 1 for n in t.shape]) for t in tensors])
        known = self.ready.get(key)
        if known is None:
            known = self.prepared(key, device, tensors)
        stream = self.current_stream(device).cuda_stream
        with self.lock:  # the values are read when the launch is made
            for value, n in zip(known.values, (*pointers, *sizes), strict=False):
                value.value = n
            self.driver.launchKernel(
                known.function, programs, 1, 1, self.threads, 1, 1, self.shared, stream, known.address, 0
            )
        return None

    def prepared(self, key: Any, device: int, tensors: Sequence[Any]) -> _Ready:
        """The first call of a layout: its arguments, and its machine code if no other layout has the same."""
        defines = self.call.defines(tensors)
        if (device, defines) not in self.kernels and len(self.kernels) >= VARIANTS:
            defines = self.call.defines(tensors, general=True)
        if (device, defines) not in self.kernels:
            self.kernels[device, defines] = self.loaded(device, defines)
        arguments = self.call.arguments(tensors, [0] * self.sizes)
        values = tuple(c(n) for c, n in zip(self.call.types(defines), arguments, strict=True))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        made = _Ready(self.kernels[device, defines][1], values, pointers, ctypes.addressof(pointers))
        if len(self.ready) >= REMEMBERED:
            self.ready.clear()
        self.ready[key] = made
        return made

    def loaded(self, device: int, defines: Defines) -> tuple[Any, int]:
        """The machine code on the device: CuPy's module, which keeps it there, and the function's handle."""
        major, minor = self.capability(device)
        made = compiled(self.call.source.text, 10 * major + minor, tuple(sorted(defines)))
        module = self.module()
        module.load(made.cubin)
        function = module.get_function(self.call.source.entry)
        if self.shared > 48 << 10:
            wanted = self.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.driver.funcSetAttribute(function.ptr, wanted, self.shared)
        return (module, function), function.ptr
