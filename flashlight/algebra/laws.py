"""The laws of a certificate, by numbers of many digits at random points (used by the checker).

A rational identity in exponentials that fails anywhere fails almost everywhere, so a few points decide (Schwartz,
Zippel); 50 digits leave no room for rounding to be blamed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flashlight.algebra.arithmetic import Scalars, precise
from flashlight.algebra.proof import Cascade, Certificate, Fact
from flashlight.algebra.stream import Block, direct
from flashlight.expr import (
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
    kind,
    refs,
    substitute,
    walk,
)

DIGITS = 50
TOLERANCE = 1e-35
ELEMENTS = 3
EXPONENTIALS = ("exp", "exp2")


def exponentials(body: Expr) -> list[Apply]:
    """The exponentials of a body that depend on gauges, in the order in which ``Slot.bound`` speaks of them."""
    return [
        e
        for e in walk(body)
        if isinstance(e, Apply) and e.op in EXPONENTIALS and any(n.startswith("g:") for n in refs(e))
    ]


def leaves(cascade: Cascade) -> list[Expr]:
    """What a run has to be given: loads, folds, indices, sizes and values of earlier passes."""
    own = {s.name for s in cascade.stages}

    def go(e: Expr) -> Iterator[Expr]:
        if isinstance(e, (Load, Fold, Index, Size)) or (isinstance(e, Ref) and e.name not in own):
            yield e
        else:
            for c in children(e):
                yield from go(c)

    exprs = (*(s.body for s in cascade.stages), *cascade.outputs, cascade.extent)
    return list(dict.fromkeys(e for x in exprs for e in go(x)))


def sample(
    cascade: Cascade, n: int, seed: int, signed: bool, spread: float = 1.0, positive: bool = False
) -> dict[Expr, Any]:
    """Random values: lists for elements; what belongs to the row is positive unless ``signed``."""
    rng = random.Random(seed)
    out: dict[Expr, Any] = {}
    for e in leaves(cascade):
        element = cascade.axis in axes(e)
        if isinstance(e, Size):
            out[e] = n
        elif isinstance(e, Index):
            out[e] = list(range(n)) if element else n // 2
        elif kind(e) == "bool":
            out[e] = [rng.random() < 0.7 for _ in range(n)] if element else rng.random() < 0.5
        elif kind(e) == "int":
            out[e] = [rng.randrange(n) for _ in range(n)] if element else rng.randrange(n)
        else:
            scale = spread * rng.choice((0.1, 1.0, 4.0)) if spread != 1.0 else 1.5
            low = 0.0 if positive or not (signed or element) else scale
            out[e] = [rng.uniform(-low, scale) for _ in range(n)] if element else 0.2 + rng.uniform(-low, scale)
    return out


def reader(values: dict[Expr, Any], numbers: Scalars, start: int = 0, stop: int | None = None) -> Callable[[Expr], Any]:
    """Leaves as numbers of the wanted kind (booleans stay booleans)."""

    def convert(v: Any) -> Any:
        return v if isinstance(v, bool) else numbers.constant(v)

    def leaf(e: Expr) -> Any:
        v = values[e]
        return [convert(x) for x in v[start:stop]] if isinstance(v, list) else convert(v)

    return leaf


@dataclass(frozen=True)
class Point:
    """Elements with the results the program has for them (or others of the same signs), and gauges at random."""

    values: dict[Expr, Any]
    results: dict[str, Any]
    gauges: dict[str, Any]

    def reader(
        self, numbers: Scalars, names: dict[str, Any] | None = None, only: int | None = None
    ) -> Callable[[Expr], Any]:
        given = {**self.results, **self.gauges, **(names or {})}
        plain = reader(self.values, numbers, only or 0, None if only is None else only + 1)
        memo: dict[Expr, Any] = {}

        def leaf(e: Expr) -> Any:
            if isinstance(e, Ref) and e.name in given:
                return given[e.name]
            if e not in memo:
                memo[e] = plain(e)
            return memo[e]

        return leaf


def faults(cert: Certificate) -> list[str]:
    numbers = precise(DIGITS)
    points = list(_points(cert, numbers))
    laws: tuple[Callable[[Certificate, Point, Scalars], list[str]], ...] = (link_law, transport_law, bound_law)
    for law in laws:
        for p in points:
            if found := law(cert, p, numbers):
                return found
    return range_law(cert, numbers) + fact_law(cert, points, numbers) + claimed(cert, numbers)


def _points(cert: Certificate, numbers: Scalars) -> Iterator[Point]:
    for seed, signed, live in ((1, True, True), (2, False, True), (3, True, True), (4, False, False), (5, False, True)):
        values = sample(cert.cascade, ELEMENTS, seed, signed, positive=seed == 5)
        if not live:  # what a row of nothing but masked elements adds up to
            hidden = {e: _hidden(e, v) for e, v in values.items()}
            if hidden == values:
                continue
            values = hidden
        leaf = reader(values, numbers)
        results = direct(cert.cascade, Block(ELEMENTS, leaf), leaf, numbers)
        if all(v == v and abs(v) < numbers.constant("inf") for v in results.values()):
            rng = random.Random(seed)
            gauges = {
                f"{side}:{g.name}": numbers.constant(rng.uniform(0.3, 2.0)) for g in cert.gauges for side in "ghk"
            }
            yield Point(values, results, gauges)
            if not any(k.given for k in cert.links):
                free = {n: v * numbers.constant(rng.uniform(1.0, 1.5)) for n, v in results.items()}
                for stage in cert.cascade.stages:
                    if stage.monoid is None:
                        free[stage.name] = numbers.evaluate(stage.body, Point(values, free, {}).reader(numbers))
                yield Point(values, free, gauges)


def _hidden(e: Expr, v: Any) -> Any:
    if kind(e) == "bool":
        return [False] * len(v) if isinstance(v, list) else False
    return v if isinstance(v, list) or not isinstance(e, Index) else -1


def near(a: Any, b: Any) -> bool:
    if a != a or b != b:
        return bool(a != a and b != b)
    return bool(a == b or abs(a - b) <= TOLERANCE * (1 + abs(a) + abs(b)))


def link_law(cert: Certificate, p: Point, numbers: Scalars) -> list[str]:
    """A stage's value over the sums of its slots, at the final gauges, is its own reduction."""
    leaf = p.reader(numbers)
    finals = {f"g:{g.name}": numbers.evaluate(g.final, leaf) for g in cert.gauges}
    at = p.reader(numbers, finals)
    slots = {s.name: numbers.fold(s.monoid, numbers.evaluate(s.body, at), ELEMENTS) for s in cert.slots}
    where = p.reader(numbers, slots)
    for stage, link in zip(cert.cascade.stages, cert.links, strict=True):
        want = numbers.evaluate(stage.body, leaf)
        if stage.monoid is not None:
            want = numbers.fold(stage.monoid, want, ELEMENTS)
        if not near(numbers.evaluate(link.value, where), want):
            return [f"{link.stage}: {link.value} is not {stage}"]
        if stage.monoid == "sum" and (found := _additive(cert, link.stage, link.value, slots, p, numbers)):
            return found
    return []


def _additive(
    cert: Certificate, name: str, value: Expr, slots: dict[str, Any], p: Point, numbers: Scalars
) -> list[str]:
    """A sum's value is linear in the sums it is read from, so that it holds for those of any elements."""
    read = [s for s in cert.slots if s.name in refs(value) and s.monoid == "sum"]

    def at(shift: int) -> Any:
        moved = {s.name: slots[s.name] + shift * (k + 2) for k, s in enumerate(read)}
        return numbers.evaluate(value, p.reader(numbers, {**slots, **moved}))

    zero = numbers.evaluate(value, p.reader(numbers, {**slots, **{s.name: numbers.constant(0) for s in read}}))
    if not near(at(2) - at(1), at(1) - at(0)) or not near(zero, 0 * zero):
        return [f"{name}: {value} is not linear in its slots"]
    return []


def transport_law(cert: Certificate, p: Point, numbers: Scalars) -> list[str]:
    """Moving a slot moves its body; moving nowhere changes nothing; two moves are one."""

    def at(e: Expr, source: str, target: str) -> list[Any]:
        names = {
            f"{side}:{g.name}": p.gauges[f"{to}:{g.name}"]
            for g in cert.gauges
            for side, to in (("g", source), ("h", target))
        }
        return _list(numbers.evaluate(e, p.reader(numbers, names)))

    def row_of(name: str) -> dict[str, Expr]:
        return dict(cert.slot(name).row) or {name: Const(1.0)}

    for s in cert.slots:
        if not s.row:
            continue
        moved = [numbers.constant(0)] * ELEMENTS
        for k, c in s.row:
            body = at(cert.slot(k).body, "g", "g")
            moved = [m + at(c, "g", "h")[0] * b for m, b in zip(moved, body * (ELEMENTS // len(body)), strict=True)]
        if not all(map(near, at(s.body, "h", "h") * ELEMENTS, moved)):
            return [f"{s.name}: its row does not move its body"]
        own = row_of(s.name)
        for k in dict.fromkeys((*own, *(e for m in own for e in row_of(m)))):
            c = own.get(k, Const(0.0))
            if not near(at(c, "g", "g")[0], numbers.constant(int(k == s.name))):
                return [f"{s.name}: moving to the same gauge changes it by {k}"]
            path = sum(at(d, "h", "k")[0] * at(row_of(m).get(k, Const(0.0)), "g", "h")[0] for m, d in own.items())
            if not near(at(c, "g", "k")[0], path):
                return [f"{s.name}: two moves are not one, in {k}"]
    return []


def bound_law(cert: Certificate, p: Point, numbers: Scalars) -> list[str]:
    """Each exponent is what its multipliers make of the facts, plus something of elements alone that is <= 0."""
    finals: dict[Expr, Expr] = {Ref(f"g:{g.name}"): g.final for g in cert.gauges}
    for s in cert.slots:
        for e, proof in zip(exponentials(s.body), s.bound, strict=True):
            if not proof:
                continue
            rest: Expr = substitute(e.args[0], finals)
            for k, fact in proof:
                if axes(k) & {cert.cascade.axis} or refs(k) & set(p.results):
                    return [f"{s.name}: the multiplier {k} is not the row's"]
                if numbers.evaluate(k, p.reader(numbers)) < 0:
                    return [f"{s.name}: the multiplier {k} is negative"]
                rest = apply("sub", rest, apply("mul", k, apply("sub", fact.low, fact.high)))
            moved = {n: v * 2 + 1 for n, v in p.results.items()}
            here = _list(numbers.evaluate(rest, p.reader(numbers)))
            there = _list(numbers.evaluate(rest, p.reader(numbers, moved)))
            if any(v > TOLERANCE for v in here) or not all(map(near, here, there)):
                return [f"{s.name}: the exponent {e.args[0]} is not bounded by its proof"]
    return []


def _list(v: Any) -> list[Any]:
    return v if isinstance(v, list) else [v]


def range_law(cert: Certificate, numbers: Scalars) -> list[str]:
    """A maximum may start at 0 only if no element is below."""
    found = []
    for s in cert.slots:
        if s.monoid in ("max", "min") and s.identity == 0.0:
            for seed in range(20):
                values = sample(cert.cascade, ELEMENTS, seed, True, 3.0)
                for v in _list(numbers.evaluate(s.body, reader(values, numbers))):
                    if (v < 0) if s.monoid == "max" else (v > 0):
                        found.append(f"{s.name}: {s.identity} is no identity, an element is {float(v):g}")
    return found[:1]


def fact_law(cert: Certificate, points: list[Point], numbers: Scalars) -> list[str]:
    """Facts are true by what their source is, and hold where they are tried."""
    inlined: dict[Expr, Expr] = {}
    bodies: dict[str, tuple[str | None, Expr]] = {}
    for stage in cert.cascade.stages:
        body = substitute(stage.body, inlined)
        bodies[stage.name] = (stage.monoid, body)
        if stage.monoid is None:
            inlined[Ref(stage.name)] = body
    for s in cert.slots:
        for proof in s.bound:
            for _, fact in proof:
                if not _true(fact, bodies, points, numbers):
                    return [f"{s.name}: {fact} is not known"]
    for link in cert.links:
        for fact in link.given:
            if not _true(fact, bodies, points, numbers):
                return [f"{link.stage}: {fact} is not known"]
    return []


def _true(fact: Fact, bodies: dict[str, tuple[str | None, Expr]], points: list[Point], numbers: Scalars) -> bool:
    monoid, body = bodies.get(fact.source, (None, None))
    match fact.low, fact.high:
        case (low, Ref(name)) if name == fact.source and monoid == "max":
            return low is body
        case (Ref(name), high) if name == fact.source and monoid == "min":
            return high is body
        case (low, Apply("maximum", parts)) if fact.source == f"row definition {fact.high}":
            return low in parts
        case (Apply("minimum", parts), high) if fact.source == f"row definition {fact.low}":
            return high in parts
    if fact.source != "range":
        return False
    both = apply("sub", fact.low, fact.high)
    return all(v <= TOLERANCE for p in points for v in _list(numbers.evaluate(both, p.reader(numbers))))


def claimed(cert: Certificate, numbers: Scalars) -> list[str]:
    """An exponent without a proof is one that does exceed 0 (a bound that was lost is a fault)."""
    for s in cert.slots:
        open_ = [e for e, proof in zip(exponentials(s.body), s.bound, strict=True) if not proof]
        if open_ and not all(_exceeds(cert, e.args[0], numbers) for e in open_):
            return [f"{s.name}: an exponent is bounded, but its proof is missing"]
    return []


def _exceeds(cert: Certificate, exponent: Expr, numbers: Scalars) -> bool:
    e = substitute(exponent, {Ref(f"g:{g.name}"): g.final for g in cert.gauges})
    for seed in range(60):
        values = sample(cert.cascade, ELEMENTS, seed, bool(seed % 2), 2.0)
        leaf = reader(values, numbers)
        results = direct(cert.cascade, Block(ELEMENTS, leaf), leaf, numbers)
        if any(v > 0 for v in _list(numbers.evaluate(e, Point(values, results, {}).reader(numbers)))):
            return True
    return False
