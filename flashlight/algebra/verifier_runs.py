"""Running what a certificate says, and the program it is for: blocks, splits, gauges moved, masks, NaN, equal keys."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import SimpleNamespace as Record
from typing import Any

from flashlight.algebra import verifier_table
from flashlight.algebra.verifier_table import IDENTITY, JOIN, PLACED, Data, Malformed, Names, Table, listed

State = dict[Any, Any]
NONE = object()
MASKS: dict[str, tuple[Any, ...]] = {"bool": (False, True), "int": (-1.0, 1e6), "real": (-math.inf, math.inf, 0.0)}


class Claim:
    """A certificate with what is often asked of it.  Running values of scans are references "s:NAME"."""

    def __init__(self, table: Table, cert: Record):
        self.table, self.cert = table, cert
        self.stages, self.slots, self.gauges, self.links = cert.stages, cert.slots, cert.gauges, cert.links
        self.slot, self.gauge = ({x.name: x for x in xs} for xs in (cert.slots, cert.gauges))
        self.scans = {s.name: s for s in cert.stages if s.scan}
        self.reach = {k.stage: table.nodes[k.value].label for k in cert.links if k.stage in self.scans}  # their slots
        self.places = [s for s in cert.stages if s.monoid in PLACED or s.rank]
        self.constants = {k.stage: k.value for k in cert.links if k.form == "constant"}
        self.single = max([0, *(s.rank for s in self.places)]) + 1  # elements that there are at least
        self.least = max(2, self.single) + 1  # elements of a point
        self.here = here = table.add("index", cert.axis)
        bodies = [b for s in cert.stages for b in (s.body, s.payload) if b is not None]
        own = {s.name for s in cert.stages} | {f"s:{n}" for n in self.scans}
        nodes = list(table.below(cert.extent, *cert.outputs, *bodies, *([here] if self.places else [])))
        self.leaves = sorted(i for i in nodes if self._leaf(i, own))
        self.first = {table.put(i, {here: table.add("int", 0)}): i for i in self.leaves if self.element(i)}
        moves = [c for s in cert.slots for _, c in (*s.row, *s.action)]
        values = [e for g in cert.gauges for e in (g.value, g.final)] + [k.value for k in cert.links]
        nodes += table.below(*moves, *values, *(s.body for s in cert.slots))
        rational = {table.nodes[i].label for i in nodes if table.nodes[i].kind == "apply"} <= verifier_table.RATIONAL
        self.exact = "fraction" if rational else "decimal"

    def _leaf(self, i: int, own: set[str]) -> bool:
        n = self.table.nodes[i]
        if n.kind == "fold" and self.table.refs[i] & own:
            raise Malformed("a fold with results inside")
        return n.kind in ("load", "fold", "index", "size") or (n.kind == "ref" and n.label not in own)

    def element(self, i: int) -> bool:
        return self.cert.axis in self.table.axes[i]

    def kind(self, i: int) -> str:
        n = self.table.nodes[i]
        return str(n.label[1]) if n.kind == "load" else "int" if n.kind in ("index", "size") else "real"

    def reads(self, s: Record) -> bool:
        """Does a slot read running values?"""
        return any(f"s:{k}" in self.table.refs[s.body] for k in self.scans)

    def data(self, values: dict[int, Any], mode: str = "float") -> Data:
        firsts = {i: values[leaf][0] for i, leaf in self.first.items() if i not in values}
        return Data(self.table, {**firsts, **values}, mode)

    def sample(self, n: int, seed: int, mode: str = "float", sign: int = 0, few: bool = False) -> dict[int, Any]:
        """Numbers for the leaves.  ``sign`` 0: what belongs to the row is positive; 1: half of it is not; 2: all is.
        ``few``: many are equal."""
        rng, number = random.Random(seed), verifier_table.MODES[mode][1]

        def draw(i: int) -> Any:
            node, kind = self.table.nodes[i].kind, self.kind(i)
            if node in ("size", "index"):
                return number(n if node == "size" else n // 2)
            if kind != "real":
                return rng.random() < 0.7 if kind == "bool" else number(rng.randrange(n))
            low = -1.5 if sign < 2 and self.element(i) else 0.25
            v = number(rng.choice((-1, 0, 1, 1, 2)) if few else Fraction(rng.randrange(int(low * 97), 150), 97))
            return -v if sign == 1 and not self.element(i) and (seed + i) % 2 else v

        every = {i: [draw(i) for _ in range(n)] if self.element(i) else draw(i) for i in self.leaves}
        return every | {i: [number(k) for k in range(n)] for i in every if i == self.here}

    def direct(self, d: Data, n: int, free: random.Random | None = None, constants: bool = True) -> State:
        """The results as the program has them, and running values.  ``free``: sums, and what is made of elements alone,
        are changed at random.  ``constants``: with those that stand in for results."""
        out: State = {}
        memo: dict[int, Any] = {}
        for s in self.stages:
            v = d.value(s.body, out, memo)
            if constants and s.name in self.constants:
                out[s.name] = d.value(self.constants[s.name], out)
            elif s.scan:
                out[f"s:{s.name}"], out[s.name] = running(d, s.scan, v, n, d.number(IDENTITY[s.scan[0]]))
            elif s in self.places:
                payload = d.value(self.here if s.payload is None else s.payload, out, memo)
                out[s.name] = placed(s, listed(v, n), listed(payload, n))
            else:
                out[s.name] = v if s.monoid is None else d.fold(s.monoid, v, n)
                plain = s.monoid in ("sum", "prod") or (s.monoid and not self.table.refs[s.body] & out.keys())
                if free is not None and plain:
                    out[s.name] *= d.number(Fraction(free.randrange(100, 150), 100))
        return out

    def combine(self, row: Data, parts: Sequence[State], block: tuple[Data, int] | None = None) -> State:
        """Bring parts and a block, in their order, to common gauges."""
        names: State = {}
        memo: dict[int, Any] = {}
        reached = {f"s:{k}": self.reached(row, parts, k) for k in self.scans}
        for s in self.slots:
            for g in s.gauges:
                if f"g:{g}" not in names:
                    names[f"g:{g}"] = self.running(row, g, names)
            values = [self.moved(row, s, part, names, parts[:k]) for k, part in enumerate(parts)]
            if block is not None:
                self._scan(*block, s.body, names, reached, memo)
                values.append(block[0].fold(s.monoid, block[0].value(s.body, names, memo), block[1]))
            names[s.name] = row.join(s.monoid, *(values or [row.number(s.identity)]))
        return {s.name: names[s.name] for s in self.slots}

    def _scan(self, d: Data, n: int, body: int, names: State, reached: State, memo: dict[int, Any]) -> None:
        """The running values that a body reads."""
        for r in sorted(self.table.refs[body] & reached.keys() - names.keys()):
            s = self.scans[r[2:]]
            self._scan(d, n, s.body, names, reached, memo)
            names[r] = running(d, s.scan, d.value(s.body, names, memo), n, reached[r])[0]

    def reached(self, row: Data, parts: Sequence[State], scan: str) -> Any:
        monoid = self.scans[scan].scan[0]
        return row.join(monoid, row.number(IDENTITY[monoid]), *(p[self.reach[scan]] for p in parts))

    def running(self, row: Data, gauge: str, names: Names, instead: Any = None) -> Any:
        g = self.gauge[gauge]
        v = row.value(g.value, names)
        if not (v != v if g.empty != g.empty else v == g.empty):
            return v
        return row.number(g.safe) if instead is None else instead

    def moved(self, row: Data, s: Record, part: State, to: Names, before: Sequence[State] = ()) -> Any:
        act = bool(before) and self.reads(s)
        if not (s.action if act else s.row):
            return part[s.name]
        names = dict(part)
        for g in s.gauges:
            names[f"h:{g}"], names[f"g:{g}"] = to[f"g:{g}"], self.running(row, g, part, to[f"g:{g}"])
        if act:  # what has seen nothing is not moved
            nothing = any(self.running(row, g, part, NONE) is NONE for g in s.gauges)
            names |= {f"c:{k}": self.reached(row, () if nothing else before, k) for k in self.scans}
        memo: dict[int, Any] = {}
        terms = [(c, row.value(c, names, memo), part[k]) for k, c in (s.action if act else s.row)]
        return row.join(s.monoid, *(self.term(row, s.monoid, *t) for t in terms))

    def term(self, row: Data, monoid: str, node: int, c: Any, v: Any) -> Any:
        """What annihilates drops the value whatever it is, where it is a choice between nothing and all."""
        if monoid != "sum":
            return c if c == IDENTITY[monoid] else row.apply("add", c, v)
        n = self.table.nodes[node]
        choice = n.label == "select" and {self.table.nodes[a].label for a in n.args[1:]} == {0.0, 1.0}
        return (v if c else c) if choice else row.apply("mul", c, v)

    def finish(self, row: Data, state: State) -> State:
        names, results, settled = dict(state), State(), set[str]()
        for k in self.links:
            for g in (g for s in self.slots if s.name in self.table.refs[k.value] for g in s.gauges):
                if not self.gauge[g].same and g not in settled:
                    settled.add(g)
                    to = {f"g:{x}": self.running(row, x, names) for x in self.gauge}
                    to[f"g:{g}"] = row.value(self.gauge[g].final, names)
                    names |= {s.name: self.moved(row, s, dict(names), to) for s in self.slots if g in s.gauges}
            v = row.value(k.value, names)
            if any(self.running(row, g, names, NONE) is NONE for g in k.restore):
                v = row.number(math.nan)
            names[k.stage] = results[k.stage] = v
        return results

    def states(self, values: State, n: int, mode: str = "float", mix: random.Random | None = None) -> Iterator[State]:
        """One loop over blocks, and (where parts may be merged) a split merged in pairs."""
        d = self.data(values, mode)
        edges = sorted({0, n // 4, min(n, n // 4 + 1), 2 * n // 3, n})
        blocks = [(d.part(a, b), b - a) for a, b in itertools.pairwise(edges)]
        state = self.combine(d, ())
        for block in (ordered := blocks[:: -1 if self.cert.order == "backward" else 1]):
            state = self.combine(d, (state,), block)
        yield state
        if all(s.action for s in self.slots if self.reads(s)):
            parts = [self.combine(d, (), b) for b in ordered]
            if mix is not None and self.cert.order == "any":
                mix.shuffle(parts)
            while len(parts) > 1:
                parts[:2] = [self.combine(d, parts[:2])]
            yield parts[0]


def running(d: Data, scan: tuple[str, bool, bool], v: Any, n: int, start: Any) -> tuple[list[Any], Any]:
    """The running values of a scan, and what it has reached in the end."""
    monoid, inclusive, reverse = scan
    ends = list(itertools.accumulate(listed(v, n)[:: -1 if reverse else 1], d.operators[JOIN[monoid]], initial=start))
    return (ends[1:] if inclusive else ends[:-1])[:: -1 if reverse else 1], ends[-1]


def placed(s: Record, keys: list[Any], payload: list[Any]) -> Any:
    """What stands at a place in the order of the keys, the first of equals first, NaN before all."""
    down = -1 if s.monoid in ("max", "argmax") else 1
    order = sorted(range(len(keys)), key=lambda i: (keys[i] == keys[i], 0 if keys[i] != keys[i] else down * keys[i], i))
    return (keys if s.monoid in ("max", "min") else payload)[order[s.rank]]


# ---- trials ----------------------------------------------------------------------------------------------------------
def faults(c: Claim) -> Iterator[str]:
    few = c.least + 1
    for seed, sign, n, mode in ((11, 0, few + 1, c.exact), (12, 1, few + 1, c.exact), (14, 0, c.single, "float")):
        values = c.sample(n, seed, mode, sign)
        if finite(want := c.direct(c.data(values, mode), n)):
            yield from whole(c, values, n, mode, want)
    values = c.sample(few, 13)
    for trial in (ranges, units, nothing, masked, infinite):
        yield from trial(c, values, few)
    yield from masked(c, c.sample(c.single, 15), c.single)
    yield from equals(c)


def finite(results: State) -> bool:
    return all(type(v) is list or (v == v and abs(v) < math.inf) for v in results.values())


def close(a: Any, b: Any, tolerance: float = 1e-8, floor: float = 1e-4) -> bool:
    if a != a or b != b:
        return bool(a != a and b != b)
    if math.inf in (abs(a), abs(b)):
        return bool(a == b)
    return bool(a == b) or float(abs(a - b)) <= tolerance * max(float(abs(a)), float(abs(b)), floor)


def alike(a: Any, b: Any, mode: str = "float") -> bool:
    """The same numbers, as closely as the arithmetic tells; lists or not."""
    precise = (1e-8, 1e-4) if mode == "float" else (1e-30, 1e-12)
    return all(close(x, y, *precise) for x, y in zip(listed(a, 1), listed(b, 1), strict=True))


def whole(c: Claim, values: dict[int, Any], n: int, mode: str, want: State) -> Iterator[str]:
    """Streamed, every intermediate result is the program's, and outputs do not notice what they are said not to."""
    d = c.data(values, mode)
    for state in c.states(values, n, mode):
        got = c.finish(d, state)
        for name, v in got.items():
            if name not in c.constants and not alike(v, want[name], mode):
                yield f"{name}: streamed it is {float(v):g}, in the program {float(want[name]):g}"
        for g in c.gauges:
            if g.same and not alike(c.running(d, g.name, state), d.value(g.final, state | got), mode):
                yield f"gauge {g.name}: at the end it is not what it stands for"
    for g in (g for g in c.gauges if not g.exact):
        here = c.running(d, g.name, state)  # of the last run
        a, b = (outputs(c, d, state, g, to, want) for to in (here, here + here / 4 + d.number(0.5)))
        if not alike(a, b, mode):
            yield f"gauge {g.name}: outputs depend on it"
    if c.constants:
        yield from told(c, d, c.direct(d, n, constants=False), got, mode)


def told(c: Claim, d: Data, theirs: State, ours: State, mode: str) -> Iterator[str]:
    """Outputs do not tell a constant from the result that it stands for."""
    for o in c.cert.outputs:
        if not alike(d.value(o, theirs), d.value(o, theirs | ours), mode):
            yield f"an output depends on {sorted(c.constants)}"


def outputs(c: Claim, d: Data, state: State, g: Record, to: Any, want: State) -> list[Any]:
    """The outputs with a gauge moved, and its value used wherever what it stands for is read."""
    at = {f"g:{x}": c.running(d, x, state) for x in c.gauge} | {f"g:{g.name}": to}
    names: State = {n: v for n, v in want.items() if n[:2] == "s:"} | {"h:": to}
    names |= {s.name: c.moved(d, s, state, at) for s in c.slots}
    stands = {g.final: c.table.add("ref", "h:")}
    for k in c.links:
        own = c.table.add("ref", k.stage) in stands
        names[k.stage] = to if own else d.value(c.table.put(k.value, stands), names)
    return [x for o in c.cert.outputs for x in listed(d.value(c.table.put(o, stands), names), 1)]


def ranges(c: Claim, values: dict[int, Any], n: int) -> Iterator[str]:
    """A maximum may start at 0 only if no element is below."""
    for s in (s for s in c.slots if s.monoid in ("max", "min") and s.identity == 0):
        tried = [x for seed in range(20) for x in listed(c.data(c.sample(n, seed, sign=1)).value(s.body, {}), 1)]
        if (min(tried) < 0) if s.monoid == "max" else (max(tried) > 0):
            yield f"{s.name}: 0 is no identity"


def units(c: Claim, values: dict[int, Any], n: int) -> Iterator[str]:
    """Merging with nothing changes nothing, to the last bit: near 0 and far from it."""
    for offset in (0.0, -1e5, 1e5) if all(s.action for s in c.slots if c.reads(s)) else ():
        real = {i for i in values if type(values[i]) is list and c.kind(i) == "real"}
        d = c.data({i: [x + offset for x in v] if i in real else v for i, v in values.items()})
        some, none = c.combine(d, (), (d, n)), c.combine(d, ())
        for merged in (c.combine(d, (some, none)), c.combine(d, (none, some))):
            if bad := [k for k, v in some.items() if math.isfinite(v) and merged[k] != v]:
                yield f"{bad[0]}: merged with nothing, {some[bad[0]]:g} becomes {merged[bad[0]]:g}"


def nothing(c: Claim, values: dict[int, Any], n: int) -> Iterator[str]:
    """A gauge that is infinite or NaN before the first element says so by being empty."""
    d = c.data(values)
    for g in c.gauges:
        v = d.value(g.value, c.combine(d, ()))
        if not (math.isfinite(v) or v == g.empty or (v != v and g.empty != g.empty) or g.safe != g.safe):
            yield f"gauge {g.name}: {v} at first, and empty at {g.empty}"


def masked(c: Claim, values: dict[int, Any], n: int) -> Iterator[str]:
    """With the first element masked or 0, and with all of them, results are the program's, NaN included."""
    real = [i for i in c.leaves if c.kind(i) == "real" and type(values[i]) is list]
    zero: list[dict[int, Any]] = [dict.fromkeys(some, 0.0) for some in (*([i] for i in real), real)]
    fills = itertools.chain(_fills(c, values, n), zero)
    for fill, until in itertools.product(fills, sorted({1, n})):
        changed = dict(values)
        for i, v in fill.items():
            if type(values[i]) is list:
                changed[i] = [v] * until + values[i][until:]
            elif until == n or c.kind(i) == "real":
                changed[i] = v
        d = c.data(changed)
        want = c.direct(d, n)
        for got in (c.finish(d, state) for state in c.states(changed, n)):
            if c.constants:
                yield from told(c, d, c.direct(d, n, constants=False), got, "float")
            for k in c.links if not c.constants else ():
                a, b = got[k.stage], want[k.stage]
                # excused: inf - inf between terms of a sum, an infinite late factor, 0 / 0 of what cancels
                late = k.form == "late" and any(math.isinf(want.get(r, 0.0)) for r in c.table.refs[k.value])
                nothing = b != b and (any(fill is z for z in zero) or (math.isinf(a) and late))
                excused = math.isinf(b) and k.rank > 1 if a != a else nothing
                if not close(a, b) and not excused:
                    yield f"{k.stage}: with {until} of {n} masked it is {a:g}, in the program {b:g}"


def infinite(c: Claim, values: dict[int, Any], n: int) -> Iterator[str]:
    """NaN among the elements is not lost, nor is an infinity of a maximum or the NaN of a mean of two infinities."""
    inside = {i for s in c.stages if s.monoid in ("max", "min") for i in c.table.below(s.body)}
    links = [k for k in c.links if k.stage not in {*c.constants, *(s.name for s in c.places)}]
    values = values | {i: [True] * n for i in c.leaves if c.kind(i) == "bool" and c.element(i)}
    special = ([math.nan], [math.inf], [math.inf, -math.inf])
    real = [i for i in c.leaves if c.kind(i) == "real" and type(values[i]) is list]
    for i, row in itertools.product(real, special):
        changed = {**values, i: values[i][: n - 2] + row + values[i][n - 2 + len(row) :]}
        d = c.data(changed)
        want = c.direct(d, n)
        runs = [(state, c.finish(d, state)) for state in c.states(changed, n)]
        for (state, got), k in itertools.product(runs, links):
            a, b = got[k.stage], want[k.stage]
            hung = {g for s in c.slots if s.name in c.table.refs[k.value] for g in s.gauges}
            finals = [d.value(c.gauge[g].final, state | want) for g in hung]
            lost = b != b and a == a and (row[0] != row[0] or any(v != v for v in finals))
            one = i in inside and len(row) == 1 and k.rank <= 1
            if lost or (one and a != b and math.isinf(b) and all(map(math.isfinite, finals))):  # no guard of its own
                yield f"{k.stage}: with {row} among the elements it is {a:g}, in the program {b:g}"


def equals(c: Claim) -> Iterator[str]:
    """Places in an order: many equal keys, infinite ones and NaN, blocks in any order."""
    n = max((s.rank for s in c.places), default=0) + 5
    plain = not any(c.table.refs[s.body] & {x.name for x in c.stages} for s in c.places)
    for seed in range(60 if n < 8 else 6) if c.places else ():
        rng = random.Random(seed)
        values = c.sample(n, seed, few=True)
        for i in (i for i in c.leaves if type(values[i]) is list and c.kind(i) == "real" and seed % 3 and plain):
            far = (-math.inf, math.inf if seed % 2 else math.nan)
            values[i] = [rng.choice((*[x] * (seed % 3), *far)) for x in values[i]]
        d = c.data(values)
        want = c.direct(d, n)
        for state in c.states(values, n, "float", rng):
            got = c.finish(d, state)
            for s in c.places:
                read = s.payload is None or s.monoid in ("max", "min") or all(map(math.isfinite, state.values()))
                if read and not close(got[s.name], want[s.name]):
                    yield f"{s.name}: of equal keys it is {got[s.name]:g}, in the program {want[s.name]:g}"


def _fills(c: Claim, values: dict[int, Any], n: int) -> Iterator[dict[int, Any]]:
    """Values of leaves that mask an element: with them a maximum reads -inf (or 0, where that is the least)."""
    found: dict[int, Any] = {}
    rows = {i: 1e6 for i in c.leaves if c.table.nodes[i].kind == "index" and not c.element(i)}
    live: dict[int, Any] = rows | {i: True for i in c.leaves if c.kind(i) == "bool"}
    keys = {(s.body, s.monoid in ("max", "argmax")) for s in c.stages if s.monoid in ("max", "min", *PLACED)}
    for body, up in sorted(keys - {(s.body, up) for s in c.stages if s.name in c.constants for up in (False, True)}):
        ends = (-math.inf if up else math.inf, 0.0)
        for i in sorted({*c.table.below(body)} & {*c.leaves}):
            for v, around in itertools.product(MASKS[c.kind(i)], ({}, live)):
                fill = {**around, i: v} if c.kind(i) == "real" else {i: v}
                d = c.data({**values, **{j: [x] * n if type(values[j]) is list else x for j, x in fill.items()}})
                got = listed(d.value(body, c.direct(d, n) if c.table.refs[body] else {}), 1)
                if any(all(x == end for x in got) for end in ends):
                    found.setdefault(i, v)
                    yield fill
    marks = [i for i in c.leaves if c.kind(i) == "bool" and c.element(i)]
    yield from ({i: False} for i in marks if i not in found)  # a mean of nothing
    for node in (c.table.nodes[e] for g in c.gauges for e in c.table.below(g.final)):  # a sink of -inf
        for i in (i for i in node.args if node.label in ("maximum", "minimum") and i in values):
            yield {**found, i: math.inf if node.label == "minimum" else -math.inf}
    if len(found) > 1:
        yield found
