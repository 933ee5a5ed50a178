"""Ends of intervals as texts: what constraints say of one dimension, and the candidates made of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import islpy as isl

from flashlight.expr import FALSE, TRUE, Apply, Const, Expr, apply, walk
from flashlight.polyhedral.linear import Linear, as_linear, integer, numerator
from flashlight.polyhedral.space import Space

Terms = tuple[Linear, ...]
NOTHING = Linear()


@dataclass(frozen=True)
class Bounds:
    """What the constraints of one basic set say of its one dimension t: ``max(lowers) <= t < min(uppers)``, where the
    ``guards`` (conditions on parameters) hold.  ``exact``: nothing else was said."""

    lowers: tuple[Linear, ...]
    uppers: tuple[Linear, ...]
    guards: tuple[Expr, ...]
    exact: bool


def bounds(basic: isl.BasicSet, space: Space) -> Bounds:
    """The bounds of a basic set of one dimension."""
    lowers: list[Linear] = []
    uppers: list[Linear] = []
    guards: list[Expr] = []
    exact = True
    for c in basic.get_constraints():
        aff = c.get_aff()
        form = numerator(aff, space, dims=False)
        if form is not None:
            of = _Of(integer(aff.get_coefficient_val(isl.dim_type.in_, 0).mul(aff.get_denominator_val())), form)
        elif c.is_div_constraint():
            continue
        elif (share := _share(numerator(aff, space, dims=True), space.dims[0])) is not None:
            of = share
        else:
            exact = False
            continue
        if not of.factor:
            if not c.is_div_constraint():
                guards.append(apply("eq" if c.is_equality() else "ge", *_sides(of.rest)))
            continue
        if of.factor > 0 or c.is_equality():
            # a*t + f >= 0: t >= ceil(-f / a)
            lowers.append(of.start(of.rest.scaled(-1 if of.factor > 0 else 1).ceildiv(abs(of.factor))))
        if of.factor < 0 or c.is_equality():
            # -a*t + f >= 0: t < floor(f / a) + 1
            uppers.append(of.start(of.rest.scaled(1 if of.factor < 0 else -1).floordiv(abs(of.factor)) + 1))
    return Bounds(tuple(lowers), tuple(uppers), tuple(guards), exact)


def condition(s: isl.Set, space: Space) -> Expr | None:
    """When a point lies in a set: a condition on its dimensions and parameters; None if it has unknown divisions."""
    found: list[Expr] = []
    for basic in s.compute_divs().get_basic_sets():
        parts: list[Expr] = [TRUE]
        for c in basic.get_constraints():
            if not c.is_div_constraint():
                form = numerator(c.get_aff(), space, dims=True)
                if form is None:
                    return None
                parts.append(apply("eq" if c.is_equality() else "ge", *_sides(form)))
        found.append(all_of("and", parts))
    return all_of("or", found) if found else FALSE


@dataclass(frozen=True)
class _Of:
    """What a constraint says of t, or of a floor division of it: ``factor * ((many * t + inner) // by) + rest``."""

    factor: int
    rest: Linear
    many: int = 1
    inner: Linear = NOTHING
    by: int = 1

    def start(self, quotient: Linear) -> Linear:
        """The first t at which the division is ``quotient``, or more."""
        return (quotient.scaled(self.by) + self.inner.scaled(-1)).ceildiv(self.many)


def _share(form: Linear | None, t: Expr) -> _Of | None:
    """A form as one division of t and a rest without t; None if it is none."""
    if form is None:
        return None
    match [(atom, factor) for atom, factor in form.terms if t in walk(atom)]:
        case [(Apply("floordiv", (x, Const(by))) as atom, factor)]:
            inner = as_linear(x)
            many = dict(inner.terms).get(t, 0)
            apart = Linear(tuple((a, f) for a, f in inner.terms if a is not t), inner.constant)
            if many > 0 and not any(t in walk(a) for a, _ in apart.terms):
                rest = Linear(tuple((a, f) for a, f in form.terms if a is not atom), form.constant)
                return _Of(factor, rest, many, apart, int(by))
    return None


def _sides(form: Linear) -> tuple[Expr, Expr]:
    """``form >= 0`` as two sides without negative terms."""
    left = Linear(tuple((a, f) for a, f in form.terms if f > 0), max(0, form.constant))
    right = Linear(tuple((a, -f) for a, f in form.terms if f < 0), max(0, -form.constant))
    return left.expr(), right.expr()


# ---- candidates ------------------------------------------------------------------------------------------------------
def candidates(
    seeds: Sequence[Expr],
    families: Sequence[Sequence[Bounds]],
    around: Sequence[Bounds],
    ends: Callable[[Sequence[Bounds]], Iterator[Expr]],
) -> Iterator[Expr]:
    """Ends to try, lower or upper as ``ends`` says: the seeds, those of each union of basic sets, and all of these
    clipped to what lies ``around``."""
    tries = [*seeds, *(e for f in families for e in ends(f))]
    yield from dict.fromkeys(tries)
    clip = next(ends(around), None) if len(around) == 1 else None
    if clip is not None:
        yield from dict.fromkeys((maximum if ends is lowest else minimum)([e, clip]) for e in tries)
    yield from (e for f in families for e in (latest if ends is highest else earliest)(f))


def lowest(family: Sequence[Bounds]) -> Iterator[Expr]:
    """Where a union of intervals may start."""
    for inner, outer in _factored([b.lowers for b in family]):
        parts = [maximum([x.expr() for x in terms]) for terms in outer]
        yield maximum([*(x.expr() for x in inner), *([minimum(parts)] if parts else [])])


def highest(family: Sequence[Bounds]) -> Iterator[Expr]:
    """Where a union of intervals may stop."""
    for inner, outer in _factored([b.uppers for b in family]):
        parts = [minimum([x.expr() for x in terms]) for terms in outer]
        yield minimum([*(x.expr() for x in inner), *([maximum(parts)] if parts else [])])


def latest(family: Sequence[Bounds]) -> Iterator[Expr]:
    """Where a union of intervals stops, each counted only where its guards hold."""
    if len(family) > 1 and all(b.uppers for b in family) and any(b.guards for b in family):
        ends = [(minimum([x.expr() for x in b.uppers]), b.guards) for b in family]
        yield maximum([apply("select", all_of("and", g), e, Const(0)) if g else e for e, g in ends])


def earliest(family: Sequence[Bounds]) -> Iterator[Expr]:
    """Where a union of intervals starts, each counted only where its guards hold: beside those that are always there,
    or one of two."""
    if len(family) > 1 and all(b.lowers for b in family):
        ends = [(maximum([x.expr() for x in b.lowers]), b.guards) for b in family]
        always, some = [e for e, g in ends if not g], [(e, all_of("and", g)) for e, g in ends if g]
        if some and always:
            yield minimum([*always, *(apply("select", g, e, minimum(always)) for e, g in some)])
        elif len(some) == 2:
            (e, g), (other, h) = some
            yield apply("select", g, e, other)
            yield apply("select", h, other, e)


def _factored(lists: Sequence[Terms]) -> Iterator[tuple[Terms, tuple[Terms, ...]]]:
    """For the bounds of a union: the terms common to all, each disjunct's own, and the common ones factored out."""
    if not lists or not all(lists):
        return
    common = tuple(x for x in lists[0] if all(x in other for other in lists[1:]))
    if common:
        yield common, ()
    for terms in lists:
        if terms != common:
            yield terms, ()
    rest = tuple(tuple(x for x in terms if x not in common) for terms in lists)
    if len(lists) > 1 and all(rest):
        yield common, tuple(dict.fromkeys(rest))


def maximum(terms: Iterable[Expr]) -> Expr:
    return _extreme("maximum", terms)


def minimum(terms: Iterable[Expr]) -> Expr:
    return _extreme("minimum", terms)


def _extreme(op: str, terms: Iterable[Expr]) -> Expr:
    """One operator over all terms but those that another always beats; constants first, then short texts."""
    best: dict[tuple[tuple[Expr, int], ...], int] = {}
    for e in (x for t in terms for x in operands(op, t)):
        form = as_linear(e)
        known = best.get(form.terms, form.constant)
        best[form.terms] = max(known, form.constant) if op == "maximum" else min(known, form.constant)
    flat = [Linear(terms, constant).expr() for terms, constant in best.items()]
    return all_of(op, sorted(flat, key=lambda e: (not isinstance(e, Const), len(str(e)), str(e))))


def shorter(e: Expr) -> Iterator[Expr]:
    """An end without one operand of a maximum, or without one condition."""
    parts = sorted(operands("maximum", e), key=lambda x: -length(x))
    for k, part in enumerate(parts):
        rest = [*parts[:k], *parts[k + 1 :]]
        if rest:
            yield maximum(rest)
        match part:
            case Apply("select", (c, x, otherwise)):
                known = list(operands("and", c))
                for q in known:
                    left = [q2 for q2 in known if q2 is not q]
                    yield maximum([*rest, apply("select", all_of("and", left), x, otherwise) if left else x])


def all_of(op: str, terms: Sequence[Expr]) -> Expr:
    return reduce(lambda a, b: apply(op, a, b), terms)


def operands(op: str, e: Expr) -> Iterator[Expr]:
    if isinstance(e, Apply) and e.op == op:
        for a in e.args:
            yield from operands(op, a)
    else:
        yield e


def length(e: Expr) -> int:
    """How many different nodes an expression has."""
    return sum(1 for _ in walk(e))
