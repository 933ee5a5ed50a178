"""Position biases, and scores that are changed point by point."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, causal, positions, qkv, scores

biases = Family("biases", "Biases and scores changed point by point")

T5 = "https://arxiv.org/abs/1910.10683"
FIRE = "https://arxiv.org/abs/2310.04418"
KERPLE = "https://arxiv.org/abs/2205.09921"
SANDWICH = "https://arxiv.org/abs/2212.10356"
M = 18  # the side of a window (324 tokens)


@biases.add(15, "ALiBi", "a slope a head", "https://arxiv.org/abs/2108.12409", qkv)
def alibi(q, k, v):
    i, j = positions(q, k)
    h = q.shape[1]
    slopes = 2.0 ** (-8.0 / h * torch.arange(1, h + 1, device=q.device))
    s = scores(q, k) - slopes[:, None, None] * (i - j)
    return torch.softmax(causal(s), dim=-1) @ v


@biases.add(16, "T5 relative bias", "a table at a logarithm of the distance", T5, lambda r: (*qkv(r), r(32, H)))
def t5(q, k, v, table):
    i, j = positions(q, k)
    distance = (i - j).clamp(min=0)
    far = 16 + (torch.log(distance.clamp(min=1).float() / 16) / math.log(128 / 16) * 16).long()
    bucket = torch.where(distance < 16, distance, far.clamp(max=31))
    s = q @ k.mT + table[bucket].permute(2, 0, 1)
    return torch.softmax(causal(s), dim=-1) @ v


@biases.add(17, "KERPLE", "a logarithm of the distance, learnt", KERPLE, lambda r: (*qkv(r), r(H, 1, 1), r(H, 1, 1)))
def kerple(q, k, v, r1, r2):
    i, j = positions(q, k)
    bias = -F.softplus(r1) * torch.log1p(F.softplus(r2) * (i - j).abs())
    return torch.softmax(causal(scores(q, k) + bias), dim=-1) @ v


@biases.add(17, "Sandwich", "a product of sinusoids of the positions", SANDWICH, lambda r: (*qkv(r), r(H, 1, 1)))
def sandwich(q, k, v, ratio, width=32):
    i, j = positions(q, k)
    frequency = 10000.0 ** (-2 * torch.arange(width // 2, device=q.device) / width)
    bias = torch.cos((i - j)[..., None] * frequency).sum(-1) - width // 2
    return torch.softmax(causal(scores(q, k) + ratio.exp() * bias), dim=-1) @ v


@biases.add(
    17, "FIRE", "a small network of the distance", FIRE,
    lambda r: (*qkv(r), r(1)[0].exp(), torch.tensor(40.0), r(32), r(32), r(32, H) / 4),
)  # fmt: skip
def fire(q, k, v, c, length, w1, b1, w2):
    i, j = positions(q, k)
    x = torch.log(c * (i - j).clamp(min=0) + 1) / torch.log(c * torch.maximum(i, length) + 1)
    bias = torch.relu(x[..., None] * w1 + b1) @ w2
    return torch.softmax(causal(scores(q, k) + bias.permute(2, 0, 1)), dim=-1) @ v


def coordinates(device):
    place = torch.arange(M * M, device=device)
    return place // M, place % M


def windows(r):
    shifted = torch.arange(M) >= M - M // 2
    last = (2 * shifted[:, None] + shifted[None, :]).flatten()  # a window at the corner holds parts of four
    region = torch.stack([torch.zeros_like(last), last])
    return *(r(B, 2, H, M * M, D) for _ in "qkv"), r((2 * M - 1) ** 2, H), region


@biases.add(18, "Swin v1", "a table at two differences; shifted windows", "https://arxiv.org/abs/2103.14030", windows)
def swin(q, k, v, table, region):
    y, x = coordinates(q.device)
    relative = (y[:, None] - y[None, :] + M - 1) * (2 * M - 1) + x[:, None] - x[None, :] + M - 1
    s = scores(q, k) + table[relative].permute(2, 0, 1)
    mask = torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)
    return torch.softmax(s + mask[:, None], dim=-1) @ v


@biases.add(
    19, "Swin v2", "cosines, and a network of the distance", "https://arxiv.org/abs/2111.09883",
    lambda r: (*(r(B, H, M * M, D) for _ in "qkv"), r(H, 1, 1), r(2, 64), r(64), r(64, H) / 8),
)  # fmt: skip
def swin_v2(q, k, v, tau, w1, b1, w2):
    y, x = coordinates(q.device)
    relative = torch.stack([y[:, None] - y[None, :], x[:, None] - x[None, :]], dim=-1).to(q.dtype)
    relative = torch.sign(relative) * torch.log2(1 + relative.abs() * 8 / (M - 1)) / 3
    bias = 16 * torch.sigmoid(torch.relu(relative @ w1 + b1) @ w2)
    s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * tau.clamp(max=math.log(100.0)).exp()
    return torch.softmax(s + bias.permute(2, 0, 1), dim=-1) @ v


@biases.add(
    20, "Graphormer", "tables at distances and along paths", "https://arxiv.org/abs/2106.05234",
    lambda r: (*qkv(r), r.below(20, B, N, N), r.below(12, B, N, N, 4), r(20, H), r(12, H), r(4, H)),
)  # fmt: skip
def graphormer(q, k, v, distance, path, spatial, edge, place):
    along = (edge[path] * place).sum(-2) / distance.clamp(1, 4)[..., None]
    bias = spatial[distance] + along
    return torch.softmax(scores(q, k) + bias.permute(0, 3, 1, 2), dim=-1) @ v


@biases.add(21, "soft cap", "scores that are bounded", "https://arxiv.org/abs/2408.00118", qkv)
def soft_cap(q, k, v, cap=20.0):
    s = cap * torch.tanh(scores(q, k) / cap)
    return torch.softmax(causal(s), dim=-1) @ v


@biases.add(
    22, "scalable softmax", "a factor of the row's number", "https://arxiv.org/abs/2501.19399",
    lambda r: (*qkv(r), r(H, 1, 1)),
)  # fmt: skip
def scalable(q, k, v, scale):
    n = torch.arange(1, q.shape[-2] + 1, device=q.device).to(q.dtype)[:, None]
    return torch.softmax(causal(scale * torch.log(n) * scores(q, k)), dim=-1) @ v


@biases.add(
    23, "quantised keys and values", "eight bits and a scale a token", "https://github.com/pytorch/torchtitan/pull/3789",
    lambda r: (
        r(B, H, N, D), *((r.below(255, B, H, N, D) - 127).to(torch.int8) for _ in "kv"),
        *(r(B, H, N).abs() / 127 for _ in "kv"),
    ),
)  # fmt: skip
def quantised(q, k, v, k_scale, v_scale):
    s = scores(q, k.to(q.dtype)) * k_scale[..., None, :]
    return torch.softmax(causal(s), dim=-1) * v_scale[..., None, :] @ v.to(q.dtype)


FAMILY = biases
