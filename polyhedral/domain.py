"""Iteration domains: the instances of a statement, one a point of the box of its axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import islpy as isl

from flashlight.expr import Expr, Index, evaluate
from flashlight.polyhedral.affine import Translator, parameters
from flashlight.polyhedral.space import Space
from flashlight.program import Axis, Statement


@dataclass(frozen=True)
class IterationDomain:
    """The instances ``name[axes]``; equal only if name and axes are (``docs/decisions/0002``)."""

    name: str
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.name}[{', '.join(a.name for a in self.axes)}]" if self.axes else self.name

    def sizes(self) -> tuple[Expr, ...]:
        """The parameters of its extents."""
        return parameters(*(a.extent for a in self.axes))

    def instances(self, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """Every instance for these sizes."""
        lengths = [int(evaluate(a.extent, lambda leaf: sizes[str(leaf)])) for a in self.axes]
        for place in product(*map(range, lengths)):
            yield dict(zip((a.name for a in self.axes), place, strict=True))


def iteration_domain(s: Statement) -> IterationDomain:
    """A reduction has an instance for every point that it reduces."""
    return IterationDomain(s.name, (*s.axes, *s.reduced))


def source_key(axis: str) -> Index:
    """The coordinate of a dependence's source (sinks keep the plain name)."""
    return Index(f"{axis}'")


def box(domain: IterationDomain, space: Space, source: bool = False) -> isl.Set:
    """A domain as a set in a space that has its axes for dimensions (primed, if it is a dependence's source)."""
    translate, out = Translator(space), space.universe()
    for a in domain.axes:
        at = space[source_key(a.name) if source else Index(a.name)]
        out = out.intersect(at.ge_set(space.constant(0))).intersect(at.lt_set(translate.value(a.extent)))
    return out
