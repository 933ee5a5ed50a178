"""Other normalisers than the sum of the same exponentials."""

from __future__ import annotations

import math

import torch

from tests.variants.table import B, D, Family, H, N, causal, qkv, scores

normalisers = Family("normalisers", "Other normalisers")

GPT_OSS = "https://github.com/huggingface/transformers/pull/41083"
OFF_BY_ONE = "https://www.evanmiller.org/attention-is-off-by-one.html"
SIGMOID = "https://arxiv.org/abs/2409.04431"
RELU = "https://arxiv.org/abs/2309.08586"
SOFTPICK = "https://arxiv.org/abs/2504.20966"
STUDENT = "https://arxiv.org/abs/1908.11775"


@normalisers.add(39, "learnt sink", "a column of its own, by concatenation", GPT_OSS, lambda r: (*qkv(r), r(H)))
def sink(q, k, v, sinks):
    s = causal(scores(q, k))
    column = sinks.reshape(1, -1, 1, 1).expand(s.shape[0], -1, s.shape[2], 1)
    p = torch.softmax(torch.cat([s, column], dim=-1), dim=-1)
    return p[..., :-1] @ v


@normalisers.add(40, "softmax with one added", "a maximum that is clamped", OFF_BY_ONE, qkv)
def softmax_one(q, k, v):
    s = causal(scores(q, k))
    m = s.amax(-1, keepdim=True).clamp(min=0)
    e = torch.exp(s - m)
    return e / (torch.exp(-m) + e.sum(-1, keepdim=True)) @ v


@normalisers.add(41, "sigmoid attention", "no normaliser, hence no maximum", SIGMOID, qkv)
def sigmoid(q, k, v):
    return torch.sigmoid(causal(scores(q, k) - math.log(k.shape[-2]))) @ v


@normalisers.add(42, "squared ReLU attention", "divided by the number of keys", RELU, qkv)
def squared_relu(q, k, v):
    return torch.relu(causal(scores(q, k))).square() / k.shape[-2] @ v


@normalisers.add(
    43, "ReLA", "a norm in place of the normaliser, and a gate", "https://arxiv.org/abs/2104.07012",
    lambda r: (*qkv(r), r(B, H, N, D), r(D)),
)  # fmt: skip
def rela(q, k, v, gate, gain):
    out = torch.relu(causal(scores(q, k))) @ v
    out = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-6) * gain
    return out * torch.sigmoid(gate)


@normalisers.add(44, "softpick", "signed terms above, their absolute values below", SOFTPICK, qkv)
def softpick(q, k, v):
    s = causal(scores(q, k))
    m = s.amax(-1, keepdim=True)
    e = torch.exp(s - m) - torch.exp(-m)
    above = torch.relu(e)
    below = torch.where(torch.isinf(s), 0.0, torch.abs(e)).sum(-1, keepdim=True)
    return above / (below + 1e-6) @ v


@normalisers.add(45, "Cog attention", "signed weights", "https://arxiv.org/abs/2411.07176", qkv)
def cog(q, k, v):
    s = scores(q, k)
    p = torch.softmax(causal(s.abs()), dim=-1)
    return (torch.sign(s) * p) @ v


@normalisers.add(46, "normalised even power", "neither exp nor maximum", "https://arxiv.org/abs/2507.04239", qkv)
def even_power(q, k, v):
    s = scores(q, k).pow(4).tril()
    return s / s.sum(-1, keepdim=True) @ v


@normalisers.add(47, "Student-t kernel", "a power of the distance", STUDENT, qkv)
def student_t(q, k, v, nu=3.0):
    distance = q.square().sum(-1, keepdim=True) - 2 * q @ k.mT + k.square().sum(-1)[..., None, :]
    weights = (1 + distance / nu) ** (-(nu + 1) / 2)
    return weights @ v / weights.sum(-1, keepdim=True)


@normalisers.add(48, "L2 attention", "softmax of the distance", "https://arxiv.org/abs/2006.04710", qkv)
def l2(q, k, v):
    distance = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)
    return torch.softmax(-distance / q.shape[-1] ** 0.5, dim=-1) @ v


FAMILY = normalisers
