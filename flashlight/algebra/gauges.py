"""Gauges after the fact: where their staying empty means NaN, and which of them need not be exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from flashlight.algebra.bounds import Bounds
from flashlight.algebra.draft import DUAL, Draft, Undecided
from flashlight.algebra.field import Field, TooLarge
from flashlight.algebra.proof import Certificate, Gauge, Link, Stage, Unknown
from flashlight.algebra.special import ANY, Value, extended, fold, is_nan
from flashlight.algebra.terms import ONE, subtract, total
from flashlight.algebra.unroll import folded, unrolled_certificate
from flashlight.expr import IDENTITY, INF, Apply, Const, Expr, Fold, Load, Ref, apply, kind, refs, substitute, walk

Condition = tuple[Expr, bool]  # a predicate, and its value where an element is live


def restored(draft: Draft, link: Link, stage: Stage, body: Expr, shared: tuple[Condition, ...] = ()) -> Link:
    """On a row whose gauge never left its identity the program computes exp(-inf + inf) or 0/0, and the guarded loop
    a plain 0.  The program's own value there is read off the stage's body, and off the slots' with the gauge unguarded
    (so a guard the program has itself is honoured: ``where(abs(m) == inf, 0, m)`` gives 0, log 0 = -inf, as
    torch.logsumexp does, and ``where(all masked, 0, p)`` gives 0, as scaled_dot_product_attention does); NaN is
    restored where it is NaN and the slots' value is not.  ``shared``: conditions outside which the stage's body is 0;
    see ``guarded``."""
    names = []
    folds = stage.monoid in IDENTITY and not stage.rank
    slots = {Ref(s.name): s for s in draft.slots.values()}
    read = [slots[Ref(r)] for r in sorted(refs(link.value)) if Ref(r) in slots]
    hung = {n for s in read for n in s.gauges}
    for g in draft.gauges.values():
        if not hung:
            break
        if g.final in slots and not (folds and math.isinf(g.empty)):
            continue  # a place in an order
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
        lost = folds and is_nan(extended(body, nothing))
        if not is_nan(mine) and (lost or is_nan(theirs) or (theirs == ANY and mine != ANY)):
            cases = set(map(is_nan, _cases(draft, body, nothing))) if folds else {True}
            if len(cases) > 1:
                why = f"where {g.final} is {g.empty:g}, a mask in {body} decides for each element whether it is NaN"
                raise Undecided(Unknown(stage.name, why, f"two passes: {g.final} first"))
            names.append(g.name)
    return replace(link, restore=tuple(names))


def remembered(draft: Draft, link: Link, stage: Stage, body: Expr) -> Link:
    """Results that algebra took out of the body altogether (m - m is 0 for every number) still make it NaN where they
    are NaN, and often where they are infinite: 0 * m is added to the value, which does just that."""
    if stage.monoid not in IDENTITY or stage.rank:
        return link
    value, read = link.value, _read_by(draft, link)
    if (gone := _unread(draft, body, read)) is not None:
        raise Undecided(Unknown(stage.name, f"{gone} cancels out of {body}, which is not a number where it is none"))
    for name in (s.name for s in draft.cascade.stages if s.name in refs(body) - read):
        ref = Ref(name)
        ends = [set(_cases(draft, body, {ref: end})) for end in (-INF, INF, math.nan)]
        lost = [any(v == ANY or is_nan(v) for v in end) for end in ends]
        if any(on and not all(map(is_nan, end)) for on, end in zip(lost, ends, strict=True)):
            why = f"{name} cancels out of {body}, which may be NaN where it is infinite"
            raise Undecided(Unknown(stage.name, why, f"two passes: {name} first"))
        if any(lost[:2]):
            value = apply("add", value, apply("mul", Const(0.0), ref))
        elif lost[2]:
            value = apply("select", apply("isnan", ref), Const(math.nan), value)
    return replace(link, value=value)


def _cases(draft: Draft, body: Expr, known: dict[Expr, Value]) -> Iterator[Value]:
    """Values of a body, whatever its masks say (ANY, if there are too many)."""
    choices = [e.args[0] for e in walk(body) if isinstance(e, Apply) and e.op == "select"]
    masks = list(dict.fromkeys(c for c in choices if draft.cut.side(c) in "xp" and c not in known))
    if len(masks) > 4:
        yield ANY
        return
    for chosen in itertools.product((0.0, 1.0), repeat=len(masks)):
        yield extended(body, {**known, **dict(zip(masks, chosen, strict=True))})


def _unread(draft: Draft, body: Expr, read: set[str]) -> Expr | None:
    """An input of elements that cancels out of a body, and takes its NaN along."""
    kept = set().union(*(walk(draft.slots[n].body) for n in read & draft.slots.keys()))
    for e in walk(body):
        own = isinstance(e, (Load, Fold)) and kind(e) == "real" and draft.cut.side(e) == "x"
        if own and e not in kept and any(v == ANY or is_nan(v) for v in _cases(draft, body, {e: math.nan})):
            return e
    return None


def _read_by(draft: Draft, link: Link) -> set[str]:
    """The results and slots that a value reads, itself or by what it reads."""
    found: set[str] = set()
    todo = set(refs(link.value))
    while todo:
        found.add(name := todo.pop())
        more = set(refs(draft.links[name].value)) if name in draft.links else set()
        for g in draft.slots[name].gauges if name in draft.slots else ():
            more |= next(refs(k.final) for k in draft.gauges.values() if k.name == g)
        todo |= more - found
    return found


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
    for s in draft.slots.values():
        if Ref(s.name) is g.final:
            known |= {g.final: g.empty, s.body: g.empty}
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
                if s.name in refs(link.value) and Ref(s.name) not in known:
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
    over = folded(certificate.cascade)
    if over:  # each point of a fold has a gauge of its own: two of them stand for all
        two = {a: min(n, 2) for a, n in over.items()}
        cert = unrolled_certificate(replace(certificate, cascade=replace(certificate.cascade, outputs=outputs)), two)
        held = {g.name.partition("@")[0] for g in cert.gauges if not _free(cert, g, cert.cascade.outputs, bounds)}
        gauges = tuple(replace(g, exact=g.name in held) for g in certificate.gauges)
    else:
        gauges = tuple(replace(g, exact=not _free(certificate, g, outputs, bounds)) for g in certificate.gauges)
    return replace(certificate, gauges=gauges)


def _free(certificate: Certificate, g: Gauge, outputs: tuple[Expr, ...], bounds: Bounds) -> bool:
    if not outputs or g.final in {Ref(s.name) for s in certificate.slots}:
        return False  # every result may be read; a place in an order is there or is not
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
