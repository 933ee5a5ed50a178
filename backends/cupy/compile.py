"""From the emitted text to machine code, with or without a GPU, and what the compiler tells about it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flashlight import cache as disk
from flashlight.backend import Source
from flashlight.errors import BackendUnavailable, InternalError

HEADERS = Path(__file__).resolve().parent / "headers"
INCLUDE = re.compile(r'^#include "(\w+)\.cuh"\n', re.MULTILINE)
ALIGNED = re.compile(r"^#ifndef (ALIGN_\w+)  // buffer (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """What compilation tells of a kernel.

    ``spills``: bytes stored to and loaded from local memory.  ``shared``: bytes of shared memory a thread block takes.
    """

    arch: int
    registers: int
    spills: int
    shared: int
    threads: int
    cubin: bytes = field(repr=False)

    def __str__(self) -> str:
        spilled = f"{self.spills} bytes of them spilled" if self.spills else "none spilled"
        return (
            f"{self.registers} registers a thread, {spilled}; {self.shared} bytes of shared memory; "
            f"{self.threads} threads a block (sm_{self.arch})"
        )


def expanded(text: str, instead: Mapping[str, str] | None = None) -> str:
    """The text with its headers in it: a file that any CUDA compiler takes as it is.

    ``instead``: the texts of some headers, by name.
    """
    done: set[str] = set()

    def header(m: re.Match[str]) -> str:
        name = m[1]
        if name in done:
            return ""
        done.add(name)
        return INCLUDE.sub(header, (instead or {}).get(name) or _header(name)).replace("#pragma once\n", "")

    return INCLUDE.sub(header, text)


@cache
def _header(name: str) -> str:
    return (HEADERS / f"{name}.cuh").read_text()


def number(text: str, name: str) -> int:
    """What the text defines THREADS or SHARED as."""
    found = re.search(rf"^#define {name} (\d+)", text, re.MULTILINE)
    if found is None:
        raise InternalError(f"the kernel's text does not define {name}")
    return int(found[1])


def alignments(text: str) -> tuple[tuple[str, int], ...]:
    """The ALIGN_ macros of the text, each with the number of the buffer it is about."""
    return tuple((m[1], int(m[2])) for m in ALIGNED.finditer(text))


def compile_only(source: Source, arch: int = 90, defines: Mapping[str, str] | None = None) -> Compiled:
    """Compile for a GPU that need not be here; by default for aligned tensors without gaps (``defines``: other values
    of the text's macros).

    Raises InternalError: the compiler refuses the text.  BackendUnavailable: NVRTC is not installed.
    """
    return compiled(source.text, arch, tuple(sorted((defines or {}).items())))


def compiled(text: str, arch: int, defines: tuple[tuple[str, str], ...]) -> Compiled:
    """Machine code for one class of layouts, from the disk store where it has it."""
    nvrtc = compiler()
    options = ["-std=c++17", f"-arch=sm_{arch}", "--ptxas-options=-v", *(f"-D{name}={n}" for name, n in defines)]
    options += nvrtc.options
    whole = expanded(text)
    store = disk.default()
    key = disk.key("cupy", whole, *options, nvrtc.version)
    kept = store.get(key) if store else None
    if kept is not None:
        found = json.loads(kept)
        return _made(arch, found["numbers"], base64.b64decode(found["cubin"]))
    cubin, log = nvrtc.compile(whole, options)
    registers = max(map(int, re.findall(r"Used (\d+) registers", log)), default=0)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log)))
    numbers = [registers, spills, number(text, "SHARED"), number(text, "THREADS")]
    if store:
        store.put(key, json.dumps({"numbers": numbers, "cubin": base64.b64encode(cubin).decode()}))
    return _made(arch, numbers, cubin)


def _made(arch: int, numbers: list[int], cubin: bytes) -> Compiled:
    registers, spills, shared, threads = numbers
    return Compiled(arch, registers, spills, shared, threads, cubin)


# ---- NVRTC -----------------------------------------------------------------------------------------------------------
def _options(version: tuple[int, ...]) -> list[str]:
    """What a version needs: from CUDA 12.9 on NVRTC keeps machine code itself, and then tells nothing about it."""
    return ["--no-cache"] if version >= (12, 9) else []


class _ByCupy:
    """NVRTC through CuPy."""

    def __init__(self, nvrtc: Any) -> None:
        self.nvrtc = nvrtc
        self.version = "nvrtc {}.{}".format(*nvrtc.getVersion())
        self.options = _options(tuple(nvrtc.getVersion()))

    def compile(self, text: str, options: list[str]) -> tuple[bytes, str]:
        program = self.nvrtc.createProgram(text, "flashlight.cu", (), ())
        try:
            self.nvrtc.compileProgram(program, tuple(options))
        except self.nvrtc.NVRTCError:
            raise _refused(self.nvrtc.getProgramLog(program)) from None
        try:
            cubin = self.nvrtc.getCUBIN(program)
            cubin += bytes(-len(cubin) % 8)  # CuPy cuts the last byte off, as if it ended a text
            return cubin, self.nvrtc.getProgramLog(program)
        finally:
            self.nvrtc.destroyProgram(program)


class _ByBindings:
    """NVRTC through NVIDIA's own Python bindings, which come with PyTorch."""

    def __init__(self, nvrtc: Any) -> None:
        self.nvrtc = nvrtc
        version = self._got(nvrtc.nvrtcVersion())
        self.version = "nvrtc {}.{}".format(*version)
        self.options = _options(version)

    def _got(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        code, *values = answer
        if int(code):
            raise InternalError(f"NVRTC: {code}")
        return tuple(values)

    def compile(self, text: str, options: list[str]) -> tuple[bytes, str]:
        nvrtc = self.nvrtc
        (program,) = self._got(nvrtc.nvrtcCreateProgram(text.encode(), b"flashlight.cu", 0, [], []))
        try:
            (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
            (size,) = self._got(nvrtc.nvrtcGetProgramLogSize(program))
            log = bytearray(size)
            self._got(nvrtc.nvrtcGetProgramLog(program, log))
            said = log.decode(errors="replace").strip("\0 \n")
            if int(code):
                raise _refused(said)
            (size,) = self._got(nvrtc.nvrtcGetCUBINSize(program))
            cubin = bytearray(size)
            self._got(nvrtc.nvrtcGetCUBIN(program, cubin))
            return bytes(cubin), said
        finally:
            nvrtc.nvrtcDestroyProgram(program)


def _refused(log: str) -> InternalError:
    lines = [line for line in log.splitlines() if "error" in line] or log.splitlines()
    return InternalError("NVRTC refuses the kernel: " + " / ".join(lines[:3]))


@cache
def compiler() -> Any:
    """NVRTC by CuPy if it is installed, else by cuda.bindings.  Raises BackendUnavailable: neither has it."""
    try:
        from cupy_backends.cuda.libs import nvrtc as by_cupy

        by_cupy.getVersion()
        return _ByCupy(by_cupy)
    except Exception:
        pass
    try:
        from cuda.bindings import nvrtc as by_bindings

        return _ByBindings(by_bindings)
    except Exception as error:
        raise BackendUnavailable(
            f"CUDA C++ needs NVRTC, which comes with CuPy (pip install cupy-cuda13x[ctk]) or cuda-bindings: {error}"
        ) from error
