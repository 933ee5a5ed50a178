"""About how long a kernel would take at other block lengths: tensor cores, arithmetic, bytes, and what fits at once.

A model that ranks: it says which tilings are worth timing (:mod:`flashlight.tune`), not which is best.  Figures are a
processor's (an SM's) a clock, from NVIDIA's tables: an H100 does 989 TFLOP/s of dense bf16 on 132 SMs at 1.83 GHz, an
A100 312 on 108 at 1.41.  What no table has was fitted to 520 trials of suite flex (bf16, 40 cells) on an H100: START to
LIVE below, and that the parts of a trip add up rather than overlap; ratios to the tiling that is there are off by 11 %
(root mean square).  The best of that one and the model's first two others takes 0.2 % more time than the best of all on
average, 5 % at worst; refitted without a third of the cells, 0.2 to 0.6 % over those held out, 10 % at worst.  GROUPS
and LARGEST are younger: from 25 trials under load on an H200 (docs/decisions/0014-tilings-by-trial.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, inf, prod

from flashlight.backend import Target
from flashlight.expr import Apply, walk
from flashlight.lengths import value_at
from flashlight.lower import Lowered, Tiling
from flashlight.polyhedral.tiles import count
from flashlight.schedule import NARROW, REGISTERS, STRIPS, fitted
from flashlight.tile import ITEM_BYTES, DotOp, Kernel, Let, LoadOp, Loop, MapOp, ReduceOp, lets

SPECIAL = ("exp", "exp2", "log", "log2", "tanh", "sigmoid", "sin", "cos", "sqrt", "rsqrt", "erf", "atan", "pow", "div")
TESTS = ("select", "and", "or", "not", "lt", "le", "gt", "ge", "eq", "ne")
LANES, SPECIAL_LANES = 128, 16  # operations a clock: additions and products; exponentials and their like
BYTES = 33  # a clock, from the L2 cache
START, AGAIN = 6000, 1100  # clocks that a program, and each loop after its first, waits for its first loads
TEST = 2.7  # additions that a comparison or a choice takes the time of: what masks cost
NARROWS, GROUPS = 1.35, 0.95  # times: products of fewer than 64 columns; a trip that two groups of warps share
LIVE = 14  # a row is taken to see so much less than the axis where only the call knows
SLACK = (1.02, 1.1)  # times the estimate of the tiling there: nothing above is tried; and where only the call knows
THREADS = 2048  # of a processor
SPARE, TIGHT = 40, 240  # registers of a thread: for addresses and counters; all it has, nearly

ROWS = ((64, 4), (128, 4), (128, 8))  # with warps: a group of four warps multiplies 64 rows
STREAM, STAGES = (32, 64, 128), (3, 2)
LARGEST = 128 * 64  # scores of a tile: 128 by 128 took 1.4 times as long (d 64, H200)
PRODUCTS = (Tiling((128, 256), 64, 8, 3), Tiling((128, 128), 64, 8, 3), Tiling((64, 128), 64, 4, 3))
PAIR, ROW, POSITION = frozenset({"row", "stream"}), frozenset({"row"}), frozenset({"stream"})


@dataclass(frozen=True)
class Ops:
    """What a trip does: ``flops`` of dots, ``plain`` and ``special`` operations."""

    flops: float = 0.0
    plain: float = 0.0
    special: float = 0.0

    def __add__(self, other: Ops) -> Ops:
        return Ops(self.flops + other.flops, self.plain + other.plain, self.special + other.special)

    def times(self, n: float) -> Ops:
        return Ops(n * self.flops, n * self.plain, n * self.special)


@dataclass(frozen=True)
class Work:
    """A trip through a body.

    ``pair``, ``row``, ``position``: for a row and a streamed position together, for a row alone, for a position alone.
    ``flow``: bytes that a position brings; ``held``: bytes that a row keeps in shared memory; ``state``: in registers,
    through the loop; ``deep``: bytes in registers for a pair.
    """

    pair: Ops
    row: Ops
    position: Ops
    flow: float
    held: float
    state: float
    deep: float
    narrow: bool

    def ops(self, rows: int, stream: int) -> Ops:
        return self.pair.times(rows * stream) + self.row.times(rows) + self.position.times(stream)


def work_of(kernel: Kernel, kind: str) -> Work | None:
    """What the body of the segments of a kind does; None where no loop has such a segment."""
    loops = [s for s in kernel.body if isinstance(s, Loop)]
    bodies = [next((g.body for g in s.segments if g.kind == kind), None) for s in loops]
    inner = [x for body in bodies if body is not None for x in body if isinstance(x, Let)]
    if not inner:
        return None
    values = {x.name: x for x in (*lets(kernel.body), *inner)}
    role = {d.axis: d.role for d in kernel.dims}

    def points(dims: tuple[str, ...]) -> int:
        return prod(kernel.dim(a).block for a in dims if role[a] == "point")

    def roles(dims: tuple[str, ...]) -> frozenset[str]:
        return frozenset(role[a] for a in dims) - {"point"}

    done = {PAIR: Ops(), ROW: Ops(), POSITION: Ops()}
    operands: dict[str, Let] = {}
    for x in inner:
        dims, ops = x.dims, Ops()
        match x.op:
            case DotOp(left, right, contract):
                dims, ops = (*dims, contract), Ops(flops=2.0)
                operands |= {n: values[n] for n in (left, right) if n in values}
            case MapOp(body):
                names = [n.op for n in walk(body) if isinstance(n, Apply)]
                hard = sum(n in SPECIAL for n in names)
                ops = Ops(plain=len(names) - hard + (TEST - 1) * sum(n in TESTS for n in names), special=hard)
            case ReduceOp(_, _, axis):
                dims, ops = (*dims, axis), Ops(plain=1.0)
        where = roles(dims)
        if where in done:
            done[where] += ops.times(points(dims))
    loaded = [x for x in operands.values() if isinstance(x.op, LoadOp)]

    def brought(along: str) -> float:
        return sum(points(x.dims) * ITEM_BYTES[x.dtype] for x in loaded if along in roles(x.dims))

    return Work(
        done[PAIR],
        done[ROW],
        done[POSITION],
        brought("stream"),
        brought("row"),
        sum(points(c.dims) * 4 for s in loops for c in s.carries),
        6.0 * max((points(x.dims) for x in inner if roles(x.dims) == PAIR), default=0),  # scores, and narrowed
        all(x.dtype in NARROW for x in operands.values()),
    )


class Roofline:
    """The estimates of one nest, from its lowering at some tiling, for one call's sizes."""

    def __init__(self, low: Lowered, target: Target, sizes: dict[str, int]):
        self.low, self.target, self.sizes = low, target, sizes
        self.kinds = {k: w for k in ("full", "partial") if (w := work_of(low.kernel, k)) is not None}
        stream = low.nest.stream
        self.length = value_at(stream.extent, sizes) if stream else 1
        rows = [d.block for d in low.kernel.dims if d.role == "row"]
        self.edges, self.live = self.shape(prod(rows))

    def shape(self, rows: int) -> tuple[int, float]:
        """How many edges the live part of a row has, and how long it is."""
        sweep = self.low.sweeps[0]
        kinds = [r.kind for r in sweep.classes.ranges]
        edges = kinds.count("partial") if "full" in kinds else 2
        if sweep.found is not None:
            return edges, self.length / LIVE
        block = self.low.tiling.stream
        found = count(sweep.classes, self.sizes)
        visited = (found["full"] + found["partial"]) * block / max(1, self.programs(self.low.tiling))
        return edges, min(float(self.length), max(block / 2, visited - edges * (rows + block) / 2))

    def clocks(self, t: Tiling) -> float:
        """Of the whole grid, on one processor's clock."""
        works = list(self.kinds.values())
        rows, most = prod(t.rows), max(works, key=lambda w: w.pair.plain)
        full = self.kinds.get("full", most)
        tensor = (4096.0 if self.target.arch >= 90 else 2048.0) if all(w.narrow for w in works) else 512.0
        tensor /= NARROWS if t.stream < 64 else 1.0
        threads = 32 * t.warps
        registers = SPARE + 1.15 * (rows * most.state + rows * t.stream * most.deep) / (4 * threads)
        shared = rows * most.held + t.stages * t.stream * most.flow
        each = self.programs(t) / self.target.processors
        at_once = min(
            max(1, ceil(each)),
            REGISTERS // int(min(registers, 255) * threads),
            THREADS // threads,
            int(self.target.shared_bytes // max(1.0, shared)),
        )
        if at_once < 1:
            return inf
        trips = self.live / t.stream + self.edges * (rows / t.stream + 1) / 2
        partial = trips if t.masked else min(trips, self.edges * (rows / t.stream + 0.5))
        clocks = float(START)
        for w, number in ((most, partial), (full, trips - partial)):
            ops = w.ops(rows, t.stream)
            work = ops.flops / tensor + ops.plain / LANES + ops.special / SPECIAL_LANES
            trip = max(work * (GROUPS if t.warps > 4 else 1.0), w.flow * t.stream / BYTES)
            clocks += number * trip * at_once
        if not t.masked and 0 < partial < trips:
            clocks += AGAIN * self.edges
        if registers > TIGHT:
            clocks *= 1 + (registers - TIGHT) / 50
        return clocks * max(1.0, each / at_once)

    def programs(self, t: Tiling) -> int:
        blocks = dict(zip(self.low.nest.blocked, t.rows, strict=True))
        return prod(ceil(value_at(a.extent, self.sizes) / blocks.get(a.name, 1)) for a in self.low.nest.grid)


def tilings(low: Lowered, target: Target, sizes: dict[str, int], limit: int) -> tuple[Tiling, ...]:
    """The most promising other tilings for a call, best first; () where nothing is multiplied or nothing streamed.

    ``limit``: of kernels to compile for them.  What only the call knows takes a second one, which finds it out.
    """
    if not low.sweeps or not any(isinstance(x.op, DotOp) for x in lets(low.kernel.body)):
        return ()
    if low.tiling.strip:  # no model of ours either
        found = dict.fromkeys(fitted(low.nest, t) for t in STRIPS)
        return tuple(t for t in found if t != low.tiling) if low.tiling in found else ()
    if len(low.nest.blocked) == 2:  # a matrix product: no model of ours, but few choices, all tried
        found = dict.fromkeys(fitted(low.nest, t) for t in PRODUCTS)
        return tuple(t for t in found if t != low.tiling)
    if len(low.nest.blocked) != 1:
        return ()
    model = Roofline(low, target, sizes)
    times = {t: model.clocks(t) for t in _space(low)}
    ranked = sorted(times, key=lambda t: (times[t], t.stages == 2))
    slack = SLACK[low.sweeps[0].found is not None]
    worth = [t for t in ranked if times[t] <= slack * model.clocks(low.tiling)]
    fewer = {replace(t, stages=0) for t in worth if t.stages == 3 and times[t] <= times[replace(t, stages=2)]}
    kept = [t for t in worth if t != low.tiling and (t.stages == 3) == (replace(t, stages=0) in fewer)]
    return tuple(kept[: max(1, limit // (1 + len(low.before)))])


def _space(low: Lowered) -> Iterator[Tiling]:
    """All tilings that are ever tried."""
    rows = max(d.block for d in low.kernel.dims if d.role == "row")
    shapes = ROWS if rows >= 64 else ((rows, low.tiling.warps),)
    # Masks throughout win where hardly a tile is full; of tiles that only the call knows many are (decision 0014).
    masks = (False, True) if any(len(s.classes.ranges) > 1 and s.found is None for s in low.sweeps) else (False,)
    for (r, warps), stream, stages, masked in product(shapes, STREAM, STAGES, masks):
        if r * stream > LARGEST:
            continue
        yield fitted(low.nest, Tiling((r,), stream, warps, stages, masked))
