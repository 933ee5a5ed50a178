"""The tables of what is not compared by kernel times alone: decoding by bandwidth, what calls cost, and backends
of ours with their machine code."""

from __future__ import annotations

from math import prod

from benchmarks.cells import Cell, Row, failures, geometric, headed, line_of, milliseconds, number, ratio
from benchmarks.decode import BARS

REGISTERS, SHARED, RESERVED, WARPS = 65536, 227 * 1024, 1024, 64  # of a multiprocessor of an H100; of a thread block
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


# ---- backends --------------------------------------------------------------------------------------------------------
def side_by_side(found: list[Cell]) -> str:
    """Triton's kernels and CUDA C++ of the same tile programs, with what their machine code says."""
    columns = ("workload", "shape", "triton", "cupy", "triton / cupy", "SDPA flash", "flash / cupy")
    of_each = ("tile", "registers", "warps", "issued")
    lines = headed((*columns, *(f"{b}'s {x}" for b in ("triton", "cupy") for x in of_each)))
    ratios = []
    for c in found:
        one, other, flash = (*(c.line("flashlight", backend=b) for b in ("triton", "cupy")), c.line("sdpa"))
        ours, theirs = ratio(one, other), ratio(flash, other)
        times = (milliseconds(one), milliseconds(other), number(ours), milliseconds(flash), number(theirs))
        lines.append(line_of((c.workload, c.shape, *times, *_machine(one), *_machine(other))))
        ratios += [ours] if ours is not None else []
    means = f"triton / cupy {number(geometric(ratios))}, {number(min(ratios, default=None))} at least"
    failed = ((c, r) for c in found for r in c.rows if r["peer"] == "flashlight" and r["ms"] is None)
    return "\n".join([*lines, "", f"Geometric mean: {means}.", *failures(failed)])


def _machine(row: Row | None) -> tuple[str, str, str, str]:
    """Tile, registers (and spilled bytes), warps that fit a multiprocessor, instructions issued for 32 scores: all of
    the loop's, and those of tensor cores, special functions, shared memory."""
    code = row.get("code") if row else None
    if not code:
        return "-", "-", "-", "-"
    blocks = min(
        REGISTERS // (-(-code["registers"] // 8) * 8 * code["threads"]),
        SHARED // (code["shared"] + RESERVED),
        WARPS * 32 // code["threads"],
    )
    share = code["threads"] / prod(code["tile"])
    issued = [number(code["loop"].get(k, 0) * share) for k in ("all", "tensor", "special", "shared")]
    spilt = f", {code['spills']} B spilt" if code["spills"] else ""
    tile = "x".join(map(str, code["tile"]))
    return tile, f"{code['registers']}{spilt}", str(blocks * code["threads"] // 32), " ".join(issued)


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
