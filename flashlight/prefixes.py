"""Sums in an order: what a reduction takes, chosen by where it lies seen from the result's place."""

from __future__ import annotations

from collections.abc import Mapping

from flashlight.expr import Apply, Const, Expr, Index, axes, conjuncts, loads
from flashlight.growth import unbounded
from flashlight.index import polynomial, sub
from flashlight.program import Statement
from flashlight.scalars import negated

Choice = tuple[list[Expr], Expr, Const]


def choices(body: Expr) -> list[Choice]:
    """A choice between a value and a constant, read as (conditions that all hold, the value, the constant)."""
    out: list[Choice] = []
    match body:
        case Apply("select", (condition, yes, no)):
            if isinstance(no, Const):
                out.append((conjuncts(condition), yes, no))
            if isinstance(yes, Const):
                out.append((conjuncts(negated(condition)), no, yes))
    return out


def has_order(s: Statement, made: list[Choice]) -> bool:
    """Is what a reduction takes chosen by where it lies, seen from the result's place?"""
    own, along = {a.name for a in s.axes}, {a.name for a in s.reduced if unbounded(a)}
    return any(axes(c) & own and axes(c) & along for parts, _, _ in made for c in parts if not loads(c))


def direction(c: Expr, r: Index, here: Index) -> int:
    """1 if the condition is ``r <= here``, -1 if it is ``r >= here``, 0 if it is another."""
    match c:
        case Apply("le", (low, high)):
            p = polynomial(sub(low, high))
            if set(p) == {(here,), (r,)} and p[(r,)] == -p[(here,)] and abs(p[(r,)]) == 1:
                return p[(r,)]
    return 0


def ordered_lengths(root: Statement, table: Mapping[str, Statement]) -> frozenset[Expr]:
    """The lengths of what is summed in an order on the way from a statement, before anything else is reduced."""
    queue, seen, found = [root], {root.name}, set[Expr]()
    while queue:
        s = queue.pop()
        if s.monoid is not None:
            found |= {a.extent for a in s.reduced if has_order(s, choices(s.body))}
            continue
        for x in loads(s.body):
            if (t := table.get(x.tensor)) is not None and t.name not in seen:
                seen.add(t.name)
                queue.append(t)
    return frozenset(found)
