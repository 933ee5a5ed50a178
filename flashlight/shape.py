"""What an instance of a nest takes: a point of some axes (the grid), a block of others, and short ones whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod

from flashlight.errors import NeedsLiteral
from flashlight.expr import (
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Size,
    apply,
    axes,
    children,
    loads,
    rewrite,
    substitute,
    walk,
)
from flashlight.growth import unbounded
from flashlight.index import divmod_, simplify
from flashlight.nests import State, free_axes
from flashlight.program import Axis, Program, Statement

PLANE = 256  # elements of a plane that fill a block by themselves
ROWS = 64  # a short axis longer than this is taken in several blocks
WHOLE_UP_TO = 576  # the longest literal axis that is kept whole, or reduced inside a tile (latent attention's keys)


class Shape:
    """The axes of a root, some of them made two; ``grid``, ``points`` (whole), ``blocked`` (of the grid, the row axis
    first).

    ``states``, ``body`` and ``index`` are the draft's, over these axes.  ``short``: the streamed axis is, so that
    blocks have to be filled along others.  Raises NeedsLiteral: an axis would have to be whole and has no literal
    length.
    """

    def __init__(
        self,
        program: Program,
        root: Statement,
        stream: Axis | None,
        states: Mapping[str, State],
        body: Expr,
        index: tuple[Expr, ...],
        short: bool = False,
    ):
        self.program, self.root, self.stream, self.short = program, root, stream, short
        self.states, self.body, self.index, self.axes = dict(states), body, index, root.axes
        self._split_views()
        if self.states:
            self._split_groups()
        self._place()

    # ---- axes that are two -------------------------------------------------------------------------------------
    def _split_views(self) -> None:
        """An axis that what is reduced knows only as ``u // c`` and ``u % c`` (heads and features) is made two."""
        known = [a for a in self.axes if a == self.stream]
        while (a := next((a for a in self.axes if a not in known and a.extent is not Const(1)), None)) is not None:
            known.append(a)
            found = [_divisors(e, a.name) for e in self._reduced()]
            divisors = frozenset().union(*(f for f in found if f is not None))
            if None in found or not divisors:
                continue
            size = min(divisors, key=lambda d: (not isinstance(d, Const), d.value if isinstance(d, Const) else str(d)))
            groups, rest = divmod_(a.extent, size, lambda name: None)
            if rest is Const(0):
                self._split(a, groups, size)
                known = [a for a in self.axes if a == self.stream]

    def _reduced(self) -> list[Expr]:
        """The bodies of the states; without any, what is folded."""
        return [s.body for s in self.states.values()] or list(_folds(self.body))

    def _split_groups(self) -> None:
        """Where no block would be reused, an axis that some loads follow in groups is made two (heads that share keys:
        the number of the group, and the place in it, along which those loads do not vary)."""
        bodies = [*(s.body for s in self.states.values()), self.body]
        read = [x for b in bodies for x in loads(b) if x.index]
        own = [a for a in self.axes if a.extent is not Const(1) and a != self.stream]
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

    # ---- grid, rows, points ------------------------------------------------------------------------------------
    def _place(self) -> None:
        root, stream = self.root, self.stream.name if self.stream else None
        parallel = [a for a in self.axes if a.name != stream and a.extent is not Const(1)]
        bodies = [s.body for s in self.states.values()] or [self.body]
        varies = [free_axes(s.body, self.states) - {stream} for s in self.states.values()]
        shared = varies or [axes(f) - {stream} for b in (*bodies, self.body) for f in walk(b) if isinstance(f, Fold)]
        folded = {f.axis for b in (*bodies, self.body) for f in walk(b) if isinstance(f, Fold)}
        points: list[Axis] = []
        grid: list[Axis] = []
        for a in parallel:
            if symbols((a,)) and self._wide(a, varies):
                raise NeedsLiteral(symbols((a,)), f"{root.name} is as wide as {a.extent} where its statistics are not")
            whole = isinstance(a.extent, Const) and a.extent.value <= WHOLE_UP_TO
            apart = a.name in folded or any(a.name not in carried for carried in shared)
            (points if whole and apart else grid).append(a)
        if not shared and grid and isinstance(grid[-1].extent, Const) and grid[-1].extent.value <= WHOLE_UP_TO:
            points.append(grid.pop())  # element-wise: the innermost axis whole, so that rows are contiguous
        if self.short and not points and (inner := self._innermost(grid, bodies)):
            points.append(inner)
            grid.remove(inner)
        self.grid, self.points = tuple(grid), tuple(points)
        plane = self._plane() if self.stream is None else None
        self.blocked = self._blocks(bodies) if plane is None else self._rows(plane)

    def _innermost(self, grid: list[Axis], bodies: list[Expr]) -> Axis | None:
        """The axis along which all that is streamed is contiguous, if it can be taken whole."""
        stream = self.stream.name if self.stream else ""
        last = {x.index[-1] for b in bodies for x in loads(b) if stream in axes(x)}
        found = next((a for a in grid if last == {Index(a.name)}), None)
        whole = found is not None and isinstance(found.extent, Const) and found.extent.value <= WHOLE_UP_TO
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
        read = [x for b in (*bodies, self.body) for x in loads(b) if x.index and x.tensor not in self.states]
        touched = [axes(x) for x in read]
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

    def _plane(self) -> frozenset[str] | None:
        """The axes of the largest reduction over points of the result and of what is contracted (scores of two short
        axes, say), if that fills a block at one point of the grid."""
        folds = {f for f in walk(self.body) if isinstance(f, Fold)}
        contracted = {f.axis: f.extent for f in folds}
        own = {a.name: int(a.extent.value) for a in self.points if isinstance(a.extent, Const)}
        own = {n: extent for n, extent in own.items() if n not in contracted}
        grid = {a.name for a in self.grid}
        planes = [axes(f) for f in folds if axes(f) & grid and axes(f) & own.keys() and axes(f) & contracted.keys()]
        size = {p: prod((own | contracted).get(n, 1) for n in p) for p in planes}
        found = max(planes, key=lambda p: (size[p], sorted(p)), default=None)
        return found if found is not None and size[found] >= PLANE else None

    def _rows(self, plane: frozenset[str]) -> tuple[str, ...]:
        """The axis of a plane that is taken in blocks, if one is long: all that is folded last varies along it."""
        last = [axes(f) for f in _folds(self.body)]
        long = [a for a in self.points if a.name in plane and isinstance(a.extent, Const) and a.extent.value > ROWS]
        rows = [a for a in long if all(a.name in result for result in last)][:1]
        self.grid = tuple(a for a in self.axes if a in self.grid or a in rows)
        self.points = tuple(a for a in self.points if a not in rows)
        return tuple(a.name for a in rows)


def symbols(over: Iterable[Axis]) -> frozenset[str]:
    return frozenset(n.name for a in over for n in walk(a.extent) if isinstance(n, Size))


def _folds(e: Expr) -> Iterator[Fold]:
    """The reductions of an expression that are in no other."""
    if isinstance(e, Fold):
        yield e
    else:
        for part in children(e):
            yield from _folds(part)


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
