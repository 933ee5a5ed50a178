"""``python -m benchmarks.compare``: the tables of benchmarks/README.md and README.md from benchmarks/results/*.jsonl.

``--check`` writes nothing and exits with 1 where a table is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.cells import Cell, Row, cells, failures, geometric, headed, line_of, milliseconds, number
from benchmarks.suites import SUITES
from benchmarks.tables import calls, decoding, side_by_side

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {}: made by python -m benchmarks.compare -->", "<!-- end of {} -->"
APPROXIMATE = "approximate tanh"


def _error(row: Row | None) -> str:
    return number(row["error"]) if row is not None and isinstance(row["error"], float | int) else "-"


def _peak(row: Row | None) -> str:
    return number(row["peak_mib"] if row is not None else None)


def _named(row: Row | None) -> str:
    if row is None:
        return "-"
    if APPROXIMATE in row["backend"]:
        return f"FlexAttention, {APPROXIMATE}"
    names = {"sdpa": f"SDPA {row['backend']}", "flex": "FlexAttention", "compile": "torch.compile"}
    names["hand"] = f"by hand: {row['backend']}"
    return names.get(row["peer"], str(row["peer"]))


def _flex(c: Cell) -> str:
    """Its time, with an approximate spelling's behind a stroke and its mask's creation in brackets."""
    rough, mask = c.line("flex", backend=f"inductor, {APPROXIMATE}"), c.line("flex", "mask")
    more = f" / {milliseconds(rough)}" if rough else ""
    return milliseconds(c.flex) + more + (f" (+ {milliseconds(mask)})" if mask else "")


def _by_hand(row: Row | None) -> str:
    return milliseconds(row) if row is None or row["ms"] is None else f"{milliseconds(row)} ({row['backend']})"


COLUMNS: tuple[tuple[str, Callable[[Cell], str]], ...] = (
    ("workload", lambda c: c.workload),
    ("shape", lambda c: c.shape),
    ("flashlight", lambda c: milliseconds(c.ours)),
    ("TFLOP/s", lambda c: number(c.ours["tflops"]) if c.ours else "-"),
    ("eager", lambda c: milliseconds(c.line("eager"))),
    ("torch.compile", lambda c: milliseconds(c.line("compile"))),
    ("SDPA", lambda c: milliseconds(c.line("sdpa"))),
    ("FlexAttention (+ mask)", _flex),
    ("best peer", lambda c: _named(c.best)),
    ("best / ours", lambda c: number(c.speedup(c.best))),
    ("Flex / ours", lambda c: number(c.speedup(c.flex))),
    ("error (eager's)", lambda c: f"{_error(c.ours)} ({_error(c.line('eager'))})"),
    ("peak MiB (eager's)", lambda c: f"{_peak(c.ours)} ({_peak(c.line('eager'))})"),
)

# Of a suite in which programs are put together by hand.
HAND: tuple[tuple[str, Callable[[Cell], str]], ...] = (
    ("by hand", lambda c: _by_hand(c.line("hand"))),
    ("torch.compile / ours", lambda c: number(c.speedup(c.line("compile")))),
    ("by hand / ours", lambda c: number(c.speedup(c.line("hand")))),
    ("torch.compile's peak MiB", lambda c: _peak(c.line("compile"))),
)


# Suites whose tables are not about kernels' times alone.
OF_ITS_OWN: dict[str, Callable[[list[Cell]], str]] = {
    "decode": decoding,
    "calls": calls,
    "backends": side_by_side,
}


def groups(found: list[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    out: dict[tuple[str, str, str], list[Cell]] = {}
    for c in found:
        out.setdefault((c.device, c.suite, c.dtype), []).append(c)
    return out


def table(found: list[Cell]) -> str:
    """One Markdown table of a device, suite and dtype, its means, its slower cells and its failures."""
    by_hand = any("hand" in c.peers for c in found)
    columns = COLUMNS + HAND if by_hand else COLUMNS
    lines = headed(name for name, _ in columns)
    lines += [line_of(text(c) for _, text in columns) for c in found]
    best = [ratio for c in found if (ratio := c.speedup(c.best)) is not None]
    flex = [ratio for c in found if (ratio := c.speedup(c.flex)) is not None]
    slower = sum(ratio < 1 for ratio in best)
    means = f"best peer / ours {number(geometric(best))}, FlexAttention / ours {number(geometric(flex))}"
    lines += ["", f"Geometric means: {means}. Slower than the best peer in {slower} of {len(best)} cells."]
    if by_hand:
        compiled = [ratio for c in found if (ratio := c.speedup(c.line("compile"))) is not None]
        hand = geometric(c.speedup(c.line("hand")) for c in found)
        least = number(min(compiled, default=None))
        lines[-1] += (
            f" torch.compile / ours {number(geometric(compiled))}, {least} at least; by hand / ours {number(hand)}."
        )
    return "\n".join([*lines, *failures((c, c.ours) for c in found if c.ours)])


def tables(found: list[Cell]) -> str:
    """All tables, with what they were measured with."""
    parts = []
    for (device, suite, dtype), some in groups(found).items():
        rows = [r for c in some for r in c.rows]
        commands = "; ".join(f"`{x}`" for x in dict.fromkeys(r["command"] for r in rows))
        head = f"### {suite}, {dtype}, {device}\n\n{_with(rows)}. Command: {commands}"
        parts.append(f"{head}\n\n{OF_ITS_OWN.get(suite, table)(some)}")
    return "\n\n".join(parts) or "No results yet."


def _with(rows: list[Row]) -> str:
    """What they were measured with."""
    return "; ".join(f"{f} " + ", ".join(dict.fromkeys(str(r[f]) for r in rows)) for f in ("torch", "triton", "commit"))


def checked(rows: list[Row]) -> str:
    """What correctness checks found: how many of each device, suite, backend and dtype, and every one that failed."""
    lines = headed(("device", "suite", "backend", "dtype", "programs", "checks", "right", "with"))
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for r in rows:  # lines stored before there were random programs do not name their suite
        grouped.setdefault((r["device"], r.get("suite", "first"), r["backend"], r["dtype"]), []).append(r)
    for key, some in grouped.items():
        programs, right = {r["workload"] for r in some}, sum(r["ok"] for r in some)
        lines.append(line_of((*key, *map(str, (len(programs), len(some), right)), _with(some))))
    bad = [r for r in rows if not r["ok"]]
    return "\n".join([*lines, *(f"- {r['workload']} {r['shape']} {r['dtype']}: {why(r)}" for r in bad)])


def why(r: Row) -> str:
    """Of a check that failed."""
    if "problems" in r:
        lines = str(r["problems"]).strip().splitlines()
        return lines[-1 if lines[0].startswith("Traceback") else 0][:200]
    if "error" in r:
        return f"error {number(r['error'])}, allowed {number(r['allowed'])}"
    return str(r["traceback"]).strip().splitlines()[-1][:200]


def short(found: list[Cell]) -> str:
    """One row a device and suite, for the front page: geometric means of the peers' times over ours, and how many of
    the suite's cells that run measured."""
    lines = headed(("device", "suite", "cells", "eager", "torch.compile", "FlexAttention", "best peer"))
    compared = [c for c in found if c.suite in SUITES and not SUITES[c.suite].backends]
    for (device, suite, dtype), some in groups(compared).items():
        means = [geometric(c.speedup(c.line(p)) for c in some) for p in ("eager", "compile")]
        means += [geometric(c.speedup(c.flex) for c in some), geometric(c.speedup(c.best) for c in some)]
        lines.append(line_of((device, f"{suite}, {dtype}", _ran(suite, some), *map(number, means))))
    return "\n".join(lines) if found else "No results yet."


def _ran(suite: str, some: list[Cell]) -> str:
    """Of the suite's own cells; shapes that were asked for beside it are counted apart."""
    own = {(w.name, str(s)) for w, s in SUITES[suite].cells()}
    ran = [(c.workload, c.shape) in own for c in some if c.ours is not None and c.ours["ms"] is not None]
    others = f" (+ {ran.count(False)} at other shapes)" if not all(ran) else ""
    return f"{ran.count(True)} of {len(own)}{others}"


def replaced(text: str, name: str, content: str) -> str:
    """The text with what is between the markers of ``name`` replaced.  Raises ValueError when they are missing."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected exactly one {begin!r} and one {end!r}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def load(folder: Path) -> list[Row]:
    return [json.loads(r) for p in sorted(folder.glob("*.jsonl")) for r in p.read_text().splitlines() if r.strip()]


def written(rows: list[Row]) -> Iterator[tuple[Path, str, str]]:
    """(file, marker, text) of all that is made from the results; lines of correctness checks have ``ok``."""
    found = cells(r for r in rows if "ok" not in r)
    yield ROOT / "benchmarks" / "README.md", "tables", tables(found)
    yield ROOT / "benchmarks" / "README.md", "checks", checked([r for r in rows if "ok" in r])
    yield ROOT / "README.md", "results", short(found)


def main() -> int:
    ask = argparse.ArgumentParser("python -m benchmarks.compare", description=__doc__)
    ask.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    asked = ask.parse_args()
    stale = []
    for path, name, content in written(load(RESULTS)):
        old = path.read_text()
        new = replaced(old, name, content)
        if new != old:
            stale.append(path)
            if not asked.check:
                path.write_text(new)
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if asked.check else 'written'}")
    return 1 if asked.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
