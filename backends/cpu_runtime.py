"""What the cpu backend's emitted text calls: spans of axes, and the few tensor operations torch lacks.

Lengths are chosen here, at run time, so that one text serves every size: a block value holds at most about ``BUDGET``
elements, which keeps it in the caches of one socket.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from math import prod

import torch

BUDGET = 1 << 21  # elements of a block value: 8 MB of float32
SHARED = 4  # as many times the elements of a mask make its bits worth making
LONG = 1024  # stream positions taken at once before rows and batches are grouped


def spans(extent: int, step: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` pieces of ``[0, extent)``; the last one may be shorter."""
    return ((start, min(start + step, extent)) for start in range(0, extent, step))


def trips(lo: int, hi: int, block: int, extent: int, most: int) -> Iterator[tuple[int, int]]:
    """The positions of trips ``[lo, hi)``, up to ``most`` consecutive trips together, clipped to the axis."""
    hi = min(hi, -(-extent // block))
    for t in range(max(lo, 0), hi, most):
        yield t * block, min(min(t + most, hi) * block, extent)


def listed(blocks: Sequence[int], block: int, extent: int, most: int) -> Iterator[tuple[int, int]]:
    """The positions of these blocks, in ascending order: up to ``most`` neighbours together, clipped to the axis.

    >>> list(listed([0, 1, 2, 5, 6, 9], 10, 95, 2))
    [(0, 20), (20, 30), (50, 70), (90, 95)]
    """
    k = 0
    while k < len(blocks):
        run = next((n for n in range(1, most) if k + n == len(blocks) or blocks[k + n] != blocks[k] + n), most)
        yield from trips(blocks[k], blocks[k] + run, block, extent, most)
        k += run


FEW = 2
"""Full trips that are not worth a loop of their own: an operator costs more to call than some of its points."""


def joined(lo: int, hi: int, end: int) -> tuple[int, int]:
    """The full trips ``[lo, hi)`` of a run that ends at ``end``: none, after it, where they are few."""
    return (lo, hi) if hi - lo > FEW else (end, end)


def fit(unit: int, *axes: tuple[int, int, bool]) -> tuple[int, ...]:
    """Steps for ``axes`` (extent, block, groupable), the first being grouped first, for ``unit`` elements a block.

    >>> fit(128 * 2048, (8, 1, True), (4096, 128, False))
    (8, 128)
    """
    room, steps = BUDGET // max(unit, 1), []
    for extent, block, groupable in axes:
        count = max(1, min(-(-extent // block), room)) if groupable else 1
        steps.append(count * block)
        room //= count
    return tuple(steps)


def most(unit: int) -> int:
    """How many trips of ``unit`` elements go together."""
    return max(1, BUDGET // max(unit, 1))


def window(x: torch.Tensor, dim: int, lo: int, hi: int, step: int = 1, other: float | None = None) -> torch.Tensor:
    """``x`` at ``lo, lo + step, ... < hi`` along ``dim``: a view where these lie inside.

    Positions outside give ``other``, or the nearest element where ``other`` is None (no one will use it).
    """
    length = x.shape[dim]
    if lo >= 0 and hi <= length:
        return x[(slice(None),) * dim + (slice(lo, hi, step),)]
    at = torch.arange(lo, hi, step)
    return outside(x.index_select(dim, at.clamp(0, length - 1)), at, length, dim, other)


def outside(x: torch.Tensor, at: torch.Tensor, length: int, dim: int, other: float | None) -> torch.Tensor:
    """``x``, which was taken at ``at`` along ``dim``, with ``other`` where ``at`` lies outside ``[0, length)``."""
    if other is None:
        return x
    valid = ((at >= 0) & (at < length)).view(-1, *(1,) * (x.ndim - dim - 1))
    return torch.where(valid, x, torch.tensor(other, dtype=x.dtype))


def filled(x: torch.Tensor, mask: torch.Tensor, value: float) -> torch.Tensor:
    """``x.masked_fill_(mask, value)``, which takes three times as long as an exponential.  A mask that batches share
    is applied to the bits of float32, whatever they are (NaN, infinities), in a quarter of that."""
    if x.dtype != torch.float32 or SHARED * mask.numel() > x.numel():
        return x.masked_fill_(mask, value)
    dead, bits = mask.to(torch.int32), x.view(torch.int32)
    bits.bitwise_and_(dead - 1)
    if pattern := struct.unpack("<i", struct.pack("<f", value))[0]:
        bits.bitwise_or_(dead.mul_(pattern))
    return x


def lattice(x: torch.Tensor, first: tuple[int, ...], *axes: tuple[int, tuple[int, ...]]) -> torch.Tensor:
    """The view ``x[first + sum of position * step]`` with a dimension for each of ``axes`` (length, steps).

    ``first`` and ``steps`` count elements along the dimensions of ``x``, steps being nonnegative.  Raises IndexError:
    the last element lies outside.
    """
    last = [f + sum((n - 1) * steps[d] for n, steps in axes) for d, f in enumerate(first)]
    if any(f < 0 or e >= n for f, e, n in zip(first, last, x.shape, strict=True)):
        raise IndexError(f"elements {first} to {tuple(last)} of a tensor of shape {tuple(x.shape)}")
    strides = x.stride()
    offset = x.storage_offset() + sum(f * s for f, s in zip(first, strides, strict=True))
    steps = [sum(k * s for k, s in zip(steps, strides, strict=True)) for _, steps in axes]
    return x.as_strided([n for n, _ in axes], steps, offset)


def packed(x: torch.Tensor, batch: int) -> torch.Tensor:
    """``x``, or a copy of it, such that its first ``batch`` dimensions can be viewed as one."""
    dims = [(n, s) for n, s in zip(x.shape[:batch], x.stride()[:batch], strict=True) if n != 1]
    if all(dims[k][1] == dims[k + 1][0] * dims[k + 1][1] for k in range(len(dims) - 1)):
        return x
    return x.contiguous()


def _flat(x: torch.Tensor, batch: tuple[int, ...], rows: int, columns: int) -> torch.Tensor:
    """``[batch, rows, columns]`` from ``[*batch, ...]``: a view where strides allow."""
    lead = len(batch)
    if tuple(x.shape[:lead]) != batch:
        x = x.expand(*batch, *x.shape[lead:])
    return x.reshape(prod(batch), rows, columns)


class _Scratch(threading.local):
    """Memory that trips share: fresh pages for every block value cost more than the product that fills them."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def __call__(self, slot: int, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
        count = prod(shape)
        if count > BUDGET:
            return torch.empty(shape, dtype=dtype)
        flat = self.slots.get((slot, dtype))
        if flat is None:
            flat = self.slots[slot, dtype] = torch.empty(BUDGET, dtype=dtype)  # pages come as they are touched
        return flat[:count].view(shape)


_scratch = _Scratch()


def dot(
    left: torch.Tensor,
    right: torch.Tensor,
    m: int = 1,
    n: int = 1,
    alpha: float = 1,
    slot: int | None = None,
) -> torch.Tensor:
    """``alpha * left @ right`` for ``left[*batch, *ms, c]`` and ``right[*batch, c, *ns]``: ``[*batch, *ms, *ns]``.

    ``m`` and ``n`` count the dimensions of ms and ns; batch dimensions broadcast.  With a ``slot`` the result lies in
    memory that the next dot of that slot (in this thread) writes over.
    """
    lead = left.ndim - m - 1
    ms, ns, c = left.shape[lead:-1], right.shape[lead + 1 :], left.shape[-1]
    batch = tuple(max(a, b) for a, b in zip(left.shape[:lead], right.shape[:lead], strict=True))
    rows, columns = prod(ms), prod(ns)
    if prod(right.shape[:lead]) == 1 and prod(batch) > 1:  # one right side for all: its rows and batches are one
        a, b = left.reshape(1, prod(batch) * rows, c), right.reshape(1, c, columns)
    else:
        a, b = _flat(left, batch, rows, c), _flat(right, batch, c, columns)
    shape = (a.shape[0], a.shape[1], columns)
    out = torch.empty(shape, dtype=a.dtype) if slot is None else _scratch(slot, shape, a.dtype)
    out.baddbmm_(a, b, beta=0, alpha=alpha)
    return out.view(*batch, *ms, *ns)


def dot_into(acc: torch.Tensor, left: torch.Tensor, right: torch.Tensor, m: int = 1, n: int = 1) -> torch.Tensor:
    """``acc += left @ right`` in place, shapes as in :func:`dot` (``acc`` has the result's)."""
    if not acc.is_contiguous():
        return acc.add_(dot(left, right, m, n))
    lead = acc.ndim - m - n
    batch = tuple(acc.shape[:lead])
    rows, columns, c = prod(acc.shape[lead : lead + m]), prod(acc.shape[lead + m :]), left.shape[-1]
    acc.view(prod(batch), rows, columns).baddbmm_(_flat(left, batch, rows, c), _flat(right, batch, c, columns))
    return acc
