"""One result with everything below it: what streams, what is carried, what is folded, what is written before.

Reductions over the streamed axis are states; reductions over short axes are folded where they are used; what runs along
the streamed axis and is read at its points is a scan; a reduction over any other unbounded axis is cut.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import prod

from flashlight.algebra import Cascade, Proved
from flashlight.algebra.derive import decide
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
    Size,
    apply,
    axes,
    children,
    conjuncts,
    loads,
    rewrite,
    substitute,
    walk,
)
from flashlight.finish import is_thin
from flashlight.index import divmod_, polynomial, simplify, sub
from flashlight.nests import State
from flashlight.normal import unbounded
from flashlight.program import Axis, Program, Statement

RECOMPUTE_UP_TO = 32  # the longest product that every block of rows computes again rather than read
PROLOGUE_UP_TO = 128  # the longest product that is computed with a block of rows, once for each
FOLD_UP_TO = 576  # the longest literal axis that is reduced inside a tile (latent attention's keys)


def is_fat(program: Program, s: Statement) -> bool:
    """Does a tensor have more unbounded dimensions than any that comes in or goes out (one of all scores, say)?"""
    own = Counter(_of_blocks(a.extent) for a in s.axes if unbounded(a))
    known = [t.shape for t in program.inputs] + [program[n].tensor.shape for n in program.outputs]
    return not any(own <= Counter(map(_of_blocks, shape)) for shape in known)


def _of_blocks(extent: Expr) -> Expr:
    """The length whose blocks an axis numbers: there are no more of them."""
    match extent:
        case Apply("floordiv", (Size() as n, Const())):
            return n
        case Apply("floordiv", (Apply("add", (Size() as n, Const())), Const())):
            return n
    return extent


def _symbols(over: Iterable[Axis]) -> frozenset[str]:
    return frozenset(n.name for a in over for n in walk(a.extent) if isinstance(n, Size))


class Draft:
    """One root with everything below it: the streamed axis chosen, states named, folds inlined, cuts found.

    ``short``: the streamed axis is, so that blocks have to be filled along others.
    """

    def __init__(self, program: Program, root: Statement, short: bool = False):
        self.program, self.root, self.short = program, root, short
        self.single: dict[Expr, Expr] = {Index(a.name): Const(0) for a in root.axes if a.extent is Const(1)}
        self.table = {s.name: s for s in program.statements}
        self.scans = True
        self.forced: dict[str, str] = {}  # what is cut wherever it is read
        body: Expr = Load(root.name, tuple(Index(a.name) for a in root.axes)) if root.monoid else root.body
        self._inline(body, self._choose(body))
        if self.running and not self._proved():  # what runs along the axis is read elsewhere than in one pass with it
            self.scans = False
            self._inline(body, self.stream)
        if self.stream and self.states and not root.monoid and (twin := self._twin(self.stream)):
            self._inline(body, twin)
        if not self.states:  # what would have streamed is cut: all that is left is parallel
            self._inline(body, None)
        self.axes = root.axes
        self.index: tuple[Expr, ...] = tuple(Index(a.name) for a in root.axes)
        if self.states:
            self._split_views()
            self._split_groups()
        self._shape()

    def _inline(self, body: Expr, stream: Axis | None) -> None:
        self.stream = stream
        self.states: dict[str, State] = {}
        self.cuts: dict[str, str] = {}
        self._named: dict[tuple[str, tuple[Expr, ...]], str] = {}
        self._memo: dict[Expr, Expr] = {}
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
        there = sub(sub(self.stream.extent, Const(1)), here)
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
            shared = {a.name for a in self.root.axes if unbounded(a)} - at_axes - {over}
            if shared and (inside := sorted(at_axes - {a.name for a in self.root.axes})):
                why = (
                    f"it is reduced over {over}, the same for all of {', '.join(sorted(shared))}, and contracted again"
                )
                return self._cut(s, index, f"{why}, over {', '.join(inside)}")
            if (merged := _merged(index, frozenset(a.name for a in self.root.axes) | {over})) is not None:
                why = f"it is reduced over {over}, and {merged} numbers what it is for and its elements at once"
                return self._cut(s, index, why)
            return self._state(s, index, {**at, Index(streamed[0].name): Index(self.stream.name)}, streamed[0])
        if any(not isinstance(a.extent, Const) or a.extent.value > FOLD_UP_TO for a in s.reduced):
            if (sizes := _symbols(s.reduced)) and is_fat(self.program, s):
                made = (x for x in self.program.statements if x.name in self.program.outputs)
                lengths = _symbols(a for x in made for a in x.axes)
                if self.stream and sizes <= lengths and not _symbols((self.stream,)) <= lengths:
                    sizes = _symbols((self.stream,))  # what no result is as long as: a width
                raise NeedsLiteral(sizes, f"{s.name} is reduced over a length at every point of a plane ({s.origin})")
            over = ", ".join(str(a) for a in s.reduced)
            return self._cut(s, index, f"it is reduced over {over}, while this nest streams {self.stream}")
        if self.stream and (why := self._better_written(s, index)):
            return self._cut(s, index, why)
        self._folded.add(s.name)
        return self._fold(s, s.reduced, at)

    def _scan(self, s: Statement, at: dict[Expr, Expr], reduced: Axis) -> Expr | None:
        """A sum of what comes no later along the streamed axis (or no earlier), read at its points: a running sum.

        Only where all its values would be too much to write: others are written once.
        """
        if not (self.scans and self.stream and s.monoid == "sum" and len(s.reduced) == 1 and is_fat(self.program, s)):
            return None
        if any(a.name == self.stream.name for a in self.root.axes):
            return None  # what is written along the streamed axis is written by a sweep of its own
        here, r = Index(self.stream.name), Index(f"{reduced.name}!")
        body = substitute(s.body, {**at, Index(reduced.name): r})
        for mirrored in (False, True):
            e = substitute(body, {r: sub(sub(reduced.extent, Const(1)), r)}) if mirrored else body
            match simplify(e, lambda name: None):
                case Apply("select", (condition, x, Const(0.0) as none)):
                    parts = conjuncts(condition)
                    along = [c for c in parts if here.axis in axes(c)]
                    for c in (c for c in parts if c not in along):
                        x = apply("select", c, x, none)
                    if len(along) == 1 and here.axis not in axes(x) and (step := _order(along[0], r, here)):
                        return self._run(s, substitute(x, {r: here}), here, step < 0)
        return None

    def _runs(self, s: Statement) -> bool:
        """Is it a running reduction with too many values to be computed one by one?"""
        match s.body:
            case Apply("select", (condition, _, Const())) if s.monoid and is_fat(self.program, s):
                own, along = {a.name for a in s.axes}, {a.name for a in s.reduced if unbounded(a)}
                return any(axes(c) & own and axes(c) & along for c in conjuncts(condition) if not loads(c))
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
        own = {a.name for a in s.axes}
        length = prod(int(a.extent.value) for a in s.reduced if isinstance(a.extent, Const))
        if any(own <= axes(x) for x in loads(s.body)) or not is_thin(self.program, s):
            return ""
        if length > RECOMPUTE_UP_TO and stream in at_axes and not rows <= at_axes | {stream}:
            return "each block of rows would compute it again"
        if length > PROLOGUE_UP_TO and stream not in at_axes:
            return f"it is a product over {length}, more than a block of rows has room for"
        return ""

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
        body = self.expand(substitute(s.body, {**at, **fresh}))
        for a, name in reversed(named):
            extent = a.extent.value if isinstance(a.extent, Const) else 0
            if s.monoid in PLACED or s.place:
                return _placed(s, name, int(extent), body)
            body = Fold(s.monoid or "sum", name, int(extent), body, s.dtype)
        return body

    # ---- which axes are grid, rows, points ---------------------------------------------------------------------
    def _split_views(self) -> None:
        """An axis that the states only know as ``u // c`` and ``u % c`` (heads and features in one) is made two."""
        known: list[Axis] = []
        while (a := next((a for a in self.axes if a not in known and a.extent is not Const(1)), None)) is not None:
            known.append(a)
            found = [_divisors(s.body, a.name) for s in self.states.values()]
            divisors = frozenset().union(*(f for f in found if f is not None))
            if None in found or not divisors:
                continue
            size = min(divisors, key=lambda d: (not isinstance(d, Const), d.value if isinstance(d, Const) else str(d)))
            groups, rest = divmod_(a.extent, size, lambda name: None)
            if rest is Const(0):
                self._split(a, groups, size)
                known = []

    def _split_groups(self) -> None:
        """Where no block would be reused, an axis that some loads follow in groups is made two (heads that share keys:
        the number of the group, and the place in it, along which those loads do not vary)."""
        bodies = [*(s.body for s in self.states.values()), self.body]
        read = [x for b in bodies for x in loads(b) if x.index]
        own = [a for a in self.axes if a.extent is not Const(1)]
        if any(unbounded(a) and any(a.name not in axes(x) for x in read) for a in own):
            return
        for a in own:
            sizes = {n for x in read if (n := _group(x, a.name))}
            if sizes and isinstance(a.extent, Const) and a.extent.value % min(sizes) == 0:
                self._split(a, Const(int(a.extent.value) // min(sizes)), Const(min(sizes)))
                return

    def _split(self, a: Axis, groups: Expr, size: Expr) -> None:
        outer, inner = Axis(a.name, groups), Axis(f"{a.name}_in", size)
        place = apply("add", apply("mul", Index(a.name), size), Index(inner.name))
        extents = {x.name: x.extent for x in (*self.axes, outer, inner)}

        def move(e: Expr) -> Expr:
            return simplify(substitute(e, {Index(a.name): place}), extents.get)

        self.states = {n: replace(s, body=move(s.body)) for n, s in self.states.items()}
        self.body, self.index = move(self.body), tuple(map(move, self.index))
        k = self.axes.index(a)
        self.axes = (*self.axes[:k], outer, inner, *self.axes[k + 1 :])

    def _shape(self) -> None:
        root, stream = self.root, self.stream.name if self.stream else None
        parallel = [a for a in self.axes if a.name != stream and a.extent is not Const(1)]
        bodies = [s.body for s in self.states.values()] or [self.body]
        varies = [free_axes(s.body, self.states) - {stream} for s in self.states.values()]
        shared = varies or [axes(f) - {stream} for b in (*bodies, self.body) for f in walk(b) if isinstance(f, Fold)]
        folded = {f.axis for b in (*bodies, self.body) for f in walk(b) if isinstance(f, Fold)}
        points: list[Axis] = []
        grid: list[Axis] = []
        for a in parallel:
            if _symbols((a,)) and self._wide(a, varies):
                raise NeedsLiteral(_symbols((a,)), f"{root.name} is as wide as {a.extent} where its statistics are not")
            whole = isinstance(a.extent, Const) and a.extent.value <= FOLD_UP_TO
            apart = a.name in folded or any(a.name not in carried for carried in shared)
            (points if whole and apart else grid).append(a)
        if not shared and grid and isinstance(grid[-1].extent, Const) and grid[-1].extent.value <= FOLD_UP_TO:
            points.append(grid.pop())  # element-wise: the innermost axis whole, so that rows are contiguous
        if self.short and not points and (inner := self._innermost(grid, bodies)):
            points.append(inner)
            grid.remove(inner)
        self.grid, self.points = tuple(grid), tuple(points)
        self.blocked = self._blocks(bodies)

    def _innermost(self, grid: list[Axis], bodies: list[Expr]) -> Axis | None:
        """The axis along which all that is streamed is contiguous, if it can be taken whole."""
        stream = self.stream.name if self.stream else ""
        last = {x.index[-1] for b in bodies for x in loads(b) if stream in axes(x)}
        found = next((a for a in grid if last == {Index(a.name)}), None)
        whole = found is not None and isinstance(found.extent, Const) and found.extent.value <= FOLD_UP_TO
        return found if whole else None

    def _wide(self, a: Axis, varies: list[frozenset[str]]) -> bool:
        """Is the axis one of values, not of their statistics?  Those would be computed for each block of it, unless
        they follow nothing but short axes (columns of the values, say)."""
        lacking = [v for v in varies if a.name not in v]
        if not lacking or len(lacking) == len(varies):
            return False
        others = frozenset().union(*lacking) - frozenset.intersection(*map(frozenset, varies))
        return not others or any(unbounded(x) for x in self.axes if x.name in others)

    def _blocks(self, bodies: list[Expr]) -> tuple[str, ...]:
        """The row axis is one that some load does not carry (its block is reused along it), a length that is summed
        over somewhere rather than a number of sequences; a second axis is tiled if no load carries it together with the
        rows (the other side of a matrix product)."""
        names = [a.name for a in self.grid]
        if not names:
            return ()
        touched = [axes(x) for b in (*bodies, self.body) for x in loads(b) if x.index]
        reused = [a for a in self.grid if any(a.name not in t for t in touched)]

        lengths = {a.extent for s in self.program.statements for a in s.reduced}

        def weight(a: Axis) -> tuple[bool, bool, int, int]:
            return (unbounded(a), a.extent in lengths, sum(a.name not in t for t in touched), names.index(a.name))

        if not reused and self.states and any(isinstance(n, Fold) for b in bodies for n in walk(b)):
            return ()  # products of one row each: nothing would be shared in a block
        row = max(reused, key=weight).name if reused else names[-1]
        others = [a.name for a in reused if a.name != row and not any({a.name, row} <= t for t in touched)]
        if self.stream:  # scores of two tiled axes would be blocks of three dimensions
            made = [axes(n) for b in bodies for n in walk(b) if isinstance(n, Fold)]
            others = [n for n in others if not any({n, row, self.stream.name} <= t for t in made)]
        across = [n for n in others if any(n in t for t in touched)]
        return tuple(n for n in names if n == row or (across and n == across[-1]))

    @property
    def key(self) -> tuple[object, ...]:
        return (tuple(a.name for a in self.grid), self.blocked, self.stream.name if self.stream else None)


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


def _merged(index: tuple[Expr, ...], known: frozenset[str]) -> str | None:
    """An axis of a contraction around that occurs in a quotient or a remainder: two axes in one, heads and features
    say.  What is read for its elements would be computed once for each."""
    for e in index:
        for n in walk(e):
            match n:
                case Apply("floordiv" | "mod", (of, _)) if left := axes(of) - known:
                    return min(left)
    return None


def _order(c: Expr, r: Index, here: Index) -> int:
    """1 if the condition is ``r <= here``, -1 if it is ``r >= here``, 0 if it is another."""
    match c:
        case Apply("le", (low, high)):
            p = polynomial(sub(low, high))
            if set(p) == {(here,), (r,)} and p[(r,)] == -p[(here,)] and abs(p[(r,)]) == 1:
                return p[(r,)]
    return 0


def _divisors(e: Expr, axis: str) -> frozenset[Expr] | None:
    """What an axis is divided by in an expression; None if the axis itself occurs."""
    divisors: set[Expr] = set()

    def rule(n: Expr) -> Expr | None:
        match n:
            case Apply("floordiv" | "mod", (Index(name), by)) if name == axis and not axes(by) and by is not Const(1):
                divisors.add(by)
                return Const(0)
        return None

    return None if axis in axes(rewrite(e, rule)) else frozenset(divisors)


def _group(x: Load, axis: str) -> int:
    """The length of the groups in which a load follows an axis; 0 if it follows it point by point, or not at all."""
    divisors: set[int] = set()

    def rule(e: Expr) -> Expr | None:
        match e:
            case Apply("floordiv", (Index(name), Const(int(by)))) if name == axis and by > 1:
                divisors.add(by)
                return Const(0)
        return None

    rest = rewrite(x, rule)
    return min(divisors) if divisors and axis not in axes(rest) else 0


def free_axes(e: Expr, states: dict[str, State], memo: dict[Expr, frozenset[str]] | None = None) -> frozenset[str]:
    """The axes an expression varies along, through the states it reads."""
    memo = {} if memo is None else memo
    if e not in memo:
        match e:
            case Ref(name) if name in states:
                memo[e] = free_axes(states[name].body, states, memo)
            case Load(name, index) if name in states and states[name].monoid == "scan":
                memo[e] = free_axes(states[name].body, states, memo).union(*map(axes, index))
            case Index(axis):
                memo[e] = frozenset((axis,))
            case Fold(_, axis, _, body):
                memo[e] = free_axes(body, states, memo) - {axis}
            case _:
                memo[e] = frozenset[str]().union(*(free_axes(c, states, memo) for c in children(e)))
    return memo[e]
