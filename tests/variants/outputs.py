"""Other results: statistics of rows and columns, losses, tangents."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N, causal, qkv, scores

outputs = Family("outputs", "Other results, losses")

H2O = "https://arxiv.org/abs/2306.14048"
CLIP = "https://arxiv.org/abs/2410.17243"
ENTROPY = "https://github.com/pytorch/pytorch/issues/159770"


@outputs.add(
    79, "partial results merged", "two sets of keys, each with its logsumexp", "https://arxiv.org/abs/2310.01889",
    lambda r: (*qkv(r), r(B, H, 400, D), r(B, H, 400, D)),
    kernels=2, passes=2,
)  # fmt: skip
def merged(q, k1, v1, k2, v2):
    parts = []
    for k, v in ((k1, v1), (k2, v2)):
        s = scores(q, k)
        lse = torch.logsumexp(s, dim=-1)
        parts.append((torch.exp(s - lse[..., None]) @ v, lse))
    (o1, l1), (o2, l2) = parts
    lse = torch.logaddexp(l1, l2)
    return o1 * torch.exp(l1 - lse)[..., None] + o2 * torch.exp(l2 - lse)[..., None], lse


@outputs.add(
    80,
    "max logit (QK-clip)",
    "the maximum of a head besides",
    "https://arxiv.org/abs/2507.20534",
    qkv,
    kernels=4,
    passes=4,
)
def max_logit(q, k, v):
    s = causal(scores(q, k))
    return torch.softmax(s, dim=-1) @ v, s.amax(dim=(0, 2, 3))


@outputs.add(81, "logsumexp and row entropy", "sums of p log p in the same pass", ENTROPY, qkv)
def entropy(q, k, v):
    s = scores(q, k)
    lse = torch.logsumexp(s, dim=-1)
    p = torch.softmax(s, dim=-1)
    return p @ v, lse, -(p * torch.log_softmax(s, dim=-1)).sum(-1)


@outputs.add(82, "column sums (H2O)", "a reduction along the queries", H2O, qkv, kernels=2, passes=2)
def column_sums(q, k, v):
    p = torch.softmax(causal(scores(q, k)), dim=-1)
    return p @ v, p.sum(-2)


@outputs.add(83, "returned probabilities", "all of them written", "https://arxiv.org/abs/1706.03762", qkv, passes=2)
def probabilities(q, k, v):
    p = torch.softmax(causal(scores(q, k)), dim=-1)
    return p @ v, p


@outputs.add(
    84, "linear layer and cross entropy", "the vocabulary is streamed", "https://arxiv.org/abs/2411.09009",
    lambda r: (r(N, 32), r(2000, 32) / 4, r.below(2000, N)),
    kernels=2, passes=2,
)  # fmt: skip
def linear_cross_entropy(x, w, target):
    return F.cross_entropy(F.linear(x, w), target)


@outputs.add(
    85,
    "CLIP loss",
    "rows and columns, and a diagonal",
    CLIP,
    lambda r: (r(N, 32), r(N, 32), r(1)[0]),
    kernels=3,
    passes=3,
)
def clip(image, text, scale):
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = scale.exp() * image @ text.T
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@outputs.add(
    86, "tangent of attention", "two scores a pair, and their product with values", "https://arxiv.org/abs/2410.11081",
    lambda r: (*qkv(r), *qkv(r)),
)  # fmt: skip
def tangent(q, k, v, dq, dk, dv):
    p = torch.softmax(scores(q, k), dim=-1)
    ds = (dq @ k.mT + q @ dk.mT) * q.shape[-1] ** -0.5
    out = p @ v
    return out, (p * ds) @ v - (p * ds).sum(-1, keepdim=True) * out + p @ dv


FAMILY = outputs
