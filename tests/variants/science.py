"""Attention of structure prediction: rows, columns, triangles, points; and over depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import B, D, Family, H, N

science = Family("science", "Structure prediction, and depth")

AF2 = "https://www.nature.com/articles/s41586-021-03819-2"
AF3 = "https://www.nature.com/articles/s41586-024-07487-w"
R, P, C = 5, 4, 24  # rows of an alignment, points of a head, channels of a pair


def rows(r):
    return *(r(B, R, N, H, D) for _ in range(3)), r.chance(0.9, B, R, N).float(), r(B, H, N, N), r(B, R, N, H, D)


@science.add(65, "Evoformer row attention", "mask, pair bias and gate; five dimensions", AF2, rows)
def evoformer_row(q, k, v, mask, pair, gate):
    logits = torch.einsum("brihd,brjhd->brhij", q * q.shape[-1] ** -0.5, k)
    logits = logits + (1e9 * (mask - 1))[:, :, None, None, :] + pair[:, None]
    out = torch.einsum("brhij,brjhd->brihd", torch.softmax(logits, dim=-1), v)
    return out * torch.sigmoid(gate)


@science.add(
    66, "MSA column attention", "the rows are streamed", AF2, lambda r: tuple(r(B, N, 6, H, D) for _ in "qkvg")
)
def msa_column(q, k, v, gate):
    q, k, v, gate = (t.transpose(1, 2) for t in (q, k, v, gate))
    logits = torch.einsum("bsihd,bsjhd->bshij", q, k) / q.shape[-1] ** 0.5
    out = torch.einsum("bshij,bsjhd->bsihd", torch.softmax(logits, dim=-1), v) * torch.sigmoid(gate)
    return out.transpose(1, 2)


@science.add(
    67, "MSA global column attention", "the query is a mean over what is streamed", AF2,
    lambda r: (r(B, 6, N, C), r.chance(0.9, B, 6, N).float(), r(C, H * D), r(C, D), r(C, D), r(C, H * D)),
    passes=3,
)  # fmt: skip
def msa_global_column(m, mask, w_q, w_k, w_v, w_g):
    mean = (m * mask[..., None]).sum(-2) / (mask.sum(-1, keepdim=True) + 1e-10)
    q = (mean @ w_q).unflatten(-1, (-1, w_k.shape[-1])) * w_k.shape[-1] ** -0.5
    logits = q @ (m @ w_k).mT + 1e9 * (mask - 1)[:, :, None]
    out = torch.softmax(logits, dim=-1) @ (m @ w_v)
    gate = torch.sigmoid(m @ w_g).unflatten(-1, (-1, w_k.shape[-1]))
    return gate * out[:, :, None]


def triangle(r):
    return *(r(1, N, N, 1, D) for _ in range(3)), r(1, 1, N, N), r(1, N, N, 1, D)


@science.add(68, "triangle attention, starting node", "the bias is shared by all rows", AF2, triangle)
def triangle_start(q, k, v, bias, gate):
    logits = torch.einsum("bijhd,bikhd->bihjk", q * q.shape[-1] ** -0.5, k) + bias[:, None]
    return torch.einsum("bihjk,bikhd->bijhd", torch.softmax(logits, dim=-1), v) * torch.sigmoid(gate)


@science.add(68, "triangle attention, ending node", "the first of two long axes is streamed", AF2, triangle)
def triangle_end(q, k, v, bias, gate):
    logits = torch.einsum("bijhd,bkjhd->bhijk", q * q.shape[-1] ** -0.5, k) + bias.mT[:, :, :, None]
    return torch.einsum("bhijk,bkjhd->bijhd", torch.softmax(logits, dim=-1), v) * torch.sigmoid(gate)


@science.add(
    69, "attention with pair bias (AlphaFold 3)", "norm and projection of the pairs inside the loop", AF3,
    lambda r: (*(r(B, N, H, D) for _ in range(3)), r(B, N, N, C), r(C), r(C), r(C, H) / 4, r(B, N, H, D)),
)  # fmt: skip
def pair_bias(q, k, v, z, gain, shift, w_b, gate):
    bias = F.layer_norm(z, (z.shape[-1],), gain, shift) @ w_b
    logits = torch.einsum("bihd,bjhd->bijh", q, k) / q.shape[-1] ** 0.5 + bias
    out = torch.einsum("bijh,bjhd->bihd", torch.softmax(logits, dim=2), v)
    return torch.sigmoid(gate) * out


def frames(r):
    rotation = torch.linalg.qr(r(1, N, 3, 3)).Q
    points = (r(1, N, H, P, 3) for _ in range(3))
    return *(r(1, N, H, D) for _ in range(3)), *points, rotation, r(1, N, 3), r(1, N, N, C), r(1, N, N, H), r(H)


@science.add(
    70,
    "invariant point attention",
    "distances of points; three outputs, one of pairs",
    AF2,
    frames,
    kernels=2,
    passes=2,
)
def invariant_points(q, k, v, q_points, k_points, v_points, rotation, origin, pair, bias, weight):
    def place(points):
        return torch.einsum("bnxy,bnhpy->bnhpx", rotation, points) + origin[:, :, None, None]

    distance = (place(q_points)[:, :, None] - place(k_points)[:, None]).square().sum((-1, -2))
    logits = torch.einsum("bihd,bjhd->bijh", q, k) * q.shape[-1] ** -0.5 + bias
    logits = 3**-0.5 * (logits - 0.5 * (2 / (9 * q_points.shape[3])) ** 0.5 * F.softplus(weight) * distance)
    p = torch.softmax(logits, dim=2)
    points = torch.einsum("bijh,bjhpx->bihpx", p, place(v_points)) - origin[:, :, None, None]
    points = torch.einsum("bnyx,bnhpy->bnhpx", rotation, points)
    return torch.einsum("bijh,bjhd->bihd", p, v), points, torch.einsum("bijh,bijc->bihc", p, pair)


@science.add(
    71, "attention residuals", "softmax over the layers below", "https://arxiv.org/abs/2603.15031",
    lambda r: (r(24, B, N, C), r(C), r(C)),
    passes=0,
)  # fmt: skip
def attention_residuals(hidden, query, gain):
    keys = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6) * gain
    weights = torch.softmax(torch.einsum("c,lbnc->lbn", query, keys), dim=0)
    return torch.einsum("lbn,lbnc->bnc", weights, hidden)


FAMILY = science
