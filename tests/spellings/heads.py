"""Grouped queries, layouts, packed projections, fewer dimensions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.spellings.causes import JOINED, ROWS
from tests.spellings.table import B, D, Group, H, N, positions, qkv

INF = float("inf")
HQ, HK = 8, 4  # query and key heads
WIDTH = H * D


# ---- grouped queries -------------------------------------------------------------------------------------------------
def _grouped(r):
    return r(B, HQ, N, D), r(B, HK, N, D), r(B, HK, N, D)


grouped = Group("grouped", f"Causal, {HQ} query heads on {HK} key heads", _grouped, scores=B * HQ * N * N)


def attention(q, k, v):
    i, j = positions(q.shape[-2])
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(j > i, -INF)
    return torch.softmax(scores, -1) @ v


@grouped.add("repeat_interleave")
def repeat_interleave(q, k, v):
    g = q.shape[1] // k.shape[1]
    return attention(q, k.repeat_interleave(g, dim=1), v.repeat_interleave(g, 1))


@grouped.add("repeat_interleave by a number")
def repeat_by_number(q, k, v):
    return attention(q, torch.repeat_interleave(k, HQ // HK, dim=-3), torch.repeat_interleave(v, HQ // HK, dim=-3))


@grouped.add("expand and reshape (repeat_kv)")
def repeat_kv(q, k, v):
    b, h, n, d = k.shape
    g = q.shape[1] // h
    k, v = (t[:, :, None, :, :].expand(b, h, g, n, d).reshape(b, h * g, n, d) for t in (k, v))
    return attention(q, k, v)


@grouped.add("unsqueeze, expand, flatten")
def flatten(q, k, v):
    g = q.shape[1] // k.shape[1]
    k, v = (t.unsqueeze(2).expand(-1, -1, g, -1, -1).flatten(1, 2) for t in (k, v))
    return attention(q, k, v)


@grouped.add("stacked copies, flattened")
def stacked(q, k, v):
    k, v = (torch.stack([t] * (HQ // HK), dim=2).flatten(1, 2) for t in (k, v))
    return attention(q, k, v)


@grouped.add("heads picked by an index", apart="the number of key heads stays a length")
def indexed(q, k, v):
    own = torch.arange(HQ) // (HQ // HK)
    return attention(q, k[:, own], v[:, own])


@grouped.add("broadcast over five dimensions", apart=JOINED)
def broadcast(q, k, v):
    q = q.view(q.shape[0], k.shape[1], -1, *q.shape[2:])
    return attention(q, k[:, :, None], v[:, :, None]).flatten(1, 2)


@grouped.add("unflatten and unsqueeze", apart=JOINED)
def unflatten(q, k, v):
    q = q.unflatten(1, (HK, HQ // HK))
    return attention(q, k.unsqueeze(2), v.unsqueeze(2)).reshape(q.shape[0], HQ, *q.shape[-2:])


@grouped.add("grouped einsum", apart=JOINED)
def grouped_einsum(q, k, v):
    b, h, n, d = q.shape
    q = q.reshape(b, HK, h // HK, n, d)
    s = torch.einsum("bkgid,bkjd->bkgij", q, k) / math.sqrt(d)
    i, j = positions(n)
    p = s.masked_fill(i < j, -INF).softmax(-1)
    return torch.einsum("bkgij,bkjd->bkgid", p, v).reshape(b, h, n, d)


@grouped.add("queries of a group as more rows", apart=ROWS)
def more_rows(q, k, v):
    b, h, n, d = q.shape
    g = h // k.shape[1]
    s = q.reshape(b, -1, g * n, d) @ k.mT * d**-0.5
    i, j = positions(n)
    p = s.view(b, -1, g, n, n).masked_fill(j > i, -INF).softmax(-1)
    return (p.view(b, -1, g * n, n) @ v).view(b, h, n, d)


@grouped.add("Hugging Face's eager attention", made=True)
def eager_attention(dtype):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.groups, self.scaling, self.dropout = HQ // HK, D**-0.5, 0.1

        def repeat(self, x):
            b, h, n, d = x.shape
            return x[:, :, None].expand(b, h, self.groups, n, d).reshape(b, h * self.groups, n, d)

        def forward(self, query, key, value):
            key, value = self.repeat(key), self.repeat(value)
            weights = torch.matmul(query, key.transpose(2, 3)) * self.scaling
            t = torch.arange(key.shape[-2])
            mask = torch.where(t[None, :] <= t[:, None], 0.0, -INF).to(query.dtype)[None, None]
            weights = weights + mask[:, :, :, : key.shape[-2]]
            weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
            return torch.matmul(F.dropout(weights, p=self.dropout, training=self.training), value)

    return Attention()


sdpa_grouped = Group("sdpa_grouped", "SDPA with grouped queries", _grouped, scores=B * HQ * N * N)


@sdpa_grouped.add("enable_gqa")
def enable_gqa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@sdpa_grouped.add("repeat_interleave before")
def repeated_before(q, k, v):
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@sdpa_grouped.add("expand and reshape before")
def expanded_before(q, k, v):
    b, h, n, d = q.shape
    k, v = (t[:, :, None].expand(-1, -1, h // t.shape[1], -1, -1).reshape(b, h, n, d) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(n, n, dtype=torch.bool).tril())


# ---- layouts ---------------------------------------------------------------------------------------------------------
def _tokens_first(r):
    return r(B, N, H, D), r(B, N, H, D), r(B, N, H, D)


tokens_first = Group("tokens_first", "(batch, tokens, heads, width) in and out", _tokens_first)


@tokens_first.add("einsum")
def einsum(q, k, v):
    p = torch.einsum("bihd,bjhd->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", p, v)


@tokens_first.add("transpose(1, 2), there and back")
def transposes(q, k, v):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return (torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v).transpose(1, 2)


@tokens_first.add("permute, contiguous result")
def permutes(q, k, v):
    q, k, v = (t.permute(0, 2, 1, 3).contiguous() for t in (q, k, v))
    return (torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v).permute(0, 2, 1, 3).contiguous()


@tokens_first.add("keys permuted straight to (B, H, D, S)")
def keys_straight(q, k, v):
    q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
    weights = (torch.matmul(q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return torch.matmul(weights, v).permute(0, 2, 1, 3)


@tokens_first.add("movedim and swapaxes")
def movedim(q, k, v):
    q, k, v = q.movedim(1, 2), k.movedim(2, 1), v.swapaxes(1, 2)
    return (torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v).swapdims(2, 1)


@tokens_first.add("heads flattened into the batch")
def into_batch(q, k, v):
    b, n, h, d = q.shape
    q, k, v = (t.transpose(1, 2).reshape(b * h, n, d) for t in (q, k, v))
    return torch.bmm((torch.bmm(q, k.mT) * d**-0.5).softmax(-1), v).view(b, h, n, d).transpose(1, 2)


coincidence = Group(
    "coincidence",
    "(batch, tokens, heads, width) with as many tokens as heads",
    lambda r: (r(B, 16, 16, D), r(B, 16, 16, D), r(B, 16, 16, D)),
    "keys permuted straight to (B, H, D, S) are taken for others by torch.compile (pytorch issue 195320)",
    B * 16**3,
)
coincidence.add("keys permuted straight to (B, H, D, S)")(keys_straight)
coincidence.add("transpose(1, 2), there and back")(transposes)
coincidence.add("einsum")(einsum)


# ---- heads joined again ----------------------------------------------------------------------------------------------
merged = Group("merged", "Full attention, heads joined to (batch, tokens, heads * width)", qkv)


@merged.add("transpose and reshape")
def transpose_reshape(q, k, v):
    out = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


@merged.add("permute, contiguous, view")
def permute_view(q, k, v):
    b, h, n, d = q.shape
    p = torch.softmax(q @ k.mT / math.sqrt(d), -1)
    return torch.matmul(p, v).permute(0, 2, 1, 3).contiguous().view(b, n, h * d)


@merged.add("einsum and flatten")
def einsum_flatten(q, k, v):
    p = torch.einsum("bhid,bhjd->bhij", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("bhij,bhjd->bihd", p, v).flatten(2)


# ---- packed ----------------------------------------------------------------------------------------------------------
packed = Group("packed", "Queries, keys and values packed in one tensor", lambda r: (r(B, N, 3 * WIDTH),))


def heads_of(t, h):
    return t.view(*t.shape[:2], h, -1).transpose(1, 2)


def joined(q, k, v):
    out = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


@packed.add("view, permute, unbind")
def unbind(x):
    b, n, _ = x.shape
    return joined(*x.view(b, n, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0))


@packed.add("view, permute, indexed")
def indexed_parts(x):
    b, n, _ = x.shape
    x = x.reshape(b, n, 3, H, D).permute(2, 0, 3, 1, 4)
    return joined(x[0], x[1], x[2])


@packed.add("chunk")
def chunk(x):
    return joined(*(heads_of(t, H) for t in x.chunk(3, -1)))


@packed.add("split")
def split(x):
    return joined(*(heads_of(t, H) for t in x.split(WIDTH, dim=2)))


@packed.add("split with sizes")
def split_sizes(x):
    q, k, v = torch.split(x, [WIDTH, WIDTH, WIDTH], -1)
    return joined(*(t.unflatten(-1, (H, D)).permute(0, 2, 1, 3) for t in (q, k, v)))


@packed.add("tensor_split")
def tensor_split(x):
    return joined(*(heads_of(t, H) for t in torch.tensor_split(x, 3, dim=-1)))


@packed.add("narrow")
def narrow(x):
    return joined(*(heads_of(x.narrow(2, c * WIDTH, WIDTH), H) for c in range(3)))


@packed.add("slices")
def slices(x):
    return joined(*(heads_of(x[..., c * WIDTH : (c + 1) * WIDTH], H) for c in range(3)))


@packed.add("slices of a view, einsum")
def view_slices(x):
    x = x.view(*x.shape[:2], 3, H, D)
    p = torch.einsum("bihd,bjhd->bhij", x[:, :, 0], x[:, :, 1]).mul(D**-0.5).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", p, x[:, :, 2]).flatten(2)


# ---- fewer dimensions ------------------------------------------------------------------------------------------------
three = Group("three", "(batch * heads, tokens, width)", lambda r: (r(B * H, N, D), r(B * H, N, D), r(B * H, N, D)))


@three.add("@")
def three_matmul(q, k, v):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


@three.add("bmm")
def three_bmm(q, k, v):
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(q.shape[-1]), 2), v)


@three.add("baddbmm")
def three_baddbmm(q, k, v):
    s = torch.baddbmm(torch.zeros(1, dtype=q.dtype), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return s.softmax(-1).bmm(v)


@three.add("einsum")
def three_einsum(q, k, v):
    return torch.einsum("nij,njd->nid", torch.einsum("nid,njd->nij", q, k).mul(q.shape[-1] ** -0.5).softmax(-1), v)


@three.add("as a batch of one")
def three_batch(q, k, v):
    q, k, v = q[None], k[None], v[None]
    return (torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v).squeeze(0)


two = Group("two", "(tokens, width): one head", lambda r: (r(N, D), r(N, D), r(N, D)), scores=N * N)


@two.add("@ and .T")
def two_matmul(q, k, v):
    return torch.softmax(q @ k.T * q.shape[-1] ** -0.5, -1) @ v


@two.add("mm and t()")
def two_mm(q, k, v):
    return torch.mm(torch.softmax(torch.mm(q, k.t()) / q.shape[-1] ** 0.5, 1), v)


@two.add("addmm")
def two_addmm(q, k, v):
    s = torch.addmm(q.new_zeros(1), q, k.T, beta=0, alpha=q.shape[-1] ** -0.5)
    return s.softmax(-1).mm(v)


@two.add("addmm of zeros")
def two_addmm_zeros(q, k, v):
    s = torch.addmm(q.new_zeros(q.shape[0], k.shape[0]), q, k.T, alpha=q.shape[-1] ** -0.5)
    return torch.addmm(torch.zeros_like(v), s.softmax(-1), v)


@two.add("tensordot")
def two_tensordot(q, k, v):
    s = torch.tensordot(q, k, dims=([1], [1])) * q.shape[-1] ** -0.5
    return torch.tensordot(s.softmax(-1), v, dims=1)


@two.add("inner")
def two_inner(q, k, v):
    return torch.inner(torch.softmax(torch.inner(q, k) * q.shape[-1] ** -0.5, -1), v.T)


@two.add("F.linear")
def two_linear(q, k, v):
    return F.linear(torch.softmax(F.linear(q, k) * q.shape[-1] ** -0.5, -1), v.mT)


@two.add("einsum, implicit output")
def two_einsum(q, k, v):
    return torch.einsum("ab,bc", torch.softmax(torch.einsum("id,jd", q, k) * q.shape[-1] ** -0.5, -1), v)


@two.add("broadcast products and sums")
def two_broadcast(q, k, v):
    p = torch.softmax((q[:, None] * k[None]).sum(-1) * q.shape[-1] ** -0.5, -1)
    return (p[:, :, None] * v).sum(1)


@two.add("as a batch of one head")
def two_batch(q, k, v):
    q, k, v = (t.view(1, 1, *t.shape) for t in (q, k, v))
    return (torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v)[0, 0]


GROUPS = (grouped, sdpa_grouped, tokens_first, coincidence, merged, packed, three, two)
