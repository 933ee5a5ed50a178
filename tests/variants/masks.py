"""Masks: what is kept is a predicate of positions, of given tables, or of both."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, positions, qkv, scores

masks = Family("masks", "Masks (softmax unchanged)")

INF = float("inf")


def attend(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill(~keep, -INF), dim=-1) @ v


@masks.add(
    1, "causal, bottom-right", "more keys than queries", "https://arxiv.org/abs/1706.03762",
    lambda r: (r(B, H, N, D), r(B, H, 420, D), r(B, H, 420, D)),
)  # fmt: skip
def causal(q, k, v):
    n, m = q.shape[-2], k.shape[-2]
    keep = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    return attend(q, k, v, keep)


@masks.add(2, "sliding window", "tiles outside it are not visited", "https://arxiv.org/abs/2004.05150", qkv)
def sliding_window(q, k, v, window=64):
    i, j = positions(q, k)
    return attend(q, k, v, (i >= j) & (i - j < window))


@masks.add(3, "chunked local", "floor division", "https://github.com/huggingface/transformers", qkv)
def chunked(q, k, v, chunk=96):
    i, j = positions(q, k)
    return attend(q, k, v, (i // chunk == j // chunk) & (j <= i))


@masks.add(4, "dilated window (LongNet)", "a remainder", "https://arxiv.org/abs/2307.02486", qkv)
def dilated(q, k, v, window=128, rate=4):
    i, j = positions(q, k)
    return attend(q, k, v, (i >= j) & (i - j < window) & ((i - j) % rate == 0))


@masks.add(
    5, "BigBird", "local, global, and random blocks from a table", "https://arxiv.org/abs/2007.14062",
    lambda r: (*qkv(r), r.chance(0.3, 10, 10)),
)  # fmt: skip
def big_bird(q, k, v, random, block=32):
    i, j = positions(q, k)
    i, j = i // block, j // block
    keep = ((i - j).abs() <= 1) | (i == 0) | (j == 0) | random[i, j]
    return attend(q, k, v, keep)


@masks.add(
    6, "prefix LM", "a prefix length a sequence", "https://arxiv.org/abs/1910.10683",
    lambda r: (*qkv(r), torch.tensor([40, 170])),
)  # fmt: skip
def prefix(q, k, v, length):
    i, j = positions(q, k)
    return attend(q, k, v, (j <= i) | (j < length[:, None, None, None]))


@masks.add(
    7, "packed documents", "classes of tiles from loaded numbers", "https://pytorch.org/blog/flexattention/",
    lambda r: (*qkv(r), r.below(5, B, N).sort(-1).values),
)  # fmt: skip
def documents(q, k, v, document):
    i, j = positions(q, k)
    same = document[:, :, None] == document[:, None, :]
    return attend(q, k, v, (same & (j <= i))[:, None])


@masks.add(
    8, "shared prefix", "responses that see it and not each other", "https://arxiv.org/abs/2501.01005",
    lambda r: (*qkv(r), (torch.arange(N) - 100).clamp(min=-1) // 50),
)  # fmt: skip
def shared_prefix(q, k, v, response):
    i, j = positions(q, k)
    keep = (response[None, :] < 0) | (response[:, None] == response[None, :])
    return attend(q, k, v, keep & (j <= i))


@masks.add(
    9, "block diffusion", "noisy and clean halves", "https://arxiv.org/abs/2503.09573",
    lambda r: tuple(r(B, H, 384, D) for _ in "qkv"),
)  # fmt: skip
def block_diffusion(q, k, v, block=16):
    i, j = positions(q, k)
    n = q.shape[-2] // 2
    clean_i, clean_j = i >= n, j >= n
    block_i = torch.where(clean_i, (i - n) // block, i // block)
    block_j = torch.where(clean_j, (j - n) // block, j // block)
    diagonal = (block_i == block_j) & (clean_i == clean_j)
    offset = (block_i > block_j) & clean_j & ~clean_i
    return attend(q, k, v, diagonal | offset | ((block_i >= block_j) & clean_j & clean_i))


@masks.add(
    10, "speculative tree", "a context, then a table of ancestors", "https://arxiv.org/abs/2305.09781",
    lambda r: (r(B, H, 24, D), r(B, H, 324, D), r(B, H, 324, D), r.chance(0.3, 24, 24) | torch.eye(24).bool()),
)  # fmt: skip
def tree(q, k, v, ancestors):
    context = k.shape[-2] - q.shape[-2]
    return attend(q, k, v, F.pad(ancestors, (context, 0), value=True))


@masks.add(
    11, "neighbourhood (NATTEN, 2-D)", "clipped windows in a plane", "https://arxiv.org/abs/2204.07143",
    lambda r: tuple(r(B, H, 400, D) for _ in "qkv"),
)  # fmt: skip
def neighbourhood(q, k, v, width=20, size=7):
    i, j = positions(q, k)
    height = k.shape[-2] // width
    y = (i // width - size // 2).clamp(0, height - size)
    x = (i % width - size // 2).clamp(0, width - size)
    inside_y = (j // width >= y) & (j // width < y + size)
    inside_x = (j % width >= x) & (j % width < x + size)
    return attend(q, k, v, inside_y & inside_x)


@masks.add(
    12, "sliding tiles of video", "distances of tiles in three dimensions", "https://arxiv.org/abs/2502.04507",
    lambda r: tuple(r(B, H, 384, D) for _ in "qkv"),
)  # fmt: skip
def sliding_tiles(q, k, v, height=8, width=8, tile=(2, 4, 4), reach=(1, 0, 1)):
    i, j = positions(q, k)
    keep = torch.ones_like(i == j)
    for divisor, modulus, size, far in zip((height * width, width, 1), (6, height, width), tile, reach, strict=True):
        here, there = (x // divisor % modulus // size for x in (i, j))
        keep = keep & ((here - there).abs() <= far)
    return attend(q, k, v, keep)


@masks.add(13, "attention sinks (StreamingLLM)", "first tokens and a window", "https://arxiv.org/abs/2309.17453", qkv)
def streaming(q, k, v, sinks=4, window=64):
    i, j = positions(q, k)
    return attend(q, k, v, (j <= i) & ((j < sinks) | (i - j < window)))


@masks.add(
    14, "Flamingo cross-attention", "text counts the images before it; rows with none are zero",
    "https://arxiv.org/abs/2204.14198",
    lambda r: (r(B, H, N, D), r(B, H, 320, D), r(B, H, 320, D), r.chance(0.02, B, N)),
    kernels=2, passes=2,
)  # fmt: skip
def flamingo(q, k, v, media, per_image=64):
    text_time = media.cumsum(-1)[:, None, :, None]
    media_time = torch.arange(k.shape[-2], device=k.device) // per_image + 1
    s = scores(q, k).masked_fill(text_time != media_time, -torch.finfo(q.dtype).max)
    p = torch.softmax(s - s.amax(-1, keepdim=True).detach(), dim=-1)
    return p.masked_fill(text_time == 0, 0.0) @ v


FAMILY = masks
