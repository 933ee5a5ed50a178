"""Running reductions along the streamed axis, and how a part moves that others precede.

In a loop over blocks in order a scan is a slot (what it has reached), and its running value at an element is that slot
before the block joined with the scan inside the block: other stages may use it in any way.  Parts that are computed
apart are kept as if nothing preceded them, and are moved when something does: the running values of a part are joined
with what its predecessors reached, an action of the scan's monoid (Blelloch, Prefix sums and their applications, 1990,
section 1.4: the recurrence's semidirect product).  It exists where the bodies that read running values separate in what
precedes, by the test that separates elements and results: exp(a) moves by exp(c), a sum of a*v by [[1, c], [0, 1]].
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from flashlight.algebra.draft import DUAL, Draft, Undecided
from flashlight.algebra.field import Field
from flashlight.algebra.proof import Cascade, Certificate, Link, Slot, Stage, Unknown, element
from flashlight.algebra.separation import Mixed, Rows, rows
from flashlight.algebra.terms import UNIT, Mono, Term, TooLarge, add, atoms_of, scale, subtract
from flashlight.expr import COMBINE, IDENTITY, INF, Apply, Const, Expr, Load, Ref, apply, refs, substitute, walk

Row = tuple[tuple[str, Expr], ...]

FORM = "scan"


def misread(cascade: Cascade) -> Unknown | None:
    """Running values are read at the element itself, and all of one cascade run in one direction."""
    every = {s.name for s in cascade.stages if s.scan is not None or s.monoid == FORM}
    known: dict[str, Stage] = {}
    for s in cascade.stages if every else ():
        for e in (e for part in (s.body, s.payload) if part is not None for e in walk(part)):
            if isinstance(e, Load) and e.tensor in every - known.keys():
                return Unknown(s.name, f"{e} is read before {e.tensor} is defined")
            if isinstance(e, Load) and e.tensor in every and e is not element(cascade, e.tensor):
                why = f"{e} is the running value at another element"
                return Unknown(s.name, why, "two passes: the running values are written first")
        if (s.scan is None) != (s.monoid != FORM) or (s.scan and s.scan.monoid not in IDENTITY):
            return Unknown(s.name, "a scan is one of a sum, max, min or prod")
        if s.scan is not None:
            other = next(iter(known.values()), s)
            if other.scan is not None and other.scan.reverse != s.scan.reverse:
                why = f"{s.name} and {other.name} run in opposite directions"
                return Unknown(s.name, why, "one pass in each direction, or the total less the running sum")
            known[s.name] = s
    return None


def order(cascade: Cascade) -> str:
    """The order in which the blocks of a cascade have to come."""
    scans = [s.scan for s in cascade.stages if s.scan is not None]
    return "any" if not scans else "backward" if scans[0].reverse else "forward"


def carried(draft: Draft, stage: Stage, body: Expr) -> Link:
    """The slot of what a scan has reached."""
    assert stage.scan is not None
    if found := sorted(refs(body) & draft.monoids.keys()):
        why = f"its running value at an element needs {found[0]}, which is known only at the end of the axis"
        raise Undecided(Unknown(stage.name, why, f"two passes: {found[0]} first"))
    slot = draft.slot(stage.name, stage.scan.monoid, body)
    at = element(draft.cascade, stage.name)
    low, high = draft.range_of(stage.scan.monoid, body)
    if stage.scan.inclusive:
        draft.bounds.ranges[at] = (low, high)
    else:
        start = slot.identity
        draft.bounds.ranges[at] = (min(low, start), max(high, start))
    _learn(draft, stage, at, body)
    return Link(stage.name, Ref(slot.name), 1, FORM)


def _learn(draft: Draft, stage: Stage, at: Expr, body: Expr) -> None:
    """A running sum of what is never negative stays below the whole; a running maximum does."""
    low, high = draft.bounds.interval(body)
    monoid = stage.scan.monoid if stage.scan is not None else ""
    if monoid == "max" or (monoid == "sum" and low >= 0):
        draft.bounds.learn(at, Ref(stage.name), stage.name)
    if monoid == "min" or (monoid == "sum" and high <= 0):
        draft.bounds.learn(Ref(stage.name), at, stage.name)


# ---- splitting -------------------------------------------------------------------------------------------------------
def with_actions(cert: Certificate) -> Certificate | Unknown:
    """The certificate with what merging needs: an action for each slot that reads running values, and the slots that
    these actions take from.  A loop needs neither."""
    scans = [s for s in cert.cascade.stages if s.scan is not None]
    if not scans:
        return cert
    mover = _Mover(cert, scans)
    for s in cert.slots:
        if why := mover.move(s):
            return Unknown(s.name, why, "one loop in order; split the rows, not the axis")
    return replace(cert, slots=tuple(mover.slots.values()))


class _Mover:
    def __init__(self, cert: Certificate, scans: list[Stage]):
        self.cert = cert
        self.slots = {s.name: s for s in cert.slots}
        self.factors: dict[str, Term] = {}  # slots that are multiplied by a function of what precedes them
        self.shifted: dict[Expr, Expr] = {}
        for s in scans:
            assert s.scan is not None
            at = element(cert.cascade, s.name)
            self.shifted[at] = apply(COMBINE[s.scan.monoid], at, Ref(f"c:{s.name}"))
        self.start: dict[Expr, bool] = {
            Ref(f"c:{s.name}"): s.scan is not None and s.scan.monoid == "prod" for s in scans
        }
        self.field = Field(cert.cascade.axis, frozenset(f"c:{s.name}" for s in scans), cut=False)

    def move(self, slot: Slot) -> str:
        """Give a slot its action; a reason if it has none."""
        self.factors[slot.name] = {UNIT: Fraction(1)}
        if not any(e in self.shifted for e in walk(slot.body)):
            return ""
        moved = substitute(slot.body, self.shifted)
        action = None
        try:
            if slot.monoid == "sum":
                action = self.summed(slot, moved)
            elif slot.monoid in DUAL and not slot.row:
                action = self.shift(slot, moved)
        except (TooLarge, RecursionError, OverflowError):
            action = None
        if action is None:
            return f"{slot.body} does not separate in what precedes its part"
        self.slots[slot.name] = replace(self.slots[slot.name], action=action)
        return ""

    def shift(self, slot: Slot, moved: Expr) -> Row | None:
        """max(s - a) less c: what all elements are shifted by, but for those that a mask has put out of reach."""
        while isinstance(moved, Apply) and moved.op == "select" and moved.args[2] in (Const(-INF), Const(INF)):
            moved = moved.args[1]
        table = self.table(moved)
        if table is None or (own := self.unmoved(table)) is None:
            return None
        step: Term = {}
        for unit, term in table.items():
            step = add(step, self.field.multiply({unit: Fraction(1)}, term))
        step = subtract(step, own)
        return None if any("x" in self.field.sides(m) for m in step) else ((slot.name, self.field.expr(step)),)

    def summed(self, slot: Slot, moved: Expr) -> Row | None:
        """``sum of unit(c) * G``: each G is the slot's own body or another sum's."""
        table = self.table(moved)
        if table is None or not (own := self.unmoved(table)):
            return None
        out: dict[str, Term] = {}
        for unit, term in table.items():
            size = term.get(next(iter(own)), Fraction(0)) / next(iter(own.values()))
            if term == scale(own, size):
                name = slot.name
            elif (made := self.beside(slot, term) if slot.gauges else self.added(slot, term)) is None:
                return None
            else:
                name, size = made
            out[name] = add(out.get(name, {}), {unit: size})
        if out.keys() == {slot.name}:
            self.factors[slot.name] = out[slot.name]
        if not slot.row:
            return tuple((name, self.field.expr(t)) for name, t in out.items())
        if out.keys() != {slot.name}:  # all of them follow their gauges by one factor
            ((_, follow),) = slot.row
            return tuple((k, self.field.expr(self.field.multiply(self.field.term(follow), t))) for k, t in out.items())
        if not all(k in self.factors and self.slots[k].monoid == "sum" for k, _ in slot.row):
            return None
        steps = [(k, self.field.multiply(self.field.term(c), self.factors[k])) for k, c in slot.row]
        return tuple((k, self.field.expr(t)) for k, t in steps)  # one exponential of (g - h) + c, not two

    def table(self, moved: Expr) -> Rows | None:
        """Monomials of what precedes, each with the term of elements and the row that it multiplies."""
        found = rows(self.field, self.field.term(moved))
        if isinstance(found, Mixed):
            return None
        out: Rows = {}
        for (powers, expo), term in found.items():
            unit = (tuple(p for p in powers if self.field.atoms[p[0]].side == "r"), expo)
            late: Mono = (tuple(p for p in powers if p not in unit[0]), ())
            out[unit] = add(out.get(unit, {}), self.field.multiply({late: Fraction(1)}, term))
        return out

    def unmoved(self, table: Rows) -> Term | None:
        """The term where nothing precedes."""
        out: Term = {}
        for (powers, expo), term in table.items():
            if any(self.field.atoms[a].expr not in self.start or n < 0 for a, n in powers):
                return None
            if not all({self.field.atoms[a].expr for a in atoms_of(m)} & self.start.keys() for (_, m), _ in expo):
                return None
            if all(self.start[self.field.atoms[a].expr] for a, _ in powers):
                out = add(out, term)
        return out

    def beside(self, slot: Slot, term: Term) -> tuple[str, Fraction] | None:
        """A slot that holds a multiple of the sum of a term and follows its gauges as this one does."""
        if len(slot.row) != 1 or slot.row[0][0] != slot.name:
            return None
        return self.like(term, [s for s in self.slots.values() if s.row == ((s.name, slot.row[0][1]),)])

    def added(self, slot: Slot, term: Term) -> tuple[str, Fraction] | None:
        """A slot without gauges that holds a multiple of the sum of a term."""
        if found := self.like(term, [s for s in self.slots.values() if not s.gauges]):
            return found
        lead = next(iter(term.values()))
        taken, stem = (
            {s.name for s in self.cert.cascade.stages} | set(self.slots),
            slot.name.partition(".")[0].rstrip("'"),
        )
        name = next(n for k in range(1, len(taken) + 2) if (n := f"{stem}.{k}") not in taken)
        self.slots[name] = Slot(name, "sum", self.field.expr(scale(term, 1 / lead)), 0.0)
        return None if self.move(self.slots[name]) else (name, lead)

    def like(self, term: Term, slots: list[Slot]) -> tuple[str, Fraction] | None:
        """The slot whose body the term is a multiple of, and the multiple."""
        first, c = next(iter(term.items()))
        for s in (s for s in slots if s.monoid == "sum"):
            own = self.field.term(s.body)
            if first in own and term == scale(own, c / own[first]):
                return s.name, c / own[first]
        return None
