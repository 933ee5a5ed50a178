"""From a cascade of reductions to the slots of one pass, with the proof; or a reason why there is none."""

from __future__ import annotations

from fractions import Fraction
from typing import NoReturn

from flashlight.algebra import separation
from flashlight.algebra.bounds import attained
from flashlight.algebra.draft import DUAL, IDENTITY, Draft, Undecided
from flashlight.algebra.field import TooLarge
from flashlight.algebra.forms import carry
from flashlight.algebra.gauges import Condition, guarded, restored, with_freedom
from flashlight.algebra.proof import Cascade, Certificate, Link, Proved, Stage, Unknown, Verdict
from flashlight.algebra.separation import Mixed, Rows
from flashlight.algebra.terms import EXPONENTIAL, LOGARITHM, UNIT, Term, add, total
from flashlight.expr import INF, OPS, Apply, Const, Expr, Ref, apply, axes, refs, substitute, walk

DEFINITION = "definition"


def decide(cascade: Cascade) -> Verdict:
    """Can all stages be computed in one pass over the axis?"""
    if not cascade.stages:
        return Proved(Certificate(cascade, (), (), ()))
    names = [s.name for s in cascade.stages]
    for k, s in enumerate(cascade.stages):
        if s.monoid is not None and s.monoid not in IDENTITY:
            return Unknown(s.name, f"{s.monoid} is no monoid of sum, max, min and prod")  # scans and argmax go here
        if s.name in names[:k] or refs(s.body) & set(names[k:]):
            return Unknown(s.name, "a stage is defined once, and reads earlier stages only")
        if s.monoid is None and cascade.axis in axes(s.body):
            return Unknown(s.name, "a definition for the whole row holds an element")
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
        return with_freedom(Certificate(self.cascade, slots, gauges, links), outputs, draft.bounds)

    def stage(self, stage: Stage) -> None:
        draft, ref = self.draft, Ref(stage.name)
        body = substitute(stage.body, self.inline)
        draft.bounds.read(body)
        match stage.monoid:
            case None:
                self.inline[ref] = body
                link = Link(stage.name, body, 0, DEFINITION)
                draft.bounds.ranges[ref] = draft.bounds.interval(body)
            case "sum":
                link = self.sum(stage, body)
                one = attained(draft.bounds, body, self.cascade.axis)
                draft.bounds.ranges[ref] = (1.0, INF) if one else draft.range_of("sum", body)
            case "prod":
                link = self.prod(stage, body)
                draft.bounds.ranges[ref] = draft.range_of("prod", body)
            case _:
                link = self.order(stage, body)
                draft.bounds.ranges[ref] = draft.bounds.interval(body)
                if not self.reads(body):
                    below, above = (body, ref) if stage.monoid == "max" else (ref, body)
                    draft.bounds.learn(below, above, stage.name)
        given, draft.bounds.relied = tuple(draft.bounds.relied), []
        link = Link(link.stage, link.value, link.rank, link.form, given)
        link = guarded(draft, restored(draft, link, self.shared), body, self.shared)
        draft.links[stage.name], self.shared = link, ()
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
        table = self.separated(stage, body)
        if not table:
            return Link(stage.name, Const(0.0), 0, "direct")
        self.shared = self.conditions(table)
        parts: list[tuple[Fraction, Expr | None]] = []
        forms: dict[str, None] = {}
        for group in separation.groups(self.draft.cut, table, self.centres(table)):
            for placed in carry(self.draft, stage.name, group):
                parts.append((placed.size, placed.value))
                forms.update(dict.fromkeys(placed.forms))
        return Link(stage.name, total(parts), separation.rank(table), "+".join(forms))

    def separated(self, stage: Stage, body: Expr) -> Rows:
        found = separation.rows(self.draft.cut, self.draft.cut.term(body))
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

    # ---- maxima and minima -------------------------------------------------------------------------------------
    def order(self, stage: Stage, body: Expr) -> Link:
        if not self.reads(body):
            return self.direct(stage, body)
        monoid = stage.monoid or "max"
        found = self.strip(stage, monoid, body)
        if found is not None:
            return Link(stage.name, found, 1, "late")
        return self.scaled_order(stage, monoid, body)

    def strip(self, stage: Stage, monoid: str, e: Expr) -> Expr | None:
        """The maximum of an increasing function is the function of the maximum (of a decreasing one, the minimum)."""
        side = self.draft.cut.side(e)
        if "x" not in side:
            return e
        if side == "x":
            return Ref(self.draft.slot(stage.name, monoid, e).name)
        if not isinstance(e, Apply):
            return None
        at = [k for k, a in enumerate(e.args) if "x" in self.draft.cut.side(a)]
        if len(at) != 1:
            return None
        up = self.direction(e, at[0])
        if not up:
            return None
        inner = self.strip(stage, monoid if up > 0 else DUAL[monoid], e.args[at[0]])
        if inner is None:
            return None
        return apply(e.op, *(inner if k == at[0] else a for k, a in enumerate(e.args)))

    def direction(self, e: Apply, at: int) -> int:
        monotone = OPS[e.op].monotone
        if monotone and monotone[at]:
            return monotone[at]
        if e.op in ("mul", "div") and (e.op == "mul" or at == 0):
            low, high = self.draft.bounds.interval(e.args[1 - at])
            return 1 if low >= 0 else -1 if high <= 0 else 0
        return 0

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
        return Link(stage.name, value, 1, "late")

    def refuse_order(self, stage: Stage, body: Expr, why: str) -> NoReturn:
        from flashlight.algebra import rank

        raise Undecided(rank.refute_order(stage.name, body, self.cascade.axis, self.draft.bounds, why))

    # ---- products ----------------------------------------------------------------------------------------------
    def prod(self, stage: Stage, body: Expr) -> Link:
        if not self.reads(body):
            return self.direct(stage, body)
        found = self.separated(stage, body)
        if separation.rank(found) != 1:
            raise Undecided(Unknown(stage.name, f"the product of a sum of {len(found)} separately scaled terms"))
        own = next(iter(found.values()))
        lead = next(iter(own))
        factor = self.draft.cut.expr({u: term[lead] / own[lead] for u, term in found.items()})
        slot = Ref(self.draft.slot(stage.name, "prod", self.draft.cut.expr(own)).name)
        return Link(stage.name, apply("mul", slot, apply("pow", factor, self.draft.count())), 1, "late")
