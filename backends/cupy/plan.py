"""What is decided before anything is printed: warps, placements, which unit computes a dot, what lies in shared memory.

The emitter follows a :class:`Plan` and chooses nothing itself, so that other ways of issuing dots are other passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from flashlight.backend import Target
from flashlight.backends.cupy.dtypes import SIZES
from flashlight.backends.cupy.operands import Dot, Operands, Tile
from flashlight.backends.cupy.place import Placement, apart, columns, rows, spread
from flashlight.backends.queries import kind_of
from flashlight.backends.uses import Definition, Uses, distinct
from flashlight.tile import (
    Carry,
    CastOp,
    DotOp,
    Index,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    ScanOp,
    Stmt,
    Store,
    leaves,
)


@dataclass(frozen=True)
class Plan:
    """``places`` (of definitions), ``dots``, ``tiles``: by ``id`` of the definition in ``kernel``.

    ``main``: where each axis lies unless a value says otherwise.  ``registers``: loads that are read into registers
    (too).  ``inline``: definitions that are printed where their one reader, a reduction, reads them.
    """

    kernel: Kernel
    uses: Uses
    warps: int
    stages: int
    main: Mapping[str, Placement]
    places: Mapping[int, Mapping[str, Placement]]
    dots: Mapping[int, Dot]
    tiles: Mapping[int, Tile]
    registers: frozenset[int]
    inline: frozenset[int]


def plan(kernel: Kernel, target: Target, stages: int | None = None) -> Plan:
    """Decide.  ``stages``: how far ahead copies run, by default as far as the kernel asks."""
    return _Planner(distinct(kernel), target, kernel.stages if stages is None else stages).run()


class _Planner(Operands):
    def __init__(self, kernel: Kernel, target: Target, stages: int) -> None:
        super().__init__(kernel, target, stages)
        self.places: dict[int, dict[str, Placement]] = {}

    def run(self) -> Plan:
        self.main = self.placements()
        for d in self.in_order(self.kernel.body):
            self.places[id(d)] = self.place(d)
        registers = frozenset(id(x) for x in self.uses.lets if isinstance(x.op, LoadOp) and self.read_directly(x))
        tiles = {k: t for k, t in self.tiles.items() if t is not None}
        return Plan(
            self.kernel, self.uses, self.warps, self.stages, self.main, self.places, self.dots, tiles, registers,
            frozenset(id(x) for x in self.uses.lets if self.read_once(x)),
        )  # fmt: skip

    def read_once(self, x: Let) -> bool:
        """Is a body's value read by a reduction alone?  (Then it needs no registers of its own.)"""
        uses = self.uses.uses(x)
        if not isinstance(x.op, MapOp) or len(uses) != 1 or x.dtype not in ("float32", "float64"):
            return False
        by = uses[0].by
        return isinstance(by, Let) and isinstance(by.op, ReduceOp) and self.uses.depth[id(by)] == self.uses.depth[id(x)]

    # ---- placements ----------------------------------------------------------------------------------------------
    def placements(self) -> dict[str, Placement]:
        """One placement for each axis, such that as many values as possible need no other."""
        values = [x for x in self.uses.definitions if x.dims and self.in_registers(x)]
        main: dict[str, Placement] = {}
        for d in self.units:
            if d.m not in main:
                main[d.m] = rows(self.blocks[d.m], self.warps)
            for axis in (d.n, d.contract):
                if axis not in main:
                    main[axis] = columns(self.blocks[axis], self.step(axis))
        for x in sorted(values, key=lambda x: -prod(self.blocks[a] for a in x.dims)):
            if any(a not in main for a in x.dims):
                main |= self.scattered(x.dims, {a: main[a] for a in x.dims if a in main})
        return main

    def in_registers(self, x: Definition) -> bool:
        return not (isinstance(x, Let) and isinstance(x.op, LoadOp)) or self.read_directly(x)

    def scattered(self, dims: tuple[str, ...], known: Mapping[str, Placement]) -> dict[str, Placement]:
        """Placements for the axes of a value, those that are ``known`` aside."""
        left = {a: self.blocks[a] for a in dims if a not in known}
        taken = frozenset().union(*(p.bits for p in known.values()))
        if self.units and len(left) == 1:
            (axis,) = left
            for p in (columns(left[axis], self.step(axis)), rows(left[axis], self.warps)):
                if not taken & p.bits:
                    return {axis: p}
        order = sorted(left, key=lambda a: (-self.neighbours.get(a, 0), -list(dims).index(a)))
        return spread(left, order, self.warps, self.longest_run, taken)

    @cached_property
    def neighbours(self) -> dict[str, int]:
        """How much of memory lies contiguously along each axis: elements of the buffers whose last dimension it is."""
        found: dict[str, int] = {}
        for s in leaves(self.kernel.body):
            index = s.index if isinstance(s, Store) else s.op.index if isinstance(s.op, LoadOp) else ()
            if index and isinstance(index[-1], Index):
                found[index[-1].axis] = found.get(index[-1].axis, 0) + self.blocks.get(index[-1].axis, 1)
        return found

    @cached_property
    def longest_run(self) -> int:
        """How many neighbours a thread loads at once: 16 bytes of the narrowest input."""
        sizes = [SIZES[b.dtype] for b in (*self.kernel.inputs, *self.kernel.outputs) if kind_of(b.dtype) == "real"]
        return 16 // min(sizes, default=4)

    def in_order(self, body: tuple[Stmt, ...]) -> list[Definition]:
        out: list[Definition] = []
        for s in body:
            match s:
                case Let():
                    out.append(s)
                case Loop(_, carries, segments):
                    out += carries
                    out += [d for g in segments for d in self.in_order(g.body)]
        return out

    def natural(self, dims: tuple[str, ...]) -> dict[str, Placement]:
        own = {a: self.main[a] for a in dims}
        return own if apart(own.values()) else self.scattered(dims, {})

    def result(self, d: Dot) -> dict[str, Placement]:
        return {d.m: rows(self.blocks[d.m], self.warps), d.n: columns(self.blocks[d.n], self.step(d.n))}

    def place(self, x: Definition) -> dict[str, Placement]:
        """Where a value lies: as the tensor cores leave it, else as what it is made from, else as its axes do."""
        if isinstance(x, Carry):
            for end in self.uses.last[id(x)]:
                if id(end) in self.dots and self.dots[id(end)].m:
                    return self.result(self.dots[id(end)])
            return self.natural(x.dims)
        match x.op:
            case DotOp():
                d = self.dots[id(x)]
                return self.result(d) if d.m else self.natural(x.dims)
            case MapOp() | CastOp() | ReduceOp() | ScanOp():
                for operand in self.uses.operands[id(x)].values():
                    if x.dims and set(x.dims) <= set(operand.dims) and self.settled(operand):
                        return {a: self.places[id(operand)][a] for a in x.dims}
        return self.natural(x.dims)

    def settled(self, x: Definition) -> bool:
        """Is a value where it is for a reason?  (A load can be anywhere.)"""
        return id(x) in self.places and not (isinstance(x, Let) and isinstance(x.op, LoadOp) and len(x.dims) == 1)
