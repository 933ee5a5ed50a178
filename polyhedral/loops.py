"""Bounds of loops: sets of one dimension with parameters, as short lists of intervals ``[lo, hi)`` of expressions.

Texts are guessed from the constraints and then proved: a candidate bound is taken only if isl finds that the interval
it makes is the set.  So a guess that fails costs a longer text or a wider interval, never a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import islpy as isl

from flashlight.expr import TRUE, Const, Expr, apply
from flashlight.polyhedral.affine import Translator
from flashlight.polyhedral.bounds import (
    Bounds,
    all_of,
    bounds,
    candidates,
    highest,
    length,
    lowest,
    maximum,
    minimum,
    operands,
    shorter,
)
from flashlight.polyhedral.space import DIM, PARAM, Space

LONGEST = 40  # nodes of a bound's expression
SHORT = 12  # up to here nothing is left out
DISJUNCTS = 4  # basic sets whose constraints are tried as bounds


@dataclass(frozen=True)
class Interval:
    """``lo <= t < hi``, empty where ``hi <= lo``."""

    lo: Expr
    hi: Expr


class Line:
    """One dimension t over parameters.  ``context``: what is known of the parameters (a set of this space); ``grid``:
    how many of the first parameters differ between instances of one launch (block numbers, batch coordinates)."""

    def __init__(self, space: Space, context: isl.Set, grid: int):
        self.space, self.context, self.grid = space, context, grid
        self.translate = Translator(space)
        self.t = space.dims[0]
        self.order = isl.Map.lex_le(space.isl)
        self.later = isl.Map.lex_lt(space.isl)

    # ---- sets --------------------------------------------------------------------------------------------------
    def at_least(self, e: Expr) -> isl.Set:
        return self.translate.truth(apply("ge", self.t, e))

    def below(self, e: Expr) -> isl.Set:
        return self.translate.truth(apply("lt", self.t, e))

    def points(self, i: Interval) -> isl.Set:
        """The points of an interval, for parameters of the context."""
        return self.at_least(i.lo).intersect(self.below(i.hi)).intersect(self.context)

    def after(self, s: isl.Set) -> isl.Set:
        """Every point at or after one of ``s``."""
        return s.apply(self.order)

    def before(self, s: isl.Set) -> isl.Set:
        """Every point at or before one of ``s``."""
        return s.apply(self.order.reverse())

    def is_convex(self, s: isl.Set) -> bool:
        return bool(self.after(s).intersect(self.before(s)).is_subset(s))

    def is_small(self, s: isl.Set, length: int = 2) -> bool:
        """Does the set lie in so many neighbouring points, whatever the parameters?"""
        beyond = s
        for _ in range(length):
            beyond = beyond.apply(self.later)
        return bool(beyond.intersect(s).is_empty())

    def hull(self, s: isl.Set, base: isl.Set) -> isl.Set:
        """One basic set that holds ``s``, within ``base``."""
        return isl.Set.from_basic_set(s.remove_divs_involving_dims(DIM, 0, 1).simple_hull()).intersect(base)

    def disjuncts(self, s: isl.Set) -> list[isl.Set]:
        return [isl.Set.from_basic_set(b) for b in s.get_basic_sets()]

    # ---- one interval ------------------------------------------------------------------------------------------
    def interval(
        self,
        s: isl.Set,
        base: isl.Set,
        seeds: Sequence[Interval] = (),
        shapes: Sequence[isl.Set] = (),
        outer: bool = False,
    ) -> Interval | None:
        """A convex set within ``base`` as an interval, or None where no short text is found.

        ``seeds``: intervals whose ends are tried first; ``shapes``: sets whose constraints are tried last.  What is
        found may lack two points of ``s`` where that makes it shorter; if ``outer``, it may have as many more instead.
        """
        own = (self.hull(s, base).gist(self.context), s.gist(self.context).coalesce())
        families = [self.family(f) for f in (*own, *shapes)]
        around = self.family(base.gist(self.context))
        upto, onwards = self.before(s), self.after(s)
        lows = candidates([i.lo for i in seeds], families, around, lowest)
        lo = next((e for e in lows if self.at_least(e).intersect(upto).is_equal(s)), None)
        if lo is None:
            return None
        fits: list[Expr] = []
        for e in candidates([i.hi for i in seeds], families, around, highest):
            if self.below(e).intersect(onwards).is_equal(s):
                fits.append(e)
                if self.stops(s, Interval(lo, e), base if outer else None):
                    return self.shortened(s, Interval(lo, e), base if outer else None)
        clipped = maximum([lo, *(lowest(around) if len(around) == 1 else ())])
        for e in fits if clipped is not lo else ():
            if self.stops(s, Interval(clipped, e), base if outer else None):
                return Interval(clipped, e)
        return None if not fits or self.is_small(s) else self.guarded(s, Interval(lo, fits[0]))

    def family(self, s: isl.Set) -> list[Bounds]:
        basics = s.compute_divs().get_basic_sets()
        return [bounds(b, self.space) for b in basics] if len(basics) <= DISJUNCTS else []

    def stops(self, s: isl.Set, i: Interval, base: isl.Set | None) -> bool:
        """An interval is ``s`` wherever ``s`` has points; is it empty where it has none?

        Given a base, it may hold a few points of it there, and any if it depends on sizes alone whether ``s`` has any.
        """
        points = self.points(i)
        rest = points.subtract(s)
        if rest.is_empty():
            return True
        if base is None or not points.is_subset(base):
            return False
        where = s.params().gist(self.context.params())
        return self.is_small(rest, 4) or not where.involves_dims(PARAM, 0, self.grid)

    def guarded(self, s: isl.Set, i: Interval) -> Interval | None:
        """The interval made empty where ``s`` has no points, by a condition on parameters."""
        conditions: list[Expr] = []
        for b in s.params().gist(self.context.params()).coalesce().compute_divs().get_basic_sets():
            known = bounds(b.insert_dims(DIM, 0, 1), self.space)
            if not known.exact:
                return None
            conditions.append(all_of("and", [TRUE, *known.guards]))
        if len(conditions) > 2:
            return None
        for otherwise in (Const(0), i.lo):
            made = Interval(i.lo, apply("select", all_of("or", conditions), i.hi, otherwise))
            if length(made.hi) <= LONGEST and self.points(made).is_equal(s):
                return made
        return None

    def shortened(self, s: isl.Set, i: Interval, base: isl.Set | None) -> Interval:
        """A long upper end with parts left out, as long as that takes away no more than two neighbouring points (or,
        given a base, adds no more within it)."""
        variants = list(shorter(i.hi)) if length(i.hi) > SHORT else []
        while variants:
            e = variants.pop(0)
            points = self.points(Interval(i.lo, e))
            more, less = (s, points) if base is None else (points, s)
            if less.is_subset(more) and self.is_small(more.subtract(less)) and (base is None or more.is_subset(base)):
                i = Interval(i.lo, e)
                variants = list(shorter(e)) if length(e) > SHORT else []
        return i

    def trim(self, lows: Sequence[Expr], highs: Sequence[Expr]) -> Interval | None:
        """``[max(lows), min(highs))`` without the ends that do not matter; None if it is empty."""
        lows = list(operands("maximum", maximum(lows)))
        highs = list(operands("minimum", minimum(highs)))

        def points() -> isl.Set:
            return reduce(isl.Set.intersect, (*map(self.at_least, lows), *map(self.below, highs)), self.context)

        whole = points()
        if whole.is_empty():
            return None
        for ends in (lows, highs):
            for e in list(ends) if len(ends) > 1 else ():
                ends.remove(e)
                if not ends or not points().is_equal(whole):
                    ends.append(e)
        return Interval(maximum(lows), minimum(highs))
