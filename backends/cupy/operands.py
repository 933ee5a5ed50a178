"""Dots and their operands: tensor cores or multiply-adds, what is copied to shared memory, how many warps share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from flashlight.backend import Target
from flashlight.backends.cupy.dtypes import CTYPES, SIZES, WIDE
from flashlight.backends.cupy.place import ceil, floor2, rows
from flashlight.backends.queries import names_in, pow2
from flashlight.backends.uses import Definition, Uses, axes_in
from flashlight.tile import DotOp, Index, Kernel, Let, LoadOp

PRECISION = {"highest": "bf16x6", "high": "bf16x6", "medium": "tf32"}
"""Six products of bfloat16 parts err as float32 does (docs/decisions/0007-float32-products.md)."""
ROOM = 150  # registers of a thread that blocks may fill: where two strips a warp (each right operand serves both) would
# take more, and left operands that stay the same would not fit besides, ptxas spills
PARTS = 24  # registers that the parts of float32 operands take
MOST_WARPS = 16


@dataclass(frozen=True)
class Dot:
    """``kind``: "mma" (16-bit operands), "bf16x6", "tf32", or "plain" (multiply-adds).  ``left`` has the result's first
    dimension ``m``, ``right`` its second, ``n`` (names of values; not told for other shapes, which are plain)."""

    kind: str
    left: str
    right: str
    contract: str
    m: str = ""
    n: str = ""
    left_shared: bool = False

    @property
    def step(self) -> int:
        """How many products an instruction sums."""
        return 16 if self.kind == "mma" else 8


@dataclass(frozen=True)
class Tile:
    """A load that is copied to shared memory: rows along ``outer``, neighbours along ``inner``; padded lengths.

    ``stages`` > 0: a ring of so many, filled ahead of the trips of the loop that it is in.
    """

    buffer: str
    outer: str
    inner: str
    shape: tuple[int, int]
    dtype: str
    stages: int = 0

    @property
    def type(self) -> str:
        return f"Tile<{CTYPES[self.dtype]}, {self.shape[0]}, {self.shape[1]}>"

    @property
    def once(self) -> Tile:
        """One of the ring's tiles."""
        return replace(self, stages=0)

    @property
    def bytes(self) -> int:
        size = SIZES[self.dtype]
        chunks = ceil(self.shape[1] * size, 16)
        pitch = chunks if chunks & (chunks - 1) == 0 else chunks | 1
        return self.shape[0] * pitch * 16 * max(1, self.stages)


class Operands:
    """Which unit computes each dot, where its operands lie, and how many warps share a block."""

    def __init__(self, kernel: Kernel, target: Target, stages: int) -> None:
        self.kernel, self.target, self.stages = kernel, target, max(1, stages)
        self.uses = Uses(kernel)
        self.blocks = {d.axis: d.block for d in kernel.dims}
        self.dots = {id(x): self.dot(x, x.op) for x in self.uses.lets if isinstance(x.op, DotOp)}
        self.tiles = self.shared_operands()
        self.warps = self.how_many_warps()
        self.share_left_operands()

    # ---- dots ----------------------------------------------------------------------------------------------------
    def dot(self, s: Let, op: DotOp) -> Dot:
        """Which unit computes a dot: tensor cores take matrices, in 16 bits or in TF32 terms of float32."""
        left, right = (self.uses.operand(s, n) for n in (op.left, op.right))
        plain = Dot("plain", op.left, op.right, op.contract)
        sides = [set(x.dims) - {op.contract} for x in (left, right)]
        if len(s.dims) != 2 or any(len(x.dims) != 2 for x in (left, right)) or any(len(own) != 1 for own in sides):
            return plain
        m, n = s.dims
        first, second = (left, right) if sides[0] == {m} else (right, left)
        names = (op.left, op.right) if sides[0] == {m} else (op.right, op.left)
        if set(first.dims) != {m, op.contract} or set(second.dims) != {n, op.contract}:
            return plain
        kind = "plain"
        if left.dtype == right.dtype and s.dtype == "float32":
            kind = PRECISION[self.target.precision] if left.dtype == "float32" else kind
            kind = "mma" if left.dtype in WIDE else kind
        return Dot(kind, *names, op.contract, m, n)

    @cached_property
    def units(self) -> list[Dot]:
        """The dots of two dimensions, whichever unit computes them."""
        return [d for d in self.dots.values() if d.m]

    def step(self, axis: str) -> int:
        """What an axis's length is padded to a multiple of, as columns."""
        return max((d.step for d in self.units if d.kind != "plain" and d.contract == axis), default=8)

    # ---- shared memory -------------------------------------------------------------------------------------------
    def shared_operands(self) -> dict[int, Tile | None]:
        """Loads that are right operands on tensor cores, as tiles; None: one that cannot be copied as it lies."""
        out: dict[int, Tile | None] = {}
        for s in self.uses.lets:
            d = self.dots.get(id(s))
            if d is None or d.kind == "plain":
                continue
            x = self.uses.operand(s, d.right)
            if isinstance(x, Let) and isinstance(x.op, LoadOp):
                out[id(x)] = self.tile(x, x.op)
        return out

    def share_left_operands(self) -> None:
        """Left operands that stay the same in a loop, where registers are too few to hold them beside its blocks."""
        room = ROOM - self.held(self.warps) - (PARTS if any(d.kind in ("bf16x6", "tf32") for d in self.units) else 0)
        seen = set(self.tiles)
        for s in self.uses.lets:
            d = self.dots.get(id(s))
            x = self.uses.operand(s, d.left) if d is not None and d.kind != "plain" else None
            if d is None or not isinstance(x, Let) or not isinstance(x.op, LoadOp) or id(x) in seen:
                continue
            seen.add(id(x))
            if self.uses.depth[id(x)] >= self.uses.depth[id(s)] or any(u.how == "value" for u in self.uses.uses(x)):
                continue
            lengths = {d.m: rows(self.blocks[d.m], self.warps).length}
            tile = self.tile(x, x.op, lengths)
            need = prod(ceil(self.blocks[a], 16) for a in x.dims) * 2 * SIZES[x.dtype] // self.warps
            if tile is None or tile.inner != d.contract or need <= room:
                room -= need
                continue
            users = [u.by for u in self.uses.uses(x)]
            if all(id(y) in self.dots and self.dots[id(y)].left == x.name for y in users):
                self.tiles[id(x)] = tile
                for y in users:
                    self.dots[id(y)] = replace(self.dots[id(y)], left_shared=True)

    def tile(self, x: Let, op: LoadOp, lengths: Mapping[str, int] | None = None) -> Tile | None:
        if op.other != 0 or x.dtype != self.kernel.buffer(op.buffer).dtype or not op.index:
            return None
        last, others = op.index[-1], op.index[:-1]
        if not isinstance(last, Index) or last.axis not in x.dims or last.axis in axes_in(*others):
            return None
        inner = last.axis
        (outer,) = (a for a in x.dims if a != inner)
        depth = self.uses.depth[id(x)]
        if any(self.uses.depth[id(self.uses.operand(x, n))] >= depth > 0 for n in names_in(*op.index)):
            return None  # known too late to be copied ahead
        if any(self.uses.operand(x, n).dims for n in names_in(*op.index)):
            return None
        padded = {a: ceil(self.blocks[a], 16) * 16 for a in x.dims} | dict(lengths or {})  # read 16 at a time
        shape = padded[outer], padded[inner]
        stages = self.stages if depth > 0 else 0
        return Tile(op.buffer, outer, inner, shape, x.dtype, stages)

    def read_directly(self, x: Let) -> bool:
        """Is a load needed in registers?"""
        if self.tiles.get(id(x)) is None:
            return True
        for u in self.uses.uses(x):
            d = self.dots.get(id(u.by))
            if d is None or d.kind == "plain" or u.how == "acc" or (d.left == x.name and not d.left_shared):
                return True
        return False

    # ---- warps ---------------------------------------------------------------------------------------------------
    def how_many_warps(self) -> int:
        if not self.units:
            largest = max((prod(map(self.length, x.dims)) for x in self.uses.definitions), default=1)
            return max(1, min(MOST_WARPS, floor2(largest // 512)))
        strips = max(ceil(self.blocks[d.m], 16) for d in self.units)
        warps = min(pow2(strips), max(1, floor2(self.kernel.warps)))
        if warps > 4 and self.held(warps // 2) <= ROOM:
            warps //= 2
        while warps < min(pow2(strips), MOST_WARPS) and self.held(warps) > ROOM:
            warps *= 2
        return warps

    def held(self, warps: int) -> int:
        """Registers that the blocks of the busiest moment take: the states, and beside them the largest result and the
        largest block that is loaded."""

        def size(d: Definition) -> int:
            if len(d.dims) < 2:
                return 0
            strips = ceil(ceil(self.blocks[d.dims[0]], 16), warps)
            return 2 * strips * prod(ceil(self.blocks[a], 8) * 2 for a in d.dims[1:])

        states = sum(map(size, self.uses.carries))
        ends = {id(x) for found in self.uses.last.values() for x in found}
        others = (x for x in self.uses.lets if isinstance(x.op, DotOp) and id(x) not in ends)
        inside = (x for x in self.uses.lets if isinstance(x.op, LoadOp) and self.uses.depth[id(x)] > 0)
        loaded = (size(x) // (2 if x.dtype in WIDE else 1) for x in inside if self.read_directly(x))
        return states + max(map(size, others), default=0) + max(loaded, default=0)

    def length(self, axis: str) -> int:
        return pow2(self.blocks[axis])
