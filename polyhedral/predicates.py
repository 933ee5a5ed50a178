"""Has a condition over integers a solution?"""

from __future__ import annotations

from flashlight.errors import NotAffine
from flashlight.expr import Expr, Index, walk
from flashlight.polyhedral.affine import Translator, parameters
from flashlight.polyhedral.space import Space, TooHard, budget, sample

OPERATIONS = 500_000


def solution(condition: Expr) -> str | None:
    """A solution as text, ``i = 3, N = 71``; None if there is none.  Every Index and Size may be any integer.

    Raises NotAffine if isl cannot hold the condition, or not in its time.
    """
    dims = tuple(dict.fromkeys(n for n in walk(condition) if isinstance(n, Index)))
    space = Space(parameters(condition), dims)
    try:
        with budget(OPERATIONS):
            at = sample(Translator(space).truth(condition), space)
    except TooHard:
        raise NotAffine("isl could not decide it in its time") from None
    return None if at is None else ", ".join(f"{key} = {at[key]}" for key in (*dims, *space.params))
