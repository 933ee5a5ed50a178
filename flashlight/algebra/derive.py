"""From a cascade of reductions to the slots of one pass, with the proof; or a reason why there is none."""

from __future__ import annotations

from fractions import Fraction
from typing import NoReturn

from flashlight.algebra import ordered, scans, separation
from flashlight.algebra.bounds import attained
from flashlight.algebra.draft import DUAL, Draft, Undecided
from flashlight.algebra.field import TooLarge
from flashlight.algebra.forms import carry
from flashlight.algebra.gauges import Condition, guarded, remembered, restored, with_freedom
from flashlight.algebra.ordered import Ladder
from flashlight.algebra.proof import Cascade, Certificate, Link, Proved, Stage, Unknown, Verdict
from flashlight.algebra.reach import with_constants
from flashlight.algebra.separation import Group, Mixed, Rows
from flashlight.algebra.terms import EXPONENTIAL, LOGARITHM, UNIT, Mono, Term, add, atoms_of, total
from flashlight.expr import (
    IDENTITY,
    INF,
    PLACED,
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    apply,
    axes,
    refs,
    substitute,
    walk,
)

DEFINITION, ORDERED = "definition", "ordered"


def decide(cascade: Cascade) -> Verdict:
    """Can all stages be computed in one pass over the axis?"""
    if not cascade.stages:
        return Proved(Certificate(cascade, (), (), ()))
    names = [s.name for s in cascade.stages]
    for k, s in enumerate(cascade.stages):
        if s.monoid not in (None, "scan", *PLACED, *IDENTITY):
            return Unknown(s.name, f"{s.monoid} is no monoid of sum, max, min and prod, no scan and no argmax")
        if s.name in names[:k] or (refs(s.body) | refs(s.payload or s.body)) & set(names[k:]):
            return Unknown(s.name, "a stage is defined once, and reads earlier stages only")
        if s.monoid is None and cascade.axis in axes(s.body):
            return Unknown(s.name, "a definition for the whole row holds an element")
    if (misread := scans.misread(cascade)) is not None:
        return misread
    deriver = _Deriver(cascade)
    for s in cascade.stages:
        try:
            deriver.stage(s)
        except Undecided as stop:
            return stop.verdict
        except (TooLarge, RecursionError, OverflowError) as why:
            return Unknown(s.name, f"too large to be multiplied out ({type(why).__name__})")
    return Proved(deriver.certificate())


class _Deriver:
    def __init__(self, cascade: Cascade):
        self.cascade = cascade
        self.draft = Draft(cascade)
        self.shared: tuple[Condition, ...] = ()  # of the stage at hand: conditions outside which its body is 0
        self.inline: dict[Expr, Expr] = {}  # definitions are written out, so that exponentials meet their maximum

    def certificate(self) -> Certificate:
        draft = self.draft
        slots, gauges = tuple(draft.slots.values()), tuple(draft.gauges.values())
        links = tuple(draft.links[s.name] for s in self.cascade.stages)
        outputs = tuple(substitute(o, self.inline) for o in self.cascade.outputs)
        cert = Certificate(self.cascade, slots, gauges, links, scans.order(self.cascade))
        return with_constants(with_freedom(cert, outputs, draft.bounds), outputs, draft.bounds)

    def stage(self, stage: Stage) -> None:
        draft, ref = self.draft, Ref(stage.name)
        body = substitute(stage.body, self.inline)
        draft.bounds.read(body)
        match stage.monoid:
            case None:
                self.inline[ref] = body
                link = Link(stage.name, body, 0, DEFINITION)
                draft.bounds.ranges[ref] = draft.bounds.interval(body)
            case "scan":
                link = scans.carried(draft, stage, body)
                draft.bounds.ranges[ref] = draft.bounds.ranges[link.value]
            case "sum":
                link = self.sum(stage, body)
                one = attained(draft.bounds, body, self.cascade.axis)
                draft.bounds.ranges[ref] = (1.0, INF) if one else draft.range_of("sum", body)
            case "prod":
                link = self.prod(stage, body)
                draft.bounds.ranges[ref] = draft.range_of("prod", body)
            case _:
                link = self.order(stage, body)
                kept = body if stage.monoid not in PLACED else stage.payload or Index(self.cascade.axis)
                draft.bounds.ranges[ref] = draft.bounds.interval(kept)
                if stage.monoid in DUAL and not stage.rank and not self.reads(body):
                    below, above = (body, ref) if stage.monoid == "max" else (ref, body)
                    draft.bounds.learn(below, above, stage.name)
        given, draft.bounds.relied = tuple(draft.bounds.relied), []
        link = Link(link.stage, link.value, link.rank, link.form, given)
        link = guarded(draft, restored(draft, link, stage, body, self.shared), body, self.shared)
        draft.links[stage.name], self.shared = remembered(draft, link, stage, body), ()
        draft.running[ref] = substitute(link.value, draft.running)

    def reads(self, body: Expr) -> bool:
        return bool(refs(body) & self.draft.monoids.keys())

    def direct(self, stage: Stage, body: Expr) -> Link:
        slot = self.draft.slot(stage.name, stage.monoid or "sum", body)
        return Link(stage.name, Ref(slot.name), 1, "direct")

    # ---- sums --------------------------------------------------------------------------------------------------
    def sum(self, stage: Stage, body: Expr) -> Link:
        if not self.reads(body):
            return self.direct(stage, body)
        forms: dict[str, None] = {}
        value, rank = self.summed(stage, body, forms)
        return Link(stage.name, value, rank, "+".join(forms) or "direct")

    def summed(self, stage: Stage, body: Expr, forms: dict[str, None]) -> tuple[Expr, int]:
        """The sum's value over slots and results, and its rank."""
        term = self.term(body)
        inner = {m: f for m in term if (f := self.folded(stage, m)) is not None}
        parts: list[tuple[Fraction, Expr | None]] = []
        rank = 0
        for m, (a, fold) in inner.items():
            parts.append((term[m], self.exchanged(stage, m, a, fold, forms)))
            rank += fold.extent
        if table := self.separated(stage, body, {m: c for m, c in term.items() if m not in inner}):
            rank += separation.rank(table)
            self.shared = self.conditions(table) if not inner else ()
            for group in separation.groups(self.draft.cut, table, self.centres(table)):
                for placed in carry(self.draft, stage.name, group):
                    parts.append((placed.size, self.chosen(stage, group, placed.value)))
                    forms.update(dict.fromkeys(placed.forms))
        return total(parts), rank

    def term(self, body: Expr) -> Term:
        """The body as products of elements and results; one of results alone comes back as it was written."""
        cut = self.draft.cut
        return cut.term(body) if "x" in cut.side(body) else cut.generator(body)

    def folded(self, stage: Stage, m: Mono) -> tuple[int, Fold] | None:
        """A fold in a monomial that holds elements and results at once."""
        atoms = self.draft.cut.atoms
        for a in atoms_of(m):
            e = atoms[a].expr
            if isinstance(e, Fold) and atoms[a].side == "xr":
                if e.monoid == "sum" and dict(m[0]).get(a) == 1 and sum(b == a for b in atoms_of(m)) == 1:
                    return a, e
                why = f"{e} holds elements and results, and is no plain factor: only sums are exchanged with sums"
                raise Undecided(Unknown(stage.name, why, "two passes: the results in it first"))
        return None

    def exchanged(self, stage: Stage, m: Mono, a: int, fold: Fold, forms: dict[str, None]) -> Expr:
        """``sum{j} c * sum{h} f  =  sum{h} sum{j} c * f``: slots and gauges that vary along h, and a sum over h at the
        end."""
        cut = self.draft.cut
        rest = cut.mono_expr((tuple(p for p in m[0] if p[0] != a), m[1]))
        if rest is not None and fold.axis in axes(rest):
            raise Undecided(Unknown(stage.name, f"{fold.axis} is the axis of a fold and stands beside it"))
        inner = fold.body if rest is None else apply("mul", fold.body, rest)
        forms["exchanged"] = None
        if not self.reads(inner):
            return Fold("sum", fold.axis, fold.extent, Ref(self.draft.slot(stage.name, "sum", inner).name), fold.dtype)
        return Fold("sum", fold.axis, fold.extent, self.summed(stage, inner, forms)[0], fold.dtype)

    def separated(self, stage: Stage, body: Expr, term: Term) -> Rows:
        found = separation.rows(self.draft.cut, term)
        if isinstance(found, Mixed):
            found = separation.rows(self.draft.cut, self.cancelled(stage, body, found))
            if isinstance(found, Mixed):
                raise Undecided(Unknown(stage.name, f"{found.atom} mixes elements and results"))
        return found

    def cancelled(self, stage: Stage, body: Expr, mixed: Mixed) -> Term:
        """Last resorts: a witness that no small rank suffices, else lowest terms over the rationals."""
        from flashlight.algebra import rank

        below = any(refs(f.high) & refs(body) for _, f in self.draft.bounds.facts)
        verdict = rank.refute(stage.name, body, self.cascade.axis, self.draft.bounds, below, str(mixed.atom))
        if not isinstance(verdict, int):
            raise Undecided(verdict)
        full = self.draft.full
        lowest = rank.lowest_terms(full, full.term(body))
        if lowest is None:
            why = f"{mixed.atom} mixes elements and results; numerically of rank {verdict}, but no form is known"
            raise Undecided(Unknown(stage.name, why))
        return self.draft.cut.term(full.expr(lowest))

    def conditions(self, table: Rows) -> tuple[Condition, ...]:
        of = self.draft.cut.conditions
        each = [{of[a]: None for a, _ in m[0] if a in of} for term in table.values() for m in term]
        return tuple(c for c in each[0] if all(c in other for other in each))

    def chosen(self, stage: Stage, group: Group, value: Expr | None) -> Expr | None:
        """``sum where(c, x * r, y)``: where c never holds, an infinite r does not matter; one more slot remembers."""
        if value is None or isinstance(value, Ref) or (isinstance(value, Apply) and value.op == "select"):
            return value
        of = self.draft.cut.conditions
        each = [{of[a]: None for a, _ in m[0] if a in of} for m in group.core]
        for c, live in (k for k in each[0] if k not in self.shared and all(k in other for other in each)):
            ends = (Const(1.0), Const(0.0)) if live else (Const(0.0), Const(1.0))
            seen = Ref(self.draft.slot(stage.name, "max", apply("select", c, *ends)).name)
            value = apply("select", apply("eq", seen, Const(0.0)), Const(0.0), value)
        return value

    def centres(self, table: Rows) -> dict[int, bool]:
        draft, atoms = self.draft, self.draft.cut.atoms
        out = {}
        for a in dict.fromkeys(a for u in table for a, _ in u[0] if atoms[a].side == "r"):
            e = atoms[a].expr
            if draft.ordered(e):
                if not any(isinstance(n, Apply) and n.op in EXPONENTIAL + LOGARITHM for n in walk(e)):
                    out[a] = True
            elif draft.plain_mean(e):
                out[a] = False
        return out

    # ---- maxima and minima, and what stands there -----------------------------------------------------------------
    def order(self, stage: Stage, body: Expr) -> Link:
        monoid = stage.monoid or "max"
        by_place = monoid in PLACED or stage.rank > 0
        if not self.reads(body) and not by_place:
            return self.direct(stage, body)
        found = ordered.key(self.draft, body, strict=monoid in PLACED)
        if found is None:
            if not by_place:
                return self.scaled_order(stage, monoid, body)
            self.refuse_order(stage, body, f"{body} is not known to increase or decrease in one thing of elements")
        end = ordered.monoid_of(monoid, found.up)
        if not by_place:
            slot = self.draft.slot(stage.name, end, found.core)
            self.inline[body] = found.value(found.core)  # so that both meet again, in exponents
            self.inline[Ref(stage.name)] = value = found.value(self.draft.as_result(slot))
            return Link(stage.name, value, 1, "late")
        exact = any(s.rank for s in self.cascade.stages)
        ladder = Ladder(self.draft, stage.name, found.core, end, exact)
        if monoid not in PLACED:
            return Link(stage.name, found.value(Ref(ladder.value(stage.rank).name)), 1, ORDERED)
        return Link(stage.name, self.standing(stage, ladder), 1, ORDERED)

    def standing(self, stage: Stage, ladder: Ladder) -> Expr:
        """What stands at the place: at the first index in a row that has nothing but what is infinitely far down."""
        at = Ref(ladder.place(stage.rank).name)
        index = Index(self.cascade.axis)
        value: Expr = at
        otherwise: Expr = Const(0.0)
        if stage.payload is not None and stage.payload is not index:
            payload = substitute(stage.payload, self.inline)
            if self.reads(payload):
                advice = "gather the elements it is made of, and compute it of those"
                raise Undecided(Unknown(stage.name, f"{payload} is gathered and reads results", advice))
            value = Ref(ladder.payload(stage.rank, payload).name)
            otherwise = apply("real", substitute(payload, {index: Const(0)}))
            if any(isinstance(e, Load) and e.tensor in self.draft.monoids for e in walk(otherwise)):
                raise Undecided(Unknown(stage.name, f"{payload} is gathered and reads a scan"))
        return value if ladder.exact else apply("select", apply("eq", at, Const(INF)), otherwise, value)

    def scaled_order(self, stage: Stage, monoid: str, body: Expr) -> Link:
        """max(x * r + c(r)): one end if the sign of r is known, both ends if not (exact, even in rounding)."""
        cut = self.draft.cut
        found = separation.rows(cut, cut.term(body))
        if isinstance(found, Mixed):
            self.refuse_order(stage, body, f"{found.atom} mixes elements and results")
        offset: Term = {}
        scaled: Rows = {}
        for u, term in found.items():
            if UNIT in term:
                offset = add(offset, {u: term[UNIT]})
            if rest := {m: c for m, c in term.items() if m != UNIT}:
                scaled[u] = rest
        if separation.rank(scaled) != 1:
            self.refuse_order(stage, body, f"{monoid} of a sum of {len(scaled)} terms that are scaled separately")
        own = next(iter(scaled.values()))
        lead = next(iter(own))
        factor = cut.expr({u: term[lead] / own[lead] for u, term in scaled.items()})
        x = cut.expr(own)
        low, high = self.draft.bounds.interval(factor)

        def end(m: str) -> Expr:
            return apply("mul", factor, Ref(self.draft.slot(stage.name, m, x).name))

        if low >= 0 or high <= 0:
            value = end(monoid if low >= 0 else DUAL[monoid])
        else:
            value = apply(f"{monoid}imum", end("max"), end("min"))
        if offset:
            value = apply("add", value, cut.expr(offset))
        return Link(stage.name, value, separation.rank(found), "late")

    def refuse_order(self, stage: Stage, body: Expr, why: str) -> NoReturn:
        from flashlight.algebra import rank

        raise Undecided(rank.refute_order(stage.name, body, self.cascade.axis, self.draft.bounds, why))

    # ---- products ----------------------------------------------------------------------------------------------
    def prod(self, stage: Stage, body: Expr) -> Link:
        if not self.reads(body):
            return self.direct(stage, body)
        found = self.separated(stage, body, self.term(body))
        if separation.rank(found) != 1:
            raise Undecided(Unknown(stage.name, f"the product of a sum of {len(found)} separately scaled terms"))
        own = next(iter(found.values()))
        lead = next(iter(own))
        factor = self.draft.cut.expr({u: term[lead] / own[lead] for u, term in found.items()})
        slot = Ref(self.draft.slot(stage.name, "prod", self.draft.cut.expr(own)).name)
        return Link(stage.name, apply("mul", slot, apply("pow", factor, self.draft.count())), 1, "late")
