"""What the algebra is asked and what it answers: cascades in, certificates or witnesses out.

A cascade is a sequence of stages along one streamed axis.  In a stage's body, whatever holds ``Index(axis)`` is an
*element* (side x); ``Ref(s)`` with s an earlier stage is that stage's finished *result* (side r); the rest belongs to
the row (side p).  A certificate says which slots a loop has to carry so that every stage's result can be read off
after one pass, and how the slots move when the reference point (the gauge) they are kept at moves.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashlight.expr import Expr


@dataclass(frozen=True)
class Stage:
    """``name = monoid{axis} body``; with ``monoid=None`` a definition for the whole row (no element in it)."""

    name: str
    monoid: str | None
    body: Expr

    def __str__(self) -> str:
        return f"{self.name} = {self.monoid + ' ' if self.monoid else ''}{self.body}"


@dataclass(frozen=True)
class Cascade:
    """Stages in order along ``axis`` of length ``extent``; ``outputs`` are expressions over Ref(stage) (what is read
    after the loop: they decide which gauges are free)."""

    axis: str
    extent: Expr
    stages: tuple[Stage, ...]
    outputs: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"along {self.axis}<{self.extent}", *(f"  {s}" for s in self.stages)])


@dataclass(frozen=True)
class Fact:
    """``low <= high`` for every element, because of ``source``: a stage (its maximum or minimum), "row definition E"
    (the maximum or minimum E of several results), or "range" (interval arithmetic)."""

    low: Expr
    high: Expr
    source: str

    def __str__(self) -> str:
        return f"{self.low} <= {self.high} [{self.source}]"


@dataclass(frozen=True)
class Slot:
    """``name = monoid{axis} body`` where body's r-side is replaced by gauges: Ref("g:NAME").

    Moving its gauges from g to h: ``slot(h) = sum of row[k] * k(g)`` with row coefficients over Ref("g:NAME") and
    Ref("h:NAME").  A slot without gauges has no row.  ``identity`` is its value on no elements.  ``bound``: for every
    exponential of gauges in the body, in the order of ``expr.walk``, the multipliers (k, fact) that prove its exponent
    <= 0, or () where it is as large as the program's own.
    """

    name: str
    monoid: str
    body: Expr
    identity: float
    gauges: tuple[str, ...] = ()
    row: tuple[tuple[str, Expr], ...] = ()
    bound: tuple[tuple[tuple[Expr, Fact], ...], ...] = ()

    def __str__(self) -> str:
        move = " + ".join(f"({c})*{k}" for k, c in self.row)
        return f"{self.name} = {self.monoid} {self.body}" + (f";  g->h: {move}" if self.row else "")


@dataclass(frozen=True)
class Gauge:
    """The reference point some slots are kept at.

    ``final``: what it stands for when the axis is done, an expression over Ref(stage) as it occurs in the bodies
    (``Ref("M")``, ``S / 4096``).  ``same``: the running value over the whole axis *is* ``final``; if not, slots are
    moved from the last running value to ``final`` by their rows before links are read.
    ``value``: its running value, an expression over Ref(slot) of the state so far and the p side (for a running mean
    the prefix's own count is a slot, never the axis's length).
    ``empty``: the value that says that every slot hanging on it still holds its identity: -inf or inf for a maximum or
    minimum, 0 for one that divides, NaN where it is NaN before the first element, or if it is never empty (then NaN
    occurs only with NaN among the inputs).  ``safe``: what bodies and rows use in its place there; from an empty gauge
    nothing is moved.
    ``exact``: False when every output is unchanged by moving it, provided that its value is used wherever ``final``
    stands in links and outputs (m + log(l) has the m that l was summed at); it may then be stale, rounded or constant.
    """

    name: str
    final: Expr
    value: Expr
    empty: float
    safe: float
    same: bool = True
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.name} ~ {self.value}" + ("" if self.exact else " (free)")


@dataclass(frozen=True)
class Link:
    """How a stage's result is read after the loop: ``value`` over Ref(slot), Ref(earlier stage) and the p side.

    Substituting each slot by its body with gauges at the final results gives the stage's own body (``rank`` terms).
    ``form``: "direct", "definition", or "late", "rescaled", "centred", "scaled" joined by "+".  ``given``: facts used
    to rewrite the body.  ``restore``: the gauges whose staying empty on a non-empty row means NaN.
    """

    stage: str
    value: Expr
    rank: int
    form: str
    given: tuple[Fact, ...] = ()
    restore: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.stage} := {self.value}  [rank {self.rank}, {self.form}]"


@dataclass(frozen=True)
class Certificate:
    """Slots and gauges in an order of definition (a gauge's value uses earlier slots only), and a link per stage.

    A slot has the name of no stage: ``Ref`` of a name in a link is either a slot or an earlier stage's result."""

    cascade: Cascade
    slots: tuple[Slot, ...]
    gauges: tuple[Gauge, ...]
    links: tuple[Link, ...]

    def slot(self, name: str) -> Slot:
        return next(s for s in self.slots if s.name == name)

    def gauge(self, name: str) -> Gauge:
        return next(g for g in self.gauges if g.name == name)

    def link(self, stage: str) -> Link:
        return next(k for k in self.links if k.stage == stage)

    def __str__(self) -> str:
        rows = [("slot ", self.slots), ("gauge", self.gauges), ("link ", self.links)]
        return "\n".join(f"{head} {row}" for head, group in rows for row in group)


@dataclass(frozen=True)
class Proved:
    certificate: Certificate

    def __str__(self) -> str:
        return "Proved"


@dataclass(frozen=True)
class Refuted:
    """``witness``: printable numbers or a point at which the claim is false."""

    stage: str
    reason: str
    witness: str

    def __str__(self) -> str:
        return f"Refuted: {self.stage}: {self.reason} (witness: {self.witness})"


@dataclass(frozen=True)
class Unknown:
    stage: str
    reason: str

    def __str__(self) -> str:
        return f"Unknown: {self.stage}: {self.reason}"


Verdict = Proved | Refuted | Unknown
