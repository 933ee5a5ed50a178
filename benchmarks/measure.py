"""Measuring one cell: correctness first, then time and memory, every peer on the same tensors in the same run."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Candidate, candidates
from benchmarks.workloads import Args, Shape, Workload, wide

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Line:
    """What is stored: one line a peer and cell.

    ``pass``: "forward"; "first" (the first call, compilation included); "mask" (making FlexAttention's mask object);
    "copy" (of as many bytes as keys and values have).  ``ms``: median, None where the peer failed.  ``tflops``: useful
    work, masked scores excluded.  ``gbps``: bytes that have to be read and written, of programs that memory bounds and
    of the copy.  ``peak_mib``: memory taken during a call above what was held before it (CUDA only).  ``error``:
    largest absolute error of all outputs against float64 eager on the part :meth:`Workload.part` names (of integers,
    the share that differs), or the text of what went wrong.  ``code``: of the machine code, where backends of ours are
    compared (machine.py).
    """

    suite: str
    workload: str
    shape: str
    dtype: str
    stage: str
    peer: str
    backend: str
    ms: float | None
    tflops: float | None
    gbps: float | None
    peak_mib: float | None
    error: float | str | None
    device: str
    torch: str
    triton: str | None
    commit: str
    command: str
    code: dict[str, Any] | None = None

    def json(self) -> str:
        fields = {"pass" if k == "stage" else k: v for k, v in asdict(self).items() if k != "code" or v is not None}
        return json.dumps(fields, allow_nan=False)


@dataclass(frozen=True)
class Reference:
    """Float64 eager on a part of the cell, eager's own error there, and what flashlight is allowed."""

    part: tuple[slice, ...]
    axes: tuple[str, ...]
    values: tuple[Tensor, ...]
    eager_error: float
    allowances: tuple[float, ...]

    def errors(self, out: Any) -> tuple[float, ...]:
        """Largest absolute error of each full output; infinite where NaN is not where the reference has it."""
        cut = [Workload.cut(x, axes, self.part) for x, axes in zip(_outputs(out), self.axes, strict=True)]
        return tuple(map(_error, cut, self.values))

    def wrong(self, errors: tuple[float, ...]) -> str | None:
        """What is wrong with an output that is off by more than flashlight is allowed."""
        found = zip(errors, self.allowances, strict=True)
        return next((f"wrong: error {e:.3g}, allowed {a:.3g}" for e, a in found if not e <= a), None)


def _outputs(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _error(out: Tensor, reference: Tensor) -> float:
    """Infinite where shapes differ, or values that are not finite are not where the reference has them.  Of integers,
    how far apart says nothing (indices of near ties): the share that differs."""
    if out.shape != reference.shape or not torch.equal(out.isnan(), reference.isnan()):
        return math.inf
    if not reference.is_floating_point():
        return (out != reference).double().mean().item()
    if not torch.equal(out.isinf(), reference.isinf()):
        return math.inf
    wrong = (out.double() - reference).abs()[reference.isfinite()]
    return wrong.max().item() if wrong.numel() else 0.0


def reference(workload: Workload, shape: Shape, args: Args) -> Reference:
    """Computed on a part small enough that float64 scores fit; the rule of errors is flashlight.testing's."""
    from flashlight.testing import tolerance

    device = args[0].device
    budget = 0.02 * torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 2.0**29
    part = workload.part(shape, budget)
    some = tuple(Workload.cut(x, axes, part) for x, axes in zip(args, workload.axes, strict=False))
    program = workload.function(shape)
    with torch.no_grad():
        values, eager = _outputs(program(*wide(some))), _outputs(program(*some))
    errors = tuple(map(_error, eager, values))
    allowed = (
        tolerance(x, own) if x.is_floating_point() else 2 * e for x, own, e in zip(values, eager, errors, strict=True)
    )
    return Reference(part, workload.axes[len(args) :], values, max(errors), tuple(allowed))


@dataclass(frozen=True)
class Settings:
    """What a run was asked: ``backends`` of flashlight (() for the device's); ``seconds`` bounds the timing of one
    peer; ``first`` also stores first-call times."""

    suite: str
    device: torch.device
    command: str
    peers: tuple[str, ...]
    backends: tuple[str, ...] = ()
    seconds: float = 0.2
    first: bool = True


def cell(workload: Workload, shape: Shape, dtype: str, settings: Settings) -> Iterator[Line]:
    """Lines of one cell.  A peer that fails gives a line that says why; nothing a peer does ends the run."""
    work, moved = workload.flops(shape), {"forward": 0.0, "copy": 0.0}  # by pass: bytes read and written

    def line(
        c: Candidate, stage: str, ms: float | None, peak: float | None, error: float | str | None,
        code: dict[str, Any] | None = None,
    ) -> Line:  # fmt: skip
        rate = work / ms / 1e9 if ms and stage == "forward" else None
        bandwidth = moved[stage] / ms / 1e6 if ms and moved.get(stage) else None
        said = "NaN or infinity where eager has none, or the other way round" if error == math.inf else error
        return Line(
            settings.suite, workload.name, str(shape), dtype, stage, c.peer, c.backend, rounded(ms), rounded(rate),
            rounded(bandwidth), rounded(peak), said, *environment(settings.device), settings.command, code,
        )  # fmt: skip

    torch.compiler.reset()
    try:
        args = workload.make(shape, getattr(torch, dtype), settings.device)
        if workload.elements is not None:
            moved["forward"] = workload.elements(shape) * args[0].element_size()
            moved["copy"] = 2 * (args[1].nbytes + args[2].nbytes)
        check = reference(workload, shape, args)
    except Exception as failure:
        yield line(Candidate("eager", "reference", lambda: lambda: None), "forward", None, None, sentence(failure))
        return
    held: list[tuple[Candidate, Callable[[], Any], float | None, float | str | None]] = []
    with torch.no_grad():
        for c in candidates(workload, shape, args, settings.peers, settings.backends):
            try:
                start = time.perf_counter()
                call = c.prepare()
                out = call()
                synchronize(settings.device)
                first = (time.perf_counter() - start) * 1e3
                errors = check.errors(out) if c.stage == "forward" else None
                error = max(errors) if errors else None
                del out
                if c.peer == "flashlight" and errors and (wrong := check.wrong(errors)):
                    raise ValueError(wrong)
                if settings.first and c.stage == "forward":
                    yield line(c, "first", first, None, None)
                peak = _peak(call, settings.device)
                if settings.device.type == "cuda":
                    ms = _gpu_time(call, settings.seconds)
                    yield line(c, c.stage, ms, peak, error, c.code() if c.code else None)
                else:
                    held.append((c, call, peak, error))
            except Exception as failure:
                yield line(c, c.stage, None, None, sentence(failure))
            finally:
                call = lambda: None  # noqa: E731  # release what the peer holds before the next one allocates
                gc.collect()
                if settings.device.type == "cuda":
                    torch.cuda.empty_cache()
        # On a CPU the clock drifts with what else runs, so that peers take turns.
        for (c, _, peak, found), ms in zip(held, _interleaved([h[1] for h in held], settings.seconds), strict=True):
            yield line(c, c.stage, ms, peak, found)


AHEAD = 4  # flushes before a call: some 0.4 ms of an H100's, in which the CPU issues all of the call's kernels
LARGEST_CACHE = 256 << 20  # bytes: more than any L2 cache has


def _gpu_time(call: Callable[[], Any], seconds: float) -> float:
    """Median milliseconds by CUDA events, with the L2 cache flushed between calls.

    The flushes keep the GPU busy until the call is issued.  What is timed is what kernels take, however long Python
    does (part ``calls`` times that): with one flush, calls of several short kernels were timed as the CPU issued them.
    """
    cache = torch.empty(LARGEST_CACHE, dtype=torch.int8, device="cuda")

    event: Callable[..., Any] = torch.cuda.Event

    def timed(count: int) -> list[float]:
        pairs = [[event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in pairs:
            for _ in range(AHEAD):
                cache.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in pairs]

    once = statistics.median(timed(5))  # warms up, too
    return statistics.median(timed(max(10, min(1000, int(seconds * 1e3 / once)))))


def _interleaved(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Median milliseconds of each, taken in turns: at least five rounds, then until each has had ``seconds``."""
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    while calls and (len(times[0]) < 5 or time.perf_counter() - start < seconds * len(calls)) and len(times[0]) < 200:
        for call, kept in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            kept.append((time.perf_counter() - begin) * 1e3)
    return [statistics.median(t) for t in times]


def _peak(call: Callable[[], Any], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rounded(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.5g}")


def sentence(failure: BaseException) -> str:
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text}"[:400]


@cache
def environment(device: torch.device) -> tuple[str, str, str | None, str]:
    """(device, torch, triton, commit) as stored."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu()}, {torch.get_num_threads()} threads"
    try:
        import triton

        version: str | None = triton.__version__
    except ImportError:
        version = None
    return name, torch.__version__, version, commit()


def _cpu() -> str:
    try:
        for row in Path("/proc/cpuinfo").read_text().splitlines():
            if row.startswith("model name"):
                return row.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit measured: FLASHLIGHT_COMMIT, else git's, with ``+changes`` where the tree differs; else unknown."""
    if named := os.environ.get("FLASHLIGHT_COMMIT"):
        return named
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


class Store:
    """A file of lines in which every cell comes from one run: a cell measured anew replaces its old lines."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(r) for r in rows if r.strip()]

    def replace(self, lines: list[Line]) -> None:
        """Store the lines of one cell, at once and atomically."""
        new = [json.loads(line.json()) for line in lines]
        fields = ("suite", "workload", "shape", "dtype", "device")
        cells = {tuple(r[f] for f in fields) for r in new}
        self.rows = [r for r in self.rows if tuple(r[f] for f in fields) not in cells] + new
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(r) + "\n" for r in self.rows))
        partial.replace(self.path)


def slug(device: torch.device) -> str:
    """The device's name as part of a file name."""
    words = "".join(c if c.isalnum() else " " for c in environment(device)[0].lower()).split()
    return "-".join(words)


def command(module: str) -> str:
    """The command line as stored, to be run from the root."""
    return " ".join(["python", *module.split(), *sys.argv[1:]])
