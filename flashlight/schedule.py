"""Block lengths for a nest on a target, and the schedule tree that says in which order instances run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flashlight.backend import Target
from flashlight.expr import Const
from flashlight.fuse import Nest
from flashlight.lower import Lowered, Tiling, lower
from flashlight.program import Program
from flashlight.tile import DotOp, Kernel, Let, Loop, Stmt

NARROW = ("bfloat16", "float16")
BLOCK_LIMIT = 1 << 15  # elements of one block value


@dataclass(frozen=True)
class Facts:
    """What a first lowering shows of a kernel: does it use dots, how wide are its point dimensions, how large its
    blocks (in point-dimension elements), are its dot operands 16-bit."""

    dots: bool
    width: int
    depth: int
    narrow: bool


def schedule(nest: Nest, program: Program, target: Target, tiling: Tiling | None = None) -> Lowered:
    """Choose block lengths by what the kernel holds, and lower with them."""
    if tiling is not None:
        return lower(nest, program, tiling)
    if target.device == "cpu" and not target.interpret:
        return lower(nest, program, Tiling(tuple(128 if k == 0 else 1024 for k in range(len(nest.blocked))), 128, 1, 1))
    draft = Tiling(tuple(64 for _ in nest.blocked), 64)
    lowered = lower(nest, program, draft)
    chosen = _tiling(nest, facts(lowered.kernel), target)
    return lowered if chosen == draft else lower(nest, program, chosen)


def facts(kernel: Kernel) -> Facts:
    lets = list(_lets(kernel.body))
    values = {x.name: x for x in lets}
    dots = [x for x in lets if isinstance(x.op, DotOp)]
    points = [d for d in kernel.dims if d.role == "point"]
    width = max((_pow2(d.block) for d in points), default=1)
    tiled = {d.axis for d in kernel.dims if d.role != "point"}
    deep = [x for x in lets if len(set(x.dims) & tiled) > 1 and set(x.dims) - tiled]
    depth = max((_product(_pow2(kernel.dim(a).block) for a in x.dims if a not in tiled) for x in deep), default=1)
    narrow = bool(dots) and all(
        values[x.op.left].dtype in NARROW for x in dots if isinstance(x.op, DotOp) and x.op.left in values
    )
    return Facts(bool(dots), width, depth, narrow)


def _tiling(nest: Nest, f: Facts, target: Target) -> Tiling:
    """Measured rules for Triton's portable emitter (Hopper figures; smaller shared memories take smaller streams)."""
    if f.depth > 1:  # blocks with two tiled dimensions and a point dimension: keep the product small
        side = 16
        while side * side * 4 * f.depth <= BLOCK_LIMIT and side < 64:
            side *= 2
        return _fit(nest, Tiling((side,) * len(nest.blocked), side, 4, 2))
    if not f.dots:  # moved by bytes: a few rows, long contiguous stretches
        rows = max(1, min(16, 4096 // max(f.width, 512)))
        return _fit(
            nest,
            Tiling((rows,) * len(nest.blocked), max(64, 4096 // (rows * max(1, f.width if nest.points else 1))), 4, 2),
        )
    if target.interpret:
        return _fit(nest, Tiling((64,) * len(nest.blocked), 64, 4, 2))
    small = target.shared_bytes < 160 * 1024
    if f.narrow and f.width <= 64:
        t = Tiling((128,) * len(nest.blocked), 64 if small else 128, 4, 3)
    elif f.narrow and f.width <= 128:
        t = Tiling((128,) * len(nest.blocked), 64, 8, 2) if small else Tiling((128,) * len(nest.blocked), 128, 8, 2)
    elif f.narrow:
        t = Tiling((64 if f.width > 256 else 128,) * len(nest.blocked), 32 if f.width > 256 or small else 64, 8, 2)
    else:
        t = Tiling((64,) * len(nest.blocked), 32 if f.width >= 64 else 64, 4, 2)
        if f.width > 128:
            t = Tiling((32,) * len(nest.blocked), 32, 4, 1)
    return _fit(nest, t)


def _fit(nest: Nest, t: Tiling) -> Tiling:
    """No block longer than a literal axis needs."""
    known = {a.name: a.extent.value for a in nest.grid if isinstance(a.extent, Const)}
    rows = tuple(
        min(b, max(16 if b >= 16 else 1, _pow2(int(known.get(n, b)))))
        for n, b in zip(nest.blocked, t.rows, strict=True)
    )
    stream = t.stream
    if nest.stream and isinstance(nest.stream.extent, Const):
        stream = min(stream, max(16, _pow2(int(nest.stream.extent.value))))
    return Tiling(rows, stream, t.warps, t.stages)


def _lets(body: tuple[Stmt, ...]) -> list[Let]:
    out: list[Let] = []
    for s in body:
        match s:
            case Let():
                out.append(s)
            case Loop():
                out += [x for g in s.segments for x in _lets(g.body)]
    return out


def _pow2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _product(numbers: Iterable[int]) -> int:
    out = 1
    for n in numbers:
        out *= n
    return out
