"""Block lengths for a nest on a target, and the schedule tree that says in which order instances run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, prod

from flashlight.backend import Target
from flashlight.expr import Const, Fold, axes, walk
from flashlight.fuse import fuse
from flashlight.index import coarse
from flashlight.lower import Lowered, Tiling, lower
from flashlight.nests import Nest
from flashlight.program import Program
from flashlight.shape import WHOLE_UP_TO
from flashlight.strips import STRIP, long
from flashlight.tile import ITEM_BYTES, DotOp, Kernel, Let, LoadOp, Loop, ScanOp, lets

NARROW = ("bfloat16", "float16")
BLOCK_LIMIT = 1 << 15  # elements of one block value
OF_TILES = 16, 128  # rows and columns of tiles in a block, where the tiles of a kernel are found out
REGISTERS = 1 << 16  # of a processor (an SM); no value has more elements if shorter blocks can help it

STRIPS_FROM = 256  # the shortest contraction that is taken in strips where a row carries only numbers
# Timed on an H200 (docs/decisions/0020): a contraction of 512 in blocks of 128 x 256 at 690 TFLOP/s a full GPU.
STRIPS = tuple(Tiling((r,), n, w, 3, strip=STRIP) for r, n, w in ((128, 256, 8), (64, 256, 4), (64, 128, 4)))


@dataclass(frozen=True)
class Facts:
    """What a first lowering shows of a kernel.

    ``dots``: does it use them.  ``width``: its widest point dimension.  ``depth``: the most point elements that a value
    with two tiled dimensions has.  ``narrow``: are all dot operands 16-bit.  ``flow``, ``held``: bytes that a position
    of the streamed axis, and of a row, bring to the dots.  ``paired``: is a tensor read along two tiled axes.
    ``state``: the most point elements that a row carries round a loop.  ``runs``: has it a running sum.  ``across``: do
    rows lie side by side in memory, not the positions of the streamed axis?
    """

    dots: bool
    width: int
    depth: int
    narrow: bool
    flow: int
    held: int
    paired: bool
    state: int
    runs: bool
    across: bool


def schedule(
    nest: Nest, program: Program, target: Target, tiling: Tiling | None = None, finder: bool = False
) -> Lowered:
    """Choose block lengths by what the kernel holds, and lower with them; so also the programs that find out its tile
    classes.  A ``finder`` is one of those: with one loop, since it is short and compiling a second takes longer than it
    ever runs, and with no finder of its own."""
    lowered = _chosen(nest, program, target, tiling, finder)
    asked = dict.fromkeys(s.found.program for s in lowered.sweeps if s.found)
    finders = [(n, plan.program) for plan in map(fuse, asked) for n in plan.nests]
    named = [(replace(n, name=f"{nest.name}_classes{k or ''}"), p) for k, (n, p) in enumerate(finders)]
    return replace(lowered, before=tuple(schedule(n, p, target, finder=True) for n, p in named))


def _chosen(nest: Nest, program: Program, target: Target, tiling: Tiling | None, finder: bool) -> Lowered:
    look = not finder
    if tiling is not None:
        return lower(nest, program, tiling, look)
    if _torch(target):  # its kernels take trips together when they are called
        rows = tuple(128 if k == 0 else 1024 for k in range(len(nest.blocked)))
        return lower(nest, program, Tiling(rows, 128, 1, 1), look)
    draft = Tiling(tuple(64 for _ in nest.blocked), 64, masked=finder)
    lowered = lower(nest, program, draft, look)
    first = _first(lowered, target)
    chosen = fitted(nest, _over_tiles(nest, first) if finder else first)
    lowered = lowered if chosen == draft else lower(nest, program, chosen, look)
    while (shorter := _shorter(lowered)) is not None:
        lowered = lower(nest, program, shorter, look)
    return lowered


def _over_tiles(nest: Nest, t: Tiling) -> Tiling:
    """For a finder, in one loop: of tiles there are few, so that several rows of them make a block."""
    if not nest.points and t.stream > OF_TILES[1]:
        t = replace(t, rows=(OF_TILES[0],) * len(nest.blocked), stream=OF_TILES[1])
    return replace(t, masked=True)


def _torch(target: Target) -> bool:
    """Are kernels torch's operators, with no warps and no registers?"""
    return target.device == "cpu" and not target.interpret


def _first(low: Lowered, target: Target) -> Tiling:
    """What is chosen without a trial.  Contractions are taken in strips where they are too long to be held, and where a
    row carries nothing but numbers beside them: then blocks may be as large as registers hold."""
    nest, kernel = low.nest, low.kernel
    contracted = long(kernel)
    f = facts(kernel)
    light = len(nest.blocked) == 1 and f.dots and f.state == 1 and f.depth == 1
    longest = max((d.block for d in contracted), default=0)
    if longest < STRIPS_FROM or (not light and longest <= WHOLE_UP_TO):
        return _tiling(nest, f, target)
    if light and f.narrow and not target.interpret:
        return STRIPS[0]
    f = facts(replace(kernel, dims=tuple(replace(d, block=STRIP) if d in contracted else d for d in kernel.dims)))
    return replace(_tiling(nest, f, target), strip=STRIP)


def of_statistics(nest: Nest, target: Target) -> Tiling | None:
    """For a nest that reads once and finds out a number a row: a warp each, which sums without a barrier.

    Of LayerNorm's statistics, ahead of time for sm_90, a row of 4096 takes 1270 instructions so, and 1920 by four
    warps in one trip: as many as there is time for while it is read.  None where there is more to do, or no warps.
    """
    folds = any(isinstance(n, Fold) for s in nest.states for n in walk(s.body))
    if nest.stream is None or nest.points or folds or _torch(target):
        return None
    return fitted(nest, Tiling((1,) * len(nest.blocked), 1024, 1, 2))


def of_parts(nest: Nest, target: Target) -> Tiling | None:
    """For a merge of parts, of which there are no more than processors, but mostly few: a row a program, all of whose
    parts are there at once."""
    if not nest.states or _torch(target):
        return None
    width = prod(_pow2(int(a.extent.value)) for a in nest.points if isinstance(a.extent, Const))
    stream = min(_pow2(target.processors), max(1, min(16, 8192 // width)) if nest.points else 256)
    return Tiling((1,) * len(nest.blocked), stream, max(1, min(4, stream * width // 2048)), 2)


def _shorter(low: Lowered) -> Tiling | None:
    """Half the longest block of a value that registers do not hold; None where all are held, or it has no block."""
    block = {d.axis: _pow2(d.block) for d in low.kernel.dims}
    size, dims = max(((prod(block[a] for a in x.dims), x.dims) for x in lets(low.kernel.body)), default=(0, ()))
    if size <= REGISTERS:
        return None
    nest, t = low.nest, low.tiling
    rows = {n: r for n, r in zip(nest.blocked, t.rows, strict=True) if n in dims}
    stream = t.stream if nest.stream and nest.stream.name in dims else 1
    longest = max((stream, *rows.values()))
    if longest == 1:
        return None
    if stream == longest:
        return replace(t, stream=stream // 2)
    first = next(n for n, r in rows.items() if r == longest)
    return replace(t, rows=tuple(r // 2 if n == first else r for n, r in zip(nest.blocked, t.rows, strict=True)))


def facts(kernel: Kernel) -> Facts:
    made = lets(kernel.body)
    values = {x.name: x for x in made}
    dots = [x for x in made if isinstance(x.op, DotOp)]
    points = [d for d in kernel.dims if d.role == "point"]
    tiled = {d.axis: d.role for d in kernel.dims if d.role != "point"}

    def elements(dims: tuple[str, ...]) -> int:
        return prod(_pow2(kernel.dim(a).block) for a in dims if a not in tiled)

    deep = [x for x in made if len(set(x.dims) & tiled.keys()) > 1 and set(x.dims) - tiled.keys()]
    operands = {n: values[n] for x in dots if isinstance(x.op, DotOp) for n in (x.op.left, x.op.right) if n in values}
    loaded = [x for x in operands.values() if isinstance(x.op, LoadOp)]

    def carried(role: str) -> int:
        return sum(elements(x.dims) * ITEM_BYTES[x.dtype] for x in loaded if role in {tiled.get(a) for a in x.dims})

    return Facts(
        dots=bool(dots),
        width=max((_pow2(d.block) for d in points), default=1),
        depth=max((elements(x.dims) for x in deep), default=1),
        narrow=bool(dots) and all(x.dtype in NARROW for x in operands.values()),
        flow=carried("stream"),
        held=carried("row"),
        paired=any(isinstance(x.op, LoadOp) and len(set(x.dims) & tiled.keys() - coarse(x.op.index)) > 1 for x in made),
        state=max((elements(c.dims) for s in kernel.body if isinstance(s, Loop) for c in s.carries), default=1),
        runs=any(isinstance(x.op, ScanOp) for x in made),
        across={"row"} == {role for x in made for role in _nearest(x, tiled)},
    )


def _nearest(x: Let, tiled: dict[str, str]) -> set[str]:
    """The roles of the axes along which neighbours in memory lie, of a load of tiles."""
    last = x.op.index[-1:] if isinstance(x.op, LoadOp) and set(x.dims) & tiled.keys() else ()
    return {tiled.get(a, "") for e in last for a in axes(e)}


def _tiling(nest: Nest, f: Facts, target: Target) -> Tiling:
    """Measured on an H100 for Triton's portable emitter (benchmarks/README.md); what does not fit a smaller shared
    memory takes fewer stages."""
    blocked = len(nest.blocked)
    if f.depth > 1:  # blocks with two tiled dimensions and a point dimension: keep the product small
        side = 16
        while side * side * 4 * f.depth <= BLOCK_LIMIT and side < 64:
            side *= 2
        return Tiling((side,) * blocked, side, 4, 2)
    if not f.dots:
        return _by_bytes(nest, f)
    if target.interpret:
        return Tiling((64,) * blocked, 64, 4, 2)
    if not f.narrow:
        rows, stream, warps, stages = next(t for w, t in _WIDE_TILES if f.width <= w)
    else:
        rows, stream, warps, stages = next(t for w, t in (_PAIRED_TILES if f.paired else _NARROW_TILES) if f.width <= w)
        if f.state > 256:  # all of a row's sums in registers
            rows, stream = 32, 32
    while stages > 1 and rows * f.held + stages * stream * f.flow > target.shared_bytes:
        stages -= 1
    return Tiling((rows,) * blocked, stream, warps, stages)


def _by_bytes(nest: Nest, f: Facts) -> Tiling:
    """Where nothing is multiplied: blocks that lie along what is contiguous in memory."""
    blocked = len(nest.blocked)
    if f.width > 1:
        rows = max(1, min(16, 4096 // f.width))
        return Tiling((rows,) * blocked, max(64, 4096 // (rows * f.width)), 4, 2)
    if f.runs:  # as long as can be, since blocks wait for each other
        stream = _streamed(nest, 256 if f.across else 4096)
        return Tiling((min(16, 4096 // stream),) * blocked, stream, 4, 2)
    if blocked == 2:  # distances: what is read is used along two axes
        return Tiling((16, 16), 32, 4, 2)
    return Tiling((64,) * blocked, 64, 4, 2) if f.across else Tiling((1,) * blocked, 4096, 4, 2)


# Chosen in a sweep on an H100, faster than 128 rows in most programs of suite flex, not in all (docs/decisions/0012).
_NARROW_TILES: tuple[tuple[float, tuple[int, int, int, int]], ...] = (
    (128, (64, 64, 4, 3)),
    (256, (128, 64, 8, 2)),
    (inf, (64, 64, 8, 2)),
)
# Operands of 32 bits fill registers twice as fast; the widest spill, and run.
_WIDE_TILES: tuple[tuple[float, tuple[int, int, int, int]], ...] = (
    (32, (64, 64, 4, 2)),
    (128, (64, 32, 4, 2)),
    (256, (32, 32, 4, 1)),
    (inf, (16, 16, 8, 1)),
)
# Beside a tensor that is read a tile at a time (a dense bias), more rows share what is read of the streamed axis.
_PAIRED_TILES: tuple[tuple[float, tuple[int, int, int, int]], ...] = (
    (64, (128, 64, 4, 3)),
    (128, (128, 64, 8, 3)),
    *_NARROW_TILES[1:],
)


def fitted(nest: Nest, t: Tiling) -> Tiling:
    """No block longer than a literal axis needs."""
    known = {a.name: a.extent.value for a in nest.grid if isinstance(a.extent, Const)}
    rows = tuple(
        min(b, max(16 if b >= 16 else 1, _pow2(int(known.get(n, b)))))
        for n, b in zip(nest.blocked, t.rows, strict=True)
    )
    return replace(t, rows=rows, stream=_streamed(nest, t.stream))


def _streamed(nest: Nest, block: int) -> int:
    """A block of the streamed axis, no longer than a literal one needs."""
    if nest.stream and isinstance(nest.stream.extent, Const):
        return min(block, max(16, _pow2(int(nest.stream.extent.value))))
    return block


def _pow2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
