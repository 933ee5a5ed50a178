"""Tile classes that are found out inside the call: predicates over loaded values.

Where a predicate reads memory (documents, lengths, limits), which tiles are live is not known before.  A small program
of our own kind finds it out: the ends of what is loaded, a pair a tile and a pair a block of rows; from them, for each
block of rows, the first and the last tile that may be live, and the run of tiles in which every point must be.  It is
planned, lowered and launched like any other program, before the kernel that reads its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from flashlight.expr import FALSE, TRUE, Const, Expr, Index, Load, Size, apply, axes, kind, loads, substitute, walk
from flashlight.intervals import ONE, STREAM, Intervals, Leaf
from flashlight.polyhedral.linear import as_linear
from flashlight.polyhedral.tiles import Range
from flashlight.program import Axis, Origin, Program, Statement, Tensor

Rows = tuple[tuple[Axis, int], ...]


@dataclass(frozen=True)
class Claim:
    """Words for a condition over integers that must have no solution."""

    text: str
    never: Expr


@dataclass(frozen=True)
class Classes:
    """Ranges whose ends are elements of ``bounds``, tensors that ``program`` writes.

    ``claims``: what makes them right, whatever is loaded: over one tile and one block of rows, with a variable for
    every loaded value between its ends.
    """

    ranges: tuple[Range, ...]
    program: Program
    bounds: tuple[Tensor, ...]
    claims: tuple[Claim, ...]


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
) -> Classes:
    """The tiles of ``stream`` on which ``live`` may, and must, hold.  ``prefix`` names what the programs write;
    ``split``: find the full tiles among them."""
    intervals = Intervals(stream, block, rows, batch)
    truth = intervals.truth(live)
    finder = _Finder(prefix, program, stream, block, tuple(r for r in rows if r[0].name in axes(live)))
    places = (*(a for a in batch if a.name in axes(live)), *finder.row_blocks)
    found: dict[Expr, Expr] = {}
    for leaf in intervals.leaves.values():
        found |= finder.find(leaf, tuple(a for a in batch if a.name in axes(leaf.expr)))
    must = truth.lo if split else FALSE
    if must is not FALSE:  # a full tile lies inside the axis
        beyond = apply("mul", apply("add", Index(stream.name), Const(1)), Const(block))
        must = apply("and", must, apply("le", beyond, stream.extent))
    ends = finder.ranges(substitute(truth.hi, found), substitute(must, found), places)
    bounds = tuple(s.tensor for s in ends)
    at = [Load(t.name, tuple(Index(a.name) for a in places), "int") for t in bounds]
    kinds = ("partial", "full", "partial") if len(at) == 4 else ("partial",)
    ranges = tuple(Range(k, a, b) for k, a, b in zip(kinds, at, at[1:], strict=False))
    return Classes(ranges, finder.program_of(ends), bounds, _claims(live, intervals, truth.hi, must))


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
