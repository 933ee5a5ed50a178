"""Running a certificate: one function, ``combine``, from which everything else follows.

The state of a row is the values of its slots.  States form a monoid under

    (s, t) . (s', t')  =  (s + s',  H(g -> h) t  +  H(g' -> h) t')          h the gauges of the whole

where H are the slots' rows: a transport, with H(h -> k) H(g -> h) = H(g -> k), so that the product is associative
and a fold over it is a list homomorphism (Bird 1987).  Hence the loop over blocks (``roll``), the split over programs
with a merge at the end (``merge``), and trees of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flashlight.algebra.arithmetic import FLOATS, JOIN, Leaf, Numbers
from flashlight.algebra.proof import Cascade, Certificate, Gauge
from flashlight.expr import Const, Expr, Ref, axes, refs

State = dict[str, Any]  # slot -> value
NAN = Const(math.nan)


@dataclass(frozen=True)
class Block:
    """``size`` > 0 consecutive elements: ``leaf`` gives loads, folds and indices along the axis as lists."""

    size: int
    leaf: Leaf


@dataclass(frozen=True)
class Machine:
    """A certificate with the numbers it runs on and the leaves of the row."""

    certificate: Certificate
    row: Leaf
    numbers: Numbers = FLOATS

    def combine(self, parts: Sequence[State], block: Block | None) -> State:
        """Bring every part to the common gauges and add the block's own terms there."""
        cert, numbers = self.certificate, self.numbers
        state: State = {}
        gauges: dict[str, Any] = {}
        leaf = self._reading(lambda name: state[name], gauges, block)
        for s in cert.slots:
            for name in s.gauges:
                if f"g:{name}" not in gauges:
                    gauges[f"g:{name}"] = self.running(cert.gauge(name), leaf)
            value = self.evaluate(Const(s.identity), leaf)
            if block is not None:
                value = numbers.fold(s.monoid, self.evaluate(s.body, leaf), block.size)
            for part in parts:
                moved = self.moved(s.name, part, {f"h:{n}": gauges[f"g:{n}"] for n in s.gauges})
                value = numbers.apply(JOIN[s.monoid], moved, value)
            state[s.name] = value
        return state

    def identity(self) -> State:
        return self.combine((), None)

    def lift(self, block: Block) -> State:
        return self.combine((), block)

    def roll(self, state: State, block: Block) -> State:
        return self.combine((state,), block)

    def merge(self, a: State, b: State) -> State:
        return self.combine((a, b), None)

    def moved(self, name: str, part: State, to: dict[str, Any]) -> Any:
        """One slot of a state, transported.  From a gauge that has seen nothing there is nothing to bring."""
        cert = self.certificate
        slot = cert.slot(name)
        if not slot.row:
            return part[name]
        values = dict(to)
        leaf = self._reading(lambda n: part[n], values, None)
        for g in slot.gauges:
            values[f"g:{g}"] = self.running(cert.gauge(g), leaf, to[f"h:{g}"])
        total: Any = None
        for k, coefficient in slot.row:
            term = self.numbers.apply("mul", self.evaluate(coefficient, leaf), part[k])
            total = term if total is None else self.numbers.apply("add", total, term)
        return total

    def running(self, g: Gauge, leaf: Leaf, instead: Any = None) -> Any:
        """The gauge's value for a state, or ``instead`` (by default what is safe) where nothing has been seen."""
        value = self.evaluate(g.value, leaf)
        empty = value != value if math.isnan(g.empty) else value == g.empty
        if not empty:
            return value
        return self.evaluate(Const(g.safe), leaf) if instead is None else instead

    def finish(self, state: State) -> dict[str, Any]:
        """The results of all stages."""
        cert = self.certificate
        state = dict(state)
        results: dict[str, Any] = {}
        where = self._reading(lambda n: results[n] if n in results else state[n], {}, None)
        settled: set[str] = set()
        for link in cert.links:
            late = [g for s in cert.slots if s.name in refs(link.value) for g in s.gauges]
            for name in late:
                if not cert.gauge(name).same and name not in settled:
                    self._settle(name, state, where)
                    settled.add(name)
            value = self.evaluate(link.value, where)
            for name in link.restore:
                g = cert.gauge(name)
                running = self.evaluate(g.value, where)
                if (running != running) if math.isnan(g.empty) else running == g.empty:
                    value = self.evaluate(NAN, where)
            results[link.stage] = value
        return results

    def _settle(self, name: str, state: State, where: Leaf) -> None:
        """From the last running value to the exact one, which uses results that are known by now."""
        cert = self.certificate
        here = {g.name: self.running(g, where) for g in cert.gauges}
        to = {f"h:{g}": v for g, v in here.items()}
        to[f"h:{name}"] = self.evaluate(cert.gauge(name).final, where)
        before = dict(state)
        for s in cert.slots:
            if name in s.gauges:
                state[s.name] = self.moved(s.name, before, {f"h:{g}": to[f"h:{g}"] for g in s.gauges})

    def evaluate(self, e: Expr, leaf: Leaf) -> Any:
        return self.numbers.evaluate(e, leaf)

    def _reading(self, slot: Callable[[str], Any], gauges: dict[str, Any], block: Block | None) -> Leaf:
        names = {s.name for s in self.certificate.slots} | {k.stage for k in self.certificate.links}
        axis = self.certificate.cascade.axis

        def leaf(e: Expr) -> Any:
            if isinstance(e, Ref) and e.name in gauges:
                return gauges[e.name]
            if isinstance(e, Ref) and e.name in names:
                return slot(e.name)
            return block.leaf(e) if block is not None and axis in axes(e) else self.row(e)

        return leaf


def direct(cascade: Cascade, block: Block, row: Leaf, numbers: Numbers = FLOATS) -> dict[str, Any]:
    """The results of the program as written: one pass a stage."""
    results: dict[str, Any] = {}

    def leaf(e: Expr) -> Any:
        if isinstance(e, Ref) and e.name in results:
            return results[e.name]
        return block.leaf(e) if cascade.axis in axes(e) else row(e)

    for stage in cascade.stages:
        value = numbers.evaluate(stage.body, leaf)
        results[stage.name] = value if stage.monoid is None else numbers.fold(stage.monoid, value, block.size)
    return results


def outputs(cascade: Cascade, results: dict[str, Any], row: Leaf, numbers: Numbers = FLOATS) -> tuple[Any, ...]:
    """What is read after the loop (outputs that hold elements are left out)."""

    def leaf(e: Expr) -> Any:
        return results[e.name] if isinstance(e, Ref) and e.name in results else row(e)

    return tuple(numbers.evaluate(o, leaf) for o in cascade.outputs if cascade.axis not in axes(o))
