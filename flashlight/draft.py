"""One result with everything below it: what streams, what is carried, what is folded, what is written before.

Reductions over the streamed axis are states; reductions over short axes are folded where they are used; what runs along
the streamed axis and is read at its points is a scan; a reduction over any other unbounded axis is cut.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod

from flashlight.algebra import Cascade, Proved
from flashlight.algebra.derive import decide
from flashlight.blocks import factors_of
from flashlight.errors import NeedsLiteral, Unplannable
from flashlight.expr import (
    FALSE,
    PLACED,
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    apply,
    axes,
    loads,
    refs,
    rewrite,
    substitute,
    walk,
)
from flashlight.growth import is_fat, is_thin, unbounded
from flashlight.index import simplify, sub
from flashlight.nests import State, free_axes
from flashlight.prefixes import choices, direction, has_order, ordered_lengths
from flashlight.program import Axis, Program, Statement
from flashlight.shape import WHOLE_UP_TO, Shape, symbols
from flashlight.strips import STRIP

RECOMPUTE_UP_TO = 32  # the longest product that every block of rows computes again rather than read
PROLOGUE_UP_TO = 128  # the longest product that is computed with a block of rows, once for each


class Draft:
    """One root with everything below it: the streamed axis chosen, states named, folds inlined, cuts found.

    ``short``: the streamed axis is, so that blocks have to be filled along others.
    """

    def __init__(self, program: Program, root: Statement, short: bool = False):
        self.program, self.root, self.short = program, root, short
        self.single: dict[Expr, Expr] = {Index(a.name): Const(0) for a in root.axes if a.extent is Const(1)}
        self.table = {s.name: s for s in program.statements}
        body: Expr = Load(root.name, tuple(Index(a.name) for a in root.axes)) if root.monoid else root.body
        self.long = True  # may contractions be folded that are longer than a tile?
        self._draft(body)
        if self.strips and len(self.shape.blocked) != 1:  # it would be computed for each block of another axis
            self.long = False
            self._draft(body)

    def _draft(self, body: Expr) -> None:
        self.scans = True
        self.forced: dict[str, str] = {}  # what is cut wherever it is read
        self.along = self._runs_along(body)
        if not self.along:
            self._reduce(body)
        index: tuple[Expr, ...] = tuple(Index(a.name) for a in self.root.axes)
        if self.along and self.stream and any(self.running.values()):
            index = tuple(self._end() if i is Index(self.stream.name) else i for i in index)
        self.shape = Shape(self.program, self.root, self.stream, self.states, self.body, index, self.short)

    def _reduce(self, body: Expr) -> None:
        """Streams what is reduced."""
        self._inline(body, self._choose(body))
        if again := self._added_up_again():
            self.forced |= again
            self._inline(body, self._choose(body))
        if self.running and not self._proved():  # what runs along the axis is read elsewhere than in one pass with it
            self.scans = False
            self._inline(body, self.stream)
        if self.stream and self.states and not self.root.monoid and (twin := self._twin(self.stream)):
            self._inline(body, twin)
        if not self.states:  # what would have streamed is cut: all that is left is parallel
            self._inline(body, None)

    def _runs_along(self, body: Expr) -> bool:
        """Streams an axis of the root's own that all it reduces runs along: the root is written as that runs."""
        root = self.root
        lengths = ordered_lengths(root, self.table)
        for a in root.axes:
            if unbounded(a) and a.extent in lengths:
                self.along = True
                try:
                    self._inline(body, a)
                    found = self._written_along()
                except (Unplannable, NeedsLiteral):
                    found = False
                if found:
                    return True
                self.forced = {}
        return False

    def _written_along(self) -> bool:
        """Is all that the root reads of the streamed axis a running sum, or known before that begins?"""
        scans = tuple(s for s in self.states.values() if s.monoid == "scan")
        first = [s for s in self.states.values() if s.monoid != "scan"]
        if self.stream is None or not scans or self.root.name in self.cuts or refs(self.body):
            return False
        if len(set(self.running.values())) > 1 or (first and len(scans) > 1):
            return False  # in one sweep all runs one way, and begins together
        if any(x.tensor in self.running for s in first for x in loads(s.body)):
            return False
        varies = frozenset[str]().union(*(free_axes(s.body, self.states) for s in scans), (self.stream.name,))
        if not self.root.monoid and any(a.name not in varies for a in self.root.axes if a.extent is not Const(1)):
            return False  # it would run again at each point of an axis that only its reader has
        stages = tuple(s.stage for s in scans)
        return isinstance(decide(Cascade(self.stream.name, self.stream.extent, stages, (self.body,))), Proved)

    def _added_up_again(self) -> dict[str, str]:
        """Running sums that each point of the root would add up anew though a sweep can write them, and why they are
        cut; none where something else takes as long."""
        if self.stream is None:
            return {}
        table = {n: self.table[s.statement] for n, s in self.states.items()}
        length = self.stream.extent
        runs = {n: t for n, t in table.items() if t is not self.root and length in ordered_lengths(t, self.table)}
        own = {a.name for a in self.root.axes if unbounded(a) and a.extent is length}
        along = {n: free_axes(s.body, self.states) & own for n, s in self.states.items()}
        if not own or any(along[n] for n in self.states.keys() - runs.keys()):
            return {}
        why = f"it runs along {self.stream}, and each point of {', '.join(sorted(own))} would add it up again"
        return {t.name: why for n, t in runs.items() if along[n] and Draft(self.program, t).along}

    def _end(self) -> Expr:
        """A point of the streamed axis, counted from its end."""
        assert self.stream is not None
        return sub(sub(self.stream.extent, Const(1)), Index(self.stream.name))

    def _inline(self, body: Expr, stream: Axis | None) -> None:
        self.stream = stream
        self.states: dict[str, State] = {}
        self.cuts: dict[str, str] = {}
        self._named: dict[tuple[str, tuple[Expr, ...]], str] = {}
        self._memo: dict[Expr, Expr] = {}
        self.around: frozenset[str] = frozenset()  # the axes of what is contracted around what is expanded
        self.strips = False  # is one folded that is longer than a tile?
        self.running: dict[str, bool] = {}  # scans, and whether they run from the end
        self._folded: set[str] = set()
        self.body = self.expand(substitute(body, self.single))
        computed = self._folded | {s.statement for s in self.states.values()}
        written = computed & self.cuts.keys() - self.forced.keys()
        again = {n: self.cuts[n] for n in written}  # what is written anyway need not be computed again
        again |= {s: why for n, why in self.cuts.items() if (s := self._finished(n)) and s not in self.forced}
        if again:
            self.forced |= again
            self._inline(body, stream)
            return
        if any(self.running.values()):
            self._mirror()

    def _mirror(self) -> None:
        """Streams the axis from its end, where something runs from there."""
        if self.stream is None:
            return
        here: Expr = Index(self.stream.name)
        there = self._end()
        again: dict[Expr, Expr] = {Load(n, (there,)): Load(n, (here,)) for n in self.running}
        table: dict[Expr, Expr] = {here: there}

        def turned(e: Expr) -> Expr:
            return substitute(simplify(substitute(e, table), lambda name: None), again)

        self.states = {n: replace(s, body=turned(s.body)) for n, s in self.states.items()}
        self.body = turned(self.body)

    def _proved(self) -> bool:
        """Is everything that runs, and what reads it, one pass?"""
        if self.stream is None or len(set(self.running.values())) > 1:
            return False
        stages = tuple(s.stage for s in self.states.values())
        return isinstance(decide(Cascade(self.stream.name, self.stream.extent, stages, (self.body,))), Proved)

    def _twin(self, stream: Axis) -> Axis | None:
        """An axis of the root as long as the streamed one that no state depends on: the root is written along it while
        the same axis streams by once more."""
        held = {stream.name}.union(*(free_axes(s.body, self.states) for s in self.states.values()))
        own = [a for a in self.root.axes if a.extent is stream.extent and a.name not in held]
        return own[-1] if own and not any(a.name == stream.name for a in self.root.axes) else None

    # ---- which axis is streamed --------------------------------------------------------------------------------
    def _choose(self, body: Expr) -> Axis | None:
        """The first unbounded axis that is reduced on the way from the root to the inputs, under a name of its own."""
        queue, seen = [body], set()
        while queue:
            for load in loads(queue.pop(0)):
                s = self._statement(load.tensor)
                if s is None or s.name in seen:
                    continue
                seen.add(s.name)
                for a in s.reduced:
                    if unbounded(a):
                        own = {x.name: x for x in self.root.axes}.get(a.name)
                        return a if own is None or own.extent is a.extent else replace(a, name=f"{a.name}_s")
                queue.append(s.body)
        return None

    def _statement(self, name: str) -> Statement | None:
        return self.table.get(name)

    # ---- inlining ----------------------------------------------------------------------------------------------
    def expand(self, e: Expr) -> Expr:
        if e not in self._memo:
            self._memo[e] = rewrite(e, self._load)
        return self._memo[e]

    def _load(self, e: Expr) -> Expr | None:
        if not isinstance(e, Load) or (s := self._statement(e.tensor)) is None:
            return None
        index = tuple(map(self.expand, e.index))
        if s.name in self.forced:
            return self._cut(s, index, self.forced[s.name])
        at: dict[Expr, Expr] = {Index(a.name): i for a, i in zip(s.axes, index, strict=True)}
        if s.monoid is None:
            return self.expand(substitute(s.body, at))
        streamed = [a for a in s.reduced if self.stream and a.extent is self.stream.extent and unbounded(a)]
        if self.stream and streamed:
            over, at_axes = self.stream.name, frozenset().union(*map(axes, index))
            if over in at_axes:
                if (found := self._scan(s, at, streamed[0])) is not None:
                    return found
                return self._cut(s, index, f"it is reduced over {over} and read again at points of {over}")
            once = frozenset({over}) - self.around  # is it contracted once, or at each point of the streamed axis?
            shared = {a.name for a in self.root.axes if unbounded(a)} - at_axes - once
            if shared and (inside := sorted(at_axes - {a.name for a in self.root.axes})):
                why = (
                    f"it is reduced over {over}, the same for all of {', '.join(sorted(shared))}, and contracted again"
                )
                return self._cut(s, index, f"{why}, over {', '.join(inside)}")
            if (merged := self._merged(index)) is not None:
                why = f"it is reduced over {over}, and {merged} numbers what it is for and its elements at once"
                return self._cut(s, index, why)
            return self._state(s, index, {**at, Index(streamed[0].name): Index(self.stream.name)}, streamed[0])
        too_long = any(not isinstance(a.extent, Const) or a.extent.value > WHOLE_UP_TO for a in s.reduced)
        if too_long and not self._in_strips(s):
            if (sizes := symbols(s.reduced)) and is_fat(self.program, s):
                made = (x for x in self.program.statements if x.name in self.program.outputs)
                lengths = symbols(a for x in made for a in x.axes)
                if self.stream and sizes <= lengths and not symbols((self.stream,)) <= lengths:
                    sizes = symbols((self.stream,))  # what no result is as long as: a width
                raise NeedsLiteral(sizes, f"{s.name} is reduced over a length at every point of a plane ({s.origin})")
            over = ", ".join(str(a) for a in s.reduced)
            return self._cut(s, index, f"it is reduced over {over}, while this nest streams {self.stream}")
        if self.stream and (why := self._better_written(s, index)):
            return self._cut(s, index, why)
        if not self.stream and _two_sided(s) and (merged := self._merged(index)) is not None:
            return self._cut(s, index, f"{merged} numbers what it is for and its elements at once")
        self._folded.add(s.name)
        return self._fold(s, s.reduced, at)

    def _in_strips(self, s: Statement) -> bool:
        """May a contraction with too many results to be written be folded however long it is, a strip at a time?"""
        length, own = s.reduced[0].extent, {a.name for a in s.axes}
        whole = len(s.reduced) == 1 and isinstance(length, Const) and length.value % STRIP == 0
        if not (self.long and self.stream and s.monoid == "sum" and whole and is_fat(self.program, s)):
            return False
        two_sides = all(not own <= axes(f) for f in factors_of(s.body))
        self.strips |= two_sides
        return two_sides

    def _scan(self, s: Statement, at: dict[Expr, Expr], reduced: Axis) -> Expr | None:
        """A sum of what comes no later along the streamed axis (or no earlier), read at its points: a running sum.

        Only where the root is written as it runs, or all its values would be too much to write: others are written
        once.
        """
        if not (self.scans and self.stream and s.monoid == "sum" and len(s.reduced) == 1):
            return None
        if not self.along and (not is_fat(self.program, s) or any(a.name == self.stream.name for a in self.root.axes)):
            return None
        here, r = Index(self.stream.name), Index(f"{reduced.name}!")
        body = substitute(s.body, {**at, Index(reduced.name): r})
        for mirrored in (False, True):
            e = substitute(body, {r: sub(sub(reduced.extent, Const(1)), r)}) if mirrored else body
            for parts, x, none in choices(simplify(e, lambda name: None)):
                along = [c for c in parts if here.axis in axes(c)]
                for c in (c for c in parts if c not in along):
                    x = apply("select", c, x, none)
                if none.value != 0 or len(along) != 1 or here.axis in axes(x):
                    continue
                if step := direction(along[0], r, here):
                    return self._run(s, substitute(x, {r: here}), here, step < 0)
        return None

    def _runs(self, s: Statement) -> bool:
        """Is it a running reduction with too many values to be computed one by one?"""
        match s.body:
            case Apply("select", (_, _, Const())) if s.monoid and is_fat(self.program, s):
                return has_order(s, choices(s.body)[:1])
        return False

    def _run(self, s: Statement, body: Expr, here: Index, backward: bool) -> Expr:
        name = f"{s.name}_so_far"
        self.running[name] = backward
        self.states[name] = State(name, s.name, "scan", self.expand(body), s.dtype, s.origin)
        return Load(name, (here,))

    def _better_written(self, s: Statement, index: tuple[Expr, ...]) -> str:
        """Why a long product is better written than computed where it is read: it is of key-side values only, the same
        for many rows; or its factors would fill the tiles of the rows it is computed with."""
        at_axes = frozenset().union(*map(axes, index))
        rows = {a.name for a in self.root.axes if unbounded(a)}
        stream = self.stream.name if self.stream else ""
        length = prod(int(a.extent.value) for a in s.reduced if isinstance(a.extent, Const))
        if not _two_sided(s) or not is_thin(self.program, s):
            return ""
        if length > RECOMPUTE_UP_TO and stream in at_axes and not rows <= at_axes | {stream}:
            return "each block of rows would compute it again"
        if length > PROLOGUE_UP_TO and stream not in at_axes:
            return f"it is a product over {length}, more than a block of rows has room for"
        return ""

    def _merged(self, index: tuple[Expr, ...]) -> str | None:
        """An axis of a contraction around that occurs in a quotient or a remainder: two axes in one, heads and features
        say.  What is read for its elements would be computed once for each."""
        known = {a.name for a in (*self.root.axes, *([self.stream] if self.stream else []))}
        for e in index:
            for n in walk(e):
                match n:
                    case Apply("floordiv" | "mod", (of, _)) if left := axes(of) - known:
                        return min(left)
        return None

    def _finished(self, name: str) -> str | None:
        """The only statement that reads what is cut, where it takes it point by point: a bias added, a division.  Then
        that is written."""
        readers = [s for s in self.program.statements if any(x.tensor == name for x in loads(s.body))]
        if len(readers) != 1 or name in self.program.outputs:
            return None
        s, own = readers[0], [Index(a.name) for a in readers[0].axes]
        at = [x.index for x in loads(s.body) if x.tensor == name]
        same = all(len(i) == len(own) and set(i) == set(own) for i in at)
        return s.name if s.monoid is None and s is not self.root and same else None

    def _cut(self, s: Statement, index: tuple[Expr, ...], why: str) -> Expr:
        if self._runs(s):
            raise Unplannable(s.origin.nodes, f"it runs along a length at every point of a plane, and {why}")
        self.cuts[s.name] = why
        return Load(s.name, index)

    def _state(self, s: Statement, index: tuple[Expr, ...], at: dict[Expr, Expr], streamed: Axis) -> Expr:
        key = (s.name, index)
        if key not in self._named:
            inner = tuple(a for a in s.reduced if a is not streamed)
            body = self._fold(s, inner, at) if inner else self.expand(substitute(s.body, at))
            name = s.name if s.name not in self.states else f"{s.name}_{len(self.states)}"
            self._named[key] = name
            self.states[name] = State(name, s.name, s.monoid or "", body, s.dtype, s.origin, s.place)
        state = Ref(self._named[key])
        return apply("int", state) if s.monoid in PLACED else state  # it may be an index of what is read next

    def _fold(self, s: Statement, reduced: tuple[Axis, ...], at: dict[Expr, Expr]) -> Expr:
        """A bounded reduction inside an expression.

        Its axis gets a name that is free of what surrounds it; reductions nested in one another may share a name, as
        scopes do, and then share the blocks that carry it.
        """
        outer = frozenset().union(*map(axes, at.values()))
        points = {a.name: a.extent for a in self.root.axes if not unbounded(a)}
        named: list[tuple[Axis, str]] = []
        for a in reduced:
            name, k = a.name if points.get(a.name) is a.extent else f"{a.name}_r", 2  # then it is that very block
            while name in outer or any(name == n for _, n in named):
                name, k = f"{a.name}_r{k}", k + 1
            named.append((a, name))
        fresh: dict[Expr, Expr] = {Index(a.name): Index(name) for a, name in named}
        inner = substitute(s.body, {**at, **fresh})
        before, self.around = self.around, axes(inner)
        body = self.expand(inner)
        self.around = before
        for a, name in reversed(named):
            extent = a.extent.value if isinstance(a.extent, Const) else 0
            if s.monoid in PLACED or s.place:
                return _placed(s, name, int(extent), body)
            body = Fold(s.monoid or "sum", name, int(extent), body, s.dtype)
        return body

    @property
    def key(self) -> tuple[object, ...]:
        """What drafts have in common that are one nest; what is contracted in strips has blocks of its own."""
        grid = tuple(a.name for a in self.shape.grid)
        return (grid, self.shape.blocked, self.stream.name if self.stream else None, self.strips)


def _placed(s: Statement, axis: str, extent: int, body: Expr) -> Expr:
    """What comes at a place of a short axis, by folds: the largest of those that have no place yet, and the first index
    at which it is."""
    end, last = ("max", Const(-math.inf)) if s.monoid in ("max", "argmax") else ("min", Const(math.inf))
    at: Expr = Index(axis)
    taken: Expr = FALSE
    value, index = body, at
    for _ in range(s.place + 1):
        value = Fold(end, axis, extent, apply("select", taken, last, body), s.dtype)
        here = apply("and", apply("not", taken), apply("or", apply("eq", body, value), apply("isnan", body)))
        index = Fold("min", axis, extent, apply("select", here, at, Const(extent)), "int64")
        taken = apply("or", taken, apply("eq", at, index))
    return index if s.monoid in PLACED else value


def _two_sided(s: Statement) -> bool:
    """Is what is reduced made of values that each lack an axis of the result, as a product of matrices is?"""
    own = {a.name for a in s.axes}
    return not any(own <= axes(x) for x in loads(s.body))
