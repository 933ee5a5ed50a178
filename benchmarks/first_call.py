"""One first call, to be run as a process of its own: ``python -m benchmarks.first_call FILE ASKED``.

ASKED is JSON with peer, workload, shape, dtype, device, backend, and other, a second length or null.  What was found is
written to FILE.  The clock starts after imports, after the GPU has run a small kernel, and after the wrapper has been
made, and stops when the result is there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import sentence, synchronize
from benchmarks.workloads import WORKLOADS, Args, Shape, Workload

Found = dict[str, Any]


class Ours:
    """flashlight, strictly."""

    def __init__(self, workload: Workload, shape: Shape, backend: str):
        import flashlight

        self.fast: Any = flashlight.optimize(workload.function(shape), backend=backend, strict=True)
        self.kernels = 0
        if backend == "triton":
            from triton import knobs

            knobs.compilation.listener = self.heard

    def heard(self, *, cache_hit: bool, **_: Any) -> None:
        """Triton made a kernel, or found it on the disk."""
        self.kernels += not cache_hit

    def __call__(self, args: Args) -> tuple[Any, float | None]:
        return self.fast(*args), None

    def compiled(self) -> dict[str, int]:
        """So far."""
        return {"compilations": self.fast.compilations, "kernels": self.kernels}


class Flex:
    """FlexAttention as its documentation has it: compiled, the mask made by a plain call, which is the quickest way to
    make the first one."""

    def __init__(self, workload: Workload, shape: Shape, backend: str):
        # Imported by the first call otherwise.
        import torch._inductor.compile_fx
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        self.workload, self.grouped = workload, shape.kv_heads != shape.heads
        self.attend: Callable[..., Tensor] = torch.compile(flex_attention)
        self.make: Callable[..., Any] = create_block_mask

    def __call__(self, args: Args) -> tuple[Any, float | None]:
        assert self.workload.flex is not None
        flex, (q, k, v) = self.workload.flex(args), args[:3]
        mask, seconds = None, None
        if flex.mask is not None:
            start = time.perf_counter()
            batch = q.shape[0] if flex.batched else None
            mask = self.make(flex.mask, batch, None, q.shape[2], k.shape[2], device=str(q.device))
            synchronize(q.device)
            seconds = time.perf_counter() - start
        return self.attend(q, k, v, score_mod=flex.score, block_mask=mask, enable_gqa=self.grouped), seconds

    def compiled(self) -> dict[str, int]:
        """It may compile at every length."""
        return {}


def called(peer: Ours | Flex, args: Args) -> Found:
    """Milliseconds of one call, of the mask in it, and what has been compiled since."""
    before, device = peer.compiled(), args[0].device
    synchronize(device)
    start = time.perf_counter()
    _, mask = peer(args)
    synchronize(device)
    ms = (time.perf_counter() - start) * 1e3
    new = {name: n - before[name] for name, n in peer.compiled().items()}
    return {"ms": ms, "mask": None if mask is None else mask * 1e3, **new}


def main() -> int:
    out, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    device = torch.device(asked["device"])
    workload, shape, dtype = WORKLOADS[asked["workload"]], Shape.parse(asked["shape"]), getattr(torch, asked["dtype"])
    made = Ours if asked["peer"] == "flashlight" else Flex
    peer = made(workload, shape, asked["backend"])
    args = workload.make(shape, dtype, device)
    (args[0] + 1).sum().item()
    found: dict[str, Found] = {}
    with torch.no_grad():
        for name, length in (("first", shape.length), ("new length", asked["other"])):
            if length is None:
                continue
            try:
                found[name] = called(peer, workload.make(replace(shape, length=length), dtype, device))
            except Exception as failure:
                found[name] = {"error": sentence(failure)}
                break
            finally:
                out.write_text(json.dumps(found))  # as soon as it is known: what follows may not end
    return 0


if __name__ == "__main__":
    sys.exit(main())
