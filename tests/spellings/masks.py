"""Masks that are given: additive and boolean tensors, captured tensors, lengths, SDPA, large negative numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.causes import COUNTED, LITERAL
from tests.spellings.table import B, Group, N, positions, qkv

INF = float("inf")


def scores(q, k):
    return q @ k.mT * q.shape[-1] ** -0.5


# ---- additive --------------------------------------------------------------------------------------------------------
bias = Group("bias", "A dense additive mask", lambda r: (*qkv(r), r(1, 1, N, N)))


@bias.add("scores + mask")
def added(q, k, v, mask):
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, -1) @ v


@bias.add("mask + scores")
def added_left(q, k, v, mask):
    return torch.softmax(mask + scores(q, k), -1) @ v


@bias.add("in place")
def added_inplace(q, k, v, mask):
    s = scores(q, k)
    s += mask
    return s.softmax(-1) @ v


@bias.add("mask of two dimensions", inputs=lambda r: (*qkv(r), r(N, N)))
def two_dimensions(q, k, v, mask):
    return torch.softmax(scores(q, k) + mask, -1) @ v


@bias.add("mask of two dimensions, unsqueezed", inputs=lambda r: (*qkv(r), r(N, N)))
def unsqueezed(q, k, v, mask):
    return torch.softmax(torch.add(scores(q, k), mask[None, None, :, :]), -1) @ v


@bias.add("expanded over batch and heads")
def expanded(q, k, v, mask):
    s = scores(q, k)
    return torch.softmax(s + mask.expand_as(s), -1) @ v


@bias.add("through baddbmm")
def baddbmm(q, k, v, mask):
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    return torch.bmm(torch.baddbmm(mask[0], q, k.mT, alpha=d**-0.5).softmax(-1), v).view(b, h, n, d)


@bias.add("a mask that is captured", made=True, inputs=qkv, apart=LITERAL)
def captured_bias(dtype):
    mask = torch.randn(N, N).to(dtype)
    return lambda q, k, v: torch.softmax(scores(q, k) + mask, -1) @ v


# ---- boolean ---------------------------------------------------------------------------------------------------------
def _keep(r):
    keep = r(B, 1, N, N) > -1
    keep[..., 0] = True
    return *qkv(r), keep


keep = Group("keep", "A dense boolean mask", _keep)


@keep.add("where")
def where(q, k, v, keep):
    return torch.softmax(torch.where(keep, scores(q, k), -INF), -1) @ v


@keep.add("masked_fill of ~keep")
def filled_not(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill(~keep, -INF), -1) @ v


@keep.add("masked_fill of logical_not")
def filled_logical_not(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill(keep.logical_not(), -INF), -1) @ v


@keep.add("masked_fill of keep == 0")
def filled_zero(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill(keep == 0, -INF), -1) @ v


@keep.add("masked_fill of keep == False, in place")
def filled_false(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill_(keep == False, -INF), -1) @ v  # noqa: E712


@keep.add("zeros filled with -inf, added")
def added_zeros(q, k, v, keep):
    zeros = torch.zeros(keep.shape, dtype=q.dtype).masked_fill(~keep, -INF)
    return torch.softmax(scores(q, k) + zeros, -1) @ v


@keep.add("log of the mask, added")
def added_log(q, k, v, keep):
    return torch.softmax(scores(q, k) + keep.to(q.dtype).log(), -1) @ v


@keep.add("as a float mask, compared")
def as_float(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill(keep.float() < 0.5, -INF), -1) @ v


@keep.add("as integers, compared")
def as_integers(q, k, v, keep):
    return torch.softmax(scores(q, k).masked_fill(keep.long() != 1, -INF), -1) @ v


@keep.add("s[~keep] = -inf")
def assigned(q, k, v, keep):
    s = scores(q, k)
    s[~keep.expand_as(s)] = -INF
    return s.softmax(-1) @ v


@keep.add("expanded")
def keep_expanded(q, k, v, keep):
    s = scores(q, k)
    return torch.softmax(torch.where(keep.expand_as(s), s, torch.tensor(-INF, dtype=s.dtype)), -1) @ v


# ---- lengths ---------------------------------------------------------------------------------------------------------
lengths = Group("lengths", "Keys up to a length of each sequence", lambda r: (*qkv(r), torch.tensor([N, N // 3])))


@lengths.add("masked_fill, positions >= length")
def filled_ge(q, k, v, lengths):
    j = torch.arange(k.shape[-2])
    return torch.softmax(scores(q, k).masked_fill(j[None, None, None] >= lengths.view(-1, 1, 1, 1), -INF), -1) @ v


@lengths.add("where, positions < length")
def where_less(q, k, v, lengths):
    j = torch.arange(k.shape[-2])
    return torch.softmax(torch.where(j < lengths[:, None, None, None], scores(q, k), -INF), -1) @ v


@lengths.add("a mask of (batch, keys), inverted")
def inverted(q, k, v, lengths):
    live = torch.arange(k.shape[-2])[None] < lengths[:, None]
    return torch.softmax(scores(q, k).masked_fill(~live[:, None, None, :], -INF), -1) @ v


@lengths.add("a mask of (batch, keys), added")
def length_added(q, k, v, lengths):
    live = torch.arange(k.shape[-2])[None] < lengths[:, None]
    mask = torch.zeros(live.shape, dtype=q.dtype).masked_fill(~live, -INF)
    return torch.softmax(scores(q, k) + mask[:, None, None], -1) @ v


# ---- a large negative number -----------------------------------------------------------------------------------------
lowest = Group(
    "lowest", "Causal, masked with the smallest number of the dtype", qkv, "a masked row is an average, not NaN"
)


@lowest.add("masked_fill")
def lowest_filled(q, k, v):
    n = q.shape[-2]
    mask = torch.ones(n, n, dtype=torch.bool).triu(1)
    return torch.softmax(scores(q, k).masked_fill(mask, torch.finfo(q.dtype).min), -1) @ v


@lowest.add("where")
def lowest_where(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where(i >= j, scores(q, k), torch.finfo(q.dtype).min), -1) @ v


@lowest.add("where with a tensor of it")
def lowest_tensor(q, k, v):
    s = scores(q, k)
    keep = torch.ones(s.shape[-2:]).tril() > 0
    return torch.softmax(torch.where(keep, s, torch.full([], torch.finfo(s.dtype).min, dtype=s.dtype)), -1) @ v


# ---- scaled_dot_product_attention ------------------------------------------------------------------------------------
sdpa = Group("sdpa", "scaled_dot_product_attention", qkv, "a row without keys gives zeros, softmax gives NaN")


@sdpa.add("as it is")
def plain(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@sdpa.add("a scale given")
def scale_given(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=1 / math.sqrt(q.shape[-1]))


@sdpa.add("every argument given")
def every_argument(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(
        query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None
    )


@sdpa.add("queries scaled before")
def scaled_before(q, k, v):
    return F.scaled_dot_product_attention(q * q.shape[-1] ** -0.5, k, v, scale=1.0)


@sdpa.add("a mask that keeps everything")
def keeps_everything(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool))


@sdpa.add("softmax, rows without keys set to 0", apart=COUNTED)
def zeros_by_hand(q, k, v):
    s = scores(q, k)
    p = torch.softmax(s, -1)
    return torch.where((s == -INF).all(-1, keepdim=True), 0.0, p) @ v


sdpa_causal = Group("sdpa_causal", "scaled_dot_product_attention, causal", qkv)


@sdpa_causal.add("is_causal")
def is_causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@sdpa_causal.add("a boolean triangle")
def boolean_triangle(q, k, v):
    n = q.shape[-2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(n, n, dtype=torch.bool).tril())


@sdpa_causal.add("a triangle of -inf")
def additive_triangle(q, k, v):
    n = q.shape[-2]
    return F.scaled_dot_product_attention(q, k, v, torch.full((n, n), -INF, dtype=q.dtype).triu(1))


@sdpa_causal.add("comparison of positions, four dimensions")
def comparison(q, k, v):
    i, j = positions(q.shape[-2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(j <= i)[None, None])


@sdpa_causal.add("a module that calls it", made=True)
def module(dtype):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = 0.1

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, None, self.dropout if self.training else 0.0, True)

    return Attention()


GROUPS = (bias, keep, lengths, lowest, sdpa, sdpa_causal)
