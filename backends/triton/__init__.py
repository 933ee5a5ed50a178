"""The triton backend: tile programs as plain Triton, for every GPU that Triton supports."""

from __future__ import annotations

import importlib.util
import os
from math import prod

from flashlight.backend import Run, Source, Target, Unsupported
from flashlight.backends.queries import DTYPES, lets, pow2
from flashlight.backends.triton.emit import entry_of, text_of
from flashlight.backends.triton.state import State
from flashlight.tile import Kernel, Let

LARGEST_BLOCK = 1 << 20  # elements of one value: Triton's own limit


class TritonBackend:
    """Prints a kernel as a Triton function, and launches it with little overhead."""

    name = "triton"

    def supports(self, target: Target, kernel: Kernel | None = None) -> Unsupported | None:
        """None, or one sentence that says which limit ``target`` or the kernel runs into.

        Without a kernel the question is whether anything can run on ``target`` here; with one, whether Triton can
        express it for ``target``, wherever that is.
        """
        reason = _wrong(target) or (_missing(target) if kernel is None else _limit(kernel))
        return Unsupported(reason) if reason else None

    def start(self, target: Target) -> None:
        """See :class:`flashlight.backend.Startable`."""
        if not target.interpret:
            from flashlight.backends.triton.start import start

            start()

    def emit(self, kernel: Kernel, target: Target) -> Source:
        """Pure: the same kernel gives the same text, and Triton is not imported.

        Raises InternalError: the kernel is malformed.
        """
        return Source("triton", entry_of(kernel), text_of(kernel, target), kernel, target)

    def build(self, source: Source) -> Run:
        """Load the text; each layout of the inputs is compiled when it is first met."""
        from flashlight.backends.triton.launch import launcher

        return launcher(source)


def _wrong(target: Target) -> str:
    """Why there is no Triton for such a target."""
    if not target.interpret and target.device != "cuda":
        return (
            f"the triton backend runs on CUDA tensors, not on {target.device} "
            "(TRITON_INTERPRET=1 in the environment runs it on CPU tensors, slowly)"
        )
    if not target.interpret and target.arch < 80:
        return f"the triton backend needs compute capability 8.0 or later, not {target.arch // 10}.{target.arch % 10}"
    return ""


def _missing(target: Target) -> str:
    """What this machine lacks."""
    if importlib.util.find_spec("triton") is None:
        return "the triton backend needs the package triton, which is not installed (pip install triton)"
    if target.interpret:
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton's interpreter needs TRITON_INTERPRET=1 in the environment before triton is imported"
        return ""
    import torch

    return "" if torch.cuda.is_available() else "there is no CUDA device here"


def _limit(kernel: Kernel) -> str:
    """Why Triton cannot express the kernel."""
    values = lets(kernel.body)
    typed = {b.name: b.dtype for b in (*kernel.inputs, *kernel.outputs)} | {x.name: x.dtype for x in values}
    for name, dtype in typed.items():
        if dtype not in DTYPES:
            return f"the triton backend has no {dtype} ({name}); it has {', '.join(DTYPES)}"
    for d in kernel.dims:
        if d.role != "point" and d.block != pow2(d.block):
            return f"the triton backend needs blocks whose length is a power of two, and {d.axis} has {d.block}"
    state = State(kernel, Target())
    for x in values:
        size = _size(state, x)
        if size > LARGEST_BLOCK:
            return f"{x.name}[{', '.join(x.dims)}] has {size} elements, more than the {LARGEST_BLOCK} of a Triton block"
    return ""


def _size(state: State, x: Let) -> int:
    return prod(state.axis(a).block for a in x.dims)
