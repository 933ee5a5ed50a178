"""Schedule trees: in which order the instances of statements run.

The node kinds are isl's.  A band's members are expressions over axes, the same for every statement below it, since axes
are known by name; that is also what makes a tree readable:

    domain M'[i, j], M[i]
    └─ band i // 128, parallel
       └─ sequence
          ├─ filter M'
          │  └─ band j // 64
          │     └─ band i % 128, j % 64
          └─ filter M
             └─ band i % 128
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import islpy as isl

from flashlight.expr import Const, Expr, Index, apply, substitute
from flashlight.polyhedral.affine import Translator
from flashlight.polyhedral.dependence import Dependence
from flashlight.polyhedral.domain import IterationDomain, source_key
from flashlight.polyhedral.space import Space, budget, sample

OPERATIONS = 200_000


@dataclass(frozen=True)
class Leaf:
    """Nothing more is said of the order."""


@dataclass(frozen=True)
class Band:
    """Loops, outermost first.  ``parallel``: their iterations run at the same time, or in any order."""

    members: tuple[Expr, ...]
    child: Tree = Leaf()
    parallel: bool = False


@dataclass(frozen=True)
class Filter:
    """The child, for some of the statements."""

    statements: tuple[str, ...]
    child: Tree = Leaf()


@dataclass(frozen=True)
class Sequence:
    """One filter after the other."""

    children: tuple[Filter, ...]


@dataclass(frozen=True)
class Mark:
    """A note to the reader."""

    text: str
    child: Tree = Leaf()


@dataclass(frozen=True)
class Domain:
    """The root: all statements with their instances."""

    statements: tuple[IterationDomain, ...]
    child: Tree = Leaf()

    def __str__(self) -> str:
        return "\n".join(_lines(self))


Tree = Leaf | Band | Filter | Sequence | Mark | Domain


def tile(band: Band, sizes: tuple[int, ...]) -> Band:
    """Strip-mine the members of a band and run the tiles outside.

    ``band m`` becomes ``band m // size`` over ``band m % size``; a member of size 1 stays where it is.  Legal when the
    band is permutable, which :func:`violation` decides of the outcome.
    """
    outer = tuple(m if k == 1 else apply("floordiv", m, Const(k)) for m, k in zip(band.members, sizes, strict=True))
    inner = tuple(apply("mod", m, Const(k)) for m, k in zip(band.members, sizes, strict=True) if k != 1)
    return replace(band, members=outer, child=Band(inner, band.child, band.parallel) if inner else band.child)


# ---- printing --------------------------------------------------------------------------------------------------------
def _children(tree: Tree) -> tuple[Tree, ...]:
    match tree:
        case Sequence(children):
            return children
        case Leaf():
            return ()
    return () if isinstance(tree.child, Leaf) else (tree.child,)


def _head(tree: Tree) -> str:
    match tree:
        case Domain(statements):
            return f"domain {', '.join(map(str, statements))}"
        case Band(members, _, parallel):
            texts = (str(m) for m in members)
            return f"band {', '.join(t[1:-1] if t[0] == '(' else t for t in texts)}{', parallel' if parallel else ''}"
        case Sequence():
            return "sequence"
        case Filter(statements):
            return f"filter {', '.join(statements)}"
        case Mark(text):
            return f"mark {text}"
    return "leaf"


def _lines(tree: Tree) -> Iterator[str]:
    yield _head(tree)
    children = _children(tree)
    for k, child in enumerate(children):
        last = k == len(children) - 1
        for n, line in enumerate(_lines(child)):
            yield ("   " if last else "│  ") + line if n else ("└─ " if last else "├─ ") + line


# ---- time ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Moment:
    """One component of a statement's time: ``at`` over its axes; ``parallel`` if its values run at the same time."""

    at: Expr
    parallel: bool = False


def times(root: Domain) -> dict[str, tuple[Moment, ...]]:
    """When the instances of each statement run: compared lexicographically, all of one length."""
    out: dict[str, list[Moment]] = {s.name: [] for s in root.statements}

    def go(tree: Tree, names: tuple[str, ...]) -> None:
        match tree:
            case Domain(_, child) | Mark(_, child) | Filter(_, child):
                go(child, names)
            case Band(members, child, parallel):
                for n in names:
                    out[n] += [Moment(m, parallel) for m in members]
                go(child, names)
            case Sequence(children):
                for k, f in enumerate(children):
                    mine = tuple(n for n in f.statements if n in names)
                    for n in mine:
                        out[n].append(Moment(Const(k)))
                    go(f.child, mine)
            case Leaf():
                pass

    go(root, tuple(out))
    depth = max(map(len, out.values()), default=0)
    return {n: (*ms, *(Moment(Const(0)) for _ in range(depth - len(ms)))) for n, ms in out.items()}


def violation(root: Domain, dependences: Iterable[Dependence]) -> str | None:
    """The first dependence that the schedule breaks, at a point; None if all run forward.

    A dependence is kept if its source runs before its sink, that is, at a lexicographically smaller time, and in the
    same iteration of every parallel loop round both.  Raises NotAffine; TooHard, which is no answer, is not caught.
    """
    when = times(root)
    for d in dependences:
        with budget(OPERATIONS):
            found = _broken(when[d.source], when[d.sink], d)
        if found is not None:
            return found
    return None


def _broken(source: tuple[Moment, ...], sink: tuple[Moment, ...], d: Dependence) -> str | None:
    space = d.pairs.space()
    translate = Translator(space)
    same = d.pairs.relation(space)  # the pairs that run at the same time as far as has been compared
    prime: dict[Expr, Expr] = {Index(a.name): source_key(a.name) for a in d.pairs.source.axes}
    for a, b in zip(source, sink, strict=True):
        first, last = substitute(a.at, prime), b.at
        if first is last:
            continue
        wrong = "ne" if a.parallel and b.parallel else "gt"
        if (bad := _point(same.intersect(translate.truth(apply(wrong, first, last))), space, d)) is not None:
            return f"{bad}, " + ("which runs beside it" if wrong == "ne" else "which runs before it")
        same = same.intersect(translate.truth(apply("eq", first, last)))
    bad = _point(same, space, d)
    return None if bad is None else f"{bad}, which runs at the same time"


def _point(pairs: isl.Set, space: Space, d: Dependence) -> str | None:
    at = sample(pairs, space)
    if at is None:
        return None
    source = ", ".join(f"{a.name} = {at[source_key(a.name)]}" for a in d.pairs.source.axes)
    sink = ", ".join(f"{a.name} = {at[Index(a.name)]}" for a in d.pairs.sink.axes)
    sizes = ", ".join(f"{key} = {at[key]}" for key in space.params)
    return f"{'for ' + sizes + ', ' if sizes else ''}{d.source}[{source}] is needed by {d.sink}[{sink}]"
