"""Cumulative sums, products and solves along keys or queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, causal, qkv, scores

scans = Family("scans", "Decay, scans, products of transitions")

FOX = "https://arxiv.org/abs/2503.02130"
STICK = "https://arxiv.org/abs/2410.17980"


@scans.add(
    57,
    "forgetting transformer",
    "a cumulative sum of log gates",
    FOX,
    lambda r: (*qkv(r), r(B, H, N)),
    kernels=2,
    passes=2,
)
def forgetting(q, k, v, f):
    decay = F.logsigmoid(f).cumsum(-1)
    s = scores(q, k) + decay[..., :, None] - decay[..., None, :]
    return torch.softmax(causal(s), dim=-1) @ v


@scans.add(
    58,
    "stick-breaking",
    "a product over the keys between",
    STICK,
    qkv,
)
def stick_breaking(q, k, v):
    s = scores(q, k)
    later = torch.ones_like(s, dtype=torch.bool).triu()
    log_beta = F.logsigmoid(s).masked_fill(later, float("-inf"))
    log_rest = F.logsigmoid(-s).masked_fill(later, 0.0)
    between = log_rest.flip(-1).cumsum(-1).flip(-1) - log_rest
    return torch.exp(log_beta + between) @ v


@scans.add(
    59, "CoPE", "positions counted by gates, and a table read at them", "https://arxiv.org/abs/2405.18719",
    lambda r: (*qkv(r), r(D, 24)),
)  # fmt: skip
def cope(q, k, v, embedding):
    s = causal(scores(q, k))
    position = torch.sigmoid(s).flip(-1).cumsum(-1).flip(-1).clamp(max=embedding.shape[1] - 1)
    floor, ceil = position.floor(), position.ceil()
    table = q @ embedding
    low, high = table.gather(-1, floor.long()), table.gather(-1, ceil.long())
    weight = position - floor
    return torch.softmax(s + high * weight + low * (1 - weight), dim=-1) @ v


@scans.add(
    60,
    "selective attention",
    "a sum over earlier queries",
    "https://arxiv.org/abs/2410.02703",
    qkv,
    kernels=3,
    unfused="cumsum: it runs along a length at every point of a plane",
)
def selective(q, k, v):
    s = causal(scores(q, k))
    select = torch.relu(s[:, 0]).clone()
    select[..., 0] = 0.0
    select = select * (1 - torch.eye(s.shape[-1], dtype=s.dtype, device=s.device))
    masked = select.cumsum(-2) - select
    return torch.softmax(s - masked[:, None], dim=-1) @ v


@scans.add(
    61, "PaTH", "products of Householder matrices", "https://arxiv.org/abs/2505.16381",
    lambda r: (*qkv(r), F.normalize(r(B, H, N, D), dim=-1), r(B, H, N).sigmoid()),
    kernels=6, passes=2, unfused="linalg_solve_triangular: no meaning is known for it",
)  # fmt: skip
def path(q, k, v, w, beta):
    eye = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device)
    transition = eye + beta[..., None] * (w @ w.mT).tril(-1)
    inner = torch.linalg.solve_triangular(transition, beta[..., None] * (w @ k.mT).tril(-1), upper=False)
    s = (q @ k.mT - (q @ w.mT).tril() @ inner) * q.shape[-1] ** -0.5
    return torch.softmax(causal(s), dim=-1) @ v


@scans.add(
    62, "wall attention", "a decay a channel inside the score", "https://github.com/fla-org/flash-linear-attention",
    lambda r: (*qkv(r), r(B, H, N, D)),
    kernels=2, passes=2,
)  # fmt: skip
def wall(q, k, v, gate):
    decay = F.logsigmoid(gate).cumsum(-2)
    s = (q[..., :, None, :] * k[..., None, :, :] * torch.exp(decay[..., :, None, :] - decay[..., None, :, :])).sum(-1)
    return torch.softmax(causal(s * q.shape[-1] ** -0.5), dim=-1) @ v


@scans.add(
    63, "Parallax", "two scores a pair, four sums", "https://arxiv.org/abs/2605.29157",
    lambda r: (*qkv(r), 0.2 * r(B, H, N, D)),
)  # fmt: skip
def parallax(q, k, v, r):
    p = torch.softmax(causal(scores(q, k)), dim=-1)
    t = r @ k.mT
    return (1 + (p * t).sum(-1, keepdim=True)) * (p @ v) - (p * t) @ v


@scans.add(
    64, "DeltaFormer", "a triangular system over the values", "https://github.com/fla-org/flash-linear-attention",
    lambda r: (*qkv(r), r(B, H, N, D), r(B, H, N).sigmoid()),
    kernels=3, passes=5, unfused="linalg_solve_triangular: no meaning is known for it",
)  # fmt: skip
def deltaformer(q, k, v, w, beta):
    s = scores(w, k)
    before = torch.ones_like(s, dtype=torch.bool).tril(-1)
    p = torch.softmax(s.masked_fill(~before, -1e9), dim=-1) * before
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    u = torch.linalg.solve_triangular(eye + beta[..., None] * p, v, upper=False)
    return torch.softmax(causal(scores(q, k)), dim=-1) @ u


FAMILY = scans
