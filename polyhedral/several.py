"""Sets of one dimension as several intervals: what makes up one is found, and those are put in order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import islpy as isl

from flashlight.expr import Apply, Expr, apply, walk
from flashlight.polyhedral.bounds import highest, lowest, maximum, minimum
from flashlight.polyhedral.linear import numerator
from flashlight.polyhedral.loops import Interval, Line

STRIPS = 5  # values of a division of t that are told apart
Part = tuple[Interval, isl.Set]  # an interval, and the points that it is for


class Pieces(Line):
    """A line whose sets are several intervals."""

    def intervals(self, s: isl.Set, base: isl.Set, limit: int) -> list[Part] | None:
        """Ascending, disjoint intervals that hold ``s``, each with its points: ``s`` itself if that takes at most
        ``limit`` and short texts, else hulls of its parts, or of all of it, within ``base``.  None where not even a
        hull has a short text."""
        if self.is_convex(s) and (one := self.interval(s, base, outer=True)):
            return [(one, s)]
        loose = s.remove_divs()
        for some in (s, loose):
            hull = self.hull(some, base)
            whole = self.interval(hull, base, outer=True)
            if whole is not None:
                break
        if whole is None or not self.is_small(hull.subtract(s)):
            parts = self.pieces(s, base, limit, outer=True) or self.strips(s, base)
            if parts is None and limit > 1:  # not even so: the parts without their divisions, if they lie apart
                parts = self.pieces(loose.intersect(base).coalesce(), base, 2, outer=True)
                parts = parts if parts and len(parts) > 1 else None
            if parts is not None:
                return parts
        return None if whole is None else [(whole, hull)]

    def pieces(self, s: isl.Set, base: isl.Set, limit: int, outer: bool) -> list[Part] | None:
        """The disjuncts of ``s`` in ascending order of their first points, each without those before it.  Where they
        are too many, those that make up one interval count as one."""
        todo: list[tuple[isl.Set, Interval | None]] = [(d, None) for d in self.disjuncts(s)]
        if len(todo) > limit:
            todo = self.runs([d for d, _ in todo], base, outer)
        if len(todo) > limit:
            return None
        out: list[Part] = []
        seen = self.space.empty()
        while todo:
            first = next((d for d in todo if all(self.starts(d[0], e) for e, _ in todo if e is not d[0])), None)
            if first is None:
                return None
            todo = [d for d in todo if d is not first]
            points, known = first
            rest = points.subtract(seen).coalesce()
            seen = seen.union(points)
            if rest.is_empty():
                continue
            if not self.is_convex(rest):
                return None
            one = self.interval(rest, base, self.seeds(points, known, out), outer=outer)
            if one is not None and not self.points(one).is_subset(rest):
                tight = self.guarded(rest, one)
                one = tight if tight or not self.points(one).is_disjoint(s.subtract(rest)) else one
            if one is None:
                return None
            out.append((one, rest))
        return out

    def seeds(self, points: isl.Set, known: Interval | None, before: Sequence[Part]) -> list[Interval]:
        """What to try for the points of a set beyond the intervals before it.  ``known``: the set's own interval."""
        own, past = self.family(points), [i.hi for i, _ in before]
        out = [Interval(maximum([*past, lo]), hi) for lo, hi in zip(lowest(own), highest(own), strict=False)]
        if known is not None:  # an interval that has no points may end anywhere
            past = [i.hi if is_guarded(i) else (self.guarded(p, i) or i).hi for i, p in before]
            out.insert(0, Interval(maximum([*past, known.lo]), known.hi))
        return out

    def runs(self, parts: Sequence[isl.Set], base: isl.Set, outer: bool) -> list[tuple[isl.Set, Interval | None]]:
        """The union of sets as fewer, with their intervals: two become one if the interval from the first of their
        points to the last is what they hold."""
        out = [(p, self.interval(p, base, outer=outer)) for p in parts]
        pairs = list(combinations(out, 2))
        while pairs:
            a, b = pairs.pop(0)
            texts = [i for _, i in (a, b) if i is not None]
            if texts:
                both = a[0].union(b[0]).coalesce()
                hull = Interval(minimum([i.lo for i in texts]), maximum([i.hi for i in texts]))
                if self.fits(both, hull, base if outer else None):
                    out = [*(r for r in out if r is not a and r is not b), (both, hull)]
                    pairs = list(combinations(out, 2))
        return out

    def fits(self, s: isl.Set, i: Interval, base: isl.Set | None) -> bool:
        """Is ``s`` convex, and this its interval?  See :meth:`stops` for ``base``."""
        from_lo, to_hi = self.at_least(i.lo).intersect(self.before(s)), self.below(i.hi).intersect(self.after(s))
        return bool(from_lo.is_equal(s)) and bool(to_hi.is_equal(s)) and self.stops(s, i, base)

    def strips(self, s: isl.Set, base: isl.Set) -> list[Part] | None:
        """The points of ``s`` by the value of a division of t in its constraints, if it has few values: the planes of a
        neighbourhood in space."""
        for q in self.divisions(s):
            values = self.hull(s.apply(isl.Map.from_pw_aff(self.translate.value(q))), self.context)
            for first in (x for b in self.family(values) for x in b.lowers if x.terms):
                if s.is_subset(self.where("lt", q, (first + STRIPS).expr())):
                    strips = [s.intersect(self.where("eq", q, (first + k).expr())).coalesce() for k in range(STRIPS)]
                    strips = [x for x in strips if not x.is_empty()]
                    out = [(self.interval(x, base, outer=True), x) for x in strips if self.is_convex(x)]
                    found = [(i, x) for i, x in out if i is not None]
                    if len(found) == len(strips):
                        return found
        return None

    def where(self, op: str, a: Expr, b: Expr) -> isl.Set:
        return self.translate.truth(apply(op, a, b))

    def divisions(self, s: isl.Set) -> list[Expr]:
        """The floor divisions in the constraints of a set that have t in them."""
        out: dict[Expr, None] = {}
        for basic in s.compute_divs().get_basic_sets():
            for c in basic.get_constraints():
                form = numerator(c.get_aff(), self.space, dims=True)
                for atom, _ in form.terms if form is not None else ():
                    if isinstance(atom, Apply) and atom.op == "floordiv" and self.t in walk(atom):
                        out[atom] = None
        return list(out)

    def starts(self, a: isl.Set, b: isl.Set) -> bool:
        """Wherever both have points, does ``a`` start no later than ``b``?"""
        return bool(b.subtract(self.after(a)).intersect_params(a.params()).is_empty())


def is_guarded(i: Interval) -> bool:
    """Is the end one that counts only where a condition holds?"""
    return isinstance(i.hi, Apply) and i.hi.op == "select"
