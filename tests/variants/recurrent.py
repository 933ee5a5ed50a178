"""Relatives without softmax: linear in the keys, written as their papers' parallel form."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, positions, qkv, scores

recurrent = Family("recurrent", "Relatives in linear time, in their parallel form")

LINEAR = "https://arxiv.org/abs/2006.16236"


@recurrent.add(87, "linear attention", "feature maps; a state of keys by values", LINEAR, qkv, kernels=3, passes=2)
def linear(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(-2)[..., None])


@recurrent.add(87, "linear attention, causal", "a mask without softmax", LINEAR, qkv)
def linear_causal(q, k, v):
    s = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
    return s @ v / s.sum(-1, keepdim=True)


@recurrent.add(88, "retention", "a decay of the distance", "https://arxiv.org/abs/2307.08621", qkv)
def retention(q, k, v):
    i, j = positions(q, k)
    gamma = 1 - 2.0 ** (-5 - torch.arange(q.shape[1], device=q.device))
    decay = torch.where(i >= j, gamma[:, None, None] ** (i - j), 0.0)
    s = scores(q, k) * decay / decay.sum(-1, keepdim=True).sqrt()
    s = s / s.sum(-1, keepdim=True).abs().clamp(min=1)
    return s @ v


@recurrent.add(89, "Based", "a Taylor series of exp", "https://arxiv.org/abs/2402.18668", qkv)
def based(q, k, v):
    s = scores(q, k)
    p = (1 + s + s.square() / 2).tril()
    return p @ v / p.sum(-1, keepdim=True)


@recurrent.add(
    90, "power attention", "an even power with gates", "https://arxiv.org/abs/2507.04239",
    lambda r: (*qkv(r), r(B, H, N) + 4),
    kernels=2, passes=2,
)  # fmt: skip
def power(q, k, v, gate):
    decay = F.logsigmoid(gate).cumsum(-1)
    p = (scores(q, k).square() * torch.exp(decay[..., :, None] - decay[..., None, :])).tril()
    return p @ v / (p.sum(-1, keepdim=True) + 1e-6)


@recurrent.add(
    91, "delta rule", "a triangular system over the keys", "https://arxiv.org/abs/2412.06464",
    lambda r: (r(B, H, N, D), F.normalize(r(B, H, N, D), dim=-1), r(B, H, N, D), r(B, H, N).sigmoid()),
    kernels=4, unfused="linalg_solve_triangular: no meaning is known for it",
)  # fmt: skip
def delta(q, k, v, beta):
    eye = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    transition = eye + (beta[..., None] * (k @ k.mT)).tril(-1)
    u = torch.linalg.solve_triangular(transition, beta[..., None] * v, upper=False)
    return (q @ k.mT).tril() @ u


@recurrent.add(
    92, "log-linear attention", "a gate a level of a binary tree", "https://arxiv.org/abs/2506.04761",
    lambda r: (*qkv(r), F.softplus(r(B, H, N, 10)), r(B, H, N) + 4),
    kernels=2, passes=2,
)  # fmt: skip
def log_linear(q, k, v, gates, decay):
    i, j = positions(q, k)
    level = torch.where(i == j, 0, torch.log2((i ^ j).clamp(min=1).float()).floor().long() + 1)
    hierarchy = gates.gather(-1, level.expand(*q.shape[:2], -1, -1))
    decay = F.logsigmoid(decay).cumsum(-1)
    weight = hierarchy * torch.exp(decay[..., :, None] - decay[..., None, :])
    return (scores(q, k) * weight).tril() @ v


FAMILY = recurrent
