"""Is a certificate right?  Judged from its text alone, by code that shares nothing with what wrote it.

Every law is tried at random points: in exact rationals if all of it is rational, else with 50 digits (an identity that
fails anywhere fails almost everywhere: Schwartz, Zippel).  Then the certificate is run against its program, in the same
numbers and in IEEE arithmetic: blocks, splits, masks, NaN.  What is malformed is rejected like what is wrong.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import localcontext
from fractions import Fraction
from types import SimpleNamespace as Record
from typing import Any

from flashlight.algebra.verifier_runs import Claim, close, faults, finite
from flashlight.algebra.verifier_table import CONTEXT, IDENTITY, JOIN, PLACED, Data, Table, listed, read

TINY = 1e-35
near = functools.partial(close, tolerance=TINY, floor=1.0)


def verify(text: str) -> tuple[str, ...]:
    """What is wrong with a certificate, in words; nothing if it is right."""
    try:
        with localcontext(CONTEXT):
            table, cert = read(text)
            if found := tuple(what for holds, what in shape(table, cert) if not holds):
                return found
            claim = prepared(table, cert)
            return tuple(laws(claim)) or tuple(faults(claim))
    except Exception as why:  # whatever a forged text does to an evaluator
        return (f"malformed: {type(why).__name__}: {why}",)


def shape(table: Table, cert: Record) -> Iterator[tuple[bool, str]]:
    """What must hold of names and kinds: bound, defined before use, identities their monoids'; what moves says how."""
    stages, slots, gauges = ([x.name for x in xs] for xs in (cert.stages, cert.slots, cert.gauges))
    monoids = {s.name: s.monoid for s in cert.slots}
    scans = {s.name for s in cert.stages if s.scan}
    bodies = {s.name: [b for b in (s.body, s.payload) if b is not None] for s in cert.stages}
    running = {f"s:{n}" for n in scans}
    every = [*(b for bs in bodies.values() for b in bs), *cert.outputs]
    row = frozenset[str]().union(*(table.refs[b] for b in every)) - {*stages, *running}
    names = [*stages, *slots, *(f"g:{g}" for g in gauges)]

    def reads(i: int, *allowed: Iterable[str], element: bool = False) -> bool:
        return table.refs[i] <= row.union(*allowed) and (element or cert.axis not in table.axes[i])

    yield [k.stage for k in cert.links] == stages, "links are not one a stage, in the stages' order"
    yield len(set(names)) == len(names) and not row & set(slots), "a name is used twice"
    yield not any(n[1:2] == ":" for n in (*stages, *slots, *row)), "a name has a prefix"
    for k, s in enumerate(cert.stages):
        kind = s.monoid in ("scan", None, *PLACED, *IDENTITY) and (s.monoid == "scan") == bool(s.scan)
        yield kind and 0 <= s.rank < 64 and (not s.scan or s.scan[0] in IDENTITY), f"{s.name} is no stage"
        early = {n for n in running if n[2:] in stages[:k]}.union(stages[:k])
        yield all(reads(b, early, element=s.monoid is not None) for b in bodies[s.name]), f"{s.name} reads ahead"
    order = {("backward" if s.scan[2] else "forward") for s in cert.stages if s.scan} or {"any"}
    yield order == {cert.order}, f"the order is {sorted(order)} and not {cert.order}"
    for k, s in enumerate(cert.slots):
        mine = {f"{side}:{n}" for n in s.gauges for side in "gh"}
        used = {n[2:] for c in (s.body, *(c for _, c in s.row)) for n in table.refs[c] if n[:2] in ("g:", "h:")}
        low = s.monoid in ("max", "min") and s.identity == 0  # of absolute values: tried with numbers
        yield low or s.identity == IDENTITY.get(s.monoid), f"{s.name}: {s.identity} is no identity"
        hung = used == set(s.gauges) <= set(gauges) and len(used) == len(s.gauges) and s.monoid != "prod"
        yield bool(s.row) == bool(s.gauges) and (hung or not s.gauges) and not used - set(s.gauges), f"{s.name}: gauges"
        yield reads(s.body, {f"g:{n}" for n in used}, running, element=True), f"{s.name}: reads what no element has"
        for r, allowed in ((s.row, mine), (s.action, mine.union(f"c:{n}" for n in scans))):
            plain = len({n for n, _ in r}) == len(r) and {monoids.get(n) for n, _ in r} <= {s.monoid}
            yield plain and all(reads(c, allowed) for _, c in r), f"{s.name}: its row"
        known = all(reads(g.value, slots[:k]) for g in cert.gauges if g.name in s.gauges)
        yield known, f"{s.name}: a gauge is not known before it"
    for g in cert.gauges:
        stands = bool(table.refs[g.final] & {*stages, *slots}) and reads(g.final, stages, slots)
        yield stands and reads(g.value, slots), f"gauge {g.name} stands for no result"
        safe = math.isfinite(g.safe) or (g.safe != g.safe and g.empty != g.empty)
        yield safe, f"gauge {g.name}: {g.safe} is not safe"
        never = math.isnan(g.empty) or math.isinf(g.empty) or g.empty == 0  # what no sum of elements is by chance
        yield never, f"gauge {g.name}: {g.empty} may be the value of live elements"
        yield g.exact or bool(cert.outputs), f"gauge {g.name}: free, and everything may be read"
        yield g.constant is None or not g.exact, f"gauge {g.name}: a constant for what has to be exact"
    for k, link in enumerate(cert.links):
        node = table.nodes[link.value]
        yield reads(link.value, slots, stages[:k]), f"{link.stage}: its value reads ahead"
        yield set(link.restore) <= set(gauges), f"{link.stage}: restores what is no gauge"
        yield link.stage not in scans or (node.kind == "ref" and node.label in slots), f"{link.stage}: no slot"
        constant = node.kind == "real" and bool(cert.outputs)
        yield link.form != "constant" or constant, f"{link.stage}: no constant, or everything may be read"


def prepared(table: Table, cert: Record) -> Claim:
    """With a literal length of the axis as a symbol (it is run shorter)."""
    extent = table.nodes[cert.extent]
    if extent.kind not in ("int", "real"):
        return Claim(table, cert)
    long, size = float(extent.label), table.add("size", "elements")
    real, memo = table.add("apply", "real", [cert.extent]), dict[int, int]()

    def rule(i: int) -> int | None:
        n = table.nodes[i]
        if n.kind == "real" and long and n.label == 1 / long:
            return table.add("apply", "div", [table.add("real", 1.0), size])
        if i == real or (n.kind == "real" and n.label == long):
            return table.add("apply", "real", [size])
        return i if n.kind in ("load", "fold") else None

    def put(x: Any) -> Any:
        if isinstance(x, Record):
            return Record(**{k: put(v) if k not in ("rank", "scan") else v for k, v in vars(x).items()})
        return tuple(map(put, x)) if isinstance(x, tuple) else table.rewrite(x, rule, memo) if type(x) is int else x

    return Claim(table, put(Record(**{**vars(cert), "extent": size})))


# ---- laws ------------------------------------------------------------------------------------------------------------
@dataclass
class Point:
    """Elements, results (the program's, or others of the same signs), gauges at random, and the values over them."""

    data: Data
    n: int
    results: dict[str, Any]
    gauges: dict[str, Any]
    memos: dict[str, dict[int, Any]] = field(default_factory=dict)

    def at(self, i: int, move: str = "gh", **more: Any) -> Any:
        """With the gauges g and h at two of the points g, h and k."""
        pairs = [
            (to, n, v) for to, side in zip("gh", move, strict=True) for n, v in self.gauges.items() if n[0] == side
        ]
        moved = {f"{to}{n[1:]}": v for to, n, v in pairs}
        memo = {} if more else self.memos.setdefault(move, {})
        return self.data.value(i, self.results | moved | more, memo)

    def same(self, a: Any, b: Any) -> bool:
        return all(map(near, listed(a, self.n), listed(b, self.n)))


def laws(c: Claim) -> Iterator[str]:
    points = list(_points(c))
    for p in points:
        yield from link_law(c, p)
    for s in c.slots:
        for p in points:
            yield from transport_law(c, p, s)
            yield from bound_law(c, p, s)
        yield from open_law(c, s)
    yield from fact_law(c, points)
    yield from reach_law(c)


def _points(c: Claim) -> Iterator[Point]:
    for seed, sign, live in ((1, 1, True), (2, 0, True), (4, 0, False), (5, 2, True)):
        values = c.sample(c.least, seed, c.exact, sign)
        if not live:  # nothing but masked elements
            marks = {i: [False] * c.least for i in c.leaves if c.kind(i) == "bool" and c.element(i)}
            hidden = marks | {i: -1 for i in c.leaves if c.table.nodes[i].kind == "index" and not c.element(i)}
            values = {**values, **hidden} if hidden else {}
        if not values and c.leaves:
            continue
        data, rng = c.data(values, c.exact), random.Random(seed)
        if finite(results := c.direct(data, c.least)):
            names = [f"{side}:{g.name}" for g in c.gauges for side in "ghk"]
            gauges = {n: data.number(Fraction(rng.randrange(30, 200), 97)) for n in names}
            yield Point(data, c.least, results, gauges)
            if not any(k.given for k in c.links) and seed < 3:
                yield Point(data, c.least, c.direct(data, c.least, rng), gauges)


def link_law(c: Claim, p: Point) -> Iterator[str]:
    """A stage's value over the sums of its slots, at the final gauges, is its own reduction."""
    d, names = p.data, dict(p.results)
    at: dict[str, Any] = {}
    for s in c.slots:
        for g in s.gauges:
            at.setdefault(f"g:{g}", d.value(c.gauge[g].final, names))
        names[s.name] = d.fold(s.monoid, d.value(s.body, p.results | at), p.n)
    again = c.direct(d, p.n)
    for stage, link in zip(c.stages, c.links, strict=True):
        want = again[stage.name]
        if not stage.scan and stage not in c.places and stage.name not in c.constants:
            want = d.value(stage.body, p.results)
            want = want if stage.monoid is None else d.fold(stage.monoid, want, p.n)
        if not near(d.value(link.value, names), want):
            yield f"{link.stage}: its value over the slots is not its own"
        sums = [s.name for s in c.slots if s.name in c.table.refs[link.value] and s.monoid == "sum"]
        if stage.monoid == "sum" and sums:  # linear in the sums, so that it holds for those of any elements
            steps = [{n: k and names[n] + k * (j + 2) for j, n in enumerate(sums)} for k in (0, 1, 2, 3)]
            zero, a, b, e = (d.value(link.value, names | step) for step in steps)
            if not near(e - b, b - a) or not near(zero, 0 * zero):
                yield f"{link.stage}: its value is not linear in its slots"


def transport_law(c: Claim, p: Point, s: Record) -> Iterator[str]:
    """Moving a slot moves its body, element by element; moving nowhere changes nothing; two moves are one; what
    precedes moves the body with its running values.  (A merge of sorted places is no matter of single elements: it is
    tried on states, with many equals.)"""
    d, one, none = p.data, p.data.number(1.0), p.data.number(0.0)
    times = "mul" if s.monoid == "sum" else "add"
    if s.row and s.monoid == "sum":
        own = dict(s.row)
        terms = [d.apply("mul", p.at(q), p.at(c.slot[k].body, "gg")) for k, q in s.row]
        if not p.same(p.at(s.body, "hh"), d.join("sum", *terms)):
            yield f"{s.name}: its row does not move its body"
        rows = {k: dict(c.slot[k].row) for k in own}
        for k in dict.fromkeys((*own, *(e for r in rows.values() for e in r))):
            if not near(p.at(own[k], "gg") if k in own else none, one if k == s.name else none):
                yield f"{s.name}: moving to the same gauge changes it by {k}"
            first = {m: p.at(r[k]) if k in r else one if not r and k == m else none for m, r in rows.items()}
            path = d.join("sum", *(d.apply("mul", p.at(q, "hk"), first[m]) for m, q in own.items()))
            if not near(p.at(own[k], "gk") if k in own else none, path):
                yield f"{s.name}: two moves are not one, in {k}"
    if s.action:
        by = {n: d.number(Fraction(k + 3, 8)) for k, n in enumerate(c.scans)}
        joined = {f"s:{n}": d.join(c.scans[n].scan[0], p.results[f"s:{n}"], v) for n, v in by.items()}
        before = {f"c:{n}": v for n, v in by.items()}
        terms = [d.apply(times, p.at(q, "gh", **before), p.at(c.slot[k].body, "gg")) for k, q in s.action]
        if not p.same(p.at(s.body, "hh", **joined), d.join(s.monoid, *terms)):
            yield f"{s.name}: its action is not that of what precedes it"


def bound_law(c: Claim, p: Point, s: Record) -> Iterator[str]:
    """Each exponent is what its multipliers make of the facts, plus something of elements alone that is <= 0."""
    t, d = c.table, p.data
    if {e for e, _ in s.bound} != (hanging := exponentials(c, s)) or len(s.bound) != len(hanging):
        yield f"{s.name}: its proofs are not one an exponential"
    plain = (x for x in c.slots if not x.gauges)
    results = p.results | {x.name: d.fold(x.monoid, d.value(x.body, p.results), p.n) for x in plain}
    others = {n: v if type(v) is list else v * 2 + 1 for n, v in results.items()}
    for e, proof in (pair for pair in s.bound if pair[1]):
        rests = []
        for names in (results, others):
            rest = at_final(c, d, s, e, names)
            for k, f in proof:
                size, gap = d.value(k, names), d.apply("sub", d.value(f.low, names), d.value(f.high, names))
                if type(size) is list or size < 0 or t.refs[k] & names.keys():
                    yield f"{s.name}: a multiplier is negative, or not the row's"
                    return
                rest = d.apply("sub", rest, d.apply("mul", size, gap))
            rests.append(rest)
        if any(v > TINY for v in listed(rests[0], 1)) or not p.same(*rests):
            yield f"{s.name}: an exponent is not bounded by its proof"


def exponentials(c: Claim, s: Record) -> set[int]:
    t = c.table
    powers = (i for i in t.below(s.body) if t.nodes[i].label in ("exp", "exp2"))
    return {i for i in powers if any(n[:2] == "g:" for n in t.refs[i])}


def at_final(c: Claim, d: Data, s: Record, e: int, names: dict[str, Any]) -> Any:
    """An exponent of a slot at the final gauges."""
    at = {f"g:{g}": d.value(c.gauge[g].final, names) for g in s.gauges}
    return d.value(c.table.nodes[e].args[0], names | at)


def open_law(c: Claim, s: Record) -> Iterator[str]:
    """An exponent without a proof is above 0 for some elements, in the program too."""
    for e in (e for e, proof in s.bound if not proof):
        for seed in range(48):
            d = c.data(c.sample(c.least, seed, c.exact, seed % 3), c.exact)
            if any(v > TINY for v in listed(at_final(c, d, s, e, c.direct(d, c.least)), 1)):
                break
        else:
            yield f"{s.name}: an exponent that is never above 0 has no proof"


def fact_law(c: Claim, points: list[Point]) -> Iterator[str]:
    """Facts are true by what their source is; "range", and what is said of running values, wherever it is tried."""
    known = {s.name: (s.monoid, s.body) for s in c.slots}
    inline: dict[int, int] = {}
    for s in c.stages:
        known[s.name] = (s.scan[0] if s.scan else s.monoid, c.table.put(s.body, inline))
        if s.monoid is None:
            inline[c.table.add("ref", s.name)] = known[s.name][1]
    facts = [(s.name, f) for s in c.slots for _, proof in s.bound for _, f in proof]
    for name, f in (*facts, *((k.stage, f) for k in c.links for f in k.given)):
        monoid, body = known.get(f.source, (None, None))
        low, high = c.table.nodes[f.low], c.table.nodes[f.high]
        whole, part = c.table.add("ref", f.source), c.table.add("ref", f"s:{f.source}")
        if f.source == "range" or {f.low, f.high} == {whole, part}:
            gap = c.table.add("apply", "sub", [f.low, f.high])
            true = all(v <= TINY for p in points for v in listed(p.data.value(gap, p.results), 1))
        elif f.source == "row":
            true = (high.label == "maximum" and f.low in high.args) or (low.label == "minimum" and f.high in low.args)
        else:
            true = (monoid, f.low, f.high) in (("max", body, whole), ("min", whole, body))
        if not true:
            yield f"{name}: a fact is not known to be true"


def reach_law(c: Claim) -> Iterator[str]:
    """With the constant in a gauge's place, exponents stay within the reach, but for masked elements at -inf: tried on
    large numbers, often equal ones, with sums of two terms inside (the lengths of vectors that are divided by)."""
    t = c.table

    def opened(i: int) -> int | None:
        n = t.nodes[i]
        if n.kind != "fold":
            return None
        index = t.add("index", n.label[1])
        terms = [t.rewrite(t.put(n.args[0], {index: t.add("int", k)}), opened) for k in range(min(n.label[2], 2))]
        return t.add("apply", JOIN[n.label[0]], terms) if len(terms) > 1 else terms[0]

    for g in (g for g in c.gauges if g.constant is not None):
        for e in (e for s in c.slots for e, _ in s.bound if f"g:{g.name}" in t.refs[e]):
            nats, exponent = math.log(2) if t.nodes[e].label == "exp2" else 1.0, t.rewrite(t.nodes[e].args[0], opened)
            for seed in range(40):
                rng = random.Random(seed)
                same = rng.choice((-1e4, -3.0, 3.0, 1e4))
                some = ((same,), (same, -same), (-1e4, -1.0, 0.0, 1.0, 1e4))[seed % 3]
                open_ = [i for i in t.below(exponent) if t.nodes[i].kind in ("load", "index", "size")]
                leaves = {i: rng.random() < 0.7 if c.kind(i) == "bool" else rng.choice(some) for i in open_}
                v = nats * Data(t, leaves, "float").value(exponent, {f"g:{g.name}": g.constant})
                if v > g.reach * (1 + 1e-9) or -math.inf < v < -g.reach * (1 + 1e-9):
                    yield f"gauge {g.name}: an exponent is {v:g} at {g.constant}, beyond {g.reach}"
                    return
