"""A certificate in the making: slots, gauges and links as they are found, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

from flashlight.algebra.bounds import Bounds
from flashlight.algebra.field import Field, where_finite
from flashlight.algebra.proof import Cascade, Fact, Gauge, Link, Slot, Verdict
from flashlight.algebra.special import Value, extended
from flashlight.algebra.terms import ONE, product, total
from flashlight.expr import (
    FALSE,
    IDENTITY,
    INF,
    Apply,
    Const,
    Expr,
    Fold,
    Load,
    Ref,
    Size,
    apply,
    kind,
    refs,
    rewrite,
    substitute,
    walk,
)

DUAL = {"max": "min", "min": "max"}
ROW_OPS = ("add", "sub", "mul", "div", "neg", "real")  # what a mean may be made of


class Undecided(Exception):
    """Ends a derivation; caught in ``decide``, which returns what it carries."""

    def __init__(self, verdict: Verdict):
        super().__init__(str(verdict))
        self.verdict = verdict


class Draft:
    def __init__(self, cascade: Cascade):
        self.cascade = cascade
        self.monoids = {s.name: s.monoid for s in cascade.stages if s.monoid}
        results = frozenset(self.monoids)
        self.cut, self.full = Field(cascade.axis, results, True), Field(cascade.axis, results, False)
        self.bounds = Bounds(self.full)
        for field in (self.cut, self.full):
            field.nonnegative = self.bounds.nonnegative
        self.full.sign = self.bounds.sign
        self.cut.sign = lambda t: self.bounds.sign(self.full.term(self.cut.expr(t)))
        self.slots: dict[str, Slot] = {}
        self.gauges: dict[tuple[Expr, bool], Gauge] = {}
        self.links: dict[str, Link] = {}
        self.running: dict[Expr, Expr] = {}  # Ref(stage) -> its value for the prefix, over slots
        bodies = (*(s.body for s in cascade.stages), *cascade.outputs, cascade.extent)
        self.taken = {s.name for s in cascade.stages}.union(*map(refs, bodies))

    # ---- slots -------------------------------------------------------------------------------------------------
    def slot(
        self,
        owner: str,
        monoid: str,
        body: Expr,
        row: tuple[tuple[str, Expr], ...] = (),
        bound: tuple[tuple[tuple[Expr, Fact], ...], ...] = (),
    ) -> Slot:
        """The slot with this monoid and body, made if there is none: stages share what they have in common."""
        for s in self.slots.values():
            if s.monoid == monoid and s.body is body:
                return s
        gauges = self.hung(body, row)
        identity = IDENTITY[monoid]
        low, high = self.bounds.interval(body)
        if (monoid == "max" and low >= 0) or (monoid == "min" and high <= 0):
            identity = 0.0  # the end of the range; infinity would meet 0 in (g/h)**p
        name = self.fresh("n" if body is Const(1.0) and monoid == "sum" else owner)
        self.slots[name] = Slot(name, monoid, body, identity, gauges, row, bound)
        self.bounds.ranges[Ref(name)] = self.range_of(monoid, body)
        return self.slots[name]

    def set_row(self, name: str, row: tuple[tuple[str, Expr], ...]) -> None:
        gauges = self.hung(self.slots[name].body, row)
        self.slots[name] = replace(self.slots[name], row=row, gauges=gauges)

    def hung(self, body: Expr, row: tuple[tuple[str, Expr], ...]) -> tuple[str, ...]:
        """The gauges of a slot: those of its body, and of the slots that it is moved by."""
        used = refs(body).union(*(refs(c) for _, c in row))
        return tuple(g.name for g in self.gauges.values() if {f"g:{g.name}", f"h:{g.name}"} & used)

    def fresh(self, stem: str) -> str:
        """Names of slots and gauges are those of no stage: a result and the slot it is read from are two things."""
        name, k = f"{stem}'", 1
        while name in self.taken:
            name, k = f"{stem}.{k}", k + 1
        self.taken.add(name)
        return name

    def range_of(self, monoid: str, body: Expr) -> tuple[float, float]:
        low, high = self.bounds.interval(body)
        if monoid in DUAL:
            return low, high
        return (0.0 if low >= 0 else -INF), (0.0 if high <= 0 and monoid == "sum" else INF)

    def count(self) -> Expr:
        return Ref(self.slot("n", "sum", Const(1.0)).name)

    # ---- gauges ------------------------------------------------------------------------------------------------
    def ordered(self, e: Expr) -> bool:
        """Does a maximum or minimum of the elements stand in it (so that it may be infinite)?"""
        return any(self.monoids.get(r) in DUAL for r in refs(e))

    def plain_mean(self, e: Expr) -> bool:
        """Made of sums by arithmetic alone: what may serve as a centre."""
        return all(n.op in ROW_OPS for n in walk(e) if isinstance(n, Apply))

    def follow(self, slots: Iterable[Slot], factor: Iterable[tuple[Expr, Fraction]]) -> None:
        """Slots that are multiplied by one factor when their gauges move."""
        move = total([(ONE, product(factor))])
        for s in slots:
            if s.gauges and not self.slots[s.name].row:
                self.set_row(s.name, ((s.name, move),))

    def of_prefix(self, final: Expr) -> bool:
        """Is it a mean of the elements so far, if computed of those?"""
        leaves = [
            e for e in walk(final) if isinstance(e, (Load, Fold, Size)) or (isinstance(e, Const) and e.value != 0)
        ]
        return not leaves or self._own_count(final) is not final

    def gauge(self, final: Expr, upper: bool | None, scaled: bool = False, own: Expr | None = None) -> Gauge:
        """The gauge that stands for a result.  ``upper``: does a fact say that elements are below it (True), above it
        (False) or nothing (None)?  ``scaled``: elements are divided by it.  ``own``: a running value that becomes
        another one at the end."""
        key = (final, scaled)
        if key not in self.gauges:
            name = final.name if isinstance(final, Ref) else self.fresh("_".join(sorted(refs(final))))
            if isinstance(final, Ref) and any(g.name == name for g in self.gauges.values()):
                name = self.fresh(name)
            if own is not None:
                made = Gauge(name, final, own, math.nan, 0.0, same=False)
            elif scaled:
                made = Gauge(name, final, substitute(final, self.running), 0.0, 1.0)
            elif self.ordered(final):
                made = self._extreme(name, final, upper)
            else:
                made = self._mean(name, final, upper is not None)
            self.gauges[key] = made
            for ref in (Ref(f"g:{name}"), Ref(f"h:{name}")):
                self.bounds.ranges[ref] = self.bounds.interval(final)
        return self.gauges[key]

    def as_result(self, slot: Slot) -> Ref:
        """The slot's value for all elements as one more result: what is known of the maximum of ``s`` serves where the
        program reads the maximum of ``s + r``."""
        ref = Ref(slot.name)
        if slot.name not in self.monoids:
            self.monoids[slot.name] = slot.monoid
            for field in (self.cut, self.full):
                field.results |= {slot.name}
            below, above = (slot.body, ref) if slot.monoid == "max" else (ref, slot.body)
            self.bounds.learn(below, above, slot.name)
        return ref

    def gauge_of(self, slot: Slot, exact: bool) -> Gauge:
        """The gauge that is a slot's own value so far.  ``exact``: an infinite one is a value like others."""
        key = (Ref(slot.name), exact)
        if key not in self.gauges:
            nothing = math.isinf(slot.identity) and not exact
            empty, safe = (slot.identity, 0.0) if nothing else (math.nan, math.nan)
            self.gauges[key] = Gauge(self.fresh(slot.name.rstrip("'")), key[0], key[0], empty, safe)
        return self.gauges[key]

    def identity_value(self, e: Expr) -> Value:
        return extended(e, {Ref(s.name): s.identity for s in self.slots.values()})

    def _extreme(self, name: str, final: Expr, upper: bool | None) -> Gauge:
        """A running maximum: -inf until a live element is seen, and then slots hold their identity."""
        value = substitute(final, self.running)
        core = where_finite(value)
        at_first = self.identity_value(core)
        if at_first is None and upper is not None:  # max(m, sink): -inf only if the sink is
            at_first = -INF if upper else INF
        if not isinstance(at_first, float) or not math.isinf(at_first):
            return Gauge(name, final, value if upper is not None else self._once_seen(value), math.nan, 0.0)
        safe = 0.0
        if core is not value and isinstance(guarded := self.identity_value(value), float) and math.isfinite(guarded):
            safe = guarded  # the program's own guard, here applied where lowering applies ours
            value = apply("select", apply("eq", core, Const(at_first)), Const(at_first), value)
        return Gauge(name, final, value, at_first, safe)

    def _mean(self, name: str, final: Expr, rescales: bool) -> Gauge:
        """A running sum or mean.  The prefix's mean has the prefix's own count: S_prefix / N is a useless centre
        (Chan, Golub, LeVeque 1983 keep the same n)."""
        over = self._own_count(final)
        value = substitute(over, self.running)
        n = self.count() if over is not final else None
        empty: Expr = FALSE
        for e in walk(value):
            if isinstance(e, Apply) and e.op == "div" and e.args[1] is not n and self._zero_at_first(e.args[1]):
                empty = apply("or", empty, apply("eq", e.args[1], Const(0.0)))
        if empty is not FALSE:  # no live element yet: any finite number serves, for sums of nothing are moved
            value = apply("select", empty, Const(0.0), value)
        at_first = self.identity_value(value)
        if rescales and not (isinstance(at_first, float) and math.isnan(at_first)):
            value = self._once_seen(value)
        return Gauge(name, final, value, math.nan, 0.0)

    def _once_seen(self, value: Expr) -> Expr:
        """NaN before the first element: exp(g - h) with h far below g must not be met by the sums of nothing."""
        return apply("select", apply("eq", self.count(), Const(0.0)), Const(math.nan), value)

    def _own_count(self, final: Expr) -> Expr:
        """``final`` with the axis's length replaced by the number of elements so far."""
        extent = self.cascade.extent
        n = float(extent.value) if isinstance(extent, Const) else None

        def rule(e: Expr) -> Expr | None:
            match e:
                case Load() | Fold():
                    return e  # a length in an index is an index
                case Const(float(v)) if n is not None and v == n:
                    return self.count()
                case Const(float(v)) if n is not None and v == 1 / n:
                    return apply("div", Const(1.0), self.count())
            return self.count() if e is extent or e is apply("real", extent) else None

        return rewrite(final, rule)

    def _zero_at_first(self, e: Expr) -> bool:
        return self.identity_value(e) == 0.0 and kind(e) == "real"
