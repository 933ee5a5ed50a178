"""``python -m benchmarks.calls --device cuda``: what a call costs besides its kernel, and what a first call costs.

Stores benchmarks/results/calls-DEVICE.jsonl.  The passes of its lines:

- ``launch``: a bare launch of a compiled Triton kernel through Triton's C launcher.  ``overhead``: what issuing a call
  takes above that (on a CPU: the whole call), after the first call of a signature.
- ``first``: the first call, capture to result, in a fresh process with empty caches; ``warm``: the same in a second
  process that finds the caches of the first.  FlexAttention makes its mask in that time; ``first, mask`` and
  ``warm, mask`` are that part.
- ``new length``: the second call of the process with empty caches, at another length.  ``error`` says what flashlight
  compiled for it, which must be nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import measure
from benchmarks.measure import Line
from benchmarks.options import backend_of, device_of, some_of
from benchmarks.peers import Candidate, candidates
from benchmarks.suites import FLEX, WORKLOADS
from benchmarks.workloads import Args, Shape, Workload

PEERS = ("flashlight", "flex", "sdpa")
SMALL, LONGER, LARGE, TINY = map(Shape.parse, ("1,1,64,64", "1,1,512,64", "1,16,4096,64", "1,2,96,16"))
ISSUED = (("causal", SMALL), ("document_causal", SMALL), ("document_causal", LONGER))  # the last with tiles to find
BLOCK = 100  # calls issued without waiting: fewer than a GPU's queue holds, so that issuing is all that is timed
BLOCKS = 50
CACHES = ("FLASHLIGHT_CACHE", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@dataclass(frozen=True)
class Job:
    """What is asked.  ``limit``: seconds for each process.  ``deadline``: when to begin no more, since the epoch."""

    device: torch.device
    command: str
    dtype: str
    backend: str
    peers: tuple[str, ...] = PEERS
    limit: float = 120
    deadline: float = math.inf
    blocks: int = BLOCKS

    def line(
        self, workload: Workload, shape: Shape, stage: str, peer: str, ms: float | None, error: str | None = None
    ) -> Line:
        names = {"flashlight": self.backend, "flex": "inductor", "sdpa": "default"}
        return Line(
            "calls", workload.name, str(shape), self.dtype, stage, peer, names.get(peer, "triton"), measure.rounded(ms),
            None, None, None, error, *measure.environment(self.device), self.command,
        )  # fmt: skip


def usual(device: torch.device) -> str:
    """The dtype where none is asked for."""
    return "bfloat16" if device.type == "cuda" else "float32"


def cells(job: Job, names: tuple[str, ...] = (), tiny: bool = False) -> Iterator[list[Line]]:
    """The lines of one workload and shape after the other.  ``names``: () for all."""
    asked = [(n, s, overhead) for n, s in ISSUED] + [(n, TINY if tiny else LARGE, first) for n in FLEX]
    for name, shape, part in asked:
        if names and name not in names:
            continue
        if time.time() > job.deadline:
            print(f"calls: out of time before {part.__name__} {name}", flush=True)
            return
        yield list(part(job, WORKLOADS[name], shape))


# ---- every call ------------------------------------------------------------------------------------------------------
def overhead(job: Job, workload: Workload, shape: Shape) -> Iterator[Line]:
    """On a small shape, so that the GPU keeps up and only what the CPU does is seen."""
    torch.compiler.reset()
    args = workload.make(shape, getattr(torch, job.dtype), job.device)
    least = 0.0
    with torch.no_grad():
        if job.device.type == "cuda":
            from benchmarks.launch import bare

            tensors = (*args, torch.empty_like(args[0]))
            try:
                least = issued(job, bare(tensors))
            except Exception as failure:  # the rest would be above nothing
                yield job.line(workload, shape, "overhead", "launch", None, measure.sentence(failure))
                return
            yield job.line(workload, shape, "launch", "launch", least)
        for c in _compared(job, workload, shape, args):
            try:
                yield job.line(workload, shape, "overhead", c.peer, issued(job, c.prepare()) - least)
            except Exception as failure:
                yield job.line(workload, shape, "overhead", c.peer, None, measure.sentence(failure))


def _compared(job: Job, workload: Workload, shape: Shape, args: Args) -> Iterator[Candidate]:
    """SDPA as it chooses its backend itself: pinning one costs time at every call."""
    found = candidates(workload, shape, args, tuple(p for p in job.peers if p != "sdpa"), (job.backend,))
    yield from (c for c in found if c.stage == "forward")
    if "sdpa" in job.peers and workload.sdpa is not None:
        call = partial(F.scaled_dot_product_attention, *args[:3], **workload.sdpa(args))
        yield Candidate("sdpa", "default", lambda: call)


def issued(job: Job, call: Callable[[], Any]) -> float:
    """Milliseconds that issuing a call takes: the median of blocks, each begun with an empty queue."""
    times = []
    call()
    for _ in range(job.blocks + 1):
        measure.synchronize(job.device)
        start = time.perf_counter()
        for _ in range(BLOCK):
            call()
        times.append((time.perf_counter() - start) * 1e3 / BLOCK)
    measure.synchronize(job.device)
    return statistics.median(times[1:])  # the first block warms up


# ---- the first call --------------------------------------------------------------------------------------------------
def first(job: Job, workload: Workload, shape: Shape) -> Iterator[Line]:
    """Empty caches, another length, and then the caches as they were left."""
    other = 3 * shape.length // 4 + 1  # of no use to anything that was made for the first
    for peer in ("flashlight", "flex"):
        if peer not in job.peers:
            continue
        with tempfile.TemporaryDirectory(prefix="flashlight-calls-", ignore_cleanup_errors=True) as folder:
            cold = process(job, workload, shape, peer, Path(folder), other)
            yield from _lines(job, workload, shape, peer, "first", cold["first"])
            if "new length" in cold:
                yield from _lines(job, workload, shape, peer, "new length", cold["new length"])
            if "ms" in cold["first"]:
                warm = process(job, workload, shape, peer, Path(folder), None)
                yield from _lines(job, workload, shape, peer, "warm", warm["first"])


def _lines(job: Job, workload: Workload, shape: Shape, peer: str, stage: str, found: dict[str, Any]) -> Iterator[Line]:
    error = found.get("error")
    made = {what: n for what in ("compilations", "kernels") if (n := found.get(what))}
    if stage == "new length" and made:
        error = "compiled for a new length: " + ", ".join(f"{what} {n}" for what, n in made.items())
    yield job.line(workload, shape, stage, peer, found.get("ms"), error)
    if found.get("mask") is not None:
        yield job.line(workload, shape, f"{stage}, mask", peer, found["mask"])


def process(
    job: Job, workload: Workload, shape: Shape, peer: str, folder: Path, other: int | None
) -> dict[str, dict[str, Any]]:
    """What benchmarks/first_call.py finds in a process of its own, whose caches are in ``folder``; at least "first"."""
    asked = {"peer": peer, "workload": workload.name, "shape": str(shape), "dtype": job.dtype}
    asked |= {"device": str(job.device), "backend": job.backend}
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.first_call", str(out), json.dumps({**asked, "other": other})],
        cwd=measure.ROOT,
        env={**os.environ, **{name: str(folder / name.lower()) for name in CACHES}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said = child.communicate(timeout=job.limit)[1]
        why = f"the process ended with status {child.returncode}: {(said.strip().splitlines() or ['no message'])[-1]}"
    except subprocess.TimeoutExpired:
        why = f"no result after {job.limit:g} s; --limit allows more"
        os.killpg(child.pid, signal.SIGKILL)  # with the processes that it compiles in, which hold its pipe open
        child.communicate()
    found: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.exists() else {}
    if "first" not in found:
        found["first"] = {"error": why[:400]}
    elif "ms" in found["first"] and other is not None and "new length" not in found:
        found["new length"] = {"error": why[:400]}
    return found


def arguments() -> argparse.ArgumentParser:
    ask = argparse.ArgumentParser("python -m benchmarks.calls", description=__doc__.split("\n", 1)[0])
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    ask.add_argument("--workloads", help=f"some of {','.join(FLEX)}")
    ask.add_argument("--dtype", help="by default bfloat16, on a CPU float32")
    ask.add_argument("--peers", default=",".join(PEERS), help="separated by commas")
    ask.add_argument("--backend", help="flashlight's backend; by default the device's")
    ask.add_argument("--limit", type=float, default=120, help="seconds for each process")
    ask.add_argument("--seconds", type=float, default=math.inf, help="begin no new workload after so long")
    ask.add_argument("--tiny", action="store_true", help="shapes that only try the script out")
    ask.add_argument("--out", type=Path, help="by default benchmarks/results/calls-DEVICE.jsonl")
    return ask


def main() -> int:
    ask = arguments()
    asked = ask.parse_args()
    device = device_of(ask, asked.device)
    names = some_of(ask, asked.workloads, FLEX, "workload") if asked.workloads else ()
    job = Job(
        device,
        measure.command("-m benchmarks.calls"),
        asked.dtype or usual(device),
        backend_of(device, asked.backend),
        some_of(ask, asked.peers, PEERS, "peer"),
        asked.limit,
        time.time() + asked.seconds,
    )
    folder = measure.ROOT / "benchmarks" / "results"
    store = measure.Store(asked.out or folder / f"calls-{measure.slug(device)}.jsonl")
    right = True
    for lines in cells(job, names, asked.tiny):
        for line in lines:
            print(line.json(), flush=True)
            right &= line.peer != "flashlight" or line.error is None
        store.replace(lines)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
