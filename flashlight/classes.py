"""Tile classes that are found out inside the call: predicates over loaded values.

Where a predicate reads memory (documents, lengths, limits), which tiles are live is not known before.  A small program
of our own kind finds it out: the ends of what is loaded, a pair a tile and a pair a block of rows; from them, for each
block of rows, the first and the last tile that may be live, and the run of tiles in which every point must be.  It is
planned, lowered and launched like any other program, before the kernel that reads its results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from flashlight.expr import (
    FALSE,
    TRUE,
    Apply,
    Const,
    Expr,
    Index,
    Load,
    Size,
    apply,
    axes,
    evaluate,
    kind,
    loads,
    substitute,
    walk,
)
from flashlight.finder import Finder
from flashlight.index import coarse
from flashlight.intervals import Ends, Intervals
from flashlight.polyhedral.blocks import Rows
from flashlight.polyhedral.tiles import Range, TileClasses
from flashlight.program import Axis, Program, Tensor

SAMPLED, SAMPLES = 4096, 16  # the length at which tiles are counted, and the blocks of rows for which they are
WASTE = 1.2  # times the live tiles: what visits more is worth a look inside the call


@dataclass(frozen=True)
class Claim:
    """Words for a condition over integers that must have no solution."""

    text: str
    never: Expr


@dataclass(frozen=True)
class Classes:
    """Ranges whose ends, and tiles if they are listed, are elements of ``bounds``, tensors that ``program`` writes.

    ``claims``: what makes them right, whatever is loaded: over one tile and one block of rows, with a variable for
    every loaded value between its ends.
    """

    ranges: tuple[Range, ...]
    program: Program
    bounds: tuple[Tensor, ...]
    claims: tuple[Claim, ...]


def lie_apart(predicate: Expr, stream: Axis) -> bool:
    """May live tiles lie anywhere?  So they do where a table has an element a block of points of the streamed axis
    (what one says of a block is nothing about its neighbours), and where points are live for one reason or another, of
    which one is what is loaded for them."""
    either = (n for n in walk(predicate) if isinstance(n, Apply) and n.op == "or")
    blocks = (stream.name in coarse(x.index) for x in loads(predicate))
    return any(blocks) or any(stream.name in axes(x) for n in either for x in loads(n))


def is_wasteful(known: TileClasses, may: Expr) -> bool:
    """Do ranges visit WASTE times the tiles that ``may`` be live, or more?  Counted for some blocks of rows, sizes
    taken to be SAMPLED, batch coordinates 0."""

    def at(e: Expr, place: Mapping[str, int]) -> int:
        def leaf(x: Expr) -> int:
            return SAMPLED if isinstance(x, Size) else place.get(x.axis, 0) if isinstance(x, Index) else 0

        return int(evaluate(e, leaf))

    visited = live = 0
    tiles = range(-(-at(known.stream.extent, {}) // known.block))
    blocks = {a.name: -(-at(a.extent, {}) // b) for a, b in known.rows}
    for k in range(SAMPLES):
        place = {n: k * length // SAMPLES for n, length in blocks.items()}
        visited += sum(len(tiles[max(0, at(r.lo, place)) : max(0, at(r.hi, place))]) for r in known.ranges)
        live += sum(at(may, place | {known.stream.name: t}) for t in tiles)
    return visited > WASTE * live


def told(predicate: Expr, stream: Axis, block: int, rows: Rows, batch: tuple[Axis, ...]) -> bool:
    """Can anything be said of a predicate over a whole tile?"""
    ends = Intervals(stream, block, rows, batch).truth(predicate)
    return ends.lo is not FALSE or ends.hi is not TRUE


def classes(
    prefix: str,
    live: Expr,
    program: Program,
    stream: Axis,
    block: int,
    rows: Rows,
    batch: tuple[Axis, ...],
    split: bool = True,
    listed: bool = False,
    known: tuple[Ends, Expr] | None = None,
) -> Classes:
    """The tiles of ``stream`` on which ``live`` may, and must, hold.  ``prefix`` names what the programs write;
    ``split``: find the full tiles among them; ``listed``: as lists, and not as ranges; ``known``: when a part of it
    must and may hold, and the rest."""
    intervals = Intervals(stream, block, rows, batch)
    truth = intervals.truth(live if known is None else known[1])
    if known is not None:
        truth = Ends(apply("and", known[0].lo, truth.lo), apply("and", known[0].hi, truth.hi))
    finder = Finder(prefix, program, stream, block, tuple(r for r in rows if r[0].name in axes(live)))
    places = (*(a for a in batch if a.name in axes(live)), *finder.row_blocks)
    found: dict[Expr, Expr] = {}
    for leaf in intervals.leaves.values():
        found |= finder.find(leaf, tuple(a for a in batch if a.name in axes(leaf.expr)))
    must = truth.lo if split else FALSE
    if must is not FALSE:  # a full tile lies inside the axis
        beyond = apply("mul", apply("add", Index(stream.name), Const(1)), Const(block))
        must = apply("and", must, apply("le", beyond, stream.extent))
    claims = _claims(live, intervals, truth.hi, must)
    may, must = substitute(truth.hi, found), substitute(must, found)
    here = tuple(Index(a.name) for a in places)
    if listed:
        lists = finder.lists(may, must, places)
        ends = tuple(s for _, *pair in lists for s in pair)
        ranges = tuple(
            Range(kind_, Const(0), Load(many.name, here, "int"), Load(which.name, (*here, Index(stream.name)), "int"))
            for kind_, many, which in lists
        )
    else:
        ends = finder.ranges(may, must, places)
        at = [Load(s.name, here, "int") for s in ends]
        kinds = ("partial", "full", "partial")[: len(at) - 1]
        ranges = tuple(Range(k, a, b) for k, a, b in zip(kinds, at, at[1:], strict=False))
    bounds = tuple(s.tensor for s in ends)
    return Classes(ranges, finder.program_of(ends), bounds, claims)


def _claims(live: Expr, intervals: Intervals, may: Expr, must: Expr) -> tuple[Claim, ...]:
    """A tile that may not be live holds no live point; a full one no dead point and none beyond the axis."""
    values: dict[Expr, Expr] = {}
    given: list[Expr] = []
    for leaf in intervals.leaves.values():
        value = Index(f"value {leaf.number}")
        least, most = leaf.placeholders
        given += [apply("le", least, value), apply("le", value, most)]
        values[leaf.expr] = apply("gt", value, Const(0)) if kind(leaf.expr) == "bool" else value
    inside: list[Expr] = []
    for a, block in intervals.blocks.values():
        number, within = Index(a.name), Index(f"{a.name} within")
        values[number] = apply("add", apply("mul", number, Const(block)), within)
        given += [apply("ge", number, Const(0)), apply("ge", within, Const(0)), apply("lt", within, Const(block))]
        given.append(apply("ge", a.extent, Const(1)))
        inside.append(apply("lt", values[number], a.extent))
    point = substitute(live, values)
    sizes = {n for e in (point, *given) for n in walk(e) if isinstance(n, Size)} - set(_placeholders(intervals))
    given += [apply("ge", n, Const(1)) for n in sorted(sizes, key=str)]
    stream, rows = inside[0], inside[1:]
    dead = apply("or", apply("not", point), apply("not", stream))
    claims = [
        Claim("a tile that is not visited holds no live point", _all([*given, *inside, apply("not", may), point]))
    ]
    if must is not FALSE:
        claims.append(Claim("a full tile holds no dead point", _all([*given, *rows, must, dead])))
    return tuple(claims)


def _placeholders(intervals: Intervals) -> list[Expr]:
    return [p for leaf in intervals.leaves.values() for p in leaf.placeholders]


def _all(conditions: Sequence[Expr]) -> Expr:
    return reduce(lambda a, b: apply("and", a, b), conditions)
