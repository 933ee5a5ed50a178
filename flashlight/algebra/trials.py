"""Running a certificate against the program it is for (used by the checker).

In many digits: block by block, split and merged, every intermediate result.  In float64: the unit law, masked first
blocks, rows of nothing but masked elements, and NaN where the program has NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from flashlight.algebra.arithmetic import FLOATS, Scalars, precise
from flashlight.algebra.laws import DIGITS, exponentials, leaves, reader, sample
from flashlight.algebra.proof import Cascade, Certificate, Gauge, Link
from flashlight.algebra.stream import Block, Machine, State, direct
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
    kind,
    refs,
    rewrite,
    substitute,
    walk,
)

SHORT = 12  # elements of a run; an axis of a literal length up to LONGEST is run as it is
LONGEST = 512
Values = dict[Expr, Any]
MASKS: dict[str, tuple[Any, ...]] = {"bool": (False, True), "int": (-1, 10**6), "real": (-math.inf, math.inf, 0.0)}


def faults(certificate: Certificate) -> list[str]:
    cert = shortened(certificate)
    extent = cert.cascade.extent
    fixed = int(extent.value) if isinstance(extent, Const) else None
    numbers = precise(DIGITS) if (fixed or SHORT) <= 4 * SHORT else FLOATS
    for seed, signed, size, n in ((11, False, 1.0, SHORT), (12, True, 1e-3, SHORT), (14, False, 1.0, 1)):
        n = fixed or n
        values = _scaled(sample(cert.cascade, n, seed, signed), size)
        if not _finite(direct(cert.cascade, *_whole(values, n, numbers))):
            continue
        if found := whole(cert, values, n, numbers) or freedom(cert, values, n, numbers):
            return found
    n = fixed or SHORT
    values = sample(cert.cascade, n, 13, False)
    return units(cert, values, n) or nothing(cert) or masked(cert, values, n) or infinite(cert, values, n)


def _scaled(values: Values, size: float) -> Values:
    real = {e for e in values if kind(e) == "real" and isinstance(values[e], list)}
    return {e: [size * x for x in v] if e in real else v for e, v in values.items()}


def shortened(cert: Certificate) -> Certificate:
    """The same certificate over a shorter axis: a literal length occurs as itself and as its reciprocal."""
    extent = cert.cascade.extent
    if not isinstance(extent, Const) or extent.value <= LONGEST:
        return cert
    long, n = float(extent.value), Size("elements")
    short = apply("real", n)

    def rule(e: Expr) -> Expr | None:
        match e:
            case Load() | Fold():
                return e
            case Const(float(v)) if v == long:
                return short
            case Const(float(v)) if v == 1 / long:
                return apply("div", Const(1.0), short)
        return short if e is apply("real", extent) else None

    def change(e: Expr) -> Expr:
        return rewrite(e, rule)

    stages = tuple(replace(s, body=change(s.body)) for s in cert.cascade.stages)
    return replace(
        cert,
        cascade=Cascade(cert.cascade.axis, n, stages, tuple(map(change, cert.cascade.outputs))),
        slots=tuple(replace(s, body=change(s.body), row=tuple((k, change(c)) for k, c in s.row)) for s in cert.slots),
        gauges=tuple(replace(g, final=change(g.final), value=change(g.value)) for g in cert.gauges),
        links=tuple(replace(k, value=change(k.value)) for k in cert.links),
    )


def _whole(values: Values, n: int, numbers: Scalars) -> tuple[Block, Callable[[Expr], Any], Scalars]:
    return Block(n, reader(values, numbers)), reader(values, numbers), numbers


def _blocks(values: Values, n: int, numbers: Scalars) -> list[Block]:
    edges = sorted({0, n // 4, min(n, n // 4 + 1), (2 * n) // 3, n})
    return [Block(b - a, reader(values, numbers, a, b)) for a, b in itertools.pairwise(edges)]


def _run(machine: Machine, values: Values, n: int, numbers: Scalars = FLOATS) -> tuple[State, State]:
    """One loop, and a split merged in pairs."""
    loop, parts = machine.identity(), []
    for block in _blocks(values, n, numbers):
        loop = machine.roll(loop, block)
        parts.append(machine.lift(block))
    while len(parts) > 1:
        parts = [
            machine.merge(*p) if len(p) == 2 else p[0] for p in (parts[k : k + 2] for k in range(0, len(parts), 2))
        ]
    return loop, parts[0]


def _finite(results: dict[str, Any]) -> bool:
    return all(v == v and abs(v) < math.inf for v in results.values())


def _close(a: Any, b: Any, numbers: Scalars) -> bool:
    if a != a or b != b:
        return bool(a != a and b != b)
    tolerance, floor = (1e-8, 1e-4) if numbers is FLOATS else (1e-30, 1e-12)
    return bool(a == b or abs(a - b) <= tolerance * max(abs(a), abs(b), floor))


# ---- in many digits --------------------------------------------------------------------------------------------------
def whole(cert: Certificate, values: Values, n: int, numbers: Scalars) -> list[str]:
    """One loop, and a split merged in order: every intermediate result is the program's."""
    machine = Machine(cert, reader(values, numbers), numbers)
    want = direct(cert.cascade, *_whole(values, n, numbers))
    state = machine.identity()
    for block in _blocks(values, n, numbers):
        state = machine.roll(state, block)
        if found := _bounded(machine, state, block):
            return found
    loop, split = _run(machine, values, n, numbers)
    for how, state in (("a loop", loop), ("a split", split)):
        got = machine.finish(state)
        for name, value in want.items():
            if not _close(got[name], value, numbers):
                return [f"{name}: {how} gives {float(got[name]):g} and the program {float(value):g}"]
        if found := _same(machine, state, got, numbers):
            return found
    return []


def _reading(names: dict[str, Any], leaf: Callable[[Expr], Any]) -> Callable[[Expr], Any]:
    return lambda e: names[e.name] if isinstance(e, Ref) and e.name in names else leaf(e)


def _bounded(machine: Machine, state: State, block: Block) -> list[str]:
    """What was proved of an exponent holds at the running gauges too."""
    cert = machine.certificate
    gauges = {f"g:{g.name}": machine.running(g, _reading(state, machine.row)) for g in cert.gauges}
    leaf = _reading(gauges, block.leaf)
    for s in cert.slots:
        for e, proof in zip(exponentials(s.body), s.bound, strict=True):
            values = machine.evaluate(e.args[0], leaf)
            if proof and any(v > 1e-9 for v in (values if isinstance(values, list) else [values])):
                return [f"{s.name}: the exponent {e.args[0]} exceeds 0 at a running gauge"]
    return []


def _same(machine: Machine, state: State, results: dict[str, Any], numbers: Scalars) -> list[str]:
    where = _reading({**state, **results}, machine.row)
    for g in machine.certificate.gauges:
        final = machine.evaluate(g.final, where)
        if g.same and not _close(machine.running(g, where), final, numbers):
            return [f"gauge {g.name}: at the end it is not {g.final}"]
    return []


def freedom(cert: Certificate, values: Values, n: int, numbers: Scalars) -> list[str]:
    """Outputs do not notice when a gauge that need not be exact is moved."""
    machine = Machine(cert, reader(values, numbers), numbers)
    state = machine.lift(Block(n, reader(values, numbers)))
    for g in cert.gauges:
        if g.exact:
            continue
        if not cert.cascade.outputs:
            return [f"gauge {g.name}: free, though nothing is said to be all that is read"]
        here = machine.running(g, _reading(state, machine.row))
        wants, gots = _outputs(machine, state, g, here), _outputs(machine, state, g, here * 1.25 + 0.5)
        for out, want, got in zip(cert.cascade.outputs, wants, gots, strict=True):
            if not all(_close(a, b, numbers) for a, b in zip(want, got, strict=True)):
                return [f"gauge {g.name}: {out} depends on it"]
    return []


def _outputs(machine: Machine, state: State, g: Gauge, to: Any) -> list[list[Any]]:
    """The outputs with a gauge moved, and its value used wherever what it stands for is read."""
    cert = machine.certificate
    where = _reading(state, machine.row)
    at = {f"h:{k.name}": machine.running(k, where) for k in cert.gauges}
    at[f"h:{g.name}"] = to
    moved: dict[str, Any] = {
        s.name: machine.moved(s.name, state, {f"h:{k}": at[f"h:{k}"] for k in s.gauges}) for s in cert.slots
    }
    stands: dict[Expr, Expr] = {g.final: Ref(f"h:{g.name}")}
    names = {**moved, f"h:{g.name}": to}
    for link in cert.links:
        value = stands.get(Ref(link.stage), substitute(link.value, stands))
        names[link.stage] = machine.evaluate(value, _reading(names, machine.row))
    out = []
    for o in cert.cascade.outputs:
        value = machine.evaluate(substitute(o, stands), _reading(names, machine.row))
        out.append(value if isinstance(value, list) else [value])
    return out


# ---- in float64 ------------------------------------------------------------------------------------------------------
def units(cert: Certificate, values: Values, n: int) -> list[str]:
    """Merging with nothing changes nothing, to the last bit: near 0 and far from it."""
    for offset in (0.0, -1e5, 1e5):
        moved = {
            e: [x + offset for x in v] if isinstance(v, list) and kind(e) == "real" else v for e, v in values.items()
        }
        machine = Machine(cert, reader(moved, FLOATS))
        some, nothing = machine.lift(Block(n, reader(moved, FLOATS))), machine.identity()
        for merged in (machine.merge(some, nothing), machine.merge(nothing, some)):
            for name, value in some.items():
                if math.isfinite(value) and merged[name] != value:
                    return [f"{name}: merged with nothing, {value:g} becomes {merged[name]:g}"]
    return []


def nothing(cert: Certificate) -> list[str]:
    """A gauge that is infinite or NaN before the first element says so by being empty."""
    values = sample(cert.cascade, 1, 13, False)
    machine = Machine(cert, reader(values, FLOATS))
    for g in cert.gauges:
        value = machine.evaluate(g.value, _reading(machine.identity(), machine.row))
        if not math.isfinite(value) and not (value == g.empty or (value != value and math.isnan(g.empty))):
            return [f"gauge {g.name}: {value} at first, and empty at {g.empty}"]
    return []


def masked(cert: Certificate, values: Values, n: int) -> list[str]:
    """With the first elements masked, and with all of them, results are the program's, NaN included."""
    for fill in _fills(cert, values, n):
        for until in sorted({n // 4, min(n, n // 4 + 1), n}):
            changed = dict(values)
            for leaf, v in fill.items():
                if isinstance(values[leaf], list):
                    changed[leaf] = [v] * until + values[leaf][until:]
                elif until == n or kind(leaf) == "real":
                    changed[leaf] = v
            machine = Machine(cert, reader(changed, FLOATS))
            want = direct(cert.cascade, *_whole(changed, n, FLOATS))
            for state in _run(machine, changed, n):
                got = machine.finish(state)
                for link in cert.links:
                    a, b = got[link.stage], want[link.stage]
                    if not _close(a, b, FLOATS) and not _excused(link, a, b, want):
                        where = ", ".join(f"{e} = {v}" for e, v in fill.items())
                        return [f"{link.stage}: with {where} for {until} of {n} it is {a:g}, in the program {b:g}"]
    return []


def _excused(link: Link, ours: float, program: float, results: dict[str, float]) -> bool:
    """Infinities that no finite sum keeps: inf - inf between terms, and a late factor that is infinite itself."""
    if ours != ours:
        return math.isinf(program) and link.rank > 1
    late = link.form == "late" and any(math.isinf(results.get(r, 0.0)) for r in refs(link.value))
    return program != program and math.isinf(ours) and late


def infinite(cert: Certificate, values: Values, n: int) -> list[str]:
    """NaN among the elements is not lost, nor is an infinity of a maximum or the NaN of a mean of two infinities."""
    inside = {e for s in cert.cascade.stages if s.monoid in ("max", "min") for e in walk(s.body)}
    for leaf in leaves(cert.cascade):
        if kind(leaf) != "real" or not isinstance(values[leaf], list):
            continue
        for specials in ((math.nan,), (math.inf,), (math.inf, -math.inf)):
            row = list(values[leaf])
            start = n - 2 if len(specials) == 2 else n // 2
            row[start : start + len(specials)] = specials
            changed = {**values, leaf: row}
            machine = Machine(cert, reader(changed, FLOATS))
            want = direct(cert.cascade, *_whole(changed, n, FLOATS))
            for state in _run(machine, changed, n):
                got = machine.finish(state)
                for link in cert.links:
                    a, b = got[link.stage], want[link.stage]
                    finals = _finals(cert, link, want, machine)
                    lost = a == a and (specials[0] != specials[0] or any(v != v for v in finals))
                    one = leaf in inside and len(specials) == 1 and link.rank <= 1
                    wrong = one and a != b and math.isinf(b) and all(map(math.isfinite, finals))  # a guard of its own
                    if (b != b and lost) or wrong:
                        return [f"{link.stage}: with {leaf} = {specials} it is {a:g}, in the program {b:g}"]
    return []


def _finals(cert: Certificate, link: Link, results: dict[str, Any], machine: Machine) -> list[float]:
    """What the gauges it hangs on stand for in the end."""
    hung = sorted({n for s in cert.slots if s.name in refs(link.value) for n in s.gauges})
    return [machine.evaluate(cert.gauge(n).final, _reading(results, machine.row)) for n in hung]


def _fills(cert: Certificate, values: Values, n: int) -> Iterator[dict[Expr, Any]]:
    """Values of leaves that mask an element: with them a maximum reads -inf (or 0, where that is the least)."""
    cascade = cert.cascade
    found: dict[Expr, Any] = {}
    open_: dict[Expr, Any] = {e: True for e in leaves(cascade) if kind(e) == "bool"}
    open_ |= {e: 10**6 for e in leaves(cascade) if isinstance(e, Index) and not isinstance(values[e], list)}
    for stage in cascade.stages:
        if stage.monoid not in ("max", "min") or refs(stage.body) & {s.name for s in cascade.stages}:
            continue
        ends = (-math.inf if stage.monoid == "max" else math.inf, 0.0)
        inside = set(walk(stage.body))
        for leaf in (e for e in leaves(cascade) if e in inside):
            for v, around in itertools.product(MASKS[kind(leaf)], ({}, open_)):
                fill = {**around, leaf: v} if kind(leaf) == "real" else {leaf: v}
                changed = {**values, **{e: [x] * n if isinstance(values[e], list) else x for e, x in fill.items()}}
                got = FLOATS.evaluate(stage.body, reader(changed, FLOATS))
                if any(all(x == end for x in (got if isinstance(got, list) else [got])) for end in ends):
                    found.setdefault(leaf, v)
                    yield fill
    for e in leaves(cascade):  # weights that are all 0: a mean of nothing
        if kind(e) == "bool" and cascade.axis in axes(e) and e not in found:
            yield {e: False}
    for e in dict.fromkeys(e for g in cert.gauges for e in walk(g.final)):  # a sink of -inf
        if isinstance(e, Load) and (_beside(cert, e, "maximum") or _beside(cert, e, "minimum")):
            yield {**found, e: math.inf if _beside(cert, e, "minimum") else -math.inf}
    if len(found) > 1:
        yield found


def _beside(cert: Certificate, leaf: Expr, op: str) -> bool:
    """Is the leaf compared with a result in some gauge (max(m, sink))?"""
    return any(isinstance(e, Apply) and e.op == op and leaf in e.args for g in cert.gauges for e in walk(g.final))
