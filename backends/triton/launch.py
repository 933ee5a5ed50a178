"""Launches that cost little: after the first call of a layout, one look-up and Triton's own C launcher."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flashlight import cache as disk
from flashlight.backend import Run, Source
from flashlight.backends.triton.address import WHOLE
from flashlight.backends.triton.compile import (
    ALIGNED,
    FAR,
    KEPT,
    Layout,
    Module,
    assembled,
    capped,
    compile_only,
    compiled,
    layout_of,
    load,
    tight,
    withholding,
)
from flashlight.backends.triton.driver import Code, Grid, Start, launching, loaded
from flashlight.backends.triton.start import wait
from flashlight.errors import InternalError
from flashlight.tile import Apply, Const, Expr, Size

__all__ = ["compile_only", "launcher"]

VARIANTS = 16  # layouts compiled with their own strides; those that come after share general ones
WIDEST = 65535  # programs along the second and the third dimension of a launch
REMEMBERED = 1024  # strides of calls that are looked up and not examined
Issue = Callable[[Sequence[int]], None]


def launcher(source: Source) -> Run:
    """``run(inputs, outputs, sizes)`` for the emitted text."""
    module = load(source)
    return _interpreted(module) if source.target.interpret else _Launcher(module)


def _interpreted(module: Module) -> Run:
    def run(inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> None:
        buffers = (*inputs, *outputs)
        strides = [buffers[b].stride(d) for b, d, _ in module.strides]
        grid = module.programs(*sizes)
        if all(grid):
            module.function[grid](*buffers, *sizes, *strides, **module.options)

    return run


@dataclass(frozen=True)
class _Ready:
    """A loaded kernel that has all arguments but addresses and sizes; good for calls whose sizes lie below ``limit``,
    and are multiples of 16 where ``even`` says so."""

    start: Start
    limit: int
    even: tuple[int, ...] = ()

    def odd(self, sizes: Sequence[int]) -> bool:
        return any(sizes[k] % ALIGNED for k in self.even)


class _Launcher:
    """The compiled layouts of one kernel, on every device it was called on."""

    def __init__(self, module: Module) -> None:
        import torch
        from triton.runtime import driver

        self.module, self.programs = module, module.programs
        self.driver = driver
        self.current_device, self.on = torch.cuda.current_device, torch.cuda.device
        self.alone = torch.cuda.device_count() == 1
        self.stream: Callable[[int], int] = lambda device: driver.active.get_current_stream(device)
        self.kernels: dict[tuple[int, Layout], Code] = {}
        self.ready: dict[Any, _Ready] = {}
        kernel = module.source.kernel
        shapes = [b.shape for b in (*kernel.inputs, *kernel.outputs)]
        # Strides multiplied in 32 bits by what grows with the sizes; where it may be more than any, each call's sizes
        # are looked at once.
        whole = [(b, d) for b, d, reach in module.strides if reach == WHOLE]
        self.growing = [(b, d) for b, d in whole if not isinstance(shapes[b][d], Const)]
        self.foreseen = all(_within_a_size(shapes[b][d]) for b, d in self.growing)

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> None:
        tensors = (*inputs, *outputs)
        device = tensors[-1].device.index
        if device != self.current_device():
            with self.on(device):
                return self(inputs, outputs, sizes)
        pointers = [t.data_ptr() for t in tensors]
        known, grid = self.looked_up(device, tensors, pointers, sizes)
        if known is not None:
            known.start(grid, self.stream(device), [*pointers, *sizes])
        return None

    def bound(self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> Issue | None:
        """See :class:`flashlight.backend.Repeatable`."""
        tensors = (*inputs, *outputs)
        device = tensors[-1].device.index
        if device != self.current_device():
            with self.on(device):
                return self.bound(inputs, outputs, sizes)
        known, grid = self.looked_up(device, tensors, [t.data_ptr() for t in tensors], sizes)
        return None if known is None else self.issuing(device, known, grid, sizes)

    def issuing(self, device: int, known: _Ready, grid: Grid, sizes: Sequence[int]) -> Issue:
        """What launches a kernel, given addresses."""
        start, stream, current, alone, sizes = known.start, self.stream, self.current_device, self.alone, tuple(sizes)

        def issue(pointers: Sequence[int]) -> None:
            if not alone and device != current():
                with self.on(device):
                    start(grid, stream(device), [*pointers, *sizes])
            else:
                start(grid, stream(device), [*pointers, *sizes])

        return issue

    def looked_up(
        self, device: int, tensors: Sequence[Any], pointers: Sequence[int], sizes: Sequence[int]
    ) -> tuple[_Ready | None, tuple[int, int, int]]:
        """The kernel for these arguments, and how many programs along each dimension; None where there are none."""
        x, y, z = self.programs(*sizes)
        if x == 0 or y == 0 or z == 0:
            return None, (0, 0, 0)
        odd = 0
        for p in pointers:
            odd |= p
        if odd % ALIGNED:
            key = (device, tuple(p % ALIGNED == 0 for p in pointers), *[t.stride() for t in tensors])
        else:
            key = (device, *[t.stride() for t in tensors])
        if not self.foreseen:
            key = (*key, *sizes)
        flat = y > WIDEST or z > WIDEST
        if flat:
            key, x, y, z = (*key, "flat"), x * y * z, 1, 1
        known = self.ready.get(key)
        if known is None or (sizes and max(sizes) >= known.limit) or (known.even and known.odd(sizes)):
            known = self.prepared(key, device, tensors, pointers, sizes, flat)
        return known, (x, y, z)

    # ---- the first call of a layout ------------------------------------------------------------------------------
    def prepared(
        self,
        key: Any,
        device: int,
        tensors: Sequence[Any],
        pointers: Sequence[int],
        sizes: Sequence[int],
        flat: bool,
    ) -> _Ready:
        shapes, strides = [t.shape for t in tensors], [t.stride() for t in tensors]

        def code_of(kind: str) -> tuple[Code, Layout] | None:
            layout = replace(layout_of(self.module, shapes, strides, pointers, sizes, kind), flat=flat)
            if (device, layout) not in self.kernels:
                if len(self.kernels) >= VARIANTS and kind != "general":
                    return None
                self.kernels[device, layout] = self.made(device, layout)
            return self.kernels[device, layout], layout

        found = code_of("own") or code_of("general")
        assert found is not None  # there is always a general one
        if not found[0].withheld and tight(found[0].registers, found[0].spills):
            found = code_of("literal") or found
        code, layout = found
        longest = max((abs(strides[b][d]) for b, d in self.growing), default=1)
        limit = FAR // max(1, longest) if self.foreseen else FAR
        rest = [
            strides[b][d] for (b, d, _), n in zip(self.module.strides, layout.strides, strict=True) if not n.isdigit()
        ]
        even = tuple(k for k, kind in enumerate(layout.sizes) if kind.endswith("*"))
        made = _Ready(launching(code, len(tensors) + len(sizes), rest), limit, even)
        if len(self.ready) >= REMEMBERED:
            self.ready.clear()
        self.ready[key] = made
        self.stream = self.driver.active.get_current_stream
        return made

    def made(self, device: int, layout: Layout) -> Code:
        """The kernel on the device: with fewer stages if its buffers do not fit otherwise, and with fewer registers if
        one more program fits a multiprocessor then."""
        wait()
        target = self.driver.active.get_current_target()
        room = self.driver.active.utils.get_device_properties(device)["max_shared_mem"]
        options = dict(self.module.options)
        kernel = compiled(self.module, layout, target, options)
        while kernel.metadata.shared > room and options["num_stages"] > 1:
            options["num_stages"] -= 1
            kernel = compiled(self.module, layout, target, options)
        if kernel.metadata.shared > room:
            raise InternalError(
                f"kernel {self.module.source.kernel.name} needs {kernel.metadata.shared} bytes of shared memory, and "
                f"this GPU has {room}: its blocks are too large"
            )
        code = loaded(kernel, device)
        fewer = capped(code.registers, code.shared, code.warps, room)
        ptx = kernel.asm.get("ptx")  # Triton may be told to keep machine code only
        if ptx and fewer and code.spills == 0 and (cubin := _with_fewer(ptx, fewer, target.arch)):
            spared = loaded(kernel, device, cubin)
            code = code if spared.spills > KEPT else replace(spared, withheld=True)
        return code


def _with_fewer(ptx: str, registers: int, arch: int) -> bytes | None:
    """Machine code that uses no more registers, from the disk if it is there; None where that is not enough of them."""
    store, key = disk.default(), disk.key("fewer registers 1", ptx, str(registers), str(arch))
    text = store.get(key) if store else None
    if text is None:
        try:
            text = base64.b64encode(assembled(withholding(ptx, registers), arch).cubin).decode()
        except InternalError:
            text = ""
        if store:
            store.put(key, text)
    return base64.b64decode(text) or None


def _within_a_size(length: Expr) -> bool:
    """Is a length no more than some size: one, or the number of its blocks?"""
    match length:
        case Size() | Apply("floordiv", (Size(), Const())):
            return True
        case Apply("floordiv", (Apply("add", (Size(), Const(int(more)))), Const(int(block)))):
            return 0 <= more < block
    return False
