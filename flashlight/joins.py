"""Sums that are read in one linear combination, and share an operand, as one sum.

``a * sum{j} p[i,j] v[j,e] + b * sum{j} q[i,j] v[j,e]  =  sum{j} (a p[i,j] + b q[i,j]) v[j,e]``: one product of matrices
in place of two, if a and b vary along no axis that v has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from flashlight.blocks import product_of
from flashlight.expr import Apply, Const, Expr, Ref, apply, axes, refs, rewrite, substitute
from flashlight.nests import Output, State, free_axes

ONE = Const(1.0)
HOLE = Ref("")
REST = ""
Form = dict[str, tuple[int, Expr]]
"""A linear combination: a sum's name to its sign and what is made of it, with HOLE in its place; REST to the rest."""


def joined(
    stream: str, states: tuple[State, ...], outputs: tuple[Output, ...]
) -> tuple[tuple[State, ...], tuple[Output, ...]] | None:
    """States and outputs with such sums joined; None where there are none, or one is read by itself too."""
    table = {s.name: s for s in states}
    inner = frozenset[str]().union(*(refs(s.body) for s in states))
    free = [s for s in states if s.monoid == "sum" and s.name not in inner]
    sums = frozenset(s.name for s in free if any(s is not t and _shared(stream, (s, t), table) for t in free))
    made: dict[str, State] = {}
    gone: set[str] = set()

    def rule(e: Expr) -> Expr | None:
        if not (isinstance(e, Apply) and e.op in ("add", "sub") and len(refs(e) & sums) > 1):
            return None
        form = _linear(e, sums)
        members = _members(stream, form, table) if form else []
        body = _body(stream, [(*form[s.name], s) for s in members], table) if form and members else None
        if form is None or body is None:
            return None
        name = "_and_".join(s.name for s in members)
        if made.setdefault(name, replace(members[0], name=name, body=body)).body is not body:
            return None
        gone.update(s.name for s in members)
        total: Expr = Ref(name)
        for n, (sign, way) in form.items():
            if n not in gone:
                total = apply("add" if sign > 0 else "sub", total, substitute(way, {HOLE: Ref(n)}))
        return total

    after = tuple(replace(o, body=rewrite(o.body, rule)) for o in outputs) if sums else outputs
    if not made or any(refs(o.body) & gone for o in after):
        return None
    return (*(s for s in states if s.name not in gone), *made.values()), after


def rowwise(stream: str, e: Expr, term: bool = False) -> Expr:
    """The terms of sums with what the row alone decides multiplied together first, divisors as reciprocals: once a row
    in place of once a point.  (Factors of the whole stay as they are: a row's would end up outside its product of
    matrices.)"""
    match e:
        case Apply("add" | "sub" | "neg" | "select" as op, args):
            return apply(op, *(rowwise(stream, a, True) for a in args))
        case Apply("mul", (a, b)) if not term:
            return apply("mul", rowwise(stream, a), rowwise(stream, b))
        case Apply("mul" | "div") if term:
            factors = _factors(e)
            row = [f for f in factors if stream not in axes(f)]
            points = [rowwise(stream, f, True) for f in factors if f not in row]
            if row and points:
                return apply("mul", product_of(points), product_of(row))
    return e


def _linear(e: Expr, sums: frozenset[str]) -> Form | None:
    """The expression as a linear combination that has each sum once."""
    if not refs(e) & sums:
        return {REST: (1, e)}
    match e:
        case Ref(name):
            return {name: (1, HOLE)}
        case Apply("neg", (a,)):
            return _made(_linear(a, sums), -1, lambda x: x)
        case Apply("add" | "sub" as op, (a, b)):
            left, right = _linear(a, sums), _made(_linear(b, sums), 1 if op == "add" else -1, lambda x: x)
            return None if left is None or right is None or left.keys() & right.keys() else left | right
        case Apply("mul", (a, b)) if not (refs(a) & sums and refs(b) & sums):
            inner, factor = (a, b) if refs(a) & sums else (b, a)
            return _made(_linear(inner, sums), 1, lambda x: apply("mul", x, factor))
        case Apply("div", (a, b)) if not refs(b) & sums:
            return _made(_linear(a, sums), 1, lambda x: apply("div", x, b))
        case Apply("select", (c, Const(0.0) as none, a)) if not refs(c) & sums:
            return _made(_linear(a, sums), 1, lambda x: apply("select", c, none, x))
        case Apply("select", (c, a, Const(0.0) as none)) if not refs(c) & sums:
            return _made(_linear(a, sums), 1, lambda x: apply("select", c, x, none))
    return None


def _made(form: Form | None, sign: int, way: Callable[[Expr], Expr]) -> Form | None:
    return None if form is None else {n: (sign * own, way(x)) for n, (own, x) in form.items()}


def _members(stream: str, form: Form, table: dict[str, State]) -> list[State]:
    """The first sums of one dtype that share an operand."""
    sums = [table[n] for n in form if n]
    for k, first in enumerate(sums):
        members = [first]
        for s in sums[k + 1 :]:
            if s.dtype == first.dtype and _shared(stream, [*members, s], table):
                members.append(s)
        if len(members) > 1:
            return members
    return []


def _shared(stream: str, sums: Sequence[State], table: dict[str, State]) -> list[Expr]:
    """The factors that all sums have, if with what each has besides they make a product of matrices."""
    shared = [f for f in _factors(sums[0].body) if all(f in _factors(s.body) for s in sums[1:])]
    sides = [[f for f in _factors(s.body) if f not in shared] for s in sums]
    right = _free(stream, shared, table)
    for left in (_free(stream, side, table) for side in sides):
        if not left - right or not right - left:
            return []
    return shared if all(any(stream in axes(f) for f in side) for side in (shared, *sides)) else []


def _body(stream: str, members: Sequence[tuple[int, Expr, State]], table: dict[str, State]) -> Expr | None:
    """``(sum of what is made of the rests) * shared``; None if it varies along an axis that ``shared`` has alone."""
    shared = _shared(stream, [s for _, _, s in members], table)
    total: Expr | None = None
    for sign, way, s in members:
        rest = s.body
        for f in shared:
            rest = _without(rest, f)
        alone = _free(stream, shared, table) - _free(stream, [rest], table)
        if stream in axes(way) or alone & free_axes(way, table):
            return None
        term = substitute(way, {HOLE: rest})
        if total is None:
            total = term if sign > 0 else apply("neg", term)
        else:
            total = apply("add" if sign > 0 else "sub", total, term)
    return None if total is None else apply("mul", total, product_of(shared))


def _free(stream: str, parts: Sequence[Expr], table: dict[str, State]) -> frozenset[str]:
    return frozenset[str]().union(*(free_axes(e, table) for e in parts)) - {stream}


def _factors(e: Expr) -> list[Expr]:
    """What an expression is a product of, with the reciprocals of what it is divided by."""
    match e:
        case Apply("mul", (a, b)):
            return [*_factors(a), *_factors(b)]
        case Apply("div", (a, b)) if a is not ONE:
            return [*_factors(a), apply("div", ONE, b)]
    return [e]


def _without(e: Expr, factor: Expr) -> Expr:
    """A product less one of its factors."""

    def times(a: Expr, b: Expr) -> Expr:
        return b if a is ONE else a if b is ONE else apply("mul", a, b)

    match e:
        case Apply("mul", (a, b)) if factor in _factors(a):
            return times(_without(a, factor), b)
        case Apply("mul", (a, b)) if factor in _factors(b):
            return times(a, _without(b, factor))
        case Apply("div", (a, b)) if a is not ONE and factor is apply("div", ONE, b):
            return a
        case Apply("div", (a, b)) if factor in _factors(a):
            return apply("div", _without(a, factor), b)
    return ONE if e is factor else e
