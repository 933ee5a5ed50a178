"""What Triton's compiler loads ahead of its trip in a loop: all that feeds dots, in pieces of at least 4 bytes."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from flashlight.backends.queries import axes_in, fetched, gathers, names_in
from flashlight.backends.triton.state import State
from flashlight.tile import ITEM_BYTES, Let, LoadOp, Loop, Segment, Stmt

WARP_GROUPS = 90  # where dots are instructions of a warp group


def held(state: State, body: tuple[Stmt, ...]) -> bool:
    """Would Triton load ahead of a dot what that dot's result tells it to load?

    It moves the dot ahead as well, and for one of a warp group it cannot ("doesn't know how to predicate this op").
    """
    if state.target.interpret or state.target.arch != WARP_GROUPS:
        return False
    return any(_moved(state, s) for s in gathers(body))


def stages(state: State, doubled: frozenset[int] = frozenset()) -> int:
    """How many trips may be under way: fewer than the kernel says where the blocks that wait in shared memory are
    certainly too many.  ``doubled``: loads (by ``id``) that wait in the place of another."""
    k, room = state.kernel, state.target.shared_bytes
    ahead = [(s, g) for s, g in _loops(k.body) if not held(state, g.body)]
    most = max((_waiting(state, s, g, doubled) for s, g in ahead), default=0)
    if not most or not room:
        return k.stages
    return min(k.stages, 1 + room // most)


def _waiting(state: State, loop: Loop, segment: Segment, doubled: frozenset[int]) -> int:
    """Bytes that one trip ahead takes."""
    return sum(
        prod(state.axis(a).block for a in s.dims) * ITEM_BYTES[state.kernel.buffer(s.op.buffer).dtype]
        for s in fetched(segment.body)
        if isinstance(s.op, LoadOp)
        and s.dims
        and _moved(state, s)
        and _changes(s.op, loop.axis)
        and id(s) not in doubled
    )


def _changes(op: LoadOp, axis: str) -> bool:
    """Is it not the same in every trip?"""
    return axis in axes_in(*op.index) or bool(names_in(*op.index))


def _moved(state: State, s: Let) -> bool:
    """Does it come in pieces of at least 4 bytes?  Narrow elements do if their neighbours may lie beside them."""
    assert isinstance(s.op, LoadOp)
    near = any(state.axis(a).role != "batch" for a in axes_in(*s.op.index))
    return near or ITEM_BYTES[state.kernel.buffer(s.op.buffer).dtype] >= 4


def _loops(body: Iterable[Stmt]) -> list[tuple[Loop, Segment]]:
    """Every segment of every innermost loop: Triton leaves those around others as they are."""
    out: list[tuple[Loop, Segment]] = []
    for s in body:
        if isinstance(s, Loop):
            for g in s.segments:
                out += _loops(g.body) or [(s, g)]
    return out
