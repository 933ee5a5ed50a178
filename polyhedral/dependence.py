"""Exact flow dependences between statements that write each element once.

A reader of a tensor depends on the instances that write what it loads.  If the tensor is a reduction's, that is all
points of the reduction (*completion*): those are the dependences that an algebraic certificate may relax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import islpy as isl

from flashlight.expr import Const, Expr, Index, Size, apply, evaluate
from flashlight.polyhedral.access import Access, reads, show
from flashlight.polyhedral.affine import Translator, parameters
from flashlight.polyhedral.domain import IterationDomain, box, iteration_domain, source_key
from flashlight.polyhedral.space import Space, TooHard, budget
from flashlight.program import Statement

OPERATIONS = 50_000


@dataclass(frozen=True)
class Pairs:
    """Which source instance a sink instance depends on: ``at`` gives every coordinate of the source over the sink's
    axes, None for all of them.  ``upto``: an axis and a block length; the source's block is none after the sink's."""

    source: IterationDomain
    sink: IterationDomain
    at: tuple[Expr | None, ...]
    upto: tuple[str, int] | None = None

    def space(self) -> Space:
        sizes = dict.fromkeys(
            (*self.source.sizes(), *self.sink.sizes(), *parameters(*(e for e in self.at if e is not None)))
        )
        keys = (*(source_key(a.name) for a in self.source.axes), *(Index(a.name) for a in self.sink.axes))
        return Space(tuple(sizes), keys)

    def relation(self, space: Space) -> isl.Set:
        """The pairs as a set of (source, sink), within both domains and for extents of at least 1."""
        translate = Translator(space)
        out = box(self.source, space, source=True).intersect(box(self.sink, space))
        for a, e in zip(self.source.axes, self.at, strict=True):
            if e is not None:
                out = out.intersect(space[source_key(a.name)].eq_set(translate.value(e)))
        if self.upto is not None:
            axis, block = self.upto
            first, last = (apply("floordiv", k, Const(block)) for k in (source_key(axis), Index(axis)))
            out = out.intersect(translate.truth(apply("le", first, last)))
        return out

    def __str__(self) -> str:
        at = [show(e) for e in self.at]
        if self.upto is not None:
            k = [a.name for a in self.source.axes].index(self.upto[0])
            at[k] = f"{self.upto[0]}' in blocks up to {self.upto[0]}'s"
        source = f"{self.source.name}[{', '.join(at)}]" if at else self.source.name
        return f"{source} -> {self.sink}"

    def instances(self, sizes: Mapping[str, int]) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
        """Every pair for these sizes, by trying all: for tests and small sizes."""
        for sink in self.sink.instances(sizes):
            at = [e if e is None else int(evaluate(e, partial(_leaf, sink, sizes))) for e in self.at]
            for source in self.source.instances(sizes):
                if all(x is None or x == y for x, y in zip(at, source.values(), strict=True)):
                    axis, block = self.upto or ("", 1)
                    if self.upto is None or source[axis] // block <= sink[axis] // block:
                        yield source, sink


def _leaf(at: Mapping[str, int], sizes: Mapping[str, int], leaf: Expr) -> int:
    return at[leaf.axis] if isinstance(leaf, Index) else sizes[leaf.name] if isinstance(leaf, Size) else 0


@dataclass(frozen=True)
class Dependence:
    """``sink`` reads what ``source`` writes.

    ``kind``: "element", or "completion" (the source is a reduction: the sink needs it finished, so every point of it),
    or "running" (the sink needs the blocks so far).  ``relation``: source instances for each sink instance, ``*`` being
    every coordinate.  ``exact``: False where an index is not affine, so that more may be named than is read.
    """

    source: str
    sink: str
    kind: str
    relation: str
    exact: bool
    pairs: Pairs = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.relation}  {self.kind}" + ("" if self.exact else ", at most")


def depend(kind: str, pairs: Pairs, exact: bool = True) -> Dependence:
    """A dependence by its pairs."""
    return Dependence(pairs.source.name, pairs.sink.name, kind, str(pairs), exact, pairs)


def flow(statements: tuple[Statement, ...]) -> tuple[Dependence, ...]:
    """The flow dependences between statements, readers in order and, of each, its loads in order of appearance.

    Loads of tensors that no statement defines are inputs and depend on nothing; a load that never meets the tensor's
    domain is none.  Each statement defines all elements of its tensor once, so no write comes between.
    """
    written = {s.name: s for s in statements}
    out: dict[Dependence, None] = {}
    for s in statements:
        for access in reads(s):
            if access.tensor in written and (d := _flow(written[access.tensor], access)) is not None:
                out[d] = None
    return tuple(out)


def _flow(source: Statement, access: Access) -> Dependence | None:
    at = (*access.index, *(None for _ in source.reduced))
    pairs = Pairs(iteration_domain(source), access.domain, at)
    kind = "element" if source.monoid is None else "completion"
    try:
        with budget(OPERATIONS):
            if pairs.relation(pairs.space()).is_empty():
                return None
    except TooHard:
        pass  # a dependence too many is sound
    return depend(kind, pairs, access.is_exact)
