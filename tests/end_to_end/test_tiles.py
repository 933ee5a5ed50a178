"""Affine masks: the tiles that a kernel visits are those with a live point, the full ones carry no mask."""

from __future__ import annotations

import pytest
import torch

import flashlight
from flashlight.expr import Index, Size, evaluate
from flashlight.tile import Loop

ROWS, KEYS = 700, 900


def causal(i, j):
    return j <= i


def bottom_right(i, j):
    return j <= i + (KEYS - ROWS)


def window(i, j):
    return (j <= i) & (i - j < 200)


def two_sided(i, j):
    return (i - j).abs() <= 130


def prefix(i, j):
    return (j <= i) | (j < 300)


def chunked(i, j):
    return (i // 256 == j // 256) & (j <= i)


def shared_prefix(i, j):
    return (j < 130) | ((j <= i) & (i - j < 64))


def not_the_near(i, j):
    return (i - j > 150) | (j - i > 150)


def frames(i, j):
    return j // 256 <= i // 256


def global_tokens(i, j):
    return ((i - j).abs() <= 130) | (i < 64) | (j < 64)


def windows_of_rows(i, j):
    return (j <= i) & torch.where(i < ROWS // 2, i - j < 100, i - j < 300)


def halves(i, j):
    clean_i, clean_j = i >= 384, j >= 384
    at_i, at_j = torch.where(clean_i, i - 384, i) // 16, torch.where(clean_j, j - 384, j) // 16
    return ((at_i == at_j) & (clean_i == clean_j)) | ((at_j < at_i) & clean_j)


def live_of(mask):
    return mask(torch.arange(ROWS)[:, None], torch.arange(KEYS))


@pytest.mark.parametrize(
    "mask",
    [
        causal,
        bottom_right,
        window,
        two_sided,
        prefix,
        chunked,
        shared_prefix,
        not_the_near,
        frames,
        global_tokens,
        windows_of_rows,
        halves,
    ],
    ids=lambda m: m.__name__,
)
def test_visited_tiles(mask):
    def program(q, k, v):
        live = mask(torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2]))
        return (q @ k.mT).masked_fill(~live, -torch.inf).softmax(-1) @ v

    q, k = torch.randn(1, 2, ROWS, 16), torch.randn(1, 2, KEYS, 16)
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    torch.testing.assert_close(fast(q, k, k), program(q, k, k), equal_nan=True)
    (variant,) = fast._variants
    (low,) = variant.generated[0].lowered
    sizes = dict(zip(variant.lifted.captured.names, variant.lifted.captured.actual, strict=True))
    (row,) = (d for d in low.kernel.dims if d.role == "row")
    (stream,) = (d for d in low.kernel.dims if d.role == "stream")
    (loop,) = (s for s in low.kernel.body if isinstance(s, Loop))
    live = live_of(mask)
    for block in range(-(-ROWS // row.block)):
        mine = live[block * row.block : (block + 1) * row.block]
        tiles = mine.split(stream.block, 1)
        some = {t for t, x in enumerate(tiles) if x.any()}
        every = {t for t, x in enumerate(tiles) if x.all() and x.shape[1] == stream.block}

        def leaf(e, block=block):
            return sizes[e.name] if isinstance(e, Size) else block if e is Index(row.axis) else 0

        visited, full = [], []
        for g in loop.segments:
            trips = range(max(0, evaluate(g.lo, leaf)), min(len(tiles), evaluate(g.hi, leaf)))
            visited += trips
            full += trips if g.kind == "full" else []
        assert len(visited) == len(set(visited)), "a tile is visited twice"
        assert some <= set(visited)
        assert set(full) <= every
        gaps = 1 if mask in (shared_prefix, not_the_near) else 0  # between the first and the last live tile
        beyond = mask(torch.arange(block * row.block, (block + 1) * row.block)[:, None], torch.arange(KEYS))
        asked = {t for t, x in enumerate(beyond.split(stream.block, 1)) if x.any()}  # the last block may be virtual
        assert gaps or set(visited) <= asked
        inner = {t for t in every if t * stream.block + stream.block <= KEYS}
        few = 2 if mask is halves else 1  # full tiles of which there are never more are not worth a loop
        assert gaps or len(inner - set(full)) <= few, (sorted(inner), full)


def test_full_tiles_carry_no_mask():
    def program(q, k, v):
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        live = (j <= i) & (i - j < 400)
        return (q @ k.mT).masked_fill(~live, -torch.inf).softmax(-1) @ v

    q = torch.randn(1, 2, ROWS, 16)
    for backend, guard in (("cpu", "where"), ("triton", "tl.where")):
        text = flashlight.explain(program, q, q, q, backend=backend).kernels[backend].source
        bodies = {}
        for part in text.split("for ")[1:]:
            head, _, body = part.partition("\n")
            bodies[head.rpartition("# ")[2].strip()] = body
        assert "-inf" in bodies["partial"]
        assert guard in bodies["partial"]
        assert "j <=" not in bodies["full"]
        assert "<= i" not in bodies["full"]


def test_blocks_lie_along_what_is_contiguous():
    """Sums of rows are taken a row a program, sums of columns many columns at a time."""

    def blocks(dim):
        report = flashlight.explain(lambda x: x.sum(dim), torch.randn(4, 800, 900), backend="triton")
        (source,) = report.kernels["triton"].sources
        return {d.role: d.block for d in source.kernel.dims}

    assert blocks(2) == {"row": 1, "stream": 1024}
    assert blocks(1) == {"row": 64, "stream": 64}


def test_what_is_read_is_used_along_both_axes():
    """Distances: no product of matrices, and each row of either side is read for a block of the other."""

    def distances(x, c):
        return (x[:, None] - c[None]).abs().sum(-1)

    x, c = torch.randn(40, 700), torch.randn(50, 700)
    (source,) = flashlight.explain(distances, x, c, backend="triton").kernels["triton"].sources
    assert [d.block for d in source.kernel.dims if d.role == "row"] == [16, 16]
    torch.testing.assert_close(flashlight.optimize(distances)(x, c), distances(x, c))
