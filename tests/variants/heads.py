"""Several softmaxes at once: differential attention, mixed heads, scores mixed with their neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, causal, scores

heads = Family("heads", "Several softmaxes at once")

LAMBDA = 0.2  # the initial value of the first layer's lambda
TALKING = "https://arxiv.org/abs/2003.02436"


def both(r):
    return r(B, 2 * H, N, D), r(B, 2 * H, N, D), r(B, H, N, 2 * D)


@heads.add(33, "talking heads", "heads mixed before and after softmax", TALKING, lambda r: (*qkv4(r), r(4, 4), r(4, 4)))
def talking_heads(q, k, v, before, after):
    logits = torch.einsum("bhij,hg->bgij", scores(q, k), before)
    weights = torch.einsum("bhij,hg->bgij", torch.softmax(logits, dim=-1), after)
    return weights @ v


def qkv4(r):
    return r(B, 4, N, D), r(B, 4, N, D), r(B, 4, N, D)


def compose(a, q1, q2, k1, k2, gate):
    """DCMHA's mixing of heads: low rank with weights of the query and of the key, and a gate of the query."""
    by_query = torch.einsum("brij,birg->bgij", torch.einsum("bhij,bihr->brij", a, q1), q2)
    by_key = torch.einsum("brij,bjrg->bgij", torch.einsum("bhij,bjhr->brij", a, k1), k2)
    return a + by_query + by_key + a * torch.tanh(gate)[..., None]


def mixers(r):
    return 0.5 * r(B, N, 4, 2), 0.5 * r(B, N, 2, 4), 0.5 * r(B, N, 4, 2), 0.5 * r(B, N, 2, 4), r(B, 4, N)


@heads.add(
    34, "DCMHA", "mixing weights that depend on query and key", "https://arxiv.org/abs/2405.08553",
    lambda r: (*qkv4(r), *mixers(r), *mixers(r)),
    passes=2,
)  # fmt: skip
def dcmha(q, k, v, q1, q2, k1, k2, gate, post_q1, post_q2, post_k1, post_k2, post_gate):
    s = compose(scores(q, k), q1, q2, k1, k2, gate)
    p = compose(torch.softmax(causal(s), dim=-1), post_q1, post_q2, post_k1, post_k2, post_gate)
    return p @ v


@heads.add(
    35, "multi-token attention", "a convolution of the scores", "https://arxiv.org/abs/2504.00927",
    lambda r: (r(B, H, N, D), r(B, H, N, D), r(B, H, N, D), 0.2 * r(H, 1, 4, 5)),
    kernels=2, unfused="conv2d: no meaning is known for it",
)  # fmt: skip
def multi_token(q, k, v, kernel):
    s = scores(q, k)
    s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), 0.0)
    s = F.conv2d(F.pad(s, (2, 2, 3, 0)), kernel, groups=s.shape[1])
    return torch.softmax(causal(s), dim=-1) @ v


@heads.add(
    36, "differential v1", "two softmaxes, their difference, a norm after it", "https://arxiv.org/abs/2410.05258",
    lambda r: (*both(r), *(0.1 * r(D) for _ in range(4)), r(2 * D)),
)  # fmt: skip
def differential_v1(q, k, v, lambda_q1, lambda_k1, lambda_q2, lambda_k2, gain):
    p = torch.softmax(causal(scores(q, k)), dim=-1).unflatten(1, (-1, 2))
    lam = torch.exp(torch.sum(lambda_q1 * lambda_k1)) - torch.exp(torch.sum(lambda_q2 * lambda_k2)) + LAMBDA
    out = (p[:, :, 0] - lam * p[:, :, 1]) @ v
    out = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-5) * gain
    return out * (1 - LAMBDA)


@heads.add(
    37, "differential v2", "pairs of query heads over the same keys",
    "https://ainews.cx/articles/differential-transformer-v2",
    lambda r: (r(B, 2 * H, N, D), r(B, H, N, D), r(B, H, N, D), r(B, H, N, 1)),
)  # fmt: skip
def differential_v2(q, k, v, lam):
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out[:, 0::2] - torch.sigmoid(lam) * out[:, 1::2]


@heads.add(
    38, "mixture of softmaxes", "any number of softmaxes, weighted by the token", "generalises differential attention",
    lambda r: (r(B, 3, N, D), r(B, 3, N, D), r(B, N, D), r(B, N, 32), r(32, 3)),
)  # fmt: skip
def mixture(q, k, v, x, w):
    p = torch.softmax(scores(q, k), dim=-1)
    weights = torch.softmax(x @ w, dim=-1)
    return torch.einsum("bnr,brnm->bnm", weights, p) @ v


FAMILY = heads
