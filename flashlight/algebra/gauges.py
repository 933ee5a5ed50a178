"""Gauges after the fact: where their staying empty means NaN, and which of them need not be exact."""

from __future__ import annotations

import math
from dataclasses import replace

from flashlight.algebra.bounds import Bounds
from flashlight.algebra.draft import DUAL, Draft
from flashlight.algebra.field import Field, TooLarge
from flashlight.algebra.proof import Certificate, Gauge, Link
from flashlight.algebra.special import ANY, Value, extended, fold, is_nan
from flashlight.algebra.terms import ONE, subtract, total
from flashlight.expr import Apply, Const, Expr, Ref, apply, refs, substitute

Condition = tuple[Expr, bool]  # a predicate, and its value where an element is live


def restored(draft: Draft, link: Link, shared: tuple[Condition, ...] = ()) -> Link:
    """On a row whose gauge never left its identity the program computes exp(-inf + inf) or 0/0, and the guarded loop
    a plain 0.  The program's own value there is read off the slots' bodies with the gauge unguarded (so a guard the
    program has itself is honoured: ``where(abs(m) == inf, 0, m)`` gives 0, log 0 = -inf, as torch.logsumexp does, and
    ``where(all masked, 0, p)`` gives 0, as scaled_dot_product_attention does); NaN is restored where it is NaN and
    the slots' value is not.  ``shared``: conditions outside which the stage's body is 0; see ``guarded``."""
    names = []
    slots = {Ref(s.name): s for s in draft.slots.values()}
    read = [slots[Ref(r)] for r in sorted(refs(link.value)) if Ref(r) in slots]
    hung = {n for s in read for n in s.gauges}
    for g in draft.gauges.values():
        if not hung:
            break
        nothing = _at_empty(draft, g) | {c: float(live) for c, live in shared}
        program: dict[Expr, Value] = dict(nothing)
        ours: dict[Expr, Value] = dict(nothing)
        finals: dict[Expr, Expr] = {Ref(f"g:{h.name}"): h.final for h in draft.gauges.values()}
        safe = _running(draft, nothing)
        for s in read:
            program[Ref(s.name)] = fold(s.monoid, extended(substitute(s.body, finals), nothing))
            here = fold(s.monoid, extended(s.body, nothing | safe))
            ours[Ref(s.name)] = s.identity if g.name in s.gauges else here
        theirs, mine = extended(link.value, program), extended(link.value, ours)
        if not is_nan(mine) and (is_nan(theirs) or (theirs == ANY and mine != ANY)):
            names.append(g.name)
    return replace(link, restore=tuple(names))


def _running(draft: Draft, known: dict[Expr, Value]) -> dict[Expr, Value]:
    """The gauges that bodies use, where they are known: made safe."""
    out: dict[Expr, Value] = {}
    for g in draft.gauges.values():
        value = extended(g.value, known)
        if isinstance(value, float):
            out[Ref(f"g:{g.name}")] = g.safe if not math.isfinite(value) or value == g.empty else value
    return out


def _at_empty(draft: Draft, g: Gauge) -> dict[Expr, Value]:
    """What is known of a row in which no element is live for this gauge, results of earlier stages included."""
    known: dict[Expr, Value] = {}
    for stage in draft.cascade.stages:
        if stage.monoid in DUAL and stage.name in refs(g.final) and (link := draft.links.get(stage.name)):
            known[Ref(stage.name)] = g.empty
            for s in draft.slots.values():
                if Ref(s.name) is link.value:
                    known[s.body] = g.empty
                    if isinstance(s.body, Apply) and s.body.op == "abs" and g.empty == 0:
                        known[s.body.args[0]] = 0.0
    if extended(g.final, known) is None:  # a mean is NaN where its elements are infinite;
        known[g.final] = g.empty  # a sink is -inf where max(m, sink) is
    finals: dict[Expr, Expr] = {Ref(f"g:{h.name}"): h.final for h in draft.gauges.values()}
    for stage in draft.cascade.stages:
        if (link := draft.links.get(stage.name)) and Ref(stage.name) not in known:
            if g.name in link.restore:
                known[Ref(stage.name)] = math.nan
                continue
            for s in draft.slots.values():
                if s.name in refs(link.value):
                    here = (
                        s.identity
                        if g.name in s.gauges
                        else fold(s.monoid, extended(substitute(s.body, finals), known))
                    )
                    known[Ref(s.name)] = here
            known[Ref(stage.name)] = extended(link.value, known)
    return known


def guarded(draft: Draft, link: Link, body: Expr, shared: tuple[Condition, ...]) -> Link:
    """``sum where(c, p / l, 0)`` is 0 on a row without c, where the late form makes 0 / 0 of it: then one more slot
    remembers whether there was any.  (``where(c, p, 0) / l`` is NaN in the program too; its own arithmetic tells.)"""
    for c, live in shared:
        program, ours = _without(draft, link, body, c, not live)
        if program == 0.0 and ours != 0.0:
            ends = (Const(1.0), Const(0.0)) if live else (Const(0.0), Const(1.0))
            seen = Ref(draft.slot(link.stage, "max", apply("select", c, *ends)).name)
            value = link.value
            for g in draft.gauges.values():
                if g.name in link.restore:
                    empty = apply("isnan", g.value) if math.isnan(g.empty) else apply("eq", g.value, Const(g.empty))
                    value = apply("select", empty, Const(math.nan), value)
            value = apply("select", apply("eq", seen, Const(0.0)), Const(0.0), value)
            return replace(link, value=value, restore=())
    return link


def _without(draft: Draft, link: Link, body: Expr, c: Expr, dead: bool) -> tuple[Value, Value]:
    """The stage's value in the program, and as the link reads it, on a row where no element satisfies c."""
    program: dict[Expr, Value] = {c: float(dead)}
    ours: dict[Expr, Value] = {c: float(dead)}
    for s in draft.slots.values():
        ours[Ref(s.name)] = fold(s.monoid, extended(s.body, {c: float(dead)}))
    for stage in draft.cascade.stages:
        ref = Ref(stage.name)
        if stage.name == link.stage:
            break
        value = extended(stage.body, program)
        program[ref] = value if stage.monoid is None else fold(stage.monoid, value)
        ours[ref] = _read(draft, draft.links[stage.name], ours)
    return fold("sum", extended(body, program)), _read(draft, link, ours)


def _read(draft: Draft, link: Link, known: dict[Expr, Value]) -> Value:
    for g in draft.gauges.values():
        if g.name in link.restore:
            value = extended(g.value, known)
            if is_nan(value) if math.isnan(g.empty) else value == g.empty:
                return math.nan
    return extended(link.value, known)


# ---- gauge freedom -----------------------------------------------------------------------------------------------
def with_freedom(certificate: Certificate, outputs: tuple[Expr, ...], bounds: Bounds) -> Certificate:
    """Mark the gauges that may be moved without any output noticing: the test is substitution, by the zero test of
    the normal form.  (``outputs`` with definitions written out.)"""
    gauges = tuple(replace(g, exact=not _free(certificate, g, outputs, bounds)) for g in certificate.gauges)
    return replace(certificate, gauges=gauges)


def _free(certificate: Certificate, g: Gauge, outputs: tuple[Expr, ...], bounds: Bounds) -> bool:
    if not outputs:
        return False  # every result may be read
    here, there = Ref(f"g:{g.name}"), Ref(f"h:{g.name}")
    values: dict[Expr, Expr] = {g.final: here}
    for link in certificate.links:
        values.setdefault(Ref(link.stage), substitute(link.value, values))
    others: dict[Expr, Expr] = {Ref(f"h:{k.name}"): Ref(f"g:{k.name}") for k in certificate.gauges if k is not g}
    moved: dict[Expr, Expr] = {here: there}
    for s in certificate.slots:
        if g.name in s.gauges:
            parts = [apply("mul", substitute(c, others), Ref(k)) for k, c in s.row]
            moved[Ref(s.name)] = total((ONE, e) for e in parts)
    field = Field(certificate.cascade.axis, frozenset(), cut=False)
    field.nonnegative = bounds.nonnegative
    try:
        for out in outputs:
            e = substitute(out, values)
            if not field.is_zero(subtract(field.term(e), field.term(substitute(e, moved)))):
                return False
    except (TooLarge, RecursionError, OverflowError):
        return False
    return True
