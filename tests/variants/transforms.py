"""Queries, keys and values transformed on the way in, outputs on the way out."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, causal, qkv, scores

transforms = Family("transforms", "Queries, keys and values transformed")

MLA = "https://arxiv.org/abs/2405.04434"
ROPE, LATENT = 8, 32  # rotated dimensions and rank of latent attention


def rotations(width):
    frequency = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angle = torch.arange(N)[:, None] * frequency.repeat(2)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def rms_norm(x, gain):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain


@transforms.add(
    24, "rotary embedding", "keys are rotated once, or in the loop", "https://arxiv.org/abs/2104.09864",
    lambda r: (*qkv(r), *rotations(D)),
)  # fmt: skip
def rotary(q, k, v, cos, sin):
    return torch.softmax(causal(scores(rotate(q, cos, sin), rotate(k, cos, sin))), dim=-1) @ v


@transforms.add(
    25, "QK norm", "layer norms of queries and keys", "https://arxiv.org/abs/2302.05442",
    lambda r: (*qkv(r), r(D), r(D), r(D), r(D)),
)  # fmt: skip
def qk_norm(q, k, v, q_gain, q_shift, k_gain, k_shift):
    q = F.layer_norm(q, (q.shape[-1],), q_gain, q_shift)
    k = F.layer_norm(k, (k.shape[-1],), k_gain, k_shift)
    return torch.softmax(causal(scores(q, k)), dim=-1) @ v


@transforms.add(
    26,
    "cosine attention",
    "scores that are bounded",
    "https://arxiv.org/abs/2010.04245",
    lambda r: (*qkv(r), r(H, 1, 1)),
)
def cosine(q, k, v, tau):
    s = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    return torch.softmax(causal(s * tau.exp().clamp(max=100.0)), dim=-1) @ v


@transforms.add(
    27, "grouped queries", "keys shared by a group of heads", "https://arxiv.org/abs/2305.13245",
    lambda r: (r(B, 6, N, D), r(B, 2, N, D), r(B, 2, N, D)),
)  # fmt: skip
def grouped(q, k, v):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return torch.softmax(causal(scores(q, k)), dim=-1) @ v


def latent(r):
    up = (r(H, LATENT, D) / LATENT**0.5 for _ in range(2))
    return r(B, H, N, D), r(B, H, N, ROPE), r(B, N, LATENT), r(B, N, ROPE), *up


@transforms.add(
    28, "latent attention, naive", "keys of two parts, one shared by the heads", MLA, latent, kernels=3, passes=3
)
def latent_naive(q, q_rope, c, k_rope, w_k, w_v):
    k = torch.einsum("bnr,hrd->bhnd", c, w_k)
    v = torch.einsum("bnr,hrd->bhnd", c, w_v)
    k = torch.cat([k, k_rope[:, None].expand(-1, k.shape[1], -1, -1)], dim=-1)
    s = torch.cat([q, q_rope], dim=-1) @ k.mT / k.shape[-1] ** 0.5
    return torch.softmax(causal(s), dim=-1) @ v


@transforms.add(29, "latent attention, absorbed", "one latent is key and value", MLA, latent)
def latent_absorbed(q, q_rope, c, k_rope, w_k, w_v):
    absorbed = torch.einsum("bhnd,hrd->bhnr", q, w_k)
    s = torch.einsum("bhnr,bmr->bhnm", absorbed, c) + torch.einsum("bhnr,bmr->bhnm", q_rope, k_rope)
    p = torch.softmax(causal(s / (q.shape[-1] + q_rope.shape[-1]) ** 0.5), dim=-1)
    return torch.einsum("bhnr,hrd->bhnd", torch.einsum("bhnm,bmr->bhnr", p, c), w_v)


@transforms.add(
    30, "gated attention", "norm and rotation before, a gate after", "https://arxiv.org/abs/2505.06708",
    lambda r: (*qkv(r), r(B, N, 32), r(32, H * D) / 4, r(D), r(D), *rotations(D)),
)  # fmt: skip
def gated(q, k, v, x, w_gate, q_gain, k_gain, cos, sin):
    q, k = rotate(rms_norm(q, q_gain), cos, sin), rotate(rms_norm(k, k_gain), cos, sin)
    out = torch.softmax(causal(scores(q, k)), dim=-1) @ v
    return out.transpose(1, 2).flatten(2) * torch.sigmoid(x @ w_gate)


@transforms.add(
    31, "exclusive attention (XSA)", "a projection off its own value", "https://arxiv.org/abs/2603.09078", qkv
)
def exclusive(q, k, v):
    out = torch.softmax(causal(scores(q, k)), dim=-1) @ v
    own = F.normalize(v, dim=-1)
    return out - (out * own).sum(-1, keepdim=True) * own


@transforms.add(32, "LASER", "exponentials of values, their maximum a channel", "https://arxiv.org/abs/2411.03493", qkv)
def laser(q, k, v):
    top = v.amax(-2, keepdim=True).detach()
    p = torch.softmax(causal(scores(q, k)), dim=-1)
    return torch.log(p @ torch.exp(v - top)) + top


FAMILY = transforms
