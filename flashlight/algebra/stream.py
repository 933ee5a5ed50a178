"""Running a certificate: one function, ``combine``, from which everything else follows.

The state of a row is the values of its slots.  States form a monoid under

    (s, t) . (s', t')  =  (s + s',  H(g -> h) t  +  H(g' -> h) A(s) t')          h the gauges of the whole

where H are the slots' rows, a transport with H(h -> k) H(g -> h) = H(g -> k), and A(s) moves what comes after s (the
identity, unless there are scans), an action with A(s) A(s') = A(s + s'): so the product is associative, and a fold over
it is a list homomorphism (Bird 1987).  Hence the loop over blocks (``roll``), the split over programs with a merge at
the end (``merge``), and trees of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flashlight.algebra.arithmetic import FLOATS, Leaf, Numbers
from flashlight.algebra.proof import Cascade, Certificate, Gauge, Stage, element
from flashlight.algebra.rows import term
from flashlight.expr import COMBINE, IDENTITY, PLACED, Const, Expr, Index, Ref, axes, refs, walk

State = dict[str, Any]  # slot -> value
NAN = Const(math.nan)
MISSING = object()


@dataclass(frozen=True)
class Block:
    """``size`` > 0 consecutive elements: ``leaf`` gives loads, folds and indices along the axis as lists."""

    size: int
    leaf: Leaf


def prefixes(stage: Stage, values: Any, size: int, start: Any, numbers: Numbers) -> tuple[list[Any], Any]:
    """The running values of a scan over a block, and the whole block's; ``start``: what preceded it."""
    assert stage.scan is not None
    column = values if isinstance(values, list) else [values] * size
    total, out = start, []
    for v in column[::-1] if stage.scan.reverse else column:
        before, total = total, numbers.apply("real", numbers.apply(COMBINE[stage.scan.monoid], total, v))
        out.append(total if stage.scan.inclusive else before)
    return (out[::-1] if stage.scan.reverse else out), total


def placed(stage: Stage, keys: Any, payload: Any, size: int, numbers: Numbers) -> Any:
    """What stands at a place in the order of the keys, the first of equals first, NaN before all."""
    keys, payload = (v if isinstance(v, list) else [v] * size for v in (keys, payload))
    greater = "gt" if stage.monoid in ("max", "argmax") else "lt"

    def before(i: int, j: int) -> bool:
        a, b = keys[i], keys[j]
        if a != a or b != b:
            return bool(a != a and (b == b or i < j))
        return bool(numbers.apply(greater, a, b)) or (bool(a == b) and i < j)

    at = next(i for i in range(size) if sum(before(j, i) for j in range(size)) == stage.rank)
    return numbers.apply("real", keys[at] if stage.monoid in ("max", "min") else payload[at])


@dataclass(frozen=True)
class Machine:
    """A certificate with the numbers it runs on and the leaves of the row."""

    certificate: Certificate
    row: Leaf
    numbers: Numbers = FLOATS

    def combine(self, parts: Sequence[State], block: Block | None) -> State:
        """Bring every part, and the block's own terms, to the common gauges.  Parts and block are in the certificate's
        order."""
        cert, numbers = self.certificate, self.numbers
        state: State = {}
        gauges: dict[str, Any] = {}
        running: dict[Expr, list[Any]] = {}
        leaf = self._reading(lambda name: state[name], gauges, block, running)
        for s in cert.slots:
            for name in s.gauges:
                if f"g:{name}" not in gauges:
                    gauges[f"g:{name}"] = self.running(cert.gauge(name), leaf)
            value: Any = self.evaluate(Const(s.identity), leaf)
            for k, part in enumerate(parts):
                to = {f"h:{n}": gauges[f"g:{n}"] for n in s.gauges}
                moved = self.moved(s.name, part, to | (self._reached(parts[:k]) if k else {}))
                value = numbers.apply(COMBINE[s.monoid], moved, value)
            if block is not None:
                self._scan(parts, block, running, leaf, s.body)
                own = numbers.fold(s.monoid, self.evaluate(s.body, leaf), block.size)
                value = numbers.apply(COMBINE[s.monoid], value, own) if parts else own
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

    # ---- scans -------------------------------------------------------------------------------------------------
    def _scans(self) -> list[tuple[Stage, str]]:
        """The scans with the slots that hold what they have reached."""
        links = self.certificate.links
        pairs = zip(self.certificate.cascade.stages, links, strict=True)
        return [(s, k.value.name) for s, k in pairs if s.scan is not None and isinstance(k.value, Ref)]

    def _reached(self, parts: Sequence[State]) -> dict[str, Any]:
        """What the scans have reached after these parts."""
        out: dict[str, Any] = {}
        for stage, slot in self._scans():
            assert stage.scan is not None
            total = self.evaluate(Const(IDENTITY[stage.scan.monoid]), self.row)
            for p in parts:
                total = self.numbers.apply(COMBINE[stage.scan.monoid], total, p[slot])
            out[f"c:{stage.name}"] = total
        return out

    def _scan(
        self, parts: Sequence[State], block: Block, running: dict[Expr, list[Any]], leaf: Leaf, body: Expr
    ) -> None:
        """The running values that a body reads, the parts before the block included."""
        nodes = set(walk(body))
        for stage, _ in self._scans():
            at = element(self.certificate.cascade, stage.name)
            if at in nodes and at not in running:
                self._scan(parts, block, running, leaf, stage.body)
                start = self._reached(parts)[f"c:{stage.name}"]
                values = self.evaluate(stage.body, leaf)
                running[at] = prefixes(stage, values, block.size, start, self.numbers)[0]

    # ---- transport ---------------------------------------------------------------------------------------------
    def moved(self, name: str, part: State, to: dict[str, Any]) -> Any:
        """One slot of a state, transported.  From a gauge that has seen nothing there is nothing to bring."""
        cert = self.certificate
        slot = cert.slot(name)
        values = dict(to)
        preceded = any(n[:2] == "c:" for n in to) and any(
            element(cert.cascade, s.name) in set(walk(slot.body)) for s, _ in self._scans()
        )
        row = slot.action if preceded else slot.row
        if not row:
            if preceded:
                raise ValueError(f"{name} has no action: its parts cannot be merged")
            return part[name]
        leaf = self._reading(lambda n: part[n], values, None, {})
        for g in slot.gauges:
            values[f"g:{g}"] = self.running(cert.gauge(g), leaf, to[f"h:{g}"])
        if preceded and any(self.running(cert.gauge(g), leaf, MISSING) is MISSING for g in slot.gauges):
            values |= self._reached(())
        total: Any = None
        for k, coefficient in row:
            value = self.evaluate(term(slot.monoid, coefficient, Ref(k)), leaf)
            total = value if total is None else self.numbers.apply(COMBINE[slot.monoid], total, value)
        return total

    def running(self, g: Gauge, leaf: Leaf, instead: Any = None) -> Any:
        """The gauge's value for a state, or ``instead`` (by default what is safe) where nothing has been seen."""
        value = self.evaluate(g.value, leaf)
        empty = value != value if math.isnan(g.empty) else value == g.empty
        if not empty:
            return value
        return self.evaluate(Const(g.safe), leaf) if instead is None else instead

    # ---- results -----------------------------------------------------------------------------------------------
    def finish(self, state: State) -> dict[str, Any]:
        """The results of all stages."""
        cert = self.certificate
        state = dict(state)
        results: dict[str, Any] = {}
        where = self._reading(lambda n: results[n] if n in results else state[n], {}, None, {})
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

    def _reading(
        self,
        slot: Callable[[str], Any],
        gauges: dict[str, Any],
        block: Block | None,
        running: dict[Expr, list[Any]],
    ) -> Leaf:
        names = {s.name for s in self.certificate.slots} | {k.stage for k in self.certificate.links}
        axis = self.certificate.cascade.axis

        def leaf(e: Expr) -> Any:
            if isinstance(e, Ref) and e.name in gauges:
                return gauges[e.name]
            if isinstance(e, Ref) and e.name in names:
                return slot(e.name)
            if e in running:
                return running[e]
            return block.leaf(e) if block is not None and axis in axes(e) else self.row(e)

        return leaf


def direct(cascade: Cascade, block: Block, row: Leaf, numbers: Numbers = FLOATS) -> dict[str, Any]:
    """The results of the program as written: one pass a stage."""
    results: dict[str, Any] = {}
    running: dict[Expr, list[Any]] = {}

    def leaf(e: Expr) -> Any:
        if isinstance(e, Ref) and e.name in results:
            return results[e.name]
        if e in running:
            return running[e]
        return block.leaf(e) if cascade.axis in axes(e) else row(e)

    for stage in cascade.stages:
        value = numbers.evaluate(stage.body, leaf)
        if stage.scan is not None:
            start = numbers.evaluate(Const(IDENTITY[stage.scan.monoid]), leaf)
            at = element(cascade, stage.name)
            running[at], results[stage.name] = prefixes(stage, value, block.size, start, numbers)
        elif stage.monoid in PLACED or stage.rank:
            payload = Index(cascade.axis) if stage.payload is None else stage.payload
            results[stage.name] = placed(stage, value, numbers.evaluate(payload, leaf), block.size, numbers)
        else:
            results[stage.name] = value if stage.monoid is None else numbers.fold(stage.monoid, value, block.size)
    return results


def outputs(cascade: Cascade, results: dict[str, Any], row: Leaf, numbers: Numbers = FLOATS) -> tuple[Any, ...]:
    """What is read after the loop (outputs that hold elements are left out)."""

    def leaf(e: Expr) -> Any:
        return results[e.name] if isinstance(e, Ref) and e.name in results else row(e)

    return tuple(numbers.evaluate(o, leaf) for o in cascade.outputs if cascade.axis not in axes(o))
