"""The statements of programs that find out tiles inside the call: as few ranges, or as lists."""

from __future__ import annotations

from flashlight.expr import FALSE, Const, Expr, Index, Load, apply, axes, kind, loads, substitute
from flashlight.intervals import ONE, STREAM, Leaf
from flashlight.polyhedral.blocks import Rows
from flashlight.polyhedral.linear import as_linear
from flashlight.program import Axis, Origin, Program, Statement

ORIGIN = Origin(("tile classes",))


class Finder:
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

    def lists(self, may: Expr, must: Expr, places: tuple[Axis, ...]) -> tuple[tuple[str, Statement, Statement], ...]:
        """How many tiles are partial and which, in order; and the same of full ones."""
        kinds = {"partial": apply("and", may, apply("not", must)), "full": must}
        return tuple((k, *self.listed(k, here, places)) for k, here in kinds.items() if here is not FALSE)

    def listed(self, kind_: str, here: Expr, places: tuple[Axis, ...]) -> tuple[Statement, Statement]:
        """How many tiles a condition holds for, and which: the k-th is as many as those up to which k or fewer have
        been counted.  Past the last there is one place more, since who reads the list may look ahead."""
        tile, one, none = Index(self.tiles.name), Const(1), Const(0)
        before = Axis(f"{self.tiles.name}_to", self.tiles.extent)
        place = Axis(f"{self.tiles.name}_at", (as_linear(self.tiles.extent) + 1).expr())
        name = f"{self.prefix}_{kind_}"

        def count(what: str, axes_: tuple[Axis, ...], condition: Expr, over: Axis) -> Statement:
            body = apply("select", condition, one, none)
            return Statement(f"{name}_{what}", axes_, body, "int32", "sum", (over,), ORIGIN)

        past = apply("and", apply("le", Index(before.name), tile), substitute(here, {tile: Index(before.name)}))
        upto = count("upto", (*places, self.tiles), past, before)
        self.made.append(upto)
        counted = Load(upto.name, (*(Index(a.name) for a in places), tile), "int")
        earlier = apply("le", counted, Index(place.name))
        return count("many", places, here, self.tiles), count("list", (*places, place), earlier, self.tiles)

    def program_of(self, ends: tuple[Statement, ...]) -> Program:
        statements = (*self.made, *sorted(ends, key=lambda s: not s.monoid))  # the rest read what is reduced
        own = {s.name for s in statements}
        read = dict.fromkeys(x.tensor for s in statements for x in loads(s.body))
        inputs = tuple(self.program.tensor(n) for n in read if n not in own)
        return Program(inputs, statements, tuple(s.name for s in ends), self.program.sizes)
