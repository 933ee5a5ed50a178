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
from flashlight.intervals import ONE, STREAM, Ends, Intervals, Leaf
from flashlight.polyhedral.linear import as_linear
from flashlight.polyhedral.tiles import Range, TileClasses
from flashlight.program import Axis, Origin, Program, Statement, Tensor

Rows = tuple[tuple[Axis, int], ...]
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


def coarse(predicate: Expr, stream: Axis) -> bool:
    """Does it read a table that has an element a block of points of the streamed axis?  (What one says of a block is
    nothing about its neighbours: the live ones lie anywhere.)"""
    return any(
        isinstance(n, Apply) and n.op == "floordiv" and stream.name in axes(n)
        for x in loads(predicate)
        for n in walk(x)
    )


def are_few(known: TileClasses, may: Expr) -> bool:
    """Are many of the tiles in these ranges none that may be live?  Counted for some blocks of rows, sizes taken to be
    SAMPLED, batch coordinates 0."""

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
    finder = _Finder(prefix, program, stream, block, tuple(r for r in rows if r[0].name in axes(live)))
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
    ends = finder.lists(may, must, places) if listed else finder.ranges(may, must, places)
    bounds = tuple(s.tensor for s in ends)
    here = tuple(Index(a.name) for a in places)
    at = [Load(t.name, here if len(t.shape) == len(here) else (*here, Index(stream.name)), "int") for t in bounds]
    if listed:
        kinds = ("partial", "full")[: len(at) // 2]
        ranges = tuple(Range(k, Const(0), n, t) for k, n, t in zip(kinds, at[::2], at[1::2], strict=True))
    else:
        kinds = ("partial", "full", "partial")[: len(at) - 1]
        ranges = tuple(Range(k, a, b) for k, a, b in zip(kinds, at, at[1:], strict=False))
    return Classes(ranges, finder.program_of(ends), bounds, claims)


class _Finder:
    """The statements of the programs."""

    def __init__(self, prefix: str, program: Program, stream: Axis, block: int, rows: Rows):
        self.prefix, self.program = prefix, program
        self.stream, self.block, self.rows = stream, block, rows
        self.tiles = Axis(stream.name, as_linear(stream.extent).ceildiv(block).expr())
        self.row_blocks = tuple(Axis(a.name, as_linear(a.extent).ceildiv(b).expr()) for a, b in rows)
        self.made: list[Statement] = []

    def find(self, leaf: Leaf, batch: tuple[Axis, ...]) -> dict[Expr, Expr]:
        """What stands for the placeholders of a leaf."""
        value = apply("select", leaf.expr, Const(1), Const(0)) if kind(leaf.expr) == "bool" else leaf.expr
        if leaf.side == ONE:
            return dict.fromkeys(leaf.placeholders, value)
        tiled = ((self.stream, self.block),) if leaf.side == STREAM else self.rows
        tiled = tuple(t for t in tiled if t[0].name in axes(leaf.expr))
        numbers = (self.tiles,) if leaf.side == STREAM else self.row_blocks
        own = (*batch, *(a for a in numbers if a.name in {t[0].name for t in tiled}))
        within = tuple(Axis(f"{a.name}_in", Const(b)) for a, b in tiled)
        at: dict[Expr, Expr] = {}
        for (a, b), w in zip(tiled, within, strict=True):  # virtual points repeat the last one
            point = apply("add", apply("mul", Index(a.name), Const(b)), Index(w.name))
            at[Index(a.name)] = apply("minimum", point, apply("sub", a.extent, Const(1)))
        out: dict[Expr, Expr] = {}
        for monoid, placeholder in zip(("min", "max"), leaf.placeholders, strict=True):
            name = f"{self.prefix}_{monoid}{leaf.number}"
            made = Statement(name, own, substitute(value, at), self.dtype(value), monoid, within, ORIGIN)
            self.made.append(made)
            out[placeholder] = Load(name, tuple(Index(a.name) for a in own), kind(value))
        return out

    def dtype(self, value: Expr) -> str:
        read = {self.program.tensor(x.tensor).dtype for x in loads(value)}
        if kind(value) == "int":
            return "int64" if "int64" in read else "int32"
        return "float64" if "float64" in {t.dtype for t in self.program.inputs} else "float32"

    def ranges(self, may: Expr, must: Expr, places: tuple[Axis, ...]) -> tuple[Statement, ...]:
        """The first tile that may be live, the run in which all must be, and the end of those that may."""
        tile, count, none = Index(self.tiles.name), self.tiles.extent, Const(0)
        at = tuple(Index(a.name) for a in places)

        def over(name: str, monoid: str, condition: Expr, yes: Expr, no: Expr) -> Statement:
            body = apply("select", condition, yes, no)
            return Statement(f"{self.prefix}_{name}", places, body, "int32", monoid, (self.tiles,), ORIGIN)

        def load(s: Statement) -> Expr:
            return Load(s.name, at, "int")

        after = apply("add", tile, Const(1))
        lo, hi = over("lo", "min", may, tile, count), over("hi", "max", may, after, none)
        if must is FALSE:
            return lo, hi
        first, last = over("first", "min", must, tile, count), over("last", "max", must, after, none)
        many = over("many", "sum", must, Const(1), none)
        self.made += [first, last, many]
        run = apply("eq", apply("sub", load(last), load(first)), load(many))  # one without gaps: else all is partial
        full = [
            Statement(f"{self.prefix}_{n}", places, apply("select", run, load(s), load(hi)), "int32", origin=ORIGIN)
            for n, s in (("full_lo", first), ("full_hi", last))
        ]
        return lo, *full, hi

    def lists(self, may: Expr, must: Expr, places: tuple[Axis, ...]) -> tuple[Statement, ...]:
        """How many tiles are partial and which, in order; and the same of full ones.  The k-th is as many as those at
        which k or fewer have been counted.  Past the last there is one place more, since who reads them may look
        ahead."""
        tile, one, none = Index(self.tiles.name), Const(1), Const(0)
        before = Axis(f"{self.tiles.name}_to", self.tiles.extent)
        place = Axis(f"{self.tiles.name}_at", (as_linear(self.tiles.extent) + 1).expr())
        at = tuple(Index(a.name) for a in places)
        out: list[Statement] = []
        for kind_, here in (("partial", apply("and", may, apply("not", must))), ("full", must)):
            if here is FALSE:
                continue

            def name(what: str, kind_: str = kind_) -> str:
                return f"{self.prefix}_{kind_}_{what}"

            past = apply("and", apply("le", Index(before.name), tile), substitute(here, {tile: Index(before.name)}))
            counted = apply("select", past, one, none)
            self.made.append(Statement(name("upto"), (*places, self.tiles), counted, "int32", "sum", (before,), ORIGIN))
            all_ = apply("select", here, one, none)
            many = Statement(name("many"), places, all_, "int32", "sum", (self.tiles,), ORIGIN)
            upto = Load(name("upto"), (*at, tile), "int")
            earlier = apply("select", apply("le", upto, Index(place.name)), one, none)
            listed = Statement(name("list"), (*places, place), earlier, "int32", "sum", (self.tiles,), ORIGIN)
            out += [many, listed]
        return tuple(out)

    def program_of(self, ends: tuple[Statement, ...]) -> Program:
        statements = (*self.made, *sorted(ends, key=lambda s: not s.monoid))  # the rest read what is reduced
        own = {s.name for s in statements}
        read = dict.fromkeys(x.tensor for s in statements for x in loads(s.body))
        inputs = tuple(self.program.tensor(n) for n in read if n not in own)
        return Program(inputs, statements, tuple(s.name for s in ends), self.program.sizes)


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


ORIGIN = Origin(("tile classes",))
