"""The cupy backend's text run on the CPU: compiled by g++ against shim.h, one fiber a thread."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flashlight.backend import Run, Source, Target, Unsupported
from flashlight.backends.cupy import CupyBackend
from flashlight.backends.cupy.compile import expanded
from flashlight.backends.cupy.launch import Call, Defines
from flashlight.tile import Kernel

if shutil.which("g++") is None:
    pytest.skip("the shim compiles with g++, which is not here", allow_module_level=True)

HERE = Path(__file__).resolve().parent
TARGET = Target("cuda", 90, 132, 232448)
SHARED = 1 << 18
FLAGS = ("-std=c++17", "-O1", "-fno-strict-aliasing", "-ffp-contract=fast", "-w", "-shared", "-fPIC")
RUN = """
alignas(1024) unsigned char shared_memory[%(shared)d];
static void* const* arguments;
extern "C" const char* launch(void* const* given, unsigned blocks, unsigned long long seed) {
  arguments = given;
  host::body = [] { %(entry)s(%(arguments)s); };
  for (unsigned k = 0; k < blocks; ++k) {
    blockIdx.x = k;
    memset(shared_memory, 0xff, %(used)d);
    if (const char* failure = host::run(%(threads)d, seed + k)) return failure;
  }
  return nullptr;
}
"""


class Failed(RuntimeError):
    """What the shim noticed while it ran a kernel."""


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="flashlight_shim_"))


def host_text(source: Source, defines: Defines) -> str:
    """The very text that NVRTC compiles, between the shim and a function to call."""
    call = Call(source)
    whole = expanded(source.text, {"ptx": (HERE / "ptx.cuh").read_text()})
    parameters = re.search(r"__launch_bounds__\(THREADS, 1\) \w+\((.*?)\) \{", source.text, re.DOTALL)
    assert parameters is not None
    wide = "long long" if ("STRIDE", "long long") in defines else "int"
    types = [p.rsplit(" ", 1)[0].replace("STRIDE", wide) for p in " ".join(parameters[1].split()).split(", ")]
    arguments = ", ".join(f"*({t.replace('__restrict__', '')}*)arguments[{k}]" for k, t in enumerate(types))
    run = RUN % {
        "entry": source.entry,
        "arguments": arguments,
        "threads": call.threads,
        "used": call.shared,
        "shared": max(16, call.shared),
    }
    given = "".join(f"#define {name} {value}\n" for name, value in defines)
    return f'#include "{HERE / "shim.h"}"\n{given}{whole}\n{run}'


@cache
def library(text: str) -> ctypes.CDLL:
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = folder() / f"{digest}.cpp"
    file.write_text(text)
    made = file.with_suffix(".so")
    done = subprocess.run(["g++", *FLAGS, "-o", str(made), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    lib = ctypes.CDLL(str(made))
    lib.launch.restype = ctypes.c_char_p
    return lib


def run(source: Source, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int], seed: int = 0) -> None:
    """Raises Failed: the threads wait for each other, or a copy is not aligned."""
    call, tensors = Call(source), [*inputs, *outputs]
    defines = call.defines(tensors)
    lib = library(host_text(source, defines))
    values = [t(n) for t, n in zip(call.types(defines), call.arguments(tensors, sizes), strict=True)]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    failure = lib.launch(pointers, call.programs(*sizes), ctypes.c_ulonglong(seed))
    if failure:
        raise Failed(failure.decode())


class ShimBackend(CupyBackend):
    """The backend with a CPU for its GPU."""

    name = "cupy_shim"
    seed = int(os.environ.get("SHIM_SEED", "0"))

    def supports(self, target: Target, kernel: Kernel | None = None) -> Unsupported | None:
        return None if kernel is None else super().supports(TARGET, kernel)

    def build(self, source: Source) -> Run:
        return lambda inputs, outputs, sizes: run(source, inputs, outputs, sizes, self.seed)
