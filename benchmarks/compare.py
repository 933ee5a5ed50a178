"""``python -m benchmarks.compare``: the tables of benchmarks/README.md and README.md from benchmarks/results/*.jsonl.

``--check`` writes nothing and exits with 1 where a table is not what the results say.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {}: made by python -m benchmarks.compare -->", "<!-- end of {} -->"


@dataclass(frozen=True)
class Cell:
    """The lines of one workload, shape and dtype, all from one run."""

    suite: str
    workload: str
    shape: str
    dtype: str
    device: str
    rows: tuple[Row, ...]

    def line(self, peer: str, stage: str = "forward", backend: str | None = None) -> Row | None:
        """The peer's fastest line, or one that says why there is none."""
        rows = [r for r in self.rows if r["peer"] == peer and r["pass"] == stage and backend in (None, r["backend"])]
        timed = [r for r in rows if r["ms"] is not None]
        return min(timed, key=lambda r: r["ms"]) if timed else (rows[0] if rows else None)

    @property
    def ours(self) -> Row | None:
        return self.line("flashlight")

    @property
    def flex(self) -> Row | None:
        """FlexAttention computing what the program says."""
        return self.line("flex", backend="inductor")

    @property
    def best(self) -> Row | None:
        """The fastest peer's line."""
        rows = [r for p in self.peers if (r := self.line(p)) is not None and r["ms"] is not None]
        return min(rows, key=lambda r: r["ms"]) if rows else None

    @property
    def peers(self) -> list[str]:
        return list(dict.fromkeys(r["peer"] for r in self.rows if r["peer"] != "flashlight"))

    def speedup(self, other: Row | None) -> float | None:
        """How many times as long the other takes; None where either did not run."""
        mine = self.ours
        return None if mine is None or other is None or not mine["ms"] or not other["ms"] else other["ms"] / mine["ms"]


def cells(rows: Iterable[Row]) -> list[Cell]:
    """Lines by cell, in the order in which they were stored."""
    grouped: dict[tuple[str, str, str, str, str], list[Row]] = {}
    for r in rows:
        grouped.setdefault((r["suite"], r["workload"], r["shape"], r["dtype"], r["device"]), []).append(r)
    return [Cell(*key, tuple(found)) for key, found in grouped.items()]


def geometric(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def number(x: float | None, digits: int = 3) -> str:
    """Three digits, not in powers of ten unless they are needed."""
    if x is None:
        return "-"
    if x != 0 and not 1e-3 <= abs(x) < 1e5:
        return f"{x:.{digits - 1}e}"
    return f"{x:.{max(digits - 1 - math.floor(math.log10(abs(x))), 0) if x else 0}f}"


APPROXIMATE = "approximate tanh"


def _ms(row: Row | None) -> str:
    return "-" if row is None else "failed" if row["ms"] is None else number(row["ms"])


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
    return _ms(c.flex) + (f" / {_ms(rough)}" if rough else "") + (f" (+ {_ms(mask)})" if mask else "")


def _by_hand(row: Row | None) -> str:
    return _ms(row) if row is None or row["ms"] is None else f"{_ms(row)} ({row['backend']})"


COLUMNS: tuple[tuple[str, Callable[[Cell], str]], ...] = (
    ("workload", lambda c: c.workload),
    ("shape", lambda c: c.shape),
    ("flashlight", lambda c: _ms(c.ours)),
    ("TFLOP/s", lambda c: number(c.ours["tflops"]) if c.ours else "-"),
    ("eager", lambda c: _ms(c.line("eager"))),
    ("torch.compile", lambda c: _ms(c.line("compile"))),
    ("SDPA", lambda c: _ms(c.line("sdpa"))),
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


def groups(found: list[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    out: dict[tuple[str, str, str], list[Cell]] = {}
    for c in found:
        out.setdefault((c.device, c.suite, c.dtype), []).append(c)
    return out


def table(found: list[Cell]) -> str:
    """One Markdown table of a device, suite and dtype, its means, its slower cells and its failures."""
    by_hand = any("hand" in c.peers for c in found)
    columns = COLUMNS + HAND if by_hand else COLUMNS
    lines = [_row(name for name, _ in columns), "|" + "---|" * len(columns)]
    lines += [_row(text(c) for _, text in columns) for c in found]
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
    failed = [(c, r) for c in found if (r := c.ours) is not None and r["ms"] is None]
    return "\n".join([*lines, *(f"- {c.workload} {c.shape} did not run: {r['error']}" for c, r in failed)])


def _row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def tables(found: list[Cell]) -> str:
    """All tables, with what they were measured with."""
    parts = []
    for (device, suite, dtype), some in groups(found).items():
        rows = [r for c in some for r in c.rows]
        with_what = [f"{f} " + ", ".join(dict.fromkeys(str(r[f]) for r in rows)) for f in ("torch", "triton", "commit")]
        commands = "; ".join(f"`{x}`" for x in dict.fromkeys(r["command"] for r in rows))
        head = f"### {suite}, {dtype}, {device}\n\n{'; '.join(with_what)}. Command: {commands}"
        parts.append(f"{head}\n\n{table(some)}")
    return "\n\n".join(parts) or "No results yet."


def checked(rows: list[Row]) -> str:
    """What the correctness part found: how many checks of each device, backend and dtype, and every one that failed."""
    lines = [_row(("device", "backend", "dtype", "programs", "checks", "right", "with")), "|" + "---|" * 7]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for r in rows:
        groups.setdefault((r["device"], r["backend"], r["dtype"]), []).append(r)
    for key, some in groups.items():
        programs, right = {r["workload"] for r in some}, sum(r["ok"] for r in some)
        parts = [f"{f} " + ", ".join(dict.fromkeys(str(r[f]) for r in some)) for f in ("torch", "triton", "commit")]
        lines.append(_row((*key, *map(str, (len(programs), len(some), right)), "; ".join(parts))))
    bad = [r for r in rows if not r["ok"]]
    return "\n".join([*lines, *(f"- {r['workload']} {r['shape']} {r['dtype']}: {_why(r)}" for r in bad)])


def _why(r: Row) -> str:
    if "error" in r:
        return f"error {number(r['error'])}, allowed {number(r['allowed'])}"
    return str(r["traceback"]).strip().splitlines()[-1][:200]


def short(found: list[Cell]) -> str:
    """One row a device and suite, for the front page: geometric means of the peers' times over ours."""
    lines = [
        _row(("device", "suite", "cells", "eager", "torch.compile", "FlexAttention", "best peer")),
        "|" + "---|" * 7,
    ]
    for (device, suite, dtype), some in groups(found).items():
        means = [geometric(c.speedup(c.line(p)) for c in some) for p in ("eager", "compile")]
        means += [geometric(c.speedup(c.flex) for c in some), geometric(c.speedup(c.best) for c in some)]
        ran = sum(c.ours is not None and c.ours["ms"] is not None for c in some)
        lines.append(_row((device, f"{suite}, {dtype}", f"{ran} of {len(some)}", *map(number, means))))
    return "\n".join(lines) if found else "No results yet."


def replaced(text: str, name: str, content: str) -> str:
    """The text with what is between the markers of ``name`` replaced.  Raises ValueError when they are missing."""
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected exactly one {begin!r} and one {end!r}")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def load(folder: Path) -> list[Row]:
    return [json.loads(r) for p in sorted(folder.glob("*.jsonl")) for r in p.read_text().splitlines() if r.strip()]


def main() -> int:
    ask = argparse.ArgumentParser("python -m benchmarks.compare", description=__doc__)
    ask.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    asked = ask.parse_args()
    rows = load(RESULTS)
    found = cells(r for r in rows if "ok" not in r)
    stale = []
    for path, name, content in (
        (ROOT / "benchmarks" / "README.md", "tables", tables(found)),
        (ROOT / "benchmarks" / "README.md", "checks", checked([r for r in rows if "ok" in r])),
        (ROOT / "README.md", "results", short(found)),
    ):
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
