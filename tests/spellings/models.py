"""Parts of models: rotary embeddings, ALiBi, loops in Python, projections, nn.MultiheadAttention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.causes import ITERATIONS, SEAMS, SIGNS, WRITTEN
from tests.spellings.table import B, D, Group, H, N, positions, qkv

INF = float("inf")
WIDTH = H * D


def attention(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


# ---- rotary ----------------------------------------------------------------------------------------------------------
def _angles(r):
    t = torch.arange(N)[:, None] * 10000 ** (-torch.arange(0, D, 2) / D)
    return *qkv(r), t.cos().to(r(1).dtype), t.sin().to(r(1).dtype)


rotary = Group("rotary", "Rotary embedding of halves", _angles)


@rotary.add("rotate_half by cat")
def rotate_half(q, k, v, cos, sin):
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)

    def turned(x):
        a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * cos + torch.cat((-b, a), dim=-1) * sin

    return attention(turned(q), turned(k), v)


@rotary.add("rotate_half by chunk, tables unsqueezed")
def chunked_half(q, k, v, cos, sin):
    cos, sin = torch.cat((cos, cos), -1)[None, None], torch.cat((sin, sin), -1)[None, None]

    def rotate(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], -1)

    return attention((q * cos) + (rotate(q) * sin), (k * cos) + (rotate(k) * sin), v)


@rotary.add("tables repeated", apart=SEAMS)
def repeated_tables(q, k, v, cos, sin):
    cos, sin = cos.repeat(1, 2), sin.repeat(1, 2)

    def turned(x):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], -1) * sin

    return attention(turned(q), turned(k), v)


@rotary.add("both halves computed, then joined", apart=SIGNS)
def joined_halves(q, k, v, cos, sin):
    def turned(x):
        a, b = x.split(cos.shape[-1], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    return attention(turned(q), turned(k), v)


@rotary.add("halves stacked and flattened", apart=SEAMS)
def stacked_halves(q, k, v, cos, sin):
    def turned(x):
        a, b = x.unflatten(-1, (2, -1)).unbind(-2)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -2).flatten(-2)

    return attention(turned(q), turned(k), v)


@rotary.add("halves written in place", apart=SEAMS)
def written_halves(q, k, v, cos, sin):
    half = cos.shape[-1]

    def turned(x):
        out = torch.empty_like(x)
        out[..., :half] = x[..., :half] * cos - x[..., half:] * sin
        out[..., half:] = x[..., half:] * cos + x[..., :half] * sin
        return out

    return attention(turned(q), turned(k), v)


@rotary.add("roll and a sign", apart=SIGNS)
def rolled(q, k, v, cos, sin):
    half = cos.shape[-1]
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    sign = torch.where(torch.arange(2 * half) < half, -1.0, 1.0).to(q.dtype)

    def turned(x):
        return x * cos + x.roll(half, -1) * sign * sin

    return attention(turned(q), turned(k), v)


# ---- ALiBi -----------------------------------------------------------------------------------------------------------
alibi = Group("alibi", "Causal with ALiBi", lambda r: (*qkv(r), torch.tensor([0.5, 0.25, 0.125]).to(r(1).dtype)))


@alibi.add("slope * (column - row)")
def distance(q, k, v, slopes):
    i, j = positions(q.shape[-2])
    s = q @ k.mT * q.shape[-1] ** -0.5 + slopes[:, None, None] * (j - i)
    return torch.softmax(s.masked_fill(j > i, -INF), -1) @ v


@alibi.add("row - column, subtracted", apart=SIGNS)
def subtracted(q, k, v, slopes):
    i, j = positions(q.shape[-2])
    s = q @ k.mT / math.sqrt(q.shape[-1]) - slopes.view(1, -1, 1, 1) * (i - j)
    return torch.softmax(torch.where(j <= i, s, -INF), -1) @ v


@alibi.add("bias first, with the mask in it")
def bias_first(q, k, v, slopes):
    i, j = positions(q.shape[-2])
    bias = (slopes[:, None, None] * (j - i)).masked_fill(i < j, -INF)
    return torch.softmax(bias + q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@alibi.add("einsum for the bias")
def outer_bias(q, k, v, slopes):
    t = torch.arange(q.shape[-2]).to(q.dtype)
    bias = torch.einsum("h,ij->hij", slopes, t[None, :] - t[:, None])
    keep = torch.ones_like(bias, dtype=torch.bool).tril()
    return torch.softmax((q @ k.mT * q.shape[-1] ** -0.5 + bias).masked_fill(~keep, -INF), -1) @ v


# ---- loops in Python -------------------------------------------------------------------------------------------------
loops = Group("loops", "Full attention by loops in Python", qkv)


@loops.add("over heads, stacked")
def heads(q, k, v):
    return torch.stack([attention(q[:, h], k[:, h], v[:, h]) for h in range(H)], dim=1)


@loops.add("over heads, concatenated")
def heads_concatenated(q, k, v):
    return torch.cat([attention(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1]) for h in range(H)], 1)


@loops.add("over heads, written into a tensor", apart=SEAMS, repeats=3)
def heads_written(q, k, v):
    out = torch.empty_like(q)
    for h in range(H):
        out[:, h] = attention(q[:, h], k[:, h], v[:, h])
    return out


@loops.add("over two halves of the queries", apart=ITERATIONS, repeats=2)
def query_halves(q, k, v):
    half = q.shape[2] // 2
    return torch.cat([attention(part, k, v) for part in (q[:, :, :half], q[:, :, half:])], 2)


@loops.add("over chunks of the queries", apart=ITERATIONS, repeats=3)
def query_chunks(q, k, v):
    return torch.cat([attention(part, k, v) for part in q.split(128, dim=2)], 2)


@loops.add("over chunks of the keys, merged (online softmax)", apart=ITERATIONS)
def key_chunks(q, k, v):
    top = torch.full_like(q[..., :1], -INF)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    for kc, vc in zip(k.chunk(2, 2), v.chunk(2, 2), strict=True):
        s = q @ kc.mT * q.shape[-1] ** -0.5
        new = torch.maximum(top, s.amax(-1, keepdim=True))
        e, old = torch.exp(s - new), torch.exp(top - new)
        total, out, top = total * old + e.sum(-1, keepdim=True), out * old + e @ vc, new
    return out / total


# ---- projections -----------------------------------------------------------------------------------------------------
C = 48


def split_heads(t):
    return t.view(*t.shape[:2], -1, D).transpose(1, 2)


def joined(q, k, v):
    return attention(q, k, v).transpose(1, 2).flatten(2)


class Projected(nn.Module):
    """The same weights, whatever is done with them."""

    def __init__(self, forward):
        super().__init__()
        self.weight, self.attend = nn.Parameter(torch.randn(3 * WIDTH, C) / 4), forward

    def forward(self, x):
        return self.attend(x, self.weight)


projected = Group(
    "projected",
    "Queries, keys and values projected from one input",
    lambda r: (r(B, N, C),),
    "keys and values are projected once, by a kernel of their own",
)


@projected.add("one product, chunked", made=True, kernels=2)
def one_product(dtype):
    return Projected(lambda x, w: joined(*(split_heads(t) for t in F.linear(x, w).chunk(3, -1))))


@projected.add("three products, the weight chunked", made=True, apart=WRITTEN, kernels=3)
def three_products(dtype):
    return Projected(lambda x, w: joined(*(split_heads(x @ part.T) for part in w.chunk(3, 0))))


@projected.add("einsum with heads in the weight", made=True, apart=WRITTEN, kernels=2)
def einsum_heads(dtype):
    return Projected(lambda x, w: joined(*torch.einsum("bnc,phdc->pbhnd", x, w.view(3, H, D, C))))


# ---- nn.MultiheadAttention -------------------------------------------------------------------------------------------
multihead = Group("multihead", "nn.MultiheadAttention in eval", lambda r: (r(B, N, WIDTH),))


class SelfAttention(nn.Module):
    def __init__(self, by_hand, need_weights=False):
        super().__init__()
        self.need_weights = need_weights
        self.inner, self.by_hand = nn.MultiheadAttention(WIDTH, H, dropout=0.1, batch_first=True), by_hand

    def forward(self, x):
        if not self.by_hand:
            return self.inner(x, x, x, need_weights=self.need_weights)[0]
        packed = F.linear(x, self.inner.in_proj_weight, self.inner.in_proj_bias)
        q, k, v = (split_heads(t) for t in packed.chunk(3, -1))
        return self.inner.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@multihead.add("the module", made=True, kernels=3)
def the_module(dtype):
    return SelfAttention(by_hand=False)


@multihead.add("the module, with weights that nobody reads", made=True, apart=WRITTEN, kernels=3)
def the_module_with_weights(dtype):
    return SelfAttention(by_hand=False, need_weights=True)


@multihead.add("by hand on its weights", made=True, apart=WRITTEN, kernels=3)
def by_hand(dtype):
    return SelfAttention(by_hand=True)


GROUPS = (rotary, alibi, loops, projected, multihead)
