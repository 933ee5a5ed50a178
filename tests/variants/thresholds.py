"""Weights that are thresholded, chosen, drawn, or normalised more than once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, causal, qkv, scores

thresholds = Family("thresholds", "Thresholds, random numbers, several normalisations")

ENTMAX = "https://pypi.org/project/adasplash/"
TOPK = "https://arxiv.org/abs/1912.11637"


@thresholds.add(49, "entmax (1.5)", "a threshold found by bisection", ENTMAX, qkv, slow=True, passes=14)
def entmax(q, k, v, iterations=12):
    s = causal(scores(q, k)) * 0.5
    top = s.amax(-1, keepdim=True)
    low, high = top - 1, top - k.shape[-2] ** -0.5
    for _ in range(iterations):
        middle = (low + high) / 2
        enough = torch.relu(s - middle).square().sum(-1, keepdim=True) >= 1
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    p = torch.relu(s - (low + high) / 2).square()
    return p / p.sum(-1, keepdim=True) @ v


@thresholds.add(
    50,
    "top-k softmax",
    "a selection inside the row",
    TOPK,
    qkv,
    kernels=2,
    unfused="topk: topk of 32, more than 8 places",
)
def top_k(q, k, v, keep=32):
    s = causal(scores(q, k))
    least = s.topk(keep, dim=-1).values[..., -1:]
    return torch.softmax(s.masked_fill(s < least, float("-inf")), dim=-1) @ v


@thresholds.add(
    51,
    "hard attention",
    "argmax, with the gradient of softmax",
    "https://github.com/lucidrains/x-transformers",
    qkv,
    passes=2,
)
def hard(q, k, v):
    s = causal(scores(q, k))
    p = torch.softmax(s, dim=-1)
    one = F.one_hot(s.argmax(-1), s.shape[-1]).to(p.dtype)
    return (one + p - p.detach()) @ v


def hashed(shape, seed, device):
    """Uniform numbers in [0, 1) that depend on their place only: a counter through an integer hash."""
    b, h, n, m = (torch.arange(x, device=device) for x in shape)
    x = b[:, None, None, None] * shape[1] + h[:, None, None]
    x = (x * shape[2] + n[:, None]) * shape[3] + m + seed
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (x ^ (x >> 16)).float() / 2.0**32


@thresholds.add(
    52,
    "Gumbel attention",
    "noise from an integer hash",
    "https://arxiv.org/abs/1611.01144",
    qkv,
)
def gumbel(q, k, v, tau=0.7):
    s = scores(q, k)
    u = hashed(s.shape, 1234, s.device).clamp(1e-6, 1 - 1e-6)
    return torch.softmax((s - torch.log(-torch.log(u))) / tau, dim=-1) @ v


@thresholds.add(
    53, "dropout of probabilities", "random bits from an integer hash", "https://github.com/pytorch/pytorch/issues/141784",
    qkv,
)  # fmt: skip
def dropout(q, k, v, rate=0.1):
    p = torch.softmax(causal(scores(q, k)), dim=-1)
    keep = hashed(p.shape, 42, p.device) >= rate
    return torch.where(keep, p / (1 - rate), 0.0) @ v


@thresholds.add(
    54,
    "doubly stochastic (Sinkformer)",
    "rows and columns in turn",
    "https://arxiv.org/abs/2110.11773",
    qkv,
    kernels=7,
    passes=12,
)
def sinkhorn(q, k, v, iterations=3):
    s = scores(q, k)
    for _ in range(iterations):
        s = s - torch.logsumexp(s, dim=-1, keepdim=True)
        s = s - torch.logsumexp(s, dim=-2, keepdim=True)
    return torch.exp(s) @ v


@thresholds.add(
    55, "slot attention", "softmax over the queries", "https://arxiv.org/abs/2006.15055",
    lambda r: (r(B, 8, D), r(B, N, D), r(B, N, D)),
    kernels=2, passes=2,
)  # fmt: skip
def slots(q, k, v):
    p = torch.softmax(scores(q, k), dim=-2) + 1e-8
    return p / p.sum(-1, keepdim=True) @ v


@thresholds.add(
    56, "2-simplicial attention", "scores of three, softmax over pairs of keys", "https://arxiv.org/abs/2507.02754",
    lambda r: tuple(r(1, H, 72, D) for _ in range(5)),
    kernels=4, passes=4, unfused="it is reduced over i1 and read again at points of i1",
)  # fmt: skip
def simplicial(q, k1, k2, v1, v2, near=32, far=16):
    s = torch.einsum("bhid,bhjd,bhkd->bhijk", q, k1, k2) / q.shape[-1]
    at = torch.arange(q.shape[-2], device=q.device)
    i, j, k = at[:, None, None], at[:, None], at
    keep = (j <= i) & (i - j < near) & (k <= i) & (i - k < far)
    p = torch.softmax(s.masked_fill(~keep, float("-inf")).flatten(-2), dim=-1).unflatten(-1, s.shape[-2:])
    return torch.einsum("bhijk,bhjd,bhkd->bhid", p, v1, v2)


FAMILY = thresholds
