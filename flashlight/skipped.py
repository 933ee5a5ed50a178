"""What a stage does not see of earlier results where its pass skips points.

A point is skipped if it contributes the identity whatever *finite* values are read there.  A row without a live point
has no finite results (the maximum of nothing is -inf, and 0/0 of its sum is NaN): there the program may make NaN of
every point, and a pass that visits none of them makes 0.  Within one pass the certificate's links say so; between two
it is said here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

from flashlight.algebra import Certificate, Slot
from flashlight.algebra.special import ANY, Value, extended, is_nan
from flashlight.expr import FALSE, IDENTITY, Const, Expr, Ref, apply
from flashlight.masks import kills
from flashlight.moves import is_empty
from flashlight.nests import State

CASES = 5  # conditions that are told apart


def lost(
    stream: str,
    stage: State,
    slots: tuple[Slot, ...],
    read: Sequence[State],
    known: Sequence[Certificate],
    odd: Collection[str] = (),
) -> Expr | None:
    """Where the stage is NaN although the points that are visited may not show it; None if a row may have both points
    that make it NaN and points that do not.

    ``slots``: the stage's own.  ``read``: the stages of earlier passes that it reads.  ``known``: the certificates of
    those; ``odd``: those that are NaN by what was said here.
    """
    masks = kills(slots, stream)[0]
    if not masks or stage.monoid not in IDENTITY or stage.place:
        return FALSE
    if len(masks) > CASES:
        return None
    cases = [
        {k.condition: float(k.live == live) for k, live in zip(masks, chosen, strict=True)}
        for chosen in itertools.product((True, False), repeat=len(masks))
    ]
    nan: Expr = FALSE
    for condition, values in _odd(read, known, odd).items():
        made = [extended(stage.body, {**values, **case}) for case in cases]
        if any(is_nan(v) or v == ANY for v in made[1:]):  # in the first case no point is skipped
            if not all(map(is_nan, made)):
                return None
            nan = apply("or", nan, condition)
    return nan


def _odd(read: Sequence[State], known: Sequence[Certificate], odd: Collection[str]) -> dict[Expr, dict[Expr, Value]]:
    """When results are not finite in a row without live points, and what is known of them and their elements then."""
    found: dict[Expr, dict[Expr, Value]] = {}
    for r in read:
        ref, end = Ref(r.name), IDENTITY.get(r.monoid)
        if r.monoid in ("max", "min") and not r.place and end is not None:
            found.setdefault(apply("eq", ref, Const(end)), {}).update({ref: end, r.body: end})
        if r.name in odd:
            found.setdefault(apply("isnan", ref), {})[ref] = math.nan
    for certificate in known:
        restored = {k.stage: k.restore for k in certificate.links}
        for g in certificate.gauges:
            hung = [Ref(r.name) for r in read if g.name in restored.get(r.name, ())]
            if hung:
                here = found.setdefault(is_empty(g, g.final), {g.final: g.empty})
                here.update(dict.fromkeys(hung, math.nan))
    return found
