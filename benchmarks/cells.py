"""Stored lines by cell, and how tables print them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


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
        return ratio(other, self.ours)


def ratio(one: Row | None, other: Row | None) -> float | None:
    """The first time over the second; None where either did not run."""
    return one["ms"] / other["ms"] if one and other and one["ms"] and other["ms"] else None


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


def milliseconds(row: Row | None) -> str:
    return "-" if row is None else "failed" if row["ms"] is None else number(row["ms"])


def line_of(texts: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(texts)} |"


def headed(columns: Iterable[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    names = list(columns)
    return [line_of(names), "|" + "---|" * len(names)]


def failures(found: Iterable[tuple[Cell, Row]]) -> list[str]:
    """Below a table: what did not run, and why."""
    return [f"- {c.workload} {c.shape} did not run: {r['error']}" for c, r in found if r["ms"] is None]
