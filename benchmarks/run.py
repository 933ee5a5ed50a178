"""``python -m benchmarks.run --suite first --device cuda``: measure a suite, print and store JSON lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.options import device_of, some_of
from benchmarks.peers import NAMES
from benchmarks.suites import SUITES, WORKLOADS
from benchmarks.workloads import Shape


def arguments() -> argparse.ArgumentParser:
    ask = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__)
    ask.add_argument("--suite", required=True, choices=SUITES)
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    ask.add_argument("--workloads", help="by default the suite's, separated by commas")
    ask.add_argument("--dtype", help="torch dtypes, separated by commas; by default the suite's")
    ask.add_argument("--peers", default=",".join(NAMES), help="separated by commas")
    ask.add_argument("--shapes", help="batch,heads,length,width by semicolons; benchmarks/README.md has more")
    ask.add_argument("--backend", help="flashlight's, separated by commas; by default the suite's or the device's")
    ask.add_argument("--seconds", type=float, default=0.2, help="time for each peer of a cell")
    ask.add_argument("--tiny", action="store_true", help="shapes that only try the harness out")
    ask.add_argument("--out", type=Path, help="by default benchmarks/results/SUITE-DEVICE.jsonl")
    return ask


def main() -> int:
    ask = arguments()
    asked = ask.parse_args()
    suite = SUITES[asked.suite]
    device = device_of(ask, asked.device)
    names = some_of(ask, asked.workloads, WORKLOADS, "workload") if asked.workloads else suite.workloads
    peers = some_of(ask, asked.peers, NAMES, "peer")
    dtypes = tuple(asked.dtype.split(",")) if asked.dtype else suite.dtypes
    if unknown := [d for d in dtypes if not isinstance(getattr(torch, d, None), torch.dtype)]:
        ask.error(f"torch has no dtype {', '.join(unknown)}")
    cells = list(suite.cells(names, asked.tiny))
    if asked.shapes:
        try:
            cells = [(WORKLOADS[n], s) for s in map(Shape.parse, asked.shapes.split(";")) for n in names]
        except ValueError:
            ask.error(f"--shapes {asked.shapes!r}: four numbers each, like 4,16,4096,64")
    folder = measure.ROOT / "benchmarks" / "results"
    store = measure.Store(asked.out or folder / f"{suite.name}-{measure.slug(device)}.jsonl")
    command = measure.command("-m benchmarks.run")
    name, backends = suite.measured(asked.backend)
    settings = measure.Settings(name, device, command, peers, backends, asked.seconds)
    right = True
    for dtype in dtypes:
        for workload, shape in cells:
            lines = []
            for line in measure.cell(workload, shape, dtype, settings):
                print(line.json(), flush=True)
                lines.append(line)
                right &= line.peer != "flashlight" or line.ms is not None
            store.replace(lines)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
