"""Attention that carries another state than softmax's: without a maximum, in base two, through logsumexp, capped."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.spellings.causes import RESTORED, SCALES, ZEROS
from tests.spellings.table import Group, qkv

nomax = Group("nomax", "exp without a maximum", qkv, "there is no running maximum to carry")


@nomax.add("divided after")
def nomax_after(q, k, v):
    e = torch.exp(q @ k.mT * q.shape[-1] ** -0.5)
    return e @ v / e.sum(-1, keepdim=True)


@nomax.add("divided before")
def nomax_before(q, k, v):
    e = torch.exp(torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1]))
    return torch.einsum("bhij,bhjd->bhid", e / e.sum(-1)[..., None], v)


@nomax.add("in place")
def nomax_inplace(q, k, v):
    s = (q * q.shape[-1] ** -0.5) @ k.mT
    s.exp_()
    s /= s.sum(-1, keepdim=True)
    return s @ v


@nomax.add("times the reciprocal of the sum")
def nomax_reciprocal(q, k, v):
    e = (q @ k.mT * q.shape[-1] ** -0.5).exp()
    return (e @ v) * (1 / e.sum(-1, keepdim=True))


base2 = Group("base2", "Softmax in base two", qkv, "powers of two, the scale times log2(e)")
LOG2E = math.log2(math.e)


@base2.add("exp2 by hand")
def exp2(q, k, v):
    s = q @ k.mT * (q.shape[-1] ** -0.5 * LOG2E)
    p = torch.exp2(s - s.amax(-1, keepdim=True))
    return p @ v / p.sum(-1, keepdim=True)


@base2.add("2 ** x")
def power(q, k, v):
    s = q @ k.mT * (q.shape[-1] ** -0.5 * LOG2E)
    p = 2 ** (s - s.amax(-1, keepdim=True))
    return p @ v / p.sum(-1, keepdim=True)


@base2.add("log2(e) on the queries, divided before", apart=RESTORED)
def on_queries(q, k, v):
    s = torch.einsum("bhid,bhjd->bhij", q * (q.shape[-1] ** -0.5 * LOG2E), k)
    p = torch.pow(2.0, s - s.max(-1, keepdim=True).values)
    return (p / p.sum(-1, keepdim=True)) @ v


lse = Group("lse", "Through logsumexp", qkv, "logsumexp takes infinite scores for what they are, softmax gives NaN")


@lse.add("exp of the distance to logsumexp")
def distance(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    return torch.exp(s - torch.logsumexp(s, -1, keepdim=True)) @ v


@lse.add("logsumexp as a method, unsqueezed")
def method(q, k, v):
    s = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", s.sub(s.logsumexp(dim=-1).unsqueeze(-1)).exp(), v)


softcap = Group("softcap", "Soft-capped scores", qkv)


@softcap.add("cap * tanh(s / cap)")
def tanh(q, k, v):
    return torch.softmax(20.0 * torch.tanh(q @ k.mT / math.sqrt(q.shape[-1]) / 20.0), -1) @ v


@softcap.add("one scale inside", apart=SCALES)
def one_scale(q, k, v):
    s = (q * (q.shape[-1] ** -0.5 / 20)) @ k.mT
    return torch.softmax(s.tanh() * 20, -1) @ v


@softcap.add("in place")
def tanh_inplace(q, k, v):
    s = q @ k.mT
    s *= q.shape[-1] ** -0.5
    s = s.div_(20).tanh_().mul_(20)
    return F.softmax(s, -1) @ v


null = Group("null", "Beside the scores one of zero, whose value is zero", qkv)


@null.add("scores padded before")
def padded_before(q, k, v):
    return F.pad(q @ k.mT * q.shape[-1] ** -0.5, (1, 0)).softmax(-1)[..., 1:] @ v


@null.add("scores padded behind")
def padded_behind(q, k, v):
    return F.pad(q @ k.mT / math.sqrt(q.shape[-1]), (0, 1)).softmax(-1)[..., :-1] @ v


@null.add("a column of zeros")
def column(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    return torch.cat([torch.zeros_like(s[..., :1]), s], -1).softmax(-1)[..., 1:] @ v


@null.add("keys and values padded", apart=ZEROS)
def keys_padded(q, k, v):
    k, v = (F.pad(t, (0, 0, 1, 0)) for t in (k, v))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


@null.add("one added to the sum", apart=RESTORED)
def one_added(q, k, v):
    s = q @ k.mT * q.shape[-1] ** -0.5
    top = s.amax(-1, keepdim=True).clamp(min=0)
    e = torch.exp(s - top)
    return e @ v / (e.sum(-1, keepdim=True) + torch.exp(-top))


GROUPS = (nomax, base2, lse, softcap, null)
