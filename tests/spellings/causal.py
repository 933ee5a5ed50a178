"""Causal attention and sliding windows, with the mask made in the function."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.causes import COUNTED, LOGIC, NESTED, POLARITY, RESTORED
from tests.spellings.table import Group, positions, qkv

INF = float("inf")
causal = Group("causal", "Causal attention", qkv)


def scores(q, k):
    return q @ k.mT * q.shape[-1] ** -0.5


# ---- masks by comparing positions ------------------------------------------------------------------------------------
@causal.add("masked_fill, columns > rows")
def fill_gt(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(scores(q, k).masked_fill(j > i, -INF), -1) @ v


@causal.add("where, rows >= columns")
def where_ge(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where(i >= j, scores(q, k), -INF), -1) @ v


@causal.add("where, columns <= rows")
def where_le(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where(j <= i, scores(q, k), float("-inf")), -1) @ v


@causal.add("where, columns - rows < 1")
def where_difference(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where(j - i < 1, scores(q, k), -INF), -1) @ v


@causal.add("where with the branches swapped")
def where_swapped(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where(i < j, -INF, scores(q, k)), -1) @ v


@causal.add("where with a tensor of -inf")
def where_tensor(q, k, v):
    s = scores(q, k)
    i = torch.arange(s.shape[-2]).view(-1, 1)
    j = torch.arange(s.shape[-1]).view(1, -1)
    return torch.softmax(torch.where(torch.ge(i, j), s, torch.full_like(s, -INF)), -1) @ v


@causal.add("masked_fill, ~(columns <= rows)")
def fill_not(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(scores(q, k).masked_fill(~(j <= i), -INF), -1) @ v


@causal.add("masked_fill, logical_not, mask of four dimensions")
def fill_logical_not(q, k, v):
    i, j = positions(q.shape[-2])
    mask = torch.logical_not(i >= j)[None, None].expand(q.shape[0], 1, -1, -1)
    return torch.softmax(torch.masked_fill(scores(q, k), mask, -INF), -1) @ v


@causal.add("positions compared in floating point")
def float_positions(q, k, v):
    n = q.shape[-2]
    t = torch.arange(n, dtype=torch.float32)
    return torch.softmax(scores(q, k).masked_fill(t[:, None] < t, -INF), -1) @ v


@causal.add("positions counted from 1")
def from_one(q, k, v):
    t = torch.arange(1, q.shape[-2] + 1)
    return torch.softmax(scores(q, k).masked_fill(t > t[:, None], -INF), -1) @ v


# ---- masks by triangles ----------------------------------------------------------------------------------------------
@causal.add("triu of ones, bool")
def triu_bool(q, k, v):
    n = q.shape[-2]
    mask = torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1)
    return torch.softmax(scores(q, k).masked_fill(mask, -INF), -1) @ v


@causal.add("~tril of ones, bool")
def tril_not(q, k, v):
    n = q.shape[-2]
    keep = torch.ones(n, n, dtype=torch.bool).tril()
    return torch.softmax(scores(q, k).masked_fill(~keep, -INF), -1) @ v


@causal.add("tril of ones == 0")
def tril_zero(q, k, v):
    s = scores(q, k)
    return torch.softmax(s.masked_fill(torch.tril(torch.ones(s.shape[-2:])) == 0, -INF), -1) @ v


@causal.add("tril of ones, as a condition of where")
def tril_where(q, k, v):
    s = scores(q, k)
    return torch.softmax(torch.where(torch.ones_like(s).tril().bool(), s, -INF), -1) @ v


@causal.add("upper triangle of -inf added")
def add_triu(q, k, v):
    n = q.shape[-2]
    mask = torch.full((n, n), -INF, dtype=q.dtype).triu(1)
    return torch.softmax(scores(q, k) + mask, -1) @ v


@causal.add("upper triangle of -inf added from the left")
def add_left(q, k, v):
    n = q.shape[-2]
    mask = torch.triu(q.new_full((n, n), -INF), diagonal=1)
    return torch.softmax(mask + scores(q, k), -1) @ v


@causal.add("zeros filled with -inf, added")
def add_filled(q, k, v):
    n = q.shape[-2]
    keep = torch.ones(n, n, dtype=torch.bool).tril()
    bias = torch.zeros(n, n, dtype=q.dtype).masked_fill_(keep.logical_not(), -INF)
    return torch.softmax(scores(q, k) + bias, -1) @ v


@causal.add("where between two numbers, added")
def add_where(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(scores(q, k) + torch.where(i >= j, 0.0, -INF).to(q.dtype), -1) @ v


@causal.add("log of a triangle of ones, added")
def add_log(q, k, v):
    n = q.shape[-2]
    return torch.softmax(scores(q, k) + torch.ones(n, n, dtype=q.dtype).tril().log(), -1) @ v


@causal.add("-inf subtracted where forbidden")
def subtracted(q, k, v):
    n = q.shape[-2]
    return torch.softmax(scores(q, k) - torch.full((n, n), INF, dtype=q.dtype).triu(1), -1) @ v


@causal.add("nn.Transformer's own mask")
def transformer_mask(q, k, v):
    mask = nn.Transformer.generate_square_subsequent_mask(q.shape[-2], dtype=q.dtype)
    return torch.softmax(scores(q, k) + mask, -1) @ v


@causal.add("the mask through baddbmm")
def baddbmm_mask(q, k, v):
    b, h, n, d = q.shape
    q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
    mask = torch.full((n, n), -INF, dtype=q.dtype).triu(1)
    s = torch.baddbmm(mask, q, k.mT, alpha=d**-0.5)
    return torch.bmm(s.softmax(-1), v).view(b, h, n, d)


# ---- in place --------------------------------------------------------------------------------------------------------
@causal.add("masked_fill_")
def inplace_fill(q, k, v):
    n = q.shape[-2]
    s = q @ k.mT
    s *= q.shape[-1] ** -0.5
    s.masked_fill_(~torch.ones(n, n, dtype=torch.bool).tril_(), -INF)
    return s.softmax(-1) @ v


@causal.add("+= an upper triangle of -inf")
def inplace_add(q, k, v):
    n = q.shape[-2]
    s = scores(q, k)
    s += torch.full((n, n), -INF, dtype=q.dtype).triu_(diagonal=1)
    return s.softmax(-1) @ v


@causal.add("s[..., mask] = -inf")
def index_put(q, k, v):
    n = q.shape[-2]
    s = scores(q, k)
    s[..., torch.triu(torch.ones(n, n, dtype=torch.bool), 1)] = -INF
    return s.softmax(-1) @ v


@causal.add("s[mask] = -inf, the mask expanded")
def index_put_expanded(q, k, v):
    s = scores(q, k)
    mask = torch.ones_like(s, dtype=torch.bool).triu(1)
    s[mask] = -INF
    return s.softmax(-1) @ v


# ---- the rest of the program -----------------------------------------------------------------------------------------
@causal.add("einsum, softmax by hand, float mask compared")
def by_hand(q, k, v):
    n = q.shape[-2]
    s = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    s = s.masked_fill(torch.triu(torch.ones(n, n), 1) > 0, -INF)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return torch.einsum("bhij,bhjd->bhid", e / e.sum(-1, keepdim=True), v)


@causal.add("divided after the second product", apart=RESTORED)
def divided_after(q, k, v):
    i, j = positions(q.shape[-2])
    s = scores(q, k).masked_fill(j > i, -INF)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


@causal.add("transposed: softmax over dim=-2, mask the other way")
def transposed(q, k, v):
    j, i = positions(q.shape[-2])
    s = (k @ q.mT * q.shape[-1] ** -0.5).masked_fill(j > i, -INF)
    return torch.einsum("bhji,bhjd->bhid", s.softmax(-2), v)


@causal.add("masked before it is scaled")
def masked_then_scaled(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax((q @ k.mT).masked_fill(j > i, -INF) / math.sqrt(q.shape[-1]), -1) @ v


@causal.add("scores cast to float32, then masked")
def masked_in_float(q, k, v):
    i, j = positions(q.shape[-2])
    s = scores(q, k).float().masked_fill(j > i, -INF)
    return torch.softmax(s, -1).to(q.dtype) @ v


@causal.add("masked twice", apart=NESTED)
def masked_twice(q, k, v):
    i, j = positions(q.shape[-2])
    s = scores(q, k).masked_fill(j > i, -INF)
    return torch.softmax(s.masked_fill(i < j, -INF), -1) @ v


@causal.add("probabilities masked once more", apart=COUNTED)
def probabilities_masked(q, k, v):
    i, j = positions(q.shape[-2])
    p = torch.softmax(scores(q, k).masked_fill(j > i, -INF), -1)
    return torch.where(j > i, 0.0, p) @ v


@causal.add("a module with a flag", made=True)
def module(dtype):
    class Attention(nn.Module):
        def __init__(self, causal):
            super().__init__()
            self.causal, self.drop = causal, nn.Dropout(0.2)

        def forward(self, q, k, v):
            s = q @ k.mT / math.sqrt(q.shape[-1])
            if self.causal:
                t = torch.arange(s.shape[-1], device=s.device)
                s = s.masked_fill(t[None, None, :] > t[None, :, None], -INF)
            return self.drop(F.softmax(s, -1)) @ v

    return Attention(causal=True)


# ---- masked after exp ------------------------------------------------------------------------------------------------
after = Group(
    "after", "Causal, masked after exp", qkv, "the maximum, if any, is over all keys, so no tile may be skipped"
)


@after.add("times a triangle of ones")
def times_triangle(q, k, v):
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True)) * torch.ones(s.shape[-2:], dtype=q.dtype).tril()
    return e @ v / e.sum(-1, keepdim=True)


@after.add("tril of the exponentials")
def tril_of_exponentials(q, k, v):
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True)).tril()
    return e @ v / e.sum(-1, keepdim=True)


@after.add("filled with 0, divided before", apart=POLARITY)
def filled_with_zero(q, k, v):
    i, j = positions(q.shape[-2])
    s = scores(q, k)
    e = (s - s.max(-1, keepdim=True).values).exp().masked_fill(i < j, 0)
    return (e / e.sum(-1, keepdim=True)) @ v


@after.add("where, in place", apart=RESTORED)
def where_inplace(q, k, v):
    i, j = positions(q.shape[-2])
    s = scores(q, k)
    s -= s.amax(-1, keepdim=True)
    e = torch.where(i >= j, s.exp_(), 0)
    return (e / e.sum(-1, keepdim=True)) @ v


@after.add("times the booleans", apart=RESTORED)
def times_booleans(q, k, v):
    i, j = positions(q.shape[-2])
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True)) * (j <= i)
    return (e / e.sum(-1, keepdim=True)) @ v


# ---- sliding windows -------------------------------------------------------------------------------------------------
W = 100
window = Group("window", f"Sliding window of {W} keys, causal", qkv)


@window.add("two comparisons and &")
def both(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where((j <= i) & (i - j < W), scores(q, k), -INF), -1) @ v


@window.add("the comparisons the other way round")
def both_swapped(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where((j > i - W) & (i >= j), scores(q, k), -INF), -1) @ v


@window.add("logical_or of what is forbidden")
def forbidden(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(scores(q, k).masked_fill(torch.logical_or(j > i, i - j >= W), -INF), -1) @ v


@window.add("~ of an or")
def not_or(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(torch.where(~((i < j) | (j <= i - W)), scores(q, k), -INF), -1) @ v


@window.add("masked_fill twice")
def filled_twice(q, k, v):
    i, j = positions(q.shape[-2])
    return torch.softmax(scores(q, k).masked_fill(j > i, -INF).masked_fill(i - j > W - 1, -INF), -1) @ v


@window.add("a band by tril and triu")
def band(q, k, v):
    n = q.shape[-2]
    keep = torch.ones(n, n, dtype=torch.bool).tril().triu(1 - W)
    return torch.softmax(scores(q, k).masked_fill(~keep, -INF), -1) @ v


@window.add("two triangles, one subtracted", apart=LOGIC)
def triangles(q, k, v):
    n = q.shape[-2]
    ones = torch.ones(n, n)
    keep = ones.tril() - ones.tril(-W)
    return torch.softmax(scores(q, k).masked_fill(keep == 0, -INF), -1) @ v


@window.add("two masks of -inf added")
def two_added(q, k, v):
    n = q.shape[-2]
    full = torch.full((n, n), -INF, dtype=q.dtype)
    return torch.softmax(scores(q, k) + full.triu(1) + full.tril(-W), -1) @ v


@window.add("the distance between 0 and the window")
def distance(q, k, v):
    i, j = positions(q.shape[-2])
    gap = i - j
    return torch.softmax(scores(q, k).masked_fill((gap < 0) | (gap > W - 1), -INF), -1) @ v


GROUPS = (causal, after, window)
