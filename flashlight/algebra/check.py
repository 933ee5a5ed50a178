"""A second opinion: is a certificate right, judged by what it says alone?

Nothing here is shared with the code that derives certificates.  First its shape (names, order of definition,
identities), then every law by numbers of many digits at random points, then running it: every intermediate result
against the program's, masked and empty rows in IEEE arithmetic included.  A malformed certificate is a fault, never
a crash.
"""

from __future__ import annotations

import math

from flashlight.algebra import laws, trials
from flashlight.algebra.proof import Cascade, Certificate, Fact, Gauge, Link, Slot, Stage
from flashlight.expr import Apply, Const, Fold, Index, Load, Ref, Size, axes, refs

IDENTITIES = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}
EXPRESSION = (Const, Index, Size, Ref, Load, Apply, Fold)


def check(certificate: Certificate) -> tuple[str, ...]:
    """What is wrong with a certificate; empty when it is right."""
    try:
        for part in (types, shape, laws.faults, trials.faults):
            if found := part(certificate):
                return tuple(found)
    except Exception as why:  # whatever a forged certificate does to an evaluator
        return (f"malformed: {type(why).__name__}: {why}",)
    return ()


def types(cert: Certificate) -> list[str]:
    """Everything is of the class it should be: the rest of the checks may rely on it."""
    if not isinstance(cert, Certificate) or not isinstance(cert.cascade, Cascade):
        return ["malformed: not a certificate"]
    wanted: list[tuple[str, object, type | tuple[type, ...]]] = []
    groups: tuple[tuple[type, tuple[object, ...]], ...] = (
        (Stage, cert.cascade.stages),
        (Slot, cert.slots),
        (Gauge, cert.gauges),
        (Link, cert.links),
    )
    for kind, group in groups:
        wanted.append((f"the {kind.__name__}s", group, tuple))
        wanted += [(f"one of the {kind.__name__}s", x, kind) for x in group]
    if bad := _wrong(wanted):
        return bad
    wanted = [("an output", o, EXPRESSION) for o in cert.cascade.outputs]
    wanted += [(f"the body of {s.name}", s.body, EXPRESSION) for s in cert.cascade.stages]
    wanted += [(f"the body of {s.name}", s.body, EXPRESSION) for s in cert.slots]
    for s in cert.slots:
        wanted += [(f"{s.name}: {what}", value, tuple) for what, value in
                   (("gauges", s.gauges), ("row", s.row), ("bound", s.bound))]  # fmt: skip
        wanted += [(f"{s.name}: row", c, EXPRESSION) for _, c in s.row]
        wanted += [(f"{s.name}: bound", k, EXPRESSION) for proof in s.bound for k, _ in proof]
        wanted += [(f"{s.name}: bound", f, Fact) for proof in s.bound for _, f in proof]
        wanted.append((f"{s.name}: identity", s.identity, (int, float)))
    for g in cert.gauges:
        wanted += [(f"gauge {g.name}", e, EXPRESSION) for e in (g.final, g.value)]
        wanted += [(f"gauge {g.name}", v, (int, float)) for v in (g.empty, g.safe)]
        wanted += [(f"gauge {g.name}", v, bool) for v in (g.same, g.exact)]
    for k in cert.links:
        wanted += [(f"{k.stage}: value", k.value, EXPRESSION), (f"{k.stage}: rank", k.rank, int)]
        wanted += [(f"{k.stage}: given", f, Fact) for f in k.given]
    return _wrong(wanted)


def _wrong(wanted: list[tuple[str, object, type | tuple[type, ...]]]) -> list[str]:
    return [f"malformed: {what} is {value!r}" for what, value, kind in wanted if not isinstance(value, kind)]


def shape(cert: Certificate) -> list[str]:
    """Names are bound and defined before use, identities belong to their monoids, what moves says how."""
    faults: list[str] = []

    def demand(holds: bool, what: str) -> None:
        if not holds:
            faults.append(what)

    cascade = cert.cascade
    stages = [s.name for s in cascade.stages]
    slots = [s.name for s in cert.slots]
    gauges = [g.name for g in cert.gauges]
    row = frozenset().union(*(refs(s.body) for s in cascade.stages), *map(refs, cascade.outputs)) - set(stages)
    demand([k.stage for k in cert.links] == stages, "links are not one a stage, in the stages' order")
    demand(len({*stages, *slots}) == len(stages) + len(slots), "a name is used twice")
    demand(not row & set(slots), "a slot has the name of something of the row")
    demand(len(set(gauges)) == len(gauges), "a gauge is defined twice")
    if faults:
        return faults
    for k, s in enumerate(cert.slots):
        used = {n[2:] for n in refs(s.body) if n[:2] == "g:"}
        demand(s.monoid in IDENTITIES, f"{s.name}: no monoid {s.monoid}")
        demand(refs(s.body) - {f"g:{n}" for n in used} <= row, f"{s.name}: reads what no element has")
        demand(used == set(s.gauges) <= set(gauges) and len(used) == len(s.gauges), f"{s.name}: gauges")
        demand(bool(s.row) == bool(s.gauges), f"{s.name}: a slot has a row if it hangs on gauges, and only then")
        if s.monoid in IDENTITIES:
            low = s.monoid in ("max", "min") and s.identity == 0.0  # 0 under absolute values: tried with numbers
            demand(s.identity == IDENTITIES[s.monoid] or low, f"{s.name}: {s.identity} is no identity of {s.monoid}")
        demand(not s.row or s.monoid == "sum", f"{s.name}: only sums are moved by rows")
        demand(len({n for n, _ in s.row}) == len(s.row), f"{s.name}: two coefficients for one slot")
        mine = {f"{side}:{n}" for n in s.gauges for side in "gh"}
        for n, c in s.row:
            demand(n in slots, f"{s.name}: row over {n}")
            demand(n not in slots or cert.slot(n).monoid == "sum", f"{s.name}: row over {n}, which is no sum")
            demand(n not in slots or set(cert.slot(n).gauges) <= set(s.gauges), f"{s.name}: row over {n}'s gauges")
            demand(refs(c) <= mine | row and cascade.axis not in axes(c), f"{s.name}: row coefficient {c}")
        demand(len(s.bound) == len(laws.exponentials(s.body)), f"{s.name}: one bound an exponential")
        for g in cert.gauges:
            if g.name in s.gauges:
                early = set(slots[:k])
                demand(refs(g.value) & set(slots) <= early, f"{s.name}: gauge {g.name} is not known before it")
    for g in cert.gauges:
        demand(refs(g.value) <= set(slots) | row and cascade.axis not in axes(g.value), f"gauge {g.name}: value")
        demand(refs(g.final) <= set(stages) | row and cascade.axis not in axes(g.final), f"gauge {g.name}: final")
        demand(bool(refs(g.final) & set(stages)), f"gauge {g.name} stands for no result")
        demand(math.isfinite(g.safe), f"gauge {g.name}: {g.safe} is not safe")
        never = math.isnan(g.empty) or math.isinf(g.empty) or g.empty == 0  # what no sum of elements is by chance
        demand(never, f"gauge {g.name}: {g.empty} may be the value of live elements")
    for k, (link, stage) in enumerate(zip(cert.links, cascade.stages, strict=True)):
        known = set(slots) | set(stages[:k]) | row
        demand(refs(link.value) <= known and cascade.axis not in axes(link.value), f"{link.stage}: value reads ahead")
        demand(stage.monoid in (None, *IDENTITIES), f"{link.stage}: no monoid {stage.monoid}")
        demand(set(link.restore) <= set(gauges), f"{link.stage}: restores what is no gauge")
    return faults
