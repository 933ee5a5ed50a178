"""How large a tensor of a program is beside those that come in or go out, however long the lengths.

An axis of ``B*4`` grows as one of ``B`` does, one of ``B*H`` as two, and the blocks of ``N``, or ``N + 1``, as ``N``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from flashlight.expr import Apply, Const, Expr, Size
from flashlight.index import polynomial
from flashlight.program import Axis, Program, Statement

STREAM_FROM = 256  # a literal axis longer than this is streamed where it is reduced; shorter ones fit a block
SPARE = 8  # a reduction may be written where it is no more than so many times what comes in or goes out


def unbounded(a: Axis) -> bool:
    """Is an axis as long as the call says, or longer than a block?"""
    return not isinstance(a.extent, Const) or a.extent.value > STREAM_FROM


def is_fat(program: Program, s: Statement) -> bool:
    """Does a tensor have more unbounded dimensions than any that comes in or goes out (one of all scores, say)?"""
    wide = [a.extent for a in s.axes if unbounded(a)]
    own, long = _size(wide)[0], Counter(e for e in wide if isinstance(e, Const))
    return not any(own <= _size(shape)[0] and long <= Counter(shape) for shape in _known(program))


def is_thin(program: Program, s: Statement) -> bool:
    """Has a tensor at most SPARE times the elements of one that comes in or goes out?"""
    own, times = _size(a.extent for a in s.axes)
    return any(own <= lengths and times <= SPARE * others for lengths, others in map(_size, _known(program)))


def _known(program: Program) -> list[tuple[Expr, ...]]:
    return [t.shape for t in program.inputs] + [program[n].tensor.shape for n in program.outputs]


def _size(shape: Iterable[Expr]) -> tuple[Counter[Expr], int]:
    """The lengths that a number of elements grows with, and how many there are for each point of these."""
    lengths: Counter[Expr] = Counter()
    times = 1
    for extent in shape:
        terms = [(m, c) for m, c in polynomial(extent).items() if m]
        if isinstance(extent, Const):
            times *= int(extent.value)
        elif len(terms) == 1:
            lengths.update(map(_of_blocks, terms[0][0]))
            times *= terms[0][1]
        else:
            lengths[extent] += 1
    return lengths, times


def _of_blocks(extent: Expr) -> Expr:
    """The length whose blocks an axis numbers: there are no more of them."""
    match extent:
        case Apply("floordiv", (Size() as n, Const())):
            return n
        case Apply("floordiv", (Apply("add", (Size() as n, Const())), Const())):
            return n
    return extent
