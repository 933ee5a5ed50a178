"""The protocol of backends, the facts they are chosen by, and their registry.

A backend has four members and no hooks: ``name``, ``supports``, ``emit``, ``build``.  A fifth needs a decision record
(one has it: ``resources`` of :class:`Measured`, which nothing but a report asks for).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from flashlight.errors import UnknownBackend
from flashlight.tile import Kernel

GROUP = "flashlight.backends"
BUILTIN = {
    "cpu": "flashlight.backends.cpu:CpuBackend",
    "triton": "flashlight.backends.triton:TritonBackend",
    "cupy": "flashlight.backends.cupy:CupyBackend",
}


@dataclass(frozen=True)
class Target:
    """Facts about a device that scheduling reads.

    ``shared_bytes``: shared memory a block may use.  ``interpret``: Triton's interpreter stands for the device.
    ``threads``: CPU threads.  ``precision``: torch.get_float32_matmul_precision() ("highest", "high", "medium").
    """

    device: str = "cpu"
    arch: int = 0
    processors: int = 1
    shared_bytes: int = 0
    interpret: bool = False
    threads: int = 1
    precision: str = "highest"


@dataclass(frozen=True)
class Source:
    """What a backend emits: text, and what is needed to build it.  Data only, so it can be cached and compared."""

    language: str
    entry: str
    text: str
    kernel: Kernel
    target: Target


@dataclass(frozen=True)
class Unsupported:
    """Why a backend declines a kernel on a target."""

    reason: str


Run = Callable[[Sequence[Any], Sequence[Any], Sequence[int]], None]
"""A built kernel: ``run(inputs, outputs, sizes)`` with tensors in the kernel's order; outputs are allocated."""


class Backend(Protocol):
    """A code generator.

    ``supports`` returns None or the reason why not; with ``kernel=None`` the question is whether the backend can run
    on ``target`` here at all.  ``emit`` is pure: no device, no GPU import.  ``build`` compiles and returns a callable.
    """

    name: str

    def supports(self, target: Target, kernel: Kernel | None = None) -> Unsupported | None: ...

    def emit(self, kernel: Kernel, target: Target) -> Source: ...

    def build(self, source: Source) -> Run: ...


@runtime_checkable
class Repeatable(Protocol):
    """A built kernel may also be told that calls will repeat.

    ``bound(inputs, outputs, sizes)``: what runs it on tensors with the same shapes and strides, given their addresses
    (of inputs, then of outputs), all of them multiples of 16.  None: there is nothing to run, or nothing to gain.
    """

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> None: ...

    def bound(
        self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]
    ) -> Callable[[Sequence[int]], None] | None: ...


@runtime_checkable
class Startable(Protocol):
    """A backend may also begin, in a thread of its own, what the first build of a process waits for.

    ``start`` returns at once; it is called when a program is about to be compiled and run, and may be called often.
    """

    def start(self, target: Target) -> None: ...


@runtime_checkable
class Measured(Protocol):
    """A backend may also tell what its compiler makes of a text: a line about registers, spills and shared memory.

    ``resources`` needs no device.  Raises BackendUnavailable: the compiler is not installed here.
    """

    def resources(self, source: Source) -> str: ...


def names() -> tuple[str, ...]:
    """Registered backends, built-in ones first."""
    return (*BUILTIN, *sorted({e.name for e in entry_points(group=GROUP)} - set(BUILTIN)))


@cache
def get(name: str) -> Backend:
    """The backend of that name.

    Raises UnknownBackend: not registered, claimed twice, or broken; the message says which distribution.
    """
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)()  # type: ignore[no-any-return]
    found = [e for e in entry_points(group=GROUP) if e.name == name]
    if not found:
        raise UnknownBackend(f"there is no backend {name!r}; registered here: {', '.join(names())}")
    if len(found) > 1:
        who = " and ".join(sorted(e.dist.name if e.dist else e.value for e in found))
        raise UnknownBackend(f"backend {name!r} is claimed by {who}; uninstall one of them")
    try:
        return found[0].load()()  # type: ignore[no-any-return]
    except Exception as error:
        raise UnknownBackend(f"backend {name!r} ({found[0].value}) does not load: {error}") from error
