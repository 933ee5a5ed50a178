"""Plain PyTorch programs that the tests compile, each with inputs for given sizes.

Written as a user would; nothing in them knows of flashlight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


def softmax_attention(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, dim=-1) @ v


def causal(q, k, v):
    n = q.shape[-2]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    mask = torch.tril(torch.ones(n, n, dtype=torch.bool, device=q.device))
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1) @ v


def sliding_window(q, k, v):
    i = torch.arange(q.shape[-2], device=q.device)[:, None]
    j = torch.arange(k.shape[-2], device=q.device)[None, :]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = torch.where((j <= i) & (i - j < 64), scores, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def prefix_lm(q, k, v):
    i = torch.arange(q.shape[-2], device=q.device)[:, None]
    j = torch.arange(k.shape[-2], device=q.device)[None, :]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill((j > i) & (j >= 40), float("-inf")), dim=-1) @ v


def alibi(q, k, v):
    n, h = q.shape[-2], q.shape[1]
    slopes = torch.exp2(-8.0 * (torch.arange(h, device=q.device) + 1) / h)
    i = torch.arange(n, device=q.device)[:, None]
    j = torch.arange(n, device=q.device)[None, :]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + (slopes[:, None, None] * (j - i)).to(q.dtype)
    return torch.softmax(scores.masked_fill(j > i, float("-inf")), dim=-1) @ v


def soft_cap(q, k, v):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(20.0 * torch.tanh(scores / 20.0), dim=-1) @ v


def dense_bias(q, k, v, bias):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    return torch.softmax(scores, dim=-1) @ v


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_causal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_masked(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def log_softmax(x):
    return F.log_softmax(x, dim=-1)


def logsumexp(x):
    return torch.logsumexp(x, dim=-1)


def layer_norm(x, weight, bias):
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def layer_norm_by_hand(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * weight + bias


def rms_norm_product(x, gain, w):
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain) @ w


def weighted_variance(scores, values):
    p = torch.softmax(scores, dim=-1)
    mean = (p * values).sum(-1, keepdim=True)
    return (p * (values - mean) ** 2).sum(-1)


@dataclass(frozen=True)
class Case:
    """``make(n, m, dtype, device, generator)``: arguments at query length n and key length m (self: m == n)."""

    fn: Callable[..., Any]
    make: Callable[..., tuple[torch.Tensor, ...]]
    cross: bool = False


def _qkv(n, m, dtype, device, g, b=2, h=2, d=16):
    r = lambda *s: torch.randn(*s, generator=g).to(device=device, dtype=dtype)  # noqa: E731
    return r(b, h, n, d), r(b, h, m, d), r(b, h, m, d)


def _bias(n, m, dtype, device, g):
    return *_qkv(n, m, dtype, device, g), torch.randn(1, 2, n, m, generator=g).to(device=device, dtype=dtype)


def _mask(n, m, dtype, device, g):
    keep = torch.rand(2, 1, n, m, generator=g) > 0.3
    keep[0, 0, 0] = False  # a fully masked row: SDPA gives zeros
    return *_qkv(n, m, dtype, device, g), keep.to(device)


def _rows(n, m, dtype, device, g):
    return (torch.randn(3, n, 600, generator=g).to(device=device, dtype=dtype) * 3 + 1,)


def _ragged(n, m, dtype, device, g):
    return (torch.randn(5, n, generator=g).to(device=device, dtype=dtype) * 3,)


def _norm(n, m, dtype, device, g):
    return *_rows(n, m, dtype, device, g), *(
        torch.randn(600, generator=g).to(device=device, dtype=dtype) for _ in range(2)
    )


def _product(n, m, dtype, device, g):
    r = lambda *s: torch.randn(*s, generator=g).to(device=device, dtype=dtype)  # noqa: E731
    return r(n, 600) + 0.5, r(600), r(600, 48) / 8


def _scores(n, m, dtype, device, g):
    r = lambda *s: torch.randn(*s, generator=g).to(device=device, dtype=dtype)  # noqa: E731
    return r(4, n, m) * 2, r(4, n, m) + 3


CASES: dict[str, Case] = {
    "softmax_attention": Case(softmax_attention, _qkv, cross=True),
    "causal": Case(causal, _qkv),
    "sliding_window": Case(sliding_window, _qkv),
    "prefix_lm": Case(prefix_lm, _qkv),
    "alibi": Case(alibi, _qkv),
    "soft_cap": Case(soft_cap, _qkv, cross=True),
    "dense_bias": Case(dense_bias, _bias, cross=True),
    "sdpa": Case(sdpa, _qkv, cross=True),
    "sdpa_causal": Case(sdpa_causal, _qkv),
    "sdpa_masked": Case(sdpa_masked, _mask, cross=True),
    "log_softmax": Case(log_softmax, _ragged),
    "logsumexp": Case(logsumexp, _ragged),
    "layer_norm": Case(layer_norm, _norm),
    "layer_norm_by_hand": Case(layer_norm_by_hand, _norm),
    "rms_norm_product": Case(rms_norm_product, _product),
    "weighted_variance": Case(weighted_variance, _scores, cross=True),
}


def inputs(name: str, n: int, m: int | None = None, dtype=torch.float32, device="cpu", seed: int = 0):
    case = CASES[name]
    g = torch.Generator().manual_seed(seed)
    return case.make(n, m if m is not None and case.cross else n, dtype, device, g)


def wide(args):
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def error_within_twice_eager(fn, args, out) -> tuple[bool, float, float]:
    """The rule of the project: the largest error against float64 eager is at most twice eager's own, and a few
    roundings of the largest value where few outputs make eager's a matter of luck.

    Float64 eager has no error against itself, but it has one: float32 eager's is taken, as much smaller as float64 is
    finer, once more for the reference.

    The largest of many errors differs twofold between CPUs, and between inputs that are nearly the same (the products
    sum in other orders): where ours is beyond twice eager's, eager has two more draws.
    """
    reference = fn(*wide(args))
    ours = _largest(out, reference)
    own = args
    if out.dtype == torch.float64:
        args = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
        finer = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        eager = 4 * _largest(fn(*args), fn(*wide(args))) * finer
    else:
        eager = _largest(fn(*args), reference)
    places = torch.equal(out.isnan(), reference.isnan())
    floor = 8 * torch.finfo(out.dtype).eps * max(1.0, reference.abs().nan_to_num(0).max().item())
    for seed in range(2 if places and ours > max(2 * eager, floor) and out.dtype == torch.float32 else 0):
        near = _nearly(own, seed)
        eager = max(eager, _largest(fn(*near), fn(*wide(near))))
    return places and ours <= max(2 * eager, floor), ours, eager


def _largest(out: torch.Tensor, reference: torch.Tensor) -> float:
    return (out.double() - reference).abs().nan_to_num(0).max().item()


def _nearly(args, seed: int):
    """The arguments, their numbers changed by up to a hundredth."""
    g = torch.Generator().manual_seed(seed)

    def moved(a):
        return a * (1 + 0.01 * torch.rand(a.shape, generator=g)).to(a) if a.is_floating_point() else a

    return tuple(moved(a) if isinstance(a, torch.Tensor) else a for a in args)
