"""Sparse attention: which keys a query sees is chosen by scores."""

from __future__ import annotations

import torch

from tests.variants.table import B, D, Family, H, causal, positions, scores

selection = Family("selection", "Selection")

INF = float("-inf")
BLOCK, M = 16, 320  # the length of a block, and of sequences of whole blocks


def blocks(r):
    return tuple(r(B, H, M, D) for _ in "qkv")


def chosen(s, count):
    """A mask of the ``count`` largest of each row."""
    return torch.zeros_like(s, dtype=torch.bool).scatter(-1, s.topk(count, dim=-1).indices, True)


@selection.add(
    72,
    "MoBA",
    "blocks chosen by their mean key",
    "https://arxiv.org/abs/2502.13189",
    blocks,
)
def moba(q, k, v, count=4):
    i, j = positions(q, k)
    means = k.unflatten(2, (-1, BLOCK)).mean(3)
    own, block = i // BLOCK, torch.arange(means.shape[2], device=q.device)
    gate = (q @ means.mT).masked_fill(block > own, INF).masked_fill(block == own, -INF)
    seen = chosen(gate, count).repeat_interleave(BLOCK, dim=-1)
    return torch.softmax(scores(q, k).masked_fill(~seen | (j > i), INF), dim=-1) @ v


@selection.add(
    73, "native sparse attention (NSA)", "compressed, chosen and near keys, gated", "https://arxiv.org/abs/2502.11089",
    lambda r: (*blocks(r), r(B, H, M, 3)),
    kernels=2, passes=2,
)  # fmt: skip
def nsa(q, k, v, gates, count=4, window=64):
    i, j = positions(q, k)
    k_block, v_block = (t.unflatten(2, (-1, BLOCK)).mean(3) for t in (k, v))
    s = scores(q, k_block)
    done = (torch.arange(s.shape[-1], device=q.device) + 1) * BLOCK - 1 <= i
    p = torch.softmax(s.masked_fill(~done, -1e9), dim=-1) * done
    own = i // BLOCK == torch.arange(s.shape[-1], device=q.device)
    seen = (chosen(p.sum(1, keepdim=True), count) | own).repeat_interleave(BLOCK, dim=-1)
    full = causal(scores(q, k))
    picked = torch.softmax(full.masked_fill(~seen, INF), dim=-1) @ v
    near = torch.softmax(full.masked_fill(i - j >= window, INF), dim=-1) @ v
    g = torch.sigmoid(gates)
    return g[..., :1] * (p @ v_block) + g[..., 1:2] * picked + g[..., 2:] * near


@selection.add(
    74, "DeepSeek sparse attention", "an indexer of many small heads", "https://arxiv.org/abs/2512.02556",
    lambda r: (*blocks(r), r(B, 4, M, 8), r(B, M, 8), r(B, M, 4)),
    slow=True, kernels=3, passes=2, unfused="topk: topk of 64, more than 8 places",
)  # fmt: skip
def indexed(q, k, v, q_index, k_index, weight, count=64):
    s = torch.relu(torch.einsum("bhid,bjd->bhij", q_index, k_index))
    index = causal(torch.einsum("bih,bhij->bij", weight, s))
    seen = chosen(index, count)[:, None]
    return torch.softmax(causal(scores(q, k)).masked_fill(~seen, INF), dim=-1) @ v


@selection.add(
    75, "compressed sparse attention", "given blocks, a window and a sink in one softmax",
    "https://arxiv.org/abs/2606.19348", lambda r: (*blocks(r), r(B, M, BLOCK), r(H), r.below(M // BLOCK, B, M, 4)),
)  # fmt: skip
def compressed(q, k, v, pooling, sink, given, window=64):
    i, j = positions(q, k)
    weight = torch.softmax(pooling.unflatten(1, (-1, BLOCK)).mean(-1), dim=-1)[:, None, :, :, None]
    k_block, v_block = ((t.unflatten(2, (-1, BLOCK)) * weight).sum(3) for t in (k, v))
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None]
    k_given, v_given = (t.transpose(1, 2)[batch, given] for t in (k_block, v_block))
    far = torch.einsum("bhid,bithd->bhit", q, k_given) * q.shape[-1] ** -0.5
    far = far.masked_fill(((given + 1) * BLOCK > i)[:, None], INF)
    near = scores(q, k).masked_fill((j > i) | (i - j >= window), INF)
    column = sink[:, None, None].expand(q.shape[0], -1, q.shape[2], 1)
    p = torch.softmax(torch.cat([far, near, column], dim=-1), dim=-1)
    p_far, p_near, _ = p.split([far.shape[-1], near.shape[-1], 1], dim=-1)
    return torch.einsum("bhit,bithd->bhid", p_far, v_given) + p_near @ v


@selection.add(
    76,
    "video sparse attention (VSA)",
    "a coarse pass chooses tiles",
    "https://arxiv.org/abs/2505.13389",
    blocks,
)
def video(q, k, v, count=4):
    q_tile, k_tile, v_tile = (t.unflatten(2, (-1, BLOCK)).mean(3) for t in (q, k, v))
    p = torch.softmax(scores(q_tile, k_tile), dim=-1)
    coarse = (p @ v_tile).repeat_interleave(BLOCK, dim=2)
    seen = chosen(p, count).repeat_interleave(BLOCK, dim=-1).repeat_interleave(BLOCK, dim=-2)
    return coarse + torch.softmax(scores(q, k).masked_fill(~seen, INF), dim=-1) @ v


@selection.add(
    77, "ReSA", "decoding from given blocks, shared by a group of heads", "https://arxiv.org/abs/2506.04108",
    lambda r: (r(B, 6, 1, D), r(B, 2, 40 * BLOCK, D), r(B, 2, 40 * BLOCK, D), r(B, 2, 40).argsort(-1)[..., :20]),
)  # fmt: skip
def given_blocks(q, k, v, index):
    token = (index[..., None] * BLOCK + torch.arange(BLOCK, device=q.device)).flatten(-2)
    k, v = (t.gather(2, token[..., None].expand(-1, -1, -1, t.shape[-1])) for t in (k, v))
    q = q.unflatten(1, (k.shape[1], -1)).squeeze(-2)
    return (torch.softmax(scores(q, k), dim=-1) @ v).flatten(1, 2).unsqueeze(2)


@selection.add(
    78, "Quest", "pages chosen by a bound of their scores", "https://arxiv.org/abs/2406.10774",
    lambda r: (r(B, H, 1, D), r(B, H, 40 * BLOCK, D), r(B, H, 40 * BLOCK, D)),
    kernels=3, unfused="topk: topk of 10, more than 8 places",
)  # fmt: skip
def quest(q, k, v, count=10):
    pages = k.unflatten(2, (-1, BLOCK))
    low, high = pages.amin(3), pages.amax(3)
    bound = torch.maximum(q[..., None, :] * low[:, :, None], q[..., None, :] * high[:, :, None]).sum(-1)
    seen = chosen(bound, count).repeat_interleave(BLOCK, dim=-1)
    return torch.softmax(scores(q, k).masked_fill(~seen, INF), dim=-1) @ v


FAMILY = selection
