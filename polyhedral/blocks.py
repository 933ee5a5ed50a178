"""A predicate over the points of tiles, as isl sets: what tile classes are computed from and checked against."""

from __future__ import annotations

import islpy as isl

from flashlight.expr import Apply, Const, Expr, Index, Size, axes, walk
from flashlight.polyhedral.affine import Translator, is_affine, parameters
from flashlight.polyhedral.space import DIM, Space, number, sample
from flashlight.program import Axis

TILE = Index("tile number")  # a name that no axis has
Rows = tuple[tuple[Axis, int], ...]


class TiledPoints:
    """The points (tile number, offsets of the rows in their blocks, offset of the streamed point in its tile), with
    block numbers, batch coordinates and sizes for parameters.  Rows and batch axes that the predicate does not use are
    left out, unless ``also`` (bounds, say) uses them; other axes of the predicate may have any coordinate.  Raises
    NotAffine."""

    def __init__(
        self, live: Expr, stream: Axis, block: int, rows: Rows, batch: tuple[Axis, ...], also: tuple[Expr, ...] = ()
    ):
        used = axes(live).union(*map(axes, also))
        self.live, self.stream, self.block = live, stream, block
        self.rows = tuple((a, b) for a, b in rows if a.name in used)
        grid = (*(a for a, _ in self.rows), *(a for a in batch if a.name in used))
        extents = [a.extent for a in (*grid, stream)]
        self.grid = tuple(Index(a.name) for a in grid)
        parts = shares(live)
        sizes = (*parameters(live, *extents, *also), *parts)
        self.offsets = tuple(Index(f"offset of {a.name}") for a in (*(a for a, _ in self.rows), stream))
        self.others = tuple(Index(n) for n in sorted(axes(live) - {a.name for a in (*grid, stream)}))
        space = self.space = Space((*self.grid, *sizes), (TILE, *self.offsets, *self.others))
        plain = Translator(space)
        zero, one = space.constant(0), space.constant(1)

        self.box = space.universe()  # offsets lie in their blocks
        for offset, length in zip(self.offsets, (*(b for _, b in self.rows), block), strict=True):
            self.box = self.box.intersect(space[offset].ge_set(zero)).intersect(
                space[offset].lt_set(space.constant(length))
            )
        self.context = space.universe()  # what is known of the parameters
        known: tuple[Expr, ...] = (*self.grid, *(s for s in sizes if isinstance(s, Size)))
        for key in known:
            self.context = self.context.intersect(space[key].ge_set(one if isinstance(key, Size) else zero))
        for part, (whole, by) in parts.items():
            rest = plain.value(whole).sub(space[part].scale_val(number(by)))
            self.context = self.context.intersect(rest.ge_set(zero)).intersect(rest.lt_set(space.constant(by)))
        for extent in extents:
            self.context = self.context.intersect(plain.value(extent).ge_set(one))
        blocks = (*(b for _, b in self.rows), *(1 for _ in grid[len(self.rows) :]))
        for a, b in zip(grid, blocks, strict=True):
            self.context = self.context.intersect(
                space[Index(a.name)].scale_val(number(b)).lt_set(plain.value(a.extent))
            )
        at: dict[Expr, isl.PwAff] = {
            Index(a.name): self.within(Index(a.name), b, o) for (a, b), o in zip(self.rows, self.offsets, strict=False)
        }
        self.real = space.universe()  # rows that exist
        for a, _ in self.rows:
            self.real = self.real.intersect(at[Index(a.name)].lt_set(plain.value(a.extent)))
        point = at[Index(stream.name)] = self.within(TILE, block, self.offsets[-1])
        self.beyond = point.ge_set(plain.value(stream.extent))
        self.inside = point.lt_set(plain.value(stream.extent)).intersect(space[TILE].ge_set(zero))
        self.outside = self.beyond.union(space[TILE].lt_set(zero))
        self.translate = Translator(space, at)

    def within(self, block_number: Expr, length: int, offset: Expr) -> isl.PwAff:
        """The coordinate of a point in a block."""
        return self.space[block_number].scale_val(number(length)).add(self.space[offset])

    def alive(self, yes: bool = True) -> isl.Set:
        return self.translate.truth(self.live, yes)

    def tiles(self, points: isl.Set) -> isl.Set:
        """The tiles that hold one of the points, a set of the one dimension TILE."""
        return (
            points.intersect(self.box).intersect(self.context).project_out(DIM, 1, len(self.offsets) + len(self.others))
        )

    def line(self) -> Space:
        """The space of :meth:`tiles`."""
        return Space(self.space.params, (TILE,))

    def witness(self, points: isl.Set) -> str | None:
        """A point as text in coordinates of the program, ``i = 3, j = 70, N = 71``, or None if there is none."""
        at = sample(points.intersect(self.box).intersect(self.context).intersect(self.real), self.space)
        if at is None:
            return None
        for (a, b), offset in zip(self.rows, self.offsets, strict=False):
            at[Index(a.name)] = b * at[Index(a.name)] + at[offset]
        point = self.block * at[TILE] + at[self.offsets[-1]]
        parts = [f"{key} = {at[key]}" for key in (*self.grid, *self.others)] + [f"{self.stream.name} = {point}"]
        return ", ".join([*parts, *(f"{key} = {at[key]}" for key in self.space.params[len(self.grid) :])])


def shares(e: Expr) -> dict[Expr, tuple[Expr, int]]:
    """The floor divisions of sizes by a literal that occur (half of a length, say), with their operands.  Each is a
    parameter of its own, known by its remainder: that keeps sets simpler than a division in each constraint."""
    out: dict[Expr, tuple[Expr, int]] = {}
    for n in walk(e):
        match n:
            case Apply("floordiv", (whole, Const(int() as by))) if by > 0 and not axes(n) and is_affine(whole):
                out[n] = (whole, by)
    return out
