"""Which tiles of a streamed axis hold live points, and which of them are live throughout.

For a block of rows, the tiles that hold a live point are a union of intervals whose ends are expressions in the block's
number, batch coordinates and sizes; so are the *full* ones, all of whose points lie inside the axis and are live.  isl
computes both for symbolic lengths.  The last block of rows may reach beyond its axis; such virtual rows count as rows
here (they are computed and never stored): it keeps the rows' extent out of the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import product
from math import prod

import islpy as isl

from flashlight.expr import TRUE, Const, Expr, Index, apply, axes, evaluate, substitute
from flashlight.polyhedral.affine import Translator
from flashlight.polyhedral.blocks import TILE, Rows, TiledPoints
from flashlight.polyhedral.bounds import condition
from flashlight.polyhedral.linear import as_linear
from flashlight.polyhedral.loops import Interval
from flashlight.polyhedral.several import Pieces
from flashlight.polyhedral.space import TooHard, budget, number
from flashlight.program import Axis

OPERATIONS = 150_000  # of isl for one question: a hundred milliseconds or so
SPLITTING = 1_000_000  # of isl for one classification
COMPLEX = 6  # basic sets, and divisions in them, of a set of tiles that is looked at exactly
PIECES, RANGES = 3, 8  # at most so many intervals of live tiles, and ranges in all


@dataclass(frozen=True)
class Range:
    """Tiles ``lo <= t < hi`` of a kind, "full" or "partial".

    The ends are integer expressions over Index(row axis), which means the *block's number*, Index(batch axis), Size and
    Const; ``hi <= lo`` means none.  With ``tile`` they are places in a list, and it is what stands there: an element of
    a tensor at, among others, the place, which is Index(streamed axis).
    """

    kind: str
    lo: Expr
    hi: Expr
    tile: Expr | None = None

    def __str__(self) -> str:
        return f"{self.kind} [{self.lo}, {self.hi})" + ("" if self.tile is None else f" of {self.tile}")


@dataclass(frozen=True)
class TileClasses:
    """The tiles of ``stream`` to visit for each block of rows: ascending, disjoint ranges.

    Every tile with a live point is in one of them; a full range holds only tiles that lie inside the axis and are live
    at all their points, for all rows of the block.  A partial range may hold any tile that is not wholly outside.
    ``loose``: they may hold many dead ones.
    """

    ranges: tuple[Range, ...]
    stream: Axis
    block: int
    rows: Rows
    batch: tuple[Axis, ...]
    loose: bool = False

    def __str__(self) -> str:
        return "; ".join(map(str, self.ranges)) or "none"


@lru_cache(maxsize=1024)
def segments(live: Expr, stream: Axis, block: int, rows: Rows, batch: tuple[Axis, ...]) -> TileClasses:
    """Classify the tiles of ``block`` points of ``stream`` by a predicate over its index, rows, batch axes and sizes.

    ``rows``: the tiled parallel axes with their blocks; ``batch``: those that are not tiled.  Of other axes in the
    predicate, a tile is live if it is for some coordinate, and full if it is for all.  Extents and sizes are taken to
    be at least 1.  Exact but for virtual rows, and for two tiles here and there where that makes a text shorter, as
    long as it takes few ranges with short ends; else a hull, called partial.  Raises NotAffine if isl cannot hold
    the predicate.
    """
    for exact in (True, False):
        try:
            with budget(SPLITTING):
                classifier = _Classifier(TiledPoints(live, stream, block, rows, batch), exact)
                ranges = classifier.ranges()
        except TooHard:
            continue
        if ranges is not None:
            return TileClasses(ranges, stream, block, rows, batch, classifier.loose)
    every = Range("partial", Const(0), as_linear(stream.extent).ceildiv(block).expr())
    return TileClasses((every,), stream, block, rows, batch, live is not TRUE)


@lru_cache(maxsize=1024)
def conditions(live: Expr, stream: Axis, block: int, rows: Rows, batch: tuple[Axis, ...]) -> tuple[Expr, Expr] | None:
    """When a tile holds a live point, and when it lies inside the axis and is live throughout: conditions on its number
    (Index(stream)), the numbers of the blocks of rows, batch coordinates and sizes.  None where isl cannot say it in
    its time.  Raises NotAffine."""
    try:
        with budget(SPLITTING):
            points = TiledPoints(live, stream, block, rows, batch)
            may = points.tiles(points.alive().intersect(points.inside)).coalesce()
            dead = points.tiles(points.alive(False)).coalesce()
            must = points.tiles(points.inside).subtract(points.tiles(points.outside)).subtract(dead).coalesce()
            space, context = points.line(), points.tiles(points.space.universe())
            texts = [condition(s.gist(context), space) for s in (may, must)]
    except TooHard:
        return None
    found = tuple(substitute(t, {TILE: Index(stream.name)}) for t in texts if t is not None)
    return (found[0], found[1]) if len(found) == 2 else None


def joined(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """The same tiles, all called partial: ranges that follow each other without a gap become one."""
    out: list[Range] = []
    for r in ranges:
        before = out.pop() if out and out[-1].hi is r.lo else None
        out.append(Range("partial", before.lo if before else r.lo, r.hi))
    return tuple(out)


def is_simple(s: isl.Set) -> bool:
    """Has a set few disjuncts and divisions?  Sets with many cost isl minutes to compare, at few operations."""
    basics = s.get_basic_sets()
    return len(basics) <= COMPLEX and sum(b.dim(isl.dim_type.div) for b in basics) <= COMPLEX


class _Classifier:
    """From sets of tiles to ranges."""

    def __init__(self, points: TiledPoints, exact: bool):
        self.line = Pieces(points.line(), points.tiles(points.space.universe()), len(points.grid))
        self.loose = not exact
        self.every = points.tiles(points.inside)
        self.whole = self.every.subtract(points.tiles(points.outside)).coalesce()
        live = points.tiles(points.alive().intersect(points.inside)).coalesce()
        dead = points.tiles(points.alive(False)).coalesce() if exact else self.every
        self.live = live if exact and is_simple(live) else self.line.hull(live.remove_divs(), self.every)
        dead = dead if is_simple(dead) else dead.remove_divs().coalesce()
        self.full = self.whole.subtract(dead if is_simple(dead) else self.every)

    def ranges(self) -> tuple[Range, ...] | None:
        """None where no short text is found, or what was found does not prove right."""
        if self.live.is_empty():
            return ()
        for pieces in (PIECES, 1):
            parts = self.line.intervals(self.live, self.every, pieces)
            if parts is None:
                return None
            out = tuple(r for one, points in parts for r in self.split(one, points))
            if len(out) <= RANGES and self.proved(out):
                self.loose |= any(p is not self.live and not p.is_subset(self.live) for _, p in parts)
                return out
        return None

    def split(self, live: Interval, points: isl.Set) -> list[Range]:
        """One interval of live tiles: full ranges, and partial ones before, between and after them."""
        out: list[Range] = []
        past = [live.lo]  # everything before the largest of these is done

        def add(kind: str, i: Interval | None) -> None:
            if i is not None:
                out.append(Range(kind, i.lo, i.hi))

        for f in self.fulls(live, points):
            add("partial", self.line.trim(past, [f.lo, live.hi]))
            add("full", self.line.trim([f.lo, *past], [f.hi]))
            past = [f.hi, f.lo, *past]
        add("partial", self.line.trim(past, [live.hi]))
        return out

    def fulls(self, live: Interval, points: isl.Set) -> list[Interval]:
        """Intervals of full tiles among these live ones: all of them, or those that have short ends."""
        line = self.line
        raw = self.full.intersect(points)
        full = raw.coalesce()
        large = [d for d in line.disjuncts(full) if not line.is_small(d)]
        for some, shapes in ((full, [raw]), (reduce(isl.Set.union, large, line.space.empty()).coalesce(), [])):
            if some.is_empty():
                return []
            shape = some.gist(points).coalesce()
            if line.is_convex(some) and (one := line.interval(some, self.whole, [live], [shape, *shapes])):
                return [one]
        parts = line.pieces(some, self.whole, 2, outer=False)
        if parts is not None:
            return [i for i, _ in parts]
        found = (line.interval(d, self.whole, [live]) for d in large if line.is_convex(d))
        return [i for i in found if i is not None][:1]

    def proved(self, ranges: tuple[Range, ...]) -> bool:
        """Do the ranges hold the live tiles, in order, and only full tiles in full ones?"""
        line, seen = self.line, self.line.space.empty()
        for r in ranges:
            tiles = line.points(Interval(r.lo, r.hi))
            if not tiles.is_subset(self.full if r.kind == "full" else self.every):
                return False
            if not line.after(tiles).is_disjoint(seen):
                return False
            seen = seen.union(tiles)
        return bool(self.live.is_subset(seen))


@lru_cache(maxsize=1024)
def implies_inside(live: Expr, stream: Axis, grid: tuple[Axis, ...]) -> bool:
    """Does every live point of the rows that exist lie before the streamed axis's end, however far a loop runs?

    False also where isl cannot tell in its time.  Raises NotAffine.
    """
    try:
        with budget(OPERATIONS):
            points = TiledPoints(live, stream, 1, (), grid)
            beyond = points.alive().intersect(points.beyond)
            return bool(beyond.intersect(points.box).intersect(points.context).is_empty())
    except TooHard:
        return False


def check(
    classes: TileClasses, live: Expr, stream: Axis, block: int, rows: Rows, batch: tuple[Axis, ...]
) -> str | None:
    """Ask of the ranges' texts what :func:`segments` promises; a point in words where it is not so, else None.

    The point is one of the rows that exist: in a tile that is visited twice or out of order, in one wholly outside the
    axis, dead or outside in a full tile, or live and not visited.  Raises NotAffine.
    """
    also = tuple(e for r in classes.ranges for e in (r.lo, r.hi))
    try:
        with budget(10 * OPERATIONS):
            return _violation(classes, TiledPoints(live, stream, block, rows, batch, also))
    except TooHard:
        return "no point found: isl could not decide it in its time"


def _violation(classes: TileClasses, points: TiledPoints) -> str | None:
    space = points.space
    plain = Translator(space)
    tile = space[TILE]
    earlier, seen = space.empty(), space.empty()
    for r in classes.ranges:
        until = plain.truth(apply("lt", TILE, r.hi))
        here = plain.truth(apply("ge", TILE, r.lo)).intersect(until)
        first = tile.scale_val(number(points.block))
        off = first.ge_set(plain.value(points.stream.extent)).union(tile.lt_set(space.constant(0)))
        wrong = {
            "is visited twice or out of order": here.intersect(earlier),
            f"lies in a tile outside {points.stream}": here.intersect(off),
        }
        if r.kind == "full":
            wrong["is in a full tile, and dead"] = here.intersect(points.inside).intersect(points.alive(False))
            wrong[f"is in a full tile, and outside {points.stream}"] = here.intersect(points.outside)
        for what, where in wrong.items():
            if (point := points.witness(where)) is not None:
                return f"{point} {what} ({r})"
        earlier = earlier.union(plain.truth(apply("lt", r.lo, r.hi)).intersect(until))
        seen = seen.union(here)
    missed = points.inside.intersect(points.box).intersect(points.context).subtract(seen)
    if not missed.is_empty() and (point := points.witness(missed.intersect(points.alive()))) is not None:
        return f"{point} is live and not visited"
    return None


def count(classes: TileClasses, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many tiles the whole grid has of each kind for these sizes: "full" and "partial" are visited, "empty" not."""

    def at(e: Expr, where: Mapping[str, int]) -> int:
        return int(evaluate(e, lambda leaf: where[leaf.axis] if isinstance(leaf, Index) else sizes[str(leaf)]))

    lengths = {a.name: -(-at(a.extent, {}) // b) for a, b in (*classes.rows, *((a, 1) for a in classes.batch))}
    used = [n for n in lengths if any(n in axes(e) for r in classes.ranges for e in (r.lo, r.hi))]
    out = {"full": 0, "partial": 0, "empty": 0}
    for place in product(*(range(lengths[n]) for n in used)):
        where = dict(zip(used, place, strict=True))
        for r in classes.ranges:
            out[r.kind] += max(0, at(r.hi, where) - at(r.lo, where))
    for n, length in lengths.items():
        if n not in used:
            out = {kind: k * length for kind, k in out.items()}
    total = -(-at(classes.stream.extent, {}) // classes.block) * prod(lengths.values())
    out["empty"] = total - out["full"] - out["partial"]
    return out
