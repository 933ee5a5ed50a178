"""Presburger sets and relations: domains, accesses, dependences, schedule trees, tile classes.  isl is used only here.

isl's values stay in this package.  What leaves it are frozen values of our own with named axes, scalar expressions and
readable text (``docs/decisions/0002``).
"""

from __future__ import annotations

if __name__ != "flashlight.polyhedral":
    raise ImportError(f"import flashlight.polyhedral, not {__name__}: the bare name is a second copy of every class")
