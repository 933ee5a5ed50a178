"""Where the elements of a block are: which lane, warp and register has which coordinate of an axis.

A block value lies in registers, spread over the threads of a thread block.  Every digit of a coordinate is one of
three things: a number of a register, bits of the lane (0 to 31) or bits of the warp.  Two axes of one value use
different bits; a value that lacks an axis is repeated over that axis's bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from flashlight.backends.queries import pow2

LANES, THREADS = 5, 32  # bits of a lane's number; threads of a warp


@dataclass(frozen=True)
class Digit:
    """``radix`` values of a coordinate, by ``where``: "register", "lane" or "warp" (then from bit ``shift`` on)."""

    where: str
    radix: int
    shift: int = 0

    @property
    def bits(self) -> frozenset[tuple[str, int]]:
        """The bits of the thread's number that this digit takes."""
        if self.where == "register":
            return frozenset()
        return frozenset((self.where, self.shift + k) for k in range(log2(self.radix)))


@dataclass(frozen=True)
class Placement:
    """The digits of an axis's coordinate within its block, least significant first."""

    digits: tuple[Digit, ...]

    @cached_property
    def length(self) -> int:
        """How many coordinates there are: the block's length, padded."""
        return prod(d.radix for d in self.digits)

    @cached_property
    def local(self) -> int:
        """How many of them a thread has."""
        return prod(d.radix for d in self.digits if d.where == "register")

    @cached_property
    def run(self) -> int:
        """How many neighbours a thread has together."""
        return self.digits[0].radix if self.digits and self.digits[0].where == "register" else 1

    @cached_property
    def bits(self) -> frozenset[tuple[str, int]]:
        return frozenset().union(*(d.bits for d in self.digits))

    def over(self, where: str) -> list[tuple[int, int]]:
        """The ranges of bits that digits in lanes or warps take, as (first, end) weights: (1, 4) is bits 0 and 1."""
        return [(1 << d.shift, d.radix << d.shift) for d in self.digits if d.where == where and d.radix > 1]

    def text(self, register: str) -> str:
        """The coordinate within the block as C++, over ``lane``, ``warp`` and the number of the register."""
        terms, weight, before = [], 1, 1
        for d in self.digits:
            if d.radix > 1:
                terms.append(_times(self._digit(d, register, before), weight))
            weight *= d.radix
            before *= d.radix if d.where == "register" else 1
        return " + ".join(terms) or "0"

    def _digit(self, d: Digit, register: str, before: int) -> str:
        if d.where == "register":
            text = register if before == 1 else f"{register} / {before}"
            return text if before * d.radix >= self.local else f"{text} % {d.radix}"
        room = THREADS >> d.shift if d.where == "lane" else 1 << 30
        text = d.where if d.shift == 0 else f"{d.where} / {1 << d.shift}"
        return text if d.radix >= room else f"{text} % {d.radix}"


def rows(length: int, warps: int) -> Placement:
    """Rows of a tensor core's result: eight lanes apart, two a thread in a strip of 16, strips over the warps."""
    strips = ceil(length, 16)
    over = min(warps, pow2(strips))
    more = ceil(strips, over)
    digits = [Digit("lane", 8, 2), Digit("register", 2), Digit("warp", over), Digit("register", more)]
    return Placement(tuple(d for d in digits if d.radix > 1 or d.where == "lane"))


def columns(length: int, step: int) -> Placement:
    """Columns of a tensor core's result, and what an operand is summed over; padded to a multiple of ``step``."""
    return Placement((Digit("register", 2), Digit("lane", 4), Digit("register", ceil(length, step) * step // 8)))


def spread(
    lengths: Mapping[str, int], order: Sequence[str], warps: int, run: int, taken: frozenset[tuple[str, int]]
) -> dict[str, Placement]:
    """Axes that share a value, over the bits that are not ``taken``.

    ``order``: the axis whose neighbours lie together in memory first: it gets runs of up to ``run`` and as many lanes
    as it can use; warps go to the others first, from the last on.
    """
    lanes = [("lane", k) for k in range(LANES) if ("lane", k) not in taken]
    over = [("warp", k) for k in range(log2(warps)) if ("warp", k) not in taken]
    left = dict(lengths)
    digits: dict[str, list[Digit]] = {a: [] for a in order}
    first = order[0]
    share = max(1, prod(lengths.values()) >> (len(lanes) + len(over)))
    run = min(run, pow2(left[first]), floor2(share))
    if run > 1:
        digits[first].append(Digit("register", run))
        left[first] = ceil(left[first], run)
    for axis in order:
        _give(digits[axis], left, axis, lanes)
    for axis in (*reversed(order[1:]), first):
        _give(digits[axis], left, axis, over)
    for axis in order:
        if left[axis] > 1:
            digits[axis].append(Digit("register", left[axis]))
    return {a: Placement(tuple(d)) for a, d in digits.items()}


def _give(digits: list[Digit], left: dict[str, int], axis: str, bits: list[tuple[str, int]]) -> None:
    """As many of the bits as the axis can use, in stretches of neighbouring ones."""
    while bits and left[axis] > 1:
        where, shift = bits.pop(0)
        radix = 2
        while bits and radix < left[axis] and bits[0][1] == shift + log2(radix):
            bits.pop(0)
            radix *= 2
        digits.append(Digit(where, radix, shift))
        left[axis] = ceil(left[axis], radix)


def apart(places: Iterable[Placement]) -> bool:
    """Do these placements use different bits?"""
    seen: set[tuple[str, int]] = set()
    for p in places:
        if seen & p.bits:
            return False
        seen |= p.bits
    return True


def _times(text: str, n: int) -> str:
    return text if n == 1 else f"{text} * {n}"  # what it multiplies are quotients and remainders: no parentheses


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def floor2(n: int) -> int:
    """The greatest power of two that is not larger."""
    return 1 << (max(1, n).bit_length() - 1)


def log2(n: int) -> int:
    return n.bit_length() - 1
