"""Which dimensions of a call's tensors are lengths (symbolic), and which are literal.

Dimensions that have been equal in every call so far share a size; one whose length the mathematics needs, or that has
always been 1 (it may be broadcast), is literal.  What a first call cannot show, a second one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flashlight.trace import Dims

Place = tuple[int, int]  # (flat argument, dimension)
MEMORY = 64  # calls remembered for a signature


@dataclass
class History:
    """The shapes seen of one signature, and the places that have to be literal, with the lengths they had by then: at
    a new length they are given another chance.

    ``apart``: places that look like widths though lengths elsewhere equal theirs, by the name of those lengths in the
    last plan (as many heads as columns of a point, say).  They are taken for widths until the function does not accept
    that (``together``).
    """

    seen: list[tuple[tuple[int, ...] | None, ...]] = field(default_factory=list)
    literal: dict[Place, frozenset[int]] = field(default_factory=dict)
    apart: dict[str, frozenset[Place]] = field(default_factory=dict)
    together: set[frozenset[Place]] = field(default_factory=set)

    def plan(self, flat: Sequence[Any]) -> Dims:
        """Note this call, and say which dimensions are symbolic."""
        shapes = tuple(tuple(map(int, t.shape)) if isinstance(t, torch.Tensor) else None for t in flat)
        if shapes not in self.seen:
            self.seen = [*self.seen[-MEMORY:], shapes]
        places = [(p, d) for p, row in enumerate(shapes) if row is not None for d in range(len(row))]
        lengths = {q: tuple(row[q[0]][q[1]] for row in self.seen) for q in places}  # type: ignore[index]
        classes: dict[tuple[int, ...], list[Place]] = {}
        for q in places:
            if not set(lengths[q]) <= self.literal.get(q, frozenset((1,))):
                classes.setdefault(lengths[q], []).append(q)
        names: dict[Place, str] = {}
        taken: set[str] = set()
        self.apart = {}
        for key, members in classes.items():
            if len(set(key)) > 1 or not _like_features(members, flat):
                widths = _widths(members, flat) if len(set(key)) == 1 else frozenset()
                if widths in self.together:
                    widths = frozenset()
                members = [q for q in members if q not in widths]
                name = _name(members, flat, taken)
                names |= dict.fromkeys(members, name)
                if widths:
                    self.apart[name] = widths
        return tuple(
            None if row is None else tuple(names.get((p, d)) for d in range(len(row))) for p, row in enumerate(shapes)
        )

    def need(self, dims: Dims, sizes: frozenset[str]) -> bool:
        """These sizes have to be literal from now on, unless they were told apart from widths: then they are not any
        more.  False if they are literal already."""
        if guessed := sizes & self.apart.keys():
            self.together |= {self.apart[name] for name in guessed}
            return True
        more = {(p, d) for p, row in enumerate(dims) for d, name in enumerate(row or ()) if name in sizes}
        lengths = {(p, d): frozenset(row[p][d] for row in self.seen) for p, d in more}  # type: ignore[index]
        fresh = any(self.literal.get(q) != lengths[q] for q in more)
        self.literal |= lengths
        return fresh


def _like_features(members: list[Place], flat: Sequence[Any]) -> bool:
    """A guess: lengths that stand last in tensors of three and more dimensions, and nowhere before, are widths."""
    deep = [(p, d) for p, d in members if flat[p].ndim >= 3 and flat[p].is_floating_point()]
    return bool(deep) and all(d == flat[p].ndim - 1 for p, d in deep)


def _widths(members: list[Place], flat: Sequence[Any]) -> frozenset[Place]:
    """The places of a class that stand last, behind another length: widths, if that is not what the class is."""
    last = {
        (p, d) for p, d in members
        if d == flat[p].ndim - 1 >= 2 and flat[p].is_floating_point() and (p, d - 1) not in members
    }  # fmt: skip
    return frozenset(last) if len(last) < len(members) else frozenset()


def _name(members: list[Place], flat: Sequence[Any], taken: set[str]) -> str:
    """A capital letter after the place: rows N, M, L; batch and heads B, H, G; widths W."""
    p, d = members[0]
    behind = flat[p].ndim - 1 - d
    pool: str = "WCE" if behind == 0 and flat[p].ndim > 1 else "NML" if behind <= 1 else "BHGF"
    name: str = next(c for c in (*pool, *(f"{pool[0]}{k}" for k in range(2, 1000))) if c not in taken)
    taken.add(name)
    return name
