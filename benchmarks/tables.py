"""The tables of what is not compared by kernel times alone: decoding by bandwidth, and what calls cost."""

from __future__ import annotations

from benchmarks.cells import Cell, Row, failures, headed, line_of, milliseconds, number
from benchmarks.decode import BARS

STAGES = ("overhead", "first", "warm", "new length")


# ---- decoding --------------------------------------------------------------------------------------------------------
def decoding(found: list[Cell]) -> str:
    """Bytes that have to move over time, and the share of that which a copy of the keys and values reaches."""
    columns = ("workload", "shape", "flashlight", "GB/s", "copy GB/s", "share of copy", "bar")
    lines = headed((*columns, "eager's share", "torch.compile's", "SDPA's", "FlexAttention's"))
    for c in found:
        mine, copy = c.ours, c.line("copy", "copy")
        rates = [number(r.get("gbps") if r else None) for r in (mine, copy)]
        bar = number(BARS.get(c.shape), 2)
        peers = [_share(c, c.line(p)) for p in ("eager", "compile", "sdpa", "flex")]
        if (sdpa := c.line("sdpa")) is not None and sdpa["ms"]:
            peers[2] += f" ({sdpa['backend']})"
        lines.append(line_of((c.workload, c.shape, milliseconds(mine), *rates, _share(c, mine), bar, *peers)))
    return "\n".join([*lines, "", *failures((c, c.ours) for c in found if c.ours)]).rstrip()


def _share(c: Cell, row: Row | None) -> str:
    copy = c.line("copy", "copy")
    if row is None or row["ms"] is None:
        return milliseconds(row)
    known = row.get("gbps") and copy is not None and copy.get("gbps")
    return number(row["gbps"] / copy["gbps"]) if known and copy else "-"


# ---- calls -----------------------------------------------------------------------------------------------------------
def calls(found: list[Cell]) -> str:
    """A row a workload and thing measured.  ``benchmarks/calls.py`` says what they are."""
    lines = headed(("workload", "what", "flashlight", "FlexAttention", "SDPA", "bar"))
    kept = [(c, stage) for c in found for stage in STAGES if any(r["pass"] == stage for r in c.rows)]
    for c, stage in kept:
        peers = (_cost(c, p, stage) for p in ("flashlight", "flex", "sdpa"))
        lines.append(line_of((f"{c.workload} {c.shape}", _what(c, stage), *peers, _bar(c, stage))))
    said = [(c, s, r) for c, s in kept for r in c.rows if r["pass"] == s and r["error"] is not None]
    notes = [f"- {c.workload} {c.shape}, {s}, {r['peer']}: {r['error']}" for c, s, r in said]
    return "\n".join([*lines, "", *notes]).rstrip()


def _what(c: Cell, stage: str) -> str:
    if stage != "overhead":
        return {"first": "first call, empty caches", "warm": "first call, warm caches"}.get(stage, stage)
    launch = c.line("launch", "launch")
    return f"a call above a bare launch ({number(launch['ms'] * 1e3)} us)" if launch else "a call"


def _bar(c: Cell, stage: str) -> str:
    if stage == "overhead":  # there is no launch to compare with on a CPU
        return "15 us" if c.line("launch", "launch") else "-"
    return {"first": "FlexAttention's", "warm": "0.5 s"}.get(stage, "compiles nothing")


def _cost(c: Cell, peer: str, stage: str) -> str:
    """With the part that making FlexAttention's mask takes in brackets."""
    row, mask = c.line(peer, stage), c.line(peer, f"{stage}, mask")
    if row is None or row["ms"] is None:
        return milliseconds(row)
    if stage == "overhead":
        return f"{number(row['ms'] * 1e3)} us"
    of_it = f" (mask {_time(mask['ms'])})" if mask is not None and mask["ms"] is not None else ""
    return _time(row["ms"]) + of_it + (", compiled" if row["error"] is not None else "")


def _time(ms: float) -> str:
    return f"{number(ms)} ms" if ms < 100 else f"{number(ms / 1e3)} s"
