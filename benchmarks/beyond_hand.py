"""How a skilled user gets the programs of beyond.py from SDPA and FlexAttention, in as few kernels as we know how.

Every function takes the program's tensors and gives its results; each is compiled whole, so that what stands before and
after an attention call is one kernel there.  ``kernel``: the backend of SDPA to pin, None for whichever.  What SDPA
cannot take as a mask without writing it for every row is given to it as further columns of the queries and keys: a term
that depends on the key alone is a column of ones times a column of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from benchmarks.workloads import SDPA_KERNELS, Args

CHUNKS = 16


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: str | None, **options: Any) -> Tensor:
    if kernel is None:
        return F.scaled_dot_product_attention(q, k, v, **options)
    with sdpa_kernel(SDPA_KERNELS[kernel]):
        return F.scaled_dot_product_attention(q, k, v, **options)


def attend_lse(q: Tensor, k: Tensor, v: Tensor, kernel: str | None) -> tuple[Tensor, Tensor]:
    """With the log-sum-exp of the scores, which SDPA's kernels keep for their backward pass (None: written out)."""
    aten: Any = torch.ops.aten
    if kernel == "cudnn":
        out, lse = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    elif kernel == "flash":
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        s = q @ k.mT * q.shape[-1] ** -0.5
        out, lse = torch.softmax(s, dim=-1) @ v, torch.logsumexp(s, dim=-1)
    return out, lse.reshape(q.shape[:3])


def flex_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    flex: Callable[..., Any] = flex_attention
    out, aux = flex(q, k, v, return_aux=AuxRequest(lse=True))
    return out, aux.lse


def causal_mask(args: Args) -> dict[str, Any]:
    q, k = args[:2]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[-2], k.shape[-2], device=str(q.device))
    return {"mask": mask}


def beside(*columns: Tensor) -> Tensor:
    """Columns side by side, and zeros up to a multiple of 8, which SDPA's kernels want."""
    x = torch.cat(columns, dim=-1)
    return F.pad(x, (0, -x.shape[-1] % 8))


def halves(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two numbers of few digits whose sum is x to twice as many."""
    high = x.to(dtype)
    return high, (x - high).to(dtype)


# ---- differential attention ------------------------------------------------------------------------------------------
def two_calls(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, causal: bool = False, kernel: str | None = None) -> Tensor:
    first, second = (attend(q[:, m::2], k[:, m::2], v, kernel, is_causal=causal) for m in (0, 1))
    return first - lam * second


def four_calls(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, causal: bool = False, kernel: str | None = None) -> Tensor:
    """For kernels that want values as wide as keys: each half of the values by itself."""
    return torch.cat([two_calls(q, k, half, lam, causal, kernel) for half in v.chunk(2, dim=-1)], dim=-1)


def two_flex_calls(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, mask: Any = None) -> Tensor:
    flex: Callable[..., Tensor] = flex_attention
    return flex(q[:, 0::2], k[:, 0::2], v, block_mask=mask) - lam * flex(q[:, 1::2], k[:, 1::2], v, block_mask=mask)


def grouped(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, kernel: str | None = None) -> Tensor:
    out = attend(q, k, v, kernel, is_causal=True, enable_gqa=True)
    return out[:, 0::2] - torch.sigmoid(lam) * out[:, 1::2]


def grouped_flex(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, mask: Any) -> Tensor:
    flex: Callable[..., Tensor] = flex_attention
    out = flex(q, k, v, block_mask=mask, enable_gqa=True)
    return out[:, 0::2] - torch.sigmoid(lam) * out[:, 1::2]


# ---- rows of alignments and pair tensors -----------------------------------------------------------------------------
def evoformer_bias(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair: Tensor, gate: Tensor, kernel: str | None = None
) -> Tensor:
    """Mask and pair bias added up for every row."""
    bias = ((1e9 * (mask - 1))[:, :, None, None, :] + pair[:, None]).flatten(0, 1)
    out = attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), kernel, attn_mask=bias)
    return torch.sigmoid(gate) * out.view_as(gate)


def evoformer_column(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair: Tensor, gate: Tensor, kernel: str | None = None
) -> Tensor:
    """The mask as a column; the pair bias is the same memory for all rows, which come first."""
    scale, heads = q.shape[-1] ** -0.5, q.shape[2]
    dead = (1e9 / scale * (mask - 1))[:, :, None, :, None].expand(-1, -1, heads, -1, -1)
    q, k = beside(q, torch.ones_like(q[..., :1])), beside(k, dead)
    q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (q, k, v))
    bias = pair.flatten(0, 1).expand(q.shape[0], -1, -1, -1)
    out = attend(q, k, v, kernel, attn_mask=bias, scale=scale)
    return torch.sigmoid(gate) * out.view(len(out), -1, heads, *out.shape[2:]).transpose(0, 1)


def evoformer_flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair: Tensor, gate: Tensor) -> Tensor:
    flex: Callable[..., Tensor] = flex_attention
    rows, dead = q.shape[1], (1e9 * (mask - 1)).flatten(0, 1)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + dead[b, j] + pair[b // rows, h, i, j]

    out = flex(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), score_mod=score)
    return torch.sigmoid(gate) * out.view_as(gate)


def triangle_sdpa(q: Tensor, k: Tensor, v: Tensor, pair: Tensor, gate: Tensor, kernel: str | None = None) -> Tensor:
    heads = q.shape[2]
    q, k, v = (x.transpose(0, 1).flatten(1, 2) for x in (q, k, v))
    out = attend(q, k, v, kernel, attn_mask=pair.flatten(0, 1).expand(q.shape[0], -1, -1, -1))
    return torch.sigmoid(gate) * out.view(len(out), -1, heads, *out.shape[2:]).transpose(0, 1)


def triangle_flex(q: Tensor, k: Tensor, v: Tensor, pair: Tensor, gate: Tensor) -> Tensor:
    flex: Callable[..., Tensor] = flex_attention
    rows = q.shape[1]

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + pair[b // rows, h, i, j]

    out = flex(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), score_mod=score)
    return torch.sigmoid(gate) * out.view_as(gate)


def points_sdpa(
    q: Tensor, k: Tensor, v: Tensor, q_points: Tensor, k_points: Tensor, v_points: Tensor, bias: Tensor,
    weight: Tensor, kernel: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """|x - y|^2 = |x|^2 - 2 x y + |y|^2, of which the first is the same for a whole row: its softmax loses it."""
    scale, w, one = (3 * q.shape[-1]) ** -0.5, weight[:, None, None], torch.ones_like(q[..., :1])
    norm = -0.5 / scale * w * k_points.to(torch.promote_types(q.dtype, torch.float32)).square().sum(-1, keepdim=True)
    queries = beside(q, *halves(w / scale * q_points.to(norm.dtype), q.dtype), one, one)
    keys = beside(k, k_points, k_points, *halves(norm, q.dtype))
    out = attend(queries, keys, beside(v, v_points), kernel, attn_mask=bias, scale=scale)
    return out[..., : v.shape[-1]], out[..., v.shape[-1] : v.shape[-1] + v_points.shape[-1]]


def points_flex(
    q: Tensor, k: Tensor, v: Tensor, q_points: Tensor, k_points: Tensor, v_points: Tensor, bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    flex: Callable[..., Tensor] = flex_attention
    scale, w = (3 * q.shape[-1]) ** -0.5, weight[:, None, None]
    norm = (0.5 * w * k_points.to(torch.promote_types(q.dtype, torch.float32)).square().sum(-1, keepdim=True))[..., 0]
    queries = beside(q, *halves(w / scale * q_points.to(norm.dtype), q.dtype))

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + bias[b, h, i, j] - norm[b, h, j]

    out = flex(queries, beside(k, k_points, k_points), beside(v, v_points), score_mod=score, scale=scale)
    return out[..., : v.shape[-1]], out[..., v.shape[-1] : v.shape[-1] + v_points.shape[-1]]


# ---- other normalisers and results -----------------------------------------------------------------------------------
def sink_sdpa(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, kernel: str | None = None) -> Tensor:
    """A further term exp(sink) in the denominator is a factor of the output."""
    out, lse = attend_lse(q, k, v, kernel)
    return (out * torch.sigmoid(lse - sinks[:, None])[..., None]).to(q.dtype)


def sink_flex(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    out, lse = flex_lse(q, k, v)
    return (out * torch.sigmoid(lse - sinks[:, None])[..., None]).to(q.dtype)


def forgetting_sdpa(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, kernel: str | None = None) -> Tensor:
    """The decay up to the query falls out of its softmax; the one up to the key is a column, in two parts."""
    scale, one = q.shape[-1] ** -0.5, torch.ones_like(q[..., :1])
    decay = -F.logsigmoid(gates).cumsum(-1)[..., None] / scale
    queries, keys = beside(q, one, one), beside(k, *halves(decay, q.dtype))
    values = F.pad(v, (0, queries.shape[-1] - v.shape[-1]))  # FlashAttention wants them as wide as the keys
    return attend(queries, keys, values, kernel, is_causal=True, scale=scale)[..., : v.shape[-1]]


def forgetting_flex(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, mask: Any) -> Tensor:
    flex: Callable[..., Tensor] = flex_attention
    decay = F.logsigmoid(gates).cumsum(-1)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s + decay[b, h, i] - decay[b, h, j]

    return flex(q, k, v, score_mod=score, block_mask=mask)


def _entropy(q: Tensor, k: Tensor, v: Tensor, both: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-sum p log p = lse - sum p s, and sum p s is the query's product with the mean key, a second value."""
    out, mean = both[..., : v.shape[-1]], both[..., v.shape[-1] :]
    return out, lse.to(q.dtype), (lse - (q * mean).sum(-1) * q.shape[-1] ** -0.5).to(q.dtype)


def entropy_sdpa(q: Tensor, k: Tensor, v: Tensor, kernel: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return _entropy(q, k, v, *attend_lse(q, k, torch.cat([v, k], dim=-1), kernel))


def entropy_flex(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _entropy(q, k, v, *flex_lse(q, k, torch.cat([v, k], dim=-1)))


# ---- outside attention -----------------------------------------------------------------------------------------------
def cross_entropy_chunks(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    """The logits of some tokens at a time."""
    parts = zip(x.chunk(CHUNKS), target.chunk(CHUNKS), strict=True)
    return torch.cat([F.cross_entropy(F.linear(a, w).float(), t, reduction="none") for a, t in parts])


def folded_norm(x: Tensor, gain: Tensor, shift: Tensor, w: Tensor) -> Tensor:
    """The product first, with the gain in its weights; mean and variance change its result."""
    scaled = gain[:, None] * w
    variance, mean = torch.var_mean(x.float(), dim=-1, correction=0, keepdim=True)
    out = torch.rsqrt(variance + 1e-5) * (x @ scaled - mean * scaled.float().sum(0)) + (shift @ w)
    return out.to(x.dtype)


def k_means_chunks(x: Tensor, centres: Tensor) -> Tensor:
    """The distances of some points at a time, which the L2 cache holds."""
    norms = centres.float().square().sum(-1)
    return torch.cat([(norms - 2 * (a @ centres.T).float()).argmin(-1) for a in x.chunk(CHUNKS)])
