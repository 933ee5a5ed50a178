"""What a kernel's machine code takes and does: registers, shared memory, and the instructions of its hottest loop."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from math import prod
from typing import Any

from flashlight.backend import Source
from flashlight.report import KernelText
from flashlight.tile import Loop

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\w[\w.]*)([^;]*);", re.MULTILINE)
# Kinds by the beginnings of their names.  Warps of tensor cores (HGMMA) take 64 rows and read shared memory themselves.
KINDS = {
    "tensor": ("HMMA", "HGMMA", "IMMA", "DMMA", "QGMMA"),
    "special": ("MUFU",),
    "shared": ("LDS", "STS"),
    "shuffles": ("SHFL",),
    "waits": ("WARPGROUP", "BAR", "DEPBAR", "LDGDEPBAR", "SYNCS", "WARPSYNC"),
}


def described(text: KernelText) -> dict[str, Any]:
    """Of the last kernel of a program: ``tile`` (rows and streamed elements of a block), ``threads``, ``registers``,
    ``spills`` and ``shared`` (bytes), and ``loop``: how many instructions a trip issues, by kind and ``all``."""
    return dict(_described(text.backend, text.sources[-1]))


@cache
def _described(backend: str, source: Source) -> dict[str, Any]:
    from flashlight.backends.cupy.compile import compile_only as by_nvrtc
    from flashlight.backends.triton.compile import compile_only as by_triton
    from flashlight.backends.triton.compile import disassembled

    if backend == "triton":
        made = by_triton(source, source.target.arch)
        cubin, threads, sizes = made.cubin, made.warps * 32, (made.registers, made.spills, made.shared)
    else:
        other = by_nvrtc(source, source.target.arch)
        cubin, threads, sizes = other.cubin, other.threads, (other.registers, other.spills, other.shared)
    loops = [s for s in source.kernel.body if isinstance(s, Loop)]
    tile = [prod(d.block for d in source.kernel.dims if d.role == "row")]
    tile += [source.kernel.dim(x.axis).block for x in loops[-1:]]
    return {
        "tile": tile,
        "threads": threads,
        **dict(zip(("registers", "spills", "shared"), sizes, strict=True)),
        "loop": hottest(disassembled(cubin)),
    }


def loops(text: str) -> list[Counter[str]]:
    """How many of each instruction the loops of machine code have, in order."""
    code = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(text)]
    found = []
    for at, name, rest in code:
        if name.startswith("BRA") and (to := re.search(r"0x([0-9a-f]+)", rest)) and int(to[1], 16) < at:
            found.append(Counter(n.split(".")[0] for a, n, _ in code if int(to[1], 16) <= a <= at))
    return found


def hottest(text: str) -> dict[str, int]:
    """The instructions, by kind, of the loop with most tensor core instructions; of several the shortest (one without
    masks).  Empty where there is no loop."""
    found = []
    for loop in loops(text):
        inside = Counter[str]()
        for name, count in loop.items():
            inside[kind(name)] += count
        found.append({"all": inside.total(), **{k: inside[k] for k in KINDS if inside[k]}})
    return max(found, key=lambda c: (c.get("tensor", 0), -c["all"]), default={})


def kind(name: str) -> str:
    return next((k for k, names in KINDS.items() if name.startswith(names)), "other")
