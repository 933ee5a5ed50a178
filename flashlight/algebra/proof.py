"""What the algebra is asked and what it answers: cascades in, certificates or witnesses out.

A cascade is a sequence of stages along one streamed axis.  In a stage's body, whatever holds ``Index(axis)`` is an
*element* (side x); ``Ref(s)`` with s an earlier stage is that stage's finished *result* (side r); the rest belongs to
the row (side p).  A certificate says which slots a loop has to carry so that every stage's result can be read off
after one pass, and how the slots move when the reference point (the gauge) they are kept at moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from flashlight.expr import Expr, Index, Load


@dataclass(frozen=True)
class Scan:
    """Running reductions: at each element those before it (after it, if ``reverse``), itself too if ``inclusive``."""

    monoid: str = "sum"
    inclusive: bool = True
    reverse: bool = False

    def __str__(self) -> str:
        return (
            f"{'inclusive' if self.inclusive else 'exclusive'} {self.monoid}{' from the end' if self.reverse else ''}"
        )


@dataclass(frozen=True)
class Stage:
    """``name = monoid{axis} body``; with ``monoid=None`` a definition for the whole row (no element in it).

    ``monoid`` is sum, prod, max or min; or argmax, argmin: the index of the first element that is largest (smallest;
    NaN counts as both, as in torch), or ``payload`` there; or "scan", with ``scan`` saying of what: later stages read
    its running value at their own element as ``element(cascade, name)``, and ``Ref(name)`` is the whole axis's.
    ``rank``: for max, min, argmax and argmin, the place in their order that is asked for, 0 the first.
    """

    name: str
    monoid: str | None
    body: Expr
    scan: Scan | None = None
    payload: Expr | None = None
    rank: int = 0

    def __str__(self) -> str:
        monoid = f"scan ({self.scan})" if self.scan else self.monoid
        place = f"[{self.rank}]" if self.rank else ""
        payload = f" giving {self.payload}" if self.payload is not None else ""
        return f"{self.name} = {f'{monoid}{place} ' if monoid else ''}{self.body}{payload}"


@dataclass(frozen=True)
class Cascade:
    """Stages in order along ``axis`` of length ``extent``; ``outputs`` are expressions over Ref(stage) (what is read
    after the loop: they decide which gauges are free).

    In a ``Fold`` over an axis that the body of a stage has free, ``Ref`` of the stage is its result at that point."""

    axis: str
    extent: Expr
    stages: tuple[Stage, ...]
    outputs: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"along {self.axis}<{self.extent}", *(f"  {s}" for s in self.stages)])


def element(cascade: Cascade, scan: str) -> Load:
    """How the running value of a scan is read."""
    return Load(scan, (Index(cascade.axis),), "real")


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

    Moving its gauges from g to h: a sum becomes ``sum of row[k] * k(g)``, a maximum ``max of row[k] + k(g)``, a minimum
    ``min of row[k] + k(g)``, with row coefficients over Ref("g:NAME") and Ref("h:NAME").  A slot without gauges has no
    row.  ``identity`` is its value on no elements.  ``bound``: for every exponential of gauges in the body, in the
    order of ``expr.walk``, the multipliers (k, fact) that prove its exponent <= 0, or () where it is as large as the
    program's own.  ``action``: the row by which a part moves that others precede, whose scans have reached
    Ref("c:SCAN") by then (over g and h too; where its gauge is empty, c is the scan's identity): only certificates for
    split axes have it, and a loop, whose parts nothing precedes, needs none.
    """

    name: str
    monoid: str
    body: Expr
    identity: float
    gauges: tuple[str, ...] = ()
    row: tuple[tuple[str, Expr], ...] = ()
    bound: tuple[tuple[tuple[Expr, Fact], ...], ...] = ()
    action: tuple[tuple[str, Expr], ...] = ()

    def __str__(self) -> str:
        moves = [(head, row) for head, row in (("g->h", self.row), ("after c", self.action)) if row]
        return f"{self.name} = {self.monoid} {self.body}" + "".join(f";  {h}: {self._moved(r)}" for h, r in moves)

    def _moved(self, row: tuple[tuple[str, Expr], ...]) -> str:
        if self.monoid == "sum":
            return " + ".join(f"({c})*{k}" for k, c in row)
        return f"{self.monoid}({', '.join(f'({c}) + {k}' for k, c in row)})"


@dataclass(frozen=True)
class Gauge:
    """The reference point some slots are kept at.

    ``final``: what it stands for when the axis is done, an expression over Ref(stage) as it occurs in the bodies
    (``Ref("M")``, ``S / 4096``), or Ref(slot): that slot's own value for all elements.  ``same``: the running value
    over the whole axis *is* ``final``; if not, slots are moved from the last running value to ``final`` by their rows
    before links are read.
    ``value``: its running value, an expression over Ref(slot) of the state so far and the p side (for a running mean
    the prefix's own count is a slot, never the axis's length).
    ``empty``: the value that says that every slot hanging on it still holds its identity: -inf or inf for a maximum or
    minimum, 0 for one that divides, NaN where it is NaN before the first element, or if it is never empty (then NaN
    occurs only with NaN among the inputs).  ``safe``: what bodies and rows use in its place there; from an empty gauge
    nothing is moved.
    ``exact``: False when every output is unchanged by moving it, provided that its value is used wherever ``final``
    stands in links and outputs (m + log(l) has the m that l was summed at); it may then be stale, rounded or constant.
    ``constant``: a number that may be put in its place, if any: then every exponent of the slots that hang on it lies
    within ``reach`` of 0, or is -inf (``room.anchored`` makes the certificate without the gauge).
    """

    name: str
    final: Expr
    value: Expr
    empty: float
    safe: float
    same: bool = True
    exact: bool = True
    constant: float | None = None
    reach: float = math.inf

    def __str__(self) -> str:
        free = "" if self.exact else " (free)"
        return f"{self.name} ~ {self.value}{free}" + (
            "" if self.constant is None else f", or {self.constant:g}: exponents within {self.reach:g}"
        )


@dataclass(frozen=True)
class Link:
    """How a stage's result is read after the loop: ``value`` over Ref(slot), Ref(earlier stage) and the p side.

    Substituting each slot by its body with gauges at the final results gives the stage's own body (``rank`` terms).
    ``form``: "direct", "definition", "scan", "ordered", "constant" (of a gauge that was replaced by one: the value
    stands in for the result, which no output tells from it), or "late", "rescaled", "centred", "scaled", "exchanged"
    joined by "+".  ``given``: facts used to rewrite the body.  ``restore``: the gauges whose staying empty on a
    non-empty row means NaN.
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

    A slot has the name of no stage: ``Ref`` of a name in a link is either a slot or an earlier stage's result.
    ``order``: "any" (blocks may come in any order, and parts be merged), or "forward" or "backward": with scans the
    blocks come in this order along the axis, and only neighbours are merged, by their slots' ``action``.
    """

    cascade: Cascade
    slots: tuple[Slot, ...]
    gauges: tuple[Gauge, ...]
    links: tuple[Link, ...]
    order: str = "any"

    def slot(self, name: str) -> Slot:
        return next(s for s in self.slots if s.name == name)

    def gauge(self, name: str) -> Gauge:
        return next(g for g in self.gauges if g.name == name)

    def link(self, stage: str) -> Link:
        return next(k for k in self.links if k.stage == stage)

    def __str__(self) -> str:
        rows = [("slot ", self.slots), ("gauge", self.gauges), ("link ", self.links)]
        lines = [f"{head} {row}" for head, group in rows for row in group]
        return "\n".join([*lines, *([f"order {self.order}"] if self.order != "any" else [])])


@dataclass(frozen=True)
class Proved:
    certificate: Certificate

    def __str__(self) -> str:
        return "Proved"


@dataclass(frozen=True)
class Refuted:
    """``witness``: printable numbers or a point at which the claim is false.  ``advice``: a way out, where one is
    known."""

    stage: str
    reason: str
    witness: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"Refuted: {self.stage}: {self.reason}{advice} (witness: {self.witness})"


@dataclass(frozen=True)
class Unknown:
    stage: str
    reason: str
    advice: str = ""

    def __str__(self) -> str:
        return f"Unknown: {self.stage}: {self.reason}" + (f"; {self.advice}" if self.advice else "")


Verdict = Proved | Refuted | Unknown
