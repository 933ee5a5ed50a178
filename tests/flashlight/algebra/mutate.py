"""Certificates changed in one symbol: constants, operators, references, identities, gauges, rows, links, facts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from flashlight.algebra import Certificate
from flashlight.expr import Apply, Const, Expr, Load, Ref, apply, children, rebuild, refs

SWAPPED = {
    "add": "sub",
    "sub": "add",
    "mul": "div",
    "div": "mul",
    "maximum": "minimum",
    "minimum": "maximum",
    "exp": "exp2",
    "exp2": "exp",
    "log": "log2",
    "sqrt": "abs",
    "rsqrt": "sqrt",
    "abs": "neg",
    "eq": "ne",
    "ne": "eq",
    "lt": "ge",
    "le": "gt",
    "tanh": "sigmoid",
    "sigmoid": "tanh",
}

Mutant = tuple[str, Certificate]


def variants(e: Expr, names: tuple[str, ...]) -> Iterator[tuple[str, Expr]]:
    """The expression with one node changed; ``names``: what references may be turned into."""
    match e:
        case Const(bool()):
            return
        case Const(v) if math.isfinite(v):
            yield "constant + 1", Const(type(v)(v + 1))
            if v:
                yield "constant negated", Const(-v)
        case Const(v) if math.isinf(v):
            yield "constant negated", Const(-v)
        case Ref(name):
            other = next((n for n in names if n != name), None)
            if other is not None:
                yield "reference", Ref(other)
            if name[:2] in ("g:", "h:"):
                yield "g <-> h", Ref(("h:" if name[0] == "g" else "g:") + name[2:])
        case Apply(op, args):
            if op in SWAPPED:
                yield f"{op} -> {SWAPPED[op]}", apply(SWAPPED[op], *args)
            if op in ("sub", "div", "select") and args[-1] is not args[-2]:
                yield "arguments swapped", apply(op, *args[:-2], args[-1], args[-2])
            if len(args) == 1 and op != "real":
                yield f"{op} dropped", args[0]
    if isinstance(e, Load):
        return
    for k, c in enumerate(children(e)):
        for what, new in variants(c, names):
            parts = children(e)
            yield what, rebuild(e, (*parts[:k], new, *parts[k + 1 :]))


def mutants(cert: Certificate) -> Iterator[Mutant]:
    """Every mutant with its name.  All are certificates of the right types."""
    gauges = tuple(f"g:{g.name}" for g in cert.gauges) + tuple(f"c:{s.name}" for s in cert.cascade.stages if s.scan)
    names = tuple(s.name for s in cert.slots)
    stages = tuple(k.stage for k in cert.links)

    def put(kind: str, at: int, **change: object) -> Certificate:
        group = list(getattr(cert, kind))
        group[at] = replace(group[at], **change)
        return replace(cert, **{kind: tuple(group)})

    def exprs(kind: str, at: int, field: str, e: Expr, known: tuple[str, ...]) -> Iterator[Mutant]:
        for what, new in variants(e, known):
            if new is not e:
                yield f"{kind[:-1]} {field}: {what}", put(kind, at, **{field: new})

    for k, s in enumerate(cert.slots):
        yield from exprs("slots", k, "body", s.body, gauges)
        yield "slot identity", put("slots", k, identity=s.identity + 1 if math.isfinite(s.identity) else 0.0)
        yield "slot monoid", put("slots", k, monoid={"sum": "max", "max": "min", "min": "max", "prod": "sum"}[s.monoid])
        if s.gauges:
            yield "slot forgets its gauges", put("slots", k, gauges=(), row=(), bound=())
            yield "slot row ignored", put("slots", k, row=((s.name, Const(1.0)),))
        for i, (name, c) in enumerate(s.row):
            before, after = s.row[:i], s.row[i + 1 :]
            yield "row entry dropped", put("slots", k, row=before + after)
            yield "row entry doubled", put("slots", k, row=(*before, (name, apply("mul", Const(2.0), c)), *after))
            other = next((n for n in names if n not in {m for m, _ in s.row} and cert.slot(n).monoid == "sum"), None)
            if other is not None:
                yield "row entry of another slot", put("slots", k, row=(*before, (other, c), *after))
            for what, new in variants(c, gauges):
                if new is not c:
                    yield f"row: {what}", put("slots", k, row=(*before, (name, new), *after))
        for i, (name, c) in enumerate(s.action):
            before, after = s.action[:i], s.action[i + 1 :]
            yield "action entry dropped", put("slots", k, action=before + after)
            yield "action entry doubled", put("slots", k, action=(*before, (name, apply("mul", Const(2.0), c)), *after))
            for what, new in variants(c, gauges):
                if new is not c:
                    yield f"action: {what}", put("slots", k, action=(*before, (name, new), *after))
        for i, proof in enumerate(s.bound):
            change = lambda new: put("slots", k, bound=(*s.bound[:i], new, *s.bound[i + 1 :]))  # noqa: B023, E731
            if proof:
                yield "proof dropped", change(())
            for j, (size, fact) in enumerate(proof):
                rest = (proof[:j], proof[j + 1 :])
                if len(proof) > 1:
                    yield "fact dropped", change(rest[0] + rest[1])
                yield "multiplier doubled", change((*rest[0], (apply("mul", Const(2.0), size), fact), *rest[1]))
                yield "multiplier negated", change((*rest[0], (apply("neg", size), fact), *rest[1]))
                for forged in (replace(fact, low=fact.high, high=fact.low), replace(fact, high=fact.low)):
                    yield "fact forged", change((*rest[0], (size, forged), *rest[1]))
                yield "source forged", change((*rest[0], (size, replace(fact, source="nowhere")), *rest[1]))
    for k, g in enumerate(cert.gauges):
        yield from exprs("gauges", k, "value", g.value, names)
        yield from exprs("gauges", k, "final", g.final, stages)
        yield "gauge empty", put("gauges", k, empty=0.5 if math.isnan(g.empty) else math.nan)
        yield "gauge empty negated", put("gauges", k, empty=-g.empty if math.isinf(g.empty) else -1.5)
        yield "gauge safe is not", put("gauges", k, safe=g.empty)
        yield "gauge safe", put("gauges", k, safe=g.safe + 1.0)
        yield "gauge same", put("gauges", k, same=not g.same)
        yield "gauge exact", put("gauges", k, exact=not g.exact)
        if g.constant is not None:
            yield "gauge constant", put("gauges", k, constant=g.constant + g.reach)
            yield "gauge reach halved", put("gauges", k, reach=g.reach / 2)
            yield "gauge reach doubled", put("gauges", k, reach=g.reach * 2)
    for k, link in enumerate(cert.links):
        yield from exprs("links", k, "value", link.value, names + stages[:k])
        if link.restore:
            yield "restore dropped", put("links", k, restore=())
        for g in cert.gauges:
            if g.name not in link.restore and any(
                g.name in s.gauges and s.name in refs(link.value) for s in cert.slots
            ):
                yield "restore added", put("links", k, restore=(*link.restore, g.name))
        for j, fact in enumerate(link.given):
            yield "given forged", put("links", k, given=(*link.given[:j], replace(fact, low=fact.high, high=fact.low)))
    for k, s in enumerate(cert.cascade.stages):
        stages_ = cert.cascade.stages
        put_ = lambda s: replace(cert, cascade=replace(cert.cascade, stages=(*stages_[:k], s, *stages_[k + 1 :])))  # noqa: B023, E731
        if s.scan is not None:
            yield "scan inclusive", put_(replace(s, scan=replace(s.scan, inclusive=not s.scan.inclusive)))
            yield "scan reversed", put_(replace(s, scan=replace(s.scan, reverse=not s.scan.reverse)))
        if s.monoid in ("argmax", "argmin"):
            yield "argmax <-> argmin", put_(replace(s, monoid="argmin" if s.monoid == "argmax" else "argmax"))
            yield "another payload", put_(replace(s, payload=None if s.payload is not None else s.body))
        if s.rank or s.monoid in ("argmax", "argmin"):
            yield "next rank", put_(replace(s, rank=s.rank + 1))
    for order in ("any", "forward", "backward"):
        if order != cert.order:
            yield f"order {order}", replace(cert, order=order)
    yield "slots reversed", replace(cert, slots=cert.slots[::-1])
    yield "links reversed", replace(cert, links=cert.links[::-1])
    yield "slot missing", replace(cert, slots=cert.slots[:-1])
    if cert.gauges:
        yield "gauge missing", replace(cert, gauges=cert.gauges[:-1])


def malformed(cert: Certificate) -> Iterator[tuple[str, object]]:
    """What is no certificate at all: to be rejected, never to crash."""
    slot = cert.slots[-1]

    def last(**change: object) -> Certificate:
        return replace(cert, slots=(*cert.slots[:-1], replace(slot, **change)))

    yield "none", None
    yield "text", "certificate"
    yield "slots are a list of text", replace(cert, slots=("slot",))
    yield "no links", replace(cert, links=())
    yield "a body of text", last(body="exp(x)")
    yield "an unknown operator", last(body=Apply("frob", (slot.body,)))
    yield "too many arguments", last(body=Apply("exp", (slot.body,) * 2))
    yield "a row of text", last(row=(("x", "y"),))
    yield "a bound of numbers", last(bound=((1, 2),))
    yield "two slots of one name", replace(cert, slots=(*cert.slots, slot))
