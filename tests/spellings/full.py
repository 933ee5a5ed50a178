"""Full softmax attention on (batch, heads, tokens, width)."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.causes import NUMBERS, RESTORED, TENSOR
from tests.spellings.table import B, D, Group, H, N, qkv

full = Group("full", "Full softmax attention", qkv)


@full.add("scores divided by a root")
def plain(q, k, v):
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1) @ v


# ---- where the scale stands ------------------------------------------------------------------------------------------
@full.add("scores multiplied")
def multiplied(q, k, v):
    scores = torch.matmul(q, k.mT) * q.size(-1) ** -0.5
    return torch.matmul(F.softmax(scores, dim=-1), v)


@full.add("multiplied from the left")
def multiplied_from_the_left(q, k, v):
    return (1 / math.sqrt(q.shape[-1]) * (q @ k.mT)).softmax(-1) @ v


@full.add("scale on the queries")
def scale_on_queries(q, k, v):
    q = q * q.shape[-1] ** -0.5
    return F.softmax(q @ k.mT, dim=-1) @ v


@full.add("scale on the keys")
def scale_on_keys(q, k, v):
    return F.softmax(q @ (k / k.shape[-1] ** 0.5).mT, dim=-1) @ v


@full.add("half of the scale on either side")
def scale_on_both(q, k, v):
    s = q.shape[-1] ** -0.25
    return F.softmax((q * s) @ (k * s).transpose(-2, -1), dim=-1) @ v


@full.add("scale as a tensor", apart=TENSOR)
def scale_tensor(q, k, v):
    scale = torch.tensor(q.shape[-1] ** -0.5, dtype=q.dtype)
    return F.softmax(q @ k.mT * scale, dim=-1) @ v


@full.add("root taken of a tensor", apart=TENSOR)
def root_of_a_tensor(q, k, v):
    return F.softmax(q @ k.mT / torch.sqrt(torch.tensor(float(q.size(-1)))), dim=-1) @ v


@full.add("a chain of methods")
def methods(q, k, v):
    return q.matmul(k.transpose(2, 3)).div(q.shape[-1] ** 0.5).softmax(dim=3).matmul(v)


# ---- the products ----------------------------------------------------------------------------------------------------
@full.add("einsum")
def einsum(q, k, v):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


@full.add("einsum in other letters")
def einsum_letters(q, k, v):
    p = torch.softmax(torch.einsum("zyxk, zywk -> zyxw", q, k) * q.shape[-1] ** -0.5, 3)
    return torch.einsum("ZYXW, ZYWU -> ZYXU", p, v)


@full.add("einsum with an ellipsis")
def einsum_ellipsis(q, k, v):
    scores = torch.einsum("...qd,...kd->...qk", q, k).mul(q.shape[-1] ** -0.5)
    return torch.einsum("...qk,...kd->...qd", scores.softmax(-1), v)


@full.add("einsum with an implicit output")
def einsum_implicit(q, k, v):
    scores = torch.einsum("...id,...jd", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("...ab,...bc", scores.softmax(-1), v)


@full.add("einsum, operands the other way round")
def einsum_swapped(q, k, v):
    scores = torch.einsum("bhjd,bhid->bhij", k, q) * q.shape[-1] ** -0.5
    return torch.einsum("bhjd,bhij->bhid", v, scores.softmax(-1))


@full.add("einsum with the scale as an operand", apart=TENSOR)
def einsum_scale(q, k, v):
    p = torch.einsum("bhid,bhjd,->bhij", q, k, torch.tensor(q.shape[-1] ** -0.5, dtype=q.dtype)).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", p, v)


@full.add("einsum, scores transposed")
def einsum_transposed(q, k, v):
    p = torch.einsum("bhid,bhjd->bhji", q, k).mul(q.shape[-1] ** -0.5).softmax(-2)
    return torch.einsum("bhji,bhjd->bhid", p, v)


@full.add("everything transposed, softmax over dim=-2")
def transposed(q, k, v):
    return (v.mT @ torch.softmax(k @ q.mT * q.shape[-1] ** -0.5, dim=-2)).mT


@full.add("bmm of flattened heads")
def bmm(q, k, v):
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * d**-0.5, -1), v).view(b, h, n, d)


@full.add("baddbmm with beta=0")
def baddbmm(q, k, v):
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, -1, d) for t in (q, k, v))
    scores = torch.baddbmm(q.new_empty(b * h, n, n), q, k.transpose(1, 2), beta=0, alpha=d**-0.5)
    return torch.bmm(scores.softmax(-1), v).reshape(b, h, n, d)


@full.add("scores by a broadcast product and a sum")
def broadcast_scores(q, k, v):
    return torch.softmax((q[:, :, :, None] * k[:, :, None]).sum(-1) * q.shape[-1] ** -0.5, -1) @ v


@full.add("both products by broadcasts and sums")
def broadcast_both(q, k, v):
    p = torch.softmax((q.unsqueeze(3) * k.unsqueeze(2)).sum(dim=-1) / q.shape[-1] ** 0.5, dim=-1)
    return (p.unsqueeze(-1) * v.unsqueeze(2)).sum(dim=3)


@full.add("scores by vecdot")
def vecdot(q, k, v):
    return torch.softmax(torch.linalg.vecdot(q[..., :, None, :], k[..., None, :, :]) / q.shape[-1] ** 0.5, -1) @ v


@full.add("heads first, and back")
def heads_first(q, k, v):
    q, k, v = (t.permute(1, 0, 2, 3) for t in (q, k, v))
    return (torch.softmax(q @ k.permute(0, 1, 3, 2) * q.shape[-1] ** -0.5, -1) @ v).permute(1, 0, 2, 3)


@full.add("copies and views that change nothing")
def copies(q, k, v):
    q, k, v = q.contiguous(), k.clone(), v.unsqueeze(0).squeeze(0)
    scores = q.view(q.shape) @ k[:, :, :].transpose(2, 3).contiguous()
    return torch.softmax(scores * q.shape[-1] ** -0.5, -1).reshape_as(scores) @ v


# ---- the softmax -----------------------------------------------------------------------------------------------------
@full.add("softmax by hand")
def by_hand(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@full.add("maximum by max(...).values, unsqueezed")
def max_values(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    e = (s - s.max(dim=-1).values.unsqueeze(-1)).exp()
    return e / e.sum(dim=-1)[..., None] @ v


@full.add("maximum by torch.max()[0], detached")
def max_first(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    top, _ = torch.max(s, dim=-1, keepdim=True)
    e = torch.exp(s - top.detach())
    return torch.matmul(torch.div(e, torch.sum(e, dim=-1, keepdim=True)), v)


@full.add("times the reciprocal of the sum")
def reciprocal(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e * e.sum(-1, keepdim=True).reciprocal()) @ v


@full.add("divided after the second product", apart=RESTORED)
def divided_after(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


@full.add("row sum by a column of ones", apart=RESTORED)
def sum_by_ones(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / (e @ torch.ones_like(v[..., :1]))


@full.add("log_softmax, then exp")
def log_softmax(q, k, v):
    return F.log_softmax(q @ k.mT * q.shape[-1] ** -0.5, -1).exp() @ v


@full.add("torch.special.softmax")
def special_softmax(q, k, v):
    return torch.special.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@full.add("softmax in float32 by its dtype argument")
def softmax_dtype(q, k, v):
    return F.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@full.add("scores cast to float32 and back")
def cast_scores(q, k, v):
    return torch.softmax((q @ k.mT * q.shape[-1] ** -0.5).float(), -1).type_as(v) @ v


@full.add("dropout with p=0")
def dropout_zero(q, k, v):
    return F.dropout(torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1), 0.0) @ v


@full.add("dropout that is not training")
def dropout_eval(q, k, v):
    return F.dropout(torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1), p=0.3, training=False) @ v


@full.add("a mask of zeros added")
def zeros_added(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    return torch.softmax(s + torch.zeros_like(s), -1) @ v


@full.add("a mask that keeps everything", apart=NUMBERS)
def ones_mask(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    return torch.softmax(s.masked_fill(torch.ones(s.shape[-2:]) == 0, float("-inf")), -1) @ v


# ---- in place --------------------------------------------------------------------------------------------------------
@full.add("scores scaled in place")
def inplace_scale(q, k, v):
    s = q @ k.mT
    s *= q.shape[-1] ** -0.5
    return s.softmax(-1) @ v


@full.add("sub_, exp_, div_")
def inplace_softmax(q, k, v):
    s = q.matmul(k.mT).mul_(q.shape[-1] ** -0.5)
    s.sub_(s.amax(-1, keepdim=True)).exp_()
    s.div_(s.sum(-1, keepdim=True))
    return s @ v


@full.add("the result written into a tensor")
def inplace_result(q, k, v):
    out = torch.empty_like(q)
    out[:] = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
    return out


@full.add("the result added to zeros")
def inplace_added(q, k, v):
    out = torch.zeros_like(q)
    out += torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
    return out


# ---- what holds the program ------------------------------------------------------------------------------------------
@full.add("vmap over batch and heads")
def mapped(q, k, v):
    return torch.vmap(torch.vmap(lambda q, k, v: torch.softmax(q @ k.T * q.shape[-1] ** -0.5, -1) @ v))(q, k, v)


@full.add("vmap over every query")
def mapped_queries(q, k, v):
    def one(q, k, v):
        return torch.softmax(k @ q / math.sqrt(q.shape[0]), 0) @ v

    return torch.vmap(torch.vmap(torch.vmap(one, in_dims=(0, None, None))))(q, k, v)


@full.add("an nn.Module with nn.Softmax and nn.Dropout", made=True)
def module(dtype):
    class Attention(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.scale = width**-0.5
            self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.1)

        def forward(self, query, key, value):
            weights = self.softmax(torch.matmul(query, key.transpose(-2, -1)) * self.scale)
            return torch.matmul(self.dropout(weights), value)

    return Attention(D)


@full.add("keyword arguments with defaults")
def keywords(q, k, v, *, scale=None, dropout=0.0, mask=None):
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores + mask
    p = torch.softmax(scores, -1)
    return (F.dropout(p, dropout) if dropout else p) @ v


@full.add("functools.partial", made=True)
def partial(dtype):
    def attention(scale, q, k, v, dim=-2):
        return torch.softmax(q @ k.mT * scale, dim) @ v

    return functools.partial(attention, D**-0.5, dim=-1)


@full.add("a closure over its parts", made=True)
def closure(dtype):
    def score(q, k):
        return torch.einsum("bhid,bhjd->bhij", q, k)

    def attention(normalise):
        return lambda q, k, v: normalise(score(q, k) / math.sqrt(D)) @ v

    return attention(lambda s: torch.softmax(s, -1))


@full.add("a dictionary of tensors", inputs=lambda r: (dict(zip("qkv", qkv(r), strict=True)),))
def dictionary(x):
    return torch.softmax(x["q"] @ x["k"].mT * x["q"].shape[-1] ** -0.5, -1) @ x["v"]


class Heads(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


@full.add("a named tuple of tensors", inputs=lambda r: (Heads(*qkv(r)),))
def named_tuple(heads):
    return torch.softmax(heads.query @ heads.key.mT * D**-0.5, -1) @ heads.value


# ---- how the inputs lie in memory ------------------------------------------------------------------------------------
@full.add("heads behind tokens in memory", inputs=lambda r: tuple(r(B, N, H, D).transpose(1, 2) for _ in range(3)))
def strided(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@full.add(
    "keys and values expanded over the batch",
    inputs=lambda r: (r(B, H, N, D), *(r(1, H, N, D).expand(B, H, N, D) for _ in range(2))),
)
def expanded(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@full.add("every second token of longer inputs", inputs=lambda r: (*(r(B, H, 2 * N, D)[:, :, ::2] for _ in range(3)),))
def stepped(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@full.add("keys given as (B, H, D, S)", inputs=lambda r: (r(B, H, N, D), r(B, H, D, N), r(B, H, N, D)))
def keys_transposed(q, kt, v):
    return torch.softmax(q @ kt * q.shape[-1] ** -0.5, -1) @ v


@full.add("values given as (B, H, D, S)", inputs=lambda r: (r(B, H, N, D), r(B, H, N, D), r(B, H, D, N)))
def values_transposed(q, k, vt):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ vt.mT


GROUPS = (full,)
