"""Suite ``masks``: attention under the masks that papers use, and over a cache with new keys.

Live tiles lie anywhere in some of them: every k-th (the fixed pattern of Sparse Transformers), on a checkerboard, or
where a table of blocks says so (BigBird, pages of a cache that are chosen by their scores).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import starmap

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from benchmarks.beyond_hand import attend
from benchmarks.workloads import Args, Flex, Maker, Route, Shape, Workload, pairs, positions, qkv, scores, shapes

SHARE = 0.25  # of the blocks of a table that are live
Rule = Callable[..., Tensor]  # of the places of queries and keys, the length, and a table


# ---- rules -----------------------------------------------------------------------------------------------------------
def fixed(i: Tensor, j: Tensor, n: int) -> Tensor:
    """Child et al., Generating Long Sequences with Sparse Transformers, 2019: own block, and the last 64 of each."""
    return (j <= i) & ((i // 512 == j // 512) | (j % 512 >= 448))


def checkerboard(i: Tensor, j: Tensor, n: int) -> Tensor:
    return (i // 256 + j // 256) % 2 == 0


def stripes(i: Tensor, j: Tensor, n: int) -> Tensor:
    """A few keys of every 512, and those nearby."""
    return (j % 512 < 16) | ((i - j).abs() < 64)


def dilated(i: Tensor, j: Tensor, n: int) -> Tensor:
    return ((i - j) % 256 == 0) & (j <= i)


def frames(i: Tensor, j: Tensor, n: int) -> Tensor:
    """All of the frames so far, of 256 tokens each."""
    return j // 256 <= i // 256


def global_tokens(i: Tensor, j: Tensor, n: int) -> Tensor:
    """Beltagy et al., Longformer, 2020: a window, and 64 tokens that see all and are seen by all."""
    return ((i - j).abs() < 256) | (j < 64) | (i < 64)


def block_diffusion(i: Tensor, j: Tensor, n: int) -> Tensor:
    """Arriola et al., Block Diffusion, 2025: noised tokens, then clean ones, in blocks of 32."""
    half = n // 2
    noised = (j < half) & (i // 32 == j // 32)
    clean = (j >= half) & ((j - half) // 32 <= (i - half) // 32)
    before = (j >= half) & ((j - half) // 32 < i // 32)
    return torch.where(i < half, noised | before, clean)


def block_table(i: Tensor, j: Tensor, n: int, table: Tensor) -> Tensor:
    return table[i // 128, j // 128]


def big_bird(i: Tensor, j: Tensor, n: int, table: Tensor) -> Tensor:
    """Zaheer et al., Big Bird, 2020: blocks of 64 beside each other, first ones, and three by chance."""
    return table[i // 64, j // 64] | ((i // 64 - j // 64).abs() <= 1) | (j < 64) | (i < 64)


def head_table(i: Tensor, j: Tensor, n: int, table: Tensor) -> Tensor:
    return table[:, :, i // 128, j // 128] & (j <= i)


def pages(i: Tensor, j: Tensor, n: int, chosen: Tensor) -> Tensor:
    """Tang et al., Quest, 2024: pages of 64 keys, some chosen for each head; one's own is always there."""
    return chosen[:, :, j // 64] | (j // 64 == i // 64)


def _head_table_of(b: Tensor, h: Tensor, i: Tensor, j: Tensor, table: Tensor) -> Tensor:
    return table[b, h, i // 128, j // 128] & (j <= i)


def _pages_of(b: Tensor, h: Tensor, i: Tensor, j: Tensor, chosen: Tensor) -> Tensor:
    return chosen[b, h, j // 64] | (j // 64 == i // 64)


# ---- tables, the same on every device --------------------------------------------------------------------------------
@cache
def _random(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(1))


def _blocks(n: int, length: int) -> int:
    return -(-n // length)


def _of_blocks(s: Shape) -> Tensor:
    n = _blocks(s.length, 128)
    return (_random(n, n) < SHARE) | torch.eye(n, dtype=torch.bool)


def _by_chance(s: Shape) -> Tensor:
    n = _blocks(s.length, 64)
    return _random(n, n) < 3 / n


def _of_heads(s: Shape) -> Tensor:
    n = _blocks(s.length, 128)
    return (_random(s.batch, s.heads, n, n) < SHARE) | torch.eye(n, dtype=torch.bool)


def _of_pages(s: Shape) -> Tensor:
    return _random(s.batch, s.heads, _blocks(s.length, 64)) < SHARE


# ---- workloads -------------------------------------------------------------------------------------------------------
def _workload(
    rule: Rule, table: Callable[[Shape], Tensor] | None = None, axes: str = "", headed: Rule | None = None
) -> Workload:
    """``axes``: of the table; ``headed``: FlexAttention's rule where it differs between heads and batch entries."""

    def program(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        i, j = positions(q, k)
        keep = rule(i, j, k.shape[2], *tables)
        return torch.softmax(scores(q, k).masked_fill(~keep, float("-inf")), dim=-1) @ v

    def inputs(s: Shape, m: Maker) -> Args:
        return (*qkv(s, m), *([table(s).to(m.device)] if table else []))

    def mask(args: Args) -> Flex:
        n = args[1].shape[2]

        def of_flex(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return headed(b, h, i, j, args[3]) if headed else rule(i, j, n, *args[3:])

        return Flex(mask=of_flex, batched=headed is not None, headed=headed is not None)

    def live(s: Shape) -> float:
        """Of a head, on average; counted in strips."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        own = [table(s).to(device)] if table else []
        i, j = (torch.arange(s.length, device=device).reshape(at) for at in ((-1, 1), (1, -1)))
        kept = (rule(i[k : k + 256], j, s.length, *own) for k in range(0, s.length, 256))
        return sum(float(x.sum()) / (s.batch * s.heads if x.ndim > 2 else 1) for x in kept)

    program.__name__ = rule.__name__
    names = ("bh..", "bg..", "bg..", *((axes,) if table else ()), "bh..")
    return Workload(rule.__name__, program, inputs, names, pairs(live), flex=mask)


def cached(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor) -> Tensor:
    """New keys after those of a cache, heads in groups that share them."""
    keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    repeats = q.shape[1] // k.shape[1]
    keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    i, j = positions(q, keys)
    dead = j > i + past_k.shape[2]
    return torch.softmax(scores(q, keys).masked_fill(dead, float("-inf")), dim=-1) @ values


def cached_by_hand(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, kernel: str | None = None
) -> Tensor:
    keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    mask = causal_lower_right(q.shape[2], keys.shape[2]) if q.shape[2] > 1 else None
    return attend(q, keys, values, kernel, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def _with_cache(s: Shape, m: Maker) -> Args:
    new, past = (s.batch, s.kv_heads, s.queries, s.width), (s.batch, s.kv_heads, s.length - s.queries, s.width)
    return m.normal(s.batch, s.heads, s.queries, s.width), *(m.normal(*x) for x in (new, new, past, past))


_CACHED = Workload(
    "cached",
    cached,
    _with_cache,
    ("bh..", "bg..", "bg..", "bg..", "bg..", "bh.."),
    pairs(lambda s: s.queries * (s.length - (s.queries - 1) / 2)),
    hand=(Route("SDPA", cached_by_hand, ("flash", "cudnn")),),
    shapes=shapes("4,16,1024:4096,64", "4,16,1024:4096,128", "4,32/8,64:4160,128", "16,32/8,1:8192,128"),
    tiny=shapes("2,4/2,8:96,16", "2,4/2,1:96,16"),
    grouped=True,
)

_RULES = (
    *((rule,) for rule in (fixed, checkerboard, stripes, dilated, frames, global_tokens, block_diffusion)),
    (block_table, _of_blocks, ".."),
    (big_bird, _by_chance, ".."),
    (head_table, _of_heads, "bh..", _head_table_of),
    (pages, _of_pages, "bh.", _pages_of),
)
_WORKLOADS: tuple[Workload, ...] = (*starmap(_workload, _RULES), _CACHED)

MASKS: dict[str, Workload] = {w.name: w for w in _WORKLOADS}
