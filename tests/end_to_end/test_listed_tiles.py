"""Tiles that lie anywhere: every k-th, a checkerboard's, those that a table of blocks names.  No others are visited."""

from __future__ import annotations

import pytest
import torch

import flashlight
from tests.end_to_end.test_loaded_masks import BLOCK, attention, found_out
from tests.programs import error_within_twice_eager


def places(q, k):
    return torch.arange(q.shape[2], device=q.device)[:, None], torch.arange(k.shape[2], device=q.device)


def fixed(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, (j <= i) & ((i // 256 == j // 256) | (j % 256 >= 192)))


def checkerboard(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, (i // 128 + j // 128) % 2 == 0)


def stripes(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, (j % 384 < 16) | (i == j))


def dilated(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, ((i - j) % 256 == 0) & (j <= i))


def by_table(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, table[0, 0, i // 128, j // 128])


def by_head(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, table[:, :, i // 128, j // 128] & (j <= i))


def big_bird(q, k, v, table):
    i, j = places(q, k)
    near = ((i // 128 - j // 128).abs() <= 1) | (j < 128) | (i < 128)
    return attention(q, k, v, table[0, 0, i // 128, j // 128] | near)


def selected(q, k, v, table):
    i, j = places(q, k)
    return attention(q, k, v, table[:, :, :1, j // 128] | (i // 128 == j // 128))


def in_order(q, k, v, table):
    """A running sum beside the product: its tiles come in order, full and partial ones in one list."""
    i, j = places(q, k)
    s = ((q @ k.mT) * q.shape[-1] ** -0.5).masked_fill((i // 128 + j // 128) % 2 == 1, 0.0)
    return (torch.cumsum(s, -1) * s) @ v


PROGRAMS = {
    f.__name__: f for f in (fixed, checkerboard, stripes, dilated, by_table, by_head, big_bird, selected, in_order)
}


def inputs(n: int, dtype=torch.float32, block: int = 128):
    q, k, v = (torch.randn(2, 2, n, 16, dtype=dtype) for _ in range(3))
    blocks = -(-n // block)
    return q, k, v, (torch.rand(2, 2, blocks, blocks) < 0.3) | torch.eye(blocks, dtype=torch.bool)


def listed(fast, args) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tiles the kernel visits, and which of them as full ones, by what the finders wrote: (batch, heads, blocks
    of rows, tiles)."""
    found, env = found_out(fast, args)
    tiles = -(-args[0].shape[2] // BLOCK)
    visited = full = torch.zeros(2, 2, tiles, tiles, dtype=torch.int)
    for r in found.ranges:
        many, which = env[r.hi.tensor], env[r.tile.tensor]
        assert which.shape[-1] == tiles + 1
        taken = torch.arange(tiles + 1) < many[..., None]
        here = torch.zeros(*many.shape, tiles + 1, dtype=torch.int).scatter_add(-1, which.long(), taken.int())[..., :-1]
        assert (which.diff(dim=-1)[taken[..., 1:]] > 0).all()
        visited = visited + here
        full = full + here if r.kind == "full" else full
    return visited, full


@pytest.mark.parametrize("name", PROGRAMS)
def test_right_at_every_length(name: str):
    program = PROGRAMS[name]
    fast = flashlight.optimize(program, strict=True)
    for n in (1, 127, 128, 129, 700, 1024):
        args = inputs(n)
        ok, ours, eager = error_within_twice_eager(program, args, fast(*args))
        assert ok, (n, ours, eager)
    assert fast.compilations <= 3  # one key, one block of the table, and any more
    report = fast.explain(*inputs(700))
    assert report.launches == 1
    assert report.finders == 2
    assert "partial_list[" in report.tiles[0]


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "in_order"])
def test_no_other_tile_is_visited(name: str):
    """Full tiles are taken without masks, the others once."""
    fast = flashlight.optimize(PROGRAMS[name], strict=True)
    n = 1024
    q, k, v, table = inputs(n)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    v = torch.eye(n)[None, None].expand(2, 2, n, n).contiguous()
    weights = PROGRAMS[name](q, k, v, table)  # of equal scores: above 0 where live
    live = (weights > 0).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    args = inputs(n)[:3]
    fast(*args, table)
    visited, full = listed(fast, (*args, table))
    assert torch.equal(visited, live.any(5).any(3).int())
    assert torch.equal(full, live.all(5).all(3).int())


def test_in_order_visits_all_in_one_list():
    fast = flashlight.optimize(in_order, strict=True)
    args = inputs(1024)
    fast(*args)
    visited, full = listed(fast, args)
    assert visited.sum() == 4 * 32
    assert not full.any()


def test_tables_read_at_computed_places():
    """A place that is kept inside the table, and one that comes again."""

    def program(q, k, v, table):
        i, j = places(q, k)
        return attention(q, k, v, table[0, 0, (i // 128).clamp(max=3), j // 128 % 4])

    fast = flashlight.optimize(program, strict=True)
    for n in (600, 1024):
        args = inputs(n)
        table = args[3][..., :4, :4] if n == 1024 else torch.ones(2, 2, 4, 4, dtype=torch.bool)
        ok, ours, eager = error_within_twice_eager(program, (*args[:3], table), fast(*args[:3], table))
        assert ok, (n, ours, eager)
    fast = flashlight.optimize(program, strict=True)
    table = torch.eye(4, dtype=torch.bool).expand(2, 2, 4, 4).contiguous()
    fast(*args[:3], table)
    visited, _ = listed(fast, (*args[:3], table))
    assert visited[0, 0].sum(-1).tolist() == [2] * 8


@pytest.mark.parametrize("block", [16, 32, 48, 100, 256])
def test_tables_of_other_blocks(block: int):
    """A tile that lies in several blocks of the table is visited if one of them is live; of more than 16, any is."""

    def program(q, k, v, table):
        i, j = places(q, k)
        return attention(q, k, v, table[0, 0, i // block, j // block])

    fast = flashlight.optimize(program, strict=True)
    for n in (90, 1000):
        args = inputs(n, block=block)
        ok, ours, eager = error_within_twice_eager(program, args, fast(*args))
        assert ok, (n, ours, eager)
    if block == 16:
        assert fast.explain(*args).finders == 0
        return
    table = torch.zeros(2, 2, -(-1024 // block), -(-1024 // block), dtype=torch.bool)
    table[0, 0, :, 0] = True
    args = (*inputs(1024)[:3], table)
    fast = flashlight.optimize(program, strict=True)
    fast(*args)
    visited, _ = listed(fast, args)
    assert visited[0, 0].sum(-1).tolist() == [-(-block // BLOCK)] * 8


def test_tokens_that_see_all():
    """Longformer's, with a flag a token: what is live for one reason or another lies apart."""

    def program(q, k, v, flags):
        i, j = places(q, k)
        return attention(q, k, v, ((i - j).abs() < 100) | flags | flags[:, None])

    fast = flashlight.optimize(program, strict=True)
    q, k, v, _ = inputs(1024)
    flags = torch.zeros(1024, dtype=torch.bool)
    flags[[5, 700]] = True
    ok, ours, eager = error_within_twice_eager(program, (q, k, v, flags), fast(q, k, v, flags))
    assert ok, (ours, eager)
    visited, _ = listed(fast, (q, k, v, flags))
    block = torch.arange(8)
    near = (block[:, None] - block).abs() <= 1
    all_ = (block == 5 // BLOCK) | (block == 700 // BLOCK)
    assert torch.equal(visited[0, 0], (near | all_ | all_[:, None]).int())


def test_no_keys():
    q, k = torch.randn(1, 2, 64, 16), torch.randn(1, 2, 0, 16)
    table = torch.ones(1, 2, 1, 0, dtype=torch.bool)
    fast = flashlight.optimize(fixed, strict=True)
    assert torch.equal(fast(q, k, k, table), fixed(q, k, k, table))


def test_few_rows_and_many_keys():
    """Rows that do not fill a processor, over pages of which some are chosen."""

    def pages(q, k, v, chosen):
        return attention(q, k, v, chosen[:, None, None, places(q, k)[1] // 64])

    fast = flashlight.optimize(pages, strict=True)
    for n in (3000, 64):
        q, (k, v) = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 2, n, 16)
        chosen = torch.rand(2, -(-n // 64)) < 0.2
        chosen[:, 0] = True
        ok, ours, eager = error_within_twice_eager(pages, (q, k, v, chosen), fast(q, k, v, chosen))
        assert ok, (n, ours, eager)
