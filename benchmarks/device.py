"""One script for a borrowed GPU: is every program right, then how fast, within a time budget.

``python benchmarks/device.py --out DIR`` checks every program of suite ``first`` against float64 eager, in three
dtypes, at two large shapes and at odd lengths (``DIR/correctness.jsonl``), then times suites ``first``, ``flex``,
``backends``, ``beyond``, ``masks`` and ``decode`` against their peers (``DIR/first.jsonl`` and so on), and at last what
calls cost (``DIR/calls.jsonl``, see benchmarks/calls.py).  Part ``random``, which is run where it is asked for, checks
random programs (``DIR/random.jsonl``, see benchmarks/random_programs.py).  A failure is printed with its traceback and
the run goes on; results are on disk as soon as they exist.  Checks and the compilation of peers run in several
processes at once; timing runs alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script: Python put benchmarks/ there instead of the root
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import calls, compare, measure  # noqa: E402
from benchmarks.options import backend_of  # noqa: E402
from benchmarks.peers import NAMES, candidates  # noqa: E402
from benchmarks.suites import SUITES, WORKLOADS  # noqa: E402
from benchmarks.workloads import Shape, Workload  # noqa: E402

ODD = (1, 2, 7, 127, 129, 513, 1000)
DTYPES = ("bfloat16", "float16", "float32")
TIMED = ("first", "flex", "backends", "beyond", "masks", "decode")
PARTS = ("correctness", "prepare", *TIMED, "calls")  # of a run that asks for none; there is also "random"


@dataclass(frozen=True)
class Job:
    """What is asked: parts to run, on what, until ``deadline`` (seconds since the epoch).  ``names``: () for all."""

    parts: tuple[str, ...]
    device: torch.device
    out: Path
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    peers: tuple[str, ...]
    backend: str | None
    deadline: float
    tiny: bool
    seconds: float
    command: str
    seeds: range

    @property
    def left(self) -> float:
        return self.deadline - time.time()


# ---- correctness -----------------------------------------------------------------------------------------------------
def functions(job: Job) -> Iterator[tuple[Workload, str, tuple[Shape, ...]]]:
    """(program, dtype, shapes that go through one compiled function): the large ones, then the odd lengths."""
    for name in job.names or SUITES["first"].workloads:
        for dtype in job.dtypes:
            for workload, shape in SUITES["first"].cells((name,), job.tiny):
                yield workload, dtype, (shape,)
            own = WORKLOADS[name].tiny
            base = own[0] if own else Shape(2, 3, 0, 16 if job.tiny else 64, 3)
            odd = (1, 2, 7, 33) if job.tiny else ODD
            yield WORKLOADS[name], dtype, tuple(replace(base, length=n) for n in odd)


def check(job: Job, workload: Workload, dtype: str, shapes: tuple[Shape, ...]) -> Iterator[dict[str, Any]]:
    """Run one compiled function at each shape; a line each, with a traceback where it failed."""
    fast: Any = None
    backend = backend_of(job.device, job.backend)
    for shape in shapes:
        row: dict[str, Any] = {"workload": workload.name, "shape": str(shape), "dtype": dtype, "backend": backend}
        row |= {"suite": "first", "ok": False, **with_what(job)}
        start = time.perf_counter()
        try:
            import flashlight

            if fast is None:
                fast = flashlight.optimize(workload.function(shape), backend=backend, strict=True)
            args = workload.make(shape, getattr(torch, dtype), job.device)
            with torch.no_grad():
                expected = measure.reference(workload, shape, args)
                again = time.perf_counter()
                errors = expected.errors(fast(*args))
            row |= {"ok": not expected.wrong(errors), "error": max(errors), "eager": expected.eager_error}
            row |= {"allowed": max(expected.allowances), "call_s": round(time.perf_counter() - again, 3)}
            row |= {"compilations": getattr(fast, "compilations", None)}
        except Exception:
            row["traceback"] = traceback.format_exc()
        row["seconds"] = round(time.perf_counter() - start, 3)
        yield row
        gc.collect()
        if job.device.type == "cuda":
            torch.cuda.empty_cache()


def with_what(job: Job) -> dict[str, Any]:
    fields = ("device", "torch", "triton", "commit", "command")
    return dict(zip(fields, (*measure.environment(job.device), job.command), strict=True))


def correctness(job: Job, share: slice) -> None:
    """Every ``share``-th function; lines are appended to one file by all workers, each in a single write."""
    for workload, dtype, shapes in list(functions(job))[share]:
        if job.left < 0:
            return
        for row in check(job, workload, dtype, shapes):
            append(job.out / "correctness.jsonl", row)
            verdict = "ok   " if row["ok"] else "WRONG" if "error" in row else "FAIL "
            numbers = " ".join(f"{k} {row[k]:.3g}" for k in ("error", "eager", "allowed") if k in row)
            print(
                f"{verdict} {row['workload']:18} {row['shape']:14} {dtype:9} {numbers} {row['seconds']:.1f} s",
                flush=True,
            )
            if "traceback" in row:
                print(row["traceback"], flush=True)


def random(job: Job, share: slice) -> None:
    """Every ``share``-th of the random programs."""
    from benchmarks import random_programs

    backends = (job.backend,) if job.backend else random_programs.BACKENDS if job.device.type == "cuda" else ("cpu",)
    for seed in job.seeds[share]:
        if job.left < 0:
            return
        row = random_programs.check(seed, job.device, backends, *([40] if job.tiny else []))
        append(job.out / "random.jsonl", {"suite": "random", **row, **with_what(job)})
        print(*("ok" if row["ok"] else "WRONG", row["workload"], row["share"], row["problems"]), flush=True)


def append(path: Path, row: dict[str, Any]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, (json.dumps(row) + "\n").encode())
    finally:
        os.close(handle)


def summary(path: Path) -> str:
    rows = [json.loads(r) for r in path.read_text().splitlines()] if path.exists() else []
    bad = [r for r in rows if not r["ok"]]
    lines = [f"{len(rows)} checks, {len(rows) - len(bad)} right, {len(bad)} not"]
    for r in bad:
        lines.append(f"  {r['workload']} {r['shape']} {r['dtype']}: {compare.why(r)}")
    return "\n".join(lines)


# ---- timing ----------------------------------------------------------------------------------------------------------
def cells(job: Job, suite: str) -> Iterator[tuple[Workload, Shape, str]]:
    for workload, shape in SUITES[suite].cells(tiny=job.tiny):
        if not job.names or workload.name in job.names:
            for dtype in SUITES[suite].dtypes:
                yield workload, shape, dtype


def prepare(job: Job, share: slice) -> None:
    """Call every peer once, so that compiled code is in the disk caches by the time the clock runs.

    Which blocks are fastest is not kept: other processes use the GPU, too.
    """
    from flashlight import tune

    tune.Tuner.keep = lambda *args: None  # type: ignore[method-assign]
    asked = [(c, suite) for suite in TIMED if suite in job.parts for c in cells(job, suite)]
    for (workload, shape, dtype), suite in asked[share]:
        torch.compiler.reset()
        with contextlib.suppress(Exception), torch.no_grad():
            args = workload.make(shape, getattr(torch, dtype), job.device)
            for c in candidates(workload, shape, args, job.peers, SUITES[suite].measured(job.backend)[1]):
                if job.left < 0:
                    return
                if c.peer in ("flashlight", "compile", "flex", "hand"):
                    with contextlib.suppress(Exception):  # the timing part reports what fails
                        c.prepare()()
        gc.collect()
        if job.device.type == "cuda":
            torch.cuda.empty_cache()


def timing(job: Job, suite: str) -> None:
    name, backends = SUITES[suite].measured(job.backend)
    settings = measure.Settings(name, job.device, job.command, job.peers, backends, job.seconds)
    store = measure.Store(job.out / f"{suite}.jsonl")
    for workload, shape, dtype in cells(job, suite):
        if job.left < 0:
            print(f"{suite}: out of time before {workload.name} {shape}", flush=True)
            return
        lines = []
        try:
            for line in measure.cell(workload, shape, dtype, settings):
                lines.append(line)
                if line.stage != "first":
                    said = f"{line.ms:.4g} ms" if line.ms is not None else str(line.error)
                    rate = f"{line.tflops:.4g} TFLOP/s" if line.tflops else ""
                    rate += f" {line.gbps:.4g} GB/s" if line.gbps else ""
                    print(suite, workload.name, shape, line.stage, line.peer, line.backend, said, rate, flush=True)
        except Exception:
            traceback.print_exc()
        store.replace(lines)


def costs(job: Job) -> None:
    """Part ``calls``."""
    asked = calls.Job(
        job.device, job.command, calls.usual(job.device), backend_of(job.device, job.backend),
        tuple(p for p in job.peers if p in calls.PEERS), deadline=job.deadline,
    )  # fmt: skip
    store = measure.Store(job.out / "calls.jsonl")
    for lines in calls.cells(asked, job.names, job.tiny):
        for line in lines:
            said = f"{line.ms:.4g} ms" if line.ms is not None else ""
            print("calls", line.workload, line.shape, line.stage, line.peer, said, line.error or "", flush=True)
        store.replace(lines)


# ---- processes -------------------------------------------------------------------------------------------------------
def spread(part: str, jobs: int, deadline: float) -> None:
    """Run a part in ``jobs`` processes of this script and wait for all, stopping those that outlive the deadline by
    half a minute."""
    base = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--deadline", str(deadline)]
    workers = [subprocess.Popen([*base, "--worker", f"{part}:{k}:{jobs}"]) for k in range(jobs)]
    for k, worker in enumerate(workers):
        try:
            code = worker.wait(timeout=max(1.0, deadline + 30 - time.time()))
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
        if code != 0:
            print(f"{part}: worker {k} ended with status {code}", flush=True)


def arguments() -> argparse.ArgumentParser:
    ask = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    ask.add_argument("--out", type=Path, required=True, help="a folder for the results")
    ask.add_argument("--seconds", type=float, default=540, help="stop starting new work after so long")
    ask.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    ask.add_argument("--parts", default=",".join(PARTS), help="in this order: %(default)s")
    ask.add_argument("--workloads", help="some of the table's, by commas; by default those of suite first")
    ask.add_argument("--dtypes", default=",".join(DTYPES), help="of the correctness part")
    ask.add_argument("--seeds", default="0:1000", help="of part random: %(default)s")
    ask.add_argument("--peers", default=",".join(NAMES))
    ask.add_argument("--backend", help="flashlight's backend; by default the device's")
    ask.add_argument("--jobs", type=int, default=6, help="processes at once where nothing is timed")
    ask.add_argument("--each", type=float, default=0.1, help="seconds to time each peer of a cell")
    ask.add_argument("--tiny", action="store_true", help="shapes that only try the script out")
    ask.add_argument("--worker", help=argparse.SUPPRESS)
    ask.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return ask


def main() -> int:
    asked = arguments().parse_args()
    job = Job(
        parts=tuple(asked.parts.split(",")),
        device=torch.device(asked.device),
        out=asked.out.resolve(),
        names=tuple(asked.workloads.split(",")) if asked.workloads else (),
        dtypes=tuple(asked.dtypes.split(",")),
        peers=tuple(asked.peers.split(",")),
        backend=asked.backend,
        deadline=asked.deadline or time.time() + asked.seconds,
        tiny=asked.tiny,
        seconds=asked.each,
        command=measure.command("benchmarks/device.py").partition(" --deadline ")[0],  # as asked, not a worker's
        seeds=range(*map(int, asked.seeds.split(":"))),
    )
    if asked.worker:
        part, first, step = asked.worker.split(":")
        faulthandler.dump_traceback_later(max(1.0, job.left + 20), exit=True)  # where does it hang?
        if job.device.type == "cpu":
            torch.set_num_threads(1)
        shared = {"correctness": correctness, "random": random, "prepare": prepare}
        shared[part](job, slice(int(first), None, int(step)))
        return 0
    job.out.mkdir(parents=True, exist_ok=True)
    print(*measure.environment(job.device), flush=True)
    for part in ("correctness", "random"):
        if part in job.parts:
            path = job.out / f"{part}.jsonl"
            path.unlink(missing_ok=True)
            spread(part, asked.jobs, job.deadline)
            print(f"{part}: {job.left:.0f} s left\n{summary(path)}", flush=True)
    if "prepare" in job.parts and job.left > 0:
        spread("prepare", asked.jobs, job.deadline)
        print(f"prepared: {job.left:.0f} s left", flush=True)
    for suite in TIMED:
        if suite in job.parts and job.left > 0:
            timing(job, suite)
            print(f"{suite}: {job.left:.0f} s left", flush=True)
    if "calls" in job.parts and job.left > 0:
        costs(job)
        print(f"calls: {job.left:.0f} s left", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
