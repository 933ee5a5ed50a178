"""Programs that have no one-kernel FlexAttention form, their inputs and useful work; beyond_hand.py has the routes."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import beyond_hand as hand
from benchmarks.workloads import CAP, Args, Maker, Route, Shape, Workload, pairs, qkv, scores, shapes, triangle_of

KEPT = 0.9  # the share of unmasked entries of an alignment
POINTS, VALUE_POINTS = 4, 8  # of a head of invariant point attention
VOCABULARY = 128256
CENTRES = 4096


def _causal(s: Tensor) -> Tensor:
    future = torch.ones(s.shape[-2], s.shape[-1], dtype=torch.bool, device=s.device).triu(1)
    return s.masked_fill(future, float("-inf"))


# ---- programs --------------------------------------------------------------------------------------------------------
def differential(q: Tensor, k: Tensor, v: Tensor, lam: Tensor) -> Tensor:
    p = torch.softmax(scores(q, k), dim=-1)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


def differential_causal(q: Tensor, k: Tensor, v: Tensor, lam: Tensor) -> Tensor:
    p = torch.softmax(_causal(scores(q, k)), dim=-1)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


def differential_v2(q: Tensor, k: Tensor, v: Tensor, lam: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    out = torch.softmax(_causal(scores(q, k)), dim=-1) @ v
    return out[:, 0::2] - torch.sigmoid(lam) * out[:, 1::2]


def evoformer_row(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair: Tensor, gate: Tensor) -> Tensor:
    logits = scores(q, k) + (1e9 * (mask - 1))[:, :, None, None, :] + pair[:, None]
    return torch.sigmoid(gate) * (torch.softmax(logits, dim=-1) @ v)


def triangle(q: Tensor, k: Tensor, v: Tensor, pair: Tensor, gate: Tensor) -> Tensor:
    return torch.sigmoid(gate) * (torch.softmax(scores(q, k) + pair[:, None], dim=-1) @ v)


def invariant_points(
    q: Tensor, k: Tensor, v: Tensor, q_points: Tensor, k_points: Tensor, v_points: Tensor, bias: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """A head's points side by side, three columns each."""
    distance = (q_points[:, :, :, None] - k_points[:, :, None]).float().square().sum(-1)
    logits = q @ k.mT * (3 * q.shape[-1]) ** -0.5 + bias - 0.5 * weight[:, None, None] * distance
    p = torch.softmax(logits, dim=-1).to(v.dtype)
    return p @ v, p @ v_points


def sigmoid(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sigmoid(scores(q, k) - math.log(k.shape[-2])) @ v


def sink(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    s = scores(q, k)
    column = sinks[:, None, None].expand(s.shape[0], -1, s.shape[2], 1)
    return torch.softmax(torch.cat([s, column], dim=-1), dim=-1)[..., :-1] @ v


def forgetting(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    decay = F.logsigmoid(gates).cumsum(-1)
    s = scores(q, k) + decay[..., :, None] - decay[..., None, :]
    return torch.softmax(_causal(s), dim=-1).to(v.dtype) @ v


def stick_breaking(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    later = torch.ones_like(s, dtype=torch.bool).triu()
    log_beta = F.logsigmoid(s).masked_fill(later, float("-inf"))
    log_rest = F.logsigmoid(-s).masked_fill(later, 0.0)
    between = log_rest.flip(-1).cumsum(-1).flip(-1) - log_rest
    return torch.exp(log_beta + between) @ v


def entropy(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = scores(q, k)
    p = torch.softmax(s, dim=-1)
    return p @ v, torch.logsumexp(s, dim=-1), -(p * torch.log_softmax(s, dim=-1)).sum(-1)


def softcap_loaded(q: Tensor, k: Tensor, v: Tensor, cap: Tensor) -> Tensor:
    """Workload ``softcap``, but for the bound of the scores: a number in memory, so that nothing is known of it and
    the maximum has to be found."""
    return torch.softmax(cap * torch.tanh(scores(q, k) / CAP), dim=-1) @ v


def linear_cross_entropy(x: Tensor, w: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, w).float(), target, reduction="none")


def norm_product(x: Tensor, gain: Tensor, shift: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gain, shift) @ w


def k_means(x: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre; the square of the point itself is the same for all of them."""
    distance = centres.float().square().sum(-1) - 2 * (x @ centres.T).float()
    return distance.argmin(-1)


# ---- inputs ----------------------------------------------------------------------------------------------------------
def _pairs_of_heads(s: Shape, m: Maker) -> Args:
    """Two query and key heads to each value head, whose values are twice as wide."""
    q, k = (m.normal(s.batch, s.heads, s.length, s.width) for _ in "qk")
    v = m.normal(s.batch, s.kv_heads, s.length, 2 * s.width)
    return q, k, v, torch.tensor(0.3, device=m.device)


def _pairs_of_queries(s: Shape, m: Maker) -> Args:
    return *qkv(s, m), m.normal(s.batch, s.kv_heads, s.length, 1)


def _row_tensors(s: Shape, m: Maker) -> tuple[Tensor, ...]:
    return tuple(m.normal(s.batch, s.rows, s.heads, s.length, s.width) for _ in "qkvg")


def _alignment(s: Shape, m: Maker) -> Args:
    q, k, v, gate = _row_tensors(s, m)
    mask = torch.rand(s.batch, s.rows, s.length, generator=m.generator, device=m.device) < KEPT
    return q, k, v, mask.to(m.dtype), m.normal(s.batch, s.heads, s.length, s.length), gate


def _pair_tensor(s: Shape, m: Maker) -> Args:
    q, k, v, gate = _row_tensors(s, m)
    return q, k, v, m.normal(s.batch, s.heads, s.length, s.length), gate


def _points(s: Shape, m: Maker) -> Args:
    points = (m.normal(s.batch, s.heads, s.length, 3 * n) for n in (POINTS, POINTS, VALUE_POINTS))
    return *qkv(s, m), *points, m.normal(s.batch, s.heads, s.length, s.length), m.normal(s.heads).abs()


def _with_sinks(s: Shape, m: Maker) -> Args:
    return *qkv(s, m), m.normal(s.heads)


def _with_gates(s: Shape, m: Maker) -> Args:
    return *qkv(s, m), m.normal(s.batch, s.heads, s.length, dtype=torch.float32) + 4


def _with_cap(s: Shape, m: Maker) -> Args:
    return *qkv(s, m), torch.tensor(CAP, device=m.device)


def _tokens(s: Shape, m: Maker) -> Args:
    x = m.normal(s.batch * s.length, s.width)
    target = torch.randint(VOCABULARY, x.shape[:1], generator=m.generator, device=m.device)
    return x, m.normal(VOCABULARY, s.width) * s.width**-0.5, target


def _norm(s: Shape, m: Maker) -> Args:
    x = m.normal(s.batch * s.heads * s.width, s.length) + 0.5
    return x, m.normal(s.length), m.normal(s.length), m.normal(s.length, s.width) * s.length**-0.5


def _cloud(s: Shape, m: Maker) -> Args:
    return m.normal(s.batch * s.length, s.width), m.normal(CENTRES, s.width)


# ---- the table -------------------------------------------------------------------------------------------------------
SDPA_BIAS, SDPA_CAUSAL = ("efficient", "cudnn"), ("flash", "cudnn")
_IN = ("bh..", "bg..", "bg..")
_ROWS = ("b.h..", "b.h..", "b.h..")
_PAPER = tuple(f"{batch}x256,4,256,{width}" for width in (64, 128) for batch in (1, 4, 32))


def _differential(causal: bool) -> tuple[Route, ...]:
    return (
        Route("two SDPA calls", partial(hand.two_calls, causal=causal), ("cudnn", "efficient")),
        Route("four SDPA calls", partial(hand.four_calls, causal=causal), SDPA_CAUSAL),
        Route("two Flex calls", hand.two_flex_calls, before=hand.causal_mask if causal else None),
    )


_TWO = shapes("4,16/8,4096,64", "1,32/16,16384,64", "1,16/8,16384,128")
_TINY_TWO, _TINY_ROWS, _TINY = shapes("2,4/2,96,16"), shapes("2x3,4,96,16"), shapes("2,4,96,16")
_WORKLOADS = (
    Workload(
        "differential", differential, _pairs_of_heads, ("bh..", "bh..", "bg..", "", "bg.."),
        pairs(lambda s: s.length**2), hand=_differential(False), shapes=_TWO, tiny=_TINY_TWO,
    ),
    Workload(
        "differential_causal", differential_causal, _pairs_of_heads, ("bh..", "bh..", "bg..", "", "bg.."),
        pairs(lambda s: triangle_of(s.length)), hand=_differential(True), shapes=_TWO, tiny=_TINY_TWO,
    ),
    Workload(
        "differential_v2", differential_v2, _pairs_of_queries, (*_IN, "bg..", "bg.."),
        pairs(lambda s: triangle_of(s.length)), shapes=shapes("4,16/8,4096,64"), tiny=_TINY_TWO,
        hand=(
            Route("SDPA with grouped queries", hand.grouped, SDPA_CAUSAL),
            Route("Flex with grouped queries", hand.grouped_flex, before=hand.causal_mask),
        ),
    ),
    Workload(
        "evoformer_row", evoformer_row, _alignment, (*_ROWS, "b..", "bh..", "b.h..", "b.h.."),
        pairs(lambda s: KEPT * s.length**2), tiny=_TINY_ROWS,
        shapes=shapes("1x128,8,384,32", "1x512,8,256,32", *_PAPER),
        hand=(
            Route("SDPA, bias written", hand.evoformer_bias, SDPA_BIAS),
            Route("SDPA, mask as a column", hand.evoformer_column, SDPA_BIAS),
            Route("Flex over all rows", hand.evoformer_flex),
        ),
    ),
    Workload(
        "triangle", triangle, _pair_tensor, (*_ROWS, "bh..", "b.h..", "b.h.."), pairs(lambda s: s.length**2),
        shapes=shapes("1x384,4,384,32"), tiny=_TINY_ROWS,
        hand=(
            Route("SDPA, bias shared", hand.triangle_sdpa, SDPA_BIAS),
            Route("Flex over all rows", hand.triangle_flex),
        ),
    ),
    Workload(
        "invariant_points", invariant_points, _points, (*_IN, *_IN, "bh..", "h", "bh..", "bh.."),
        lambda s: 2.0 * s.batch * s.heads * s.length**2 * (2 * s.width + 3 * (POINTS + VALUE_POINTS)),
        shapes=shapes("4,12,768,16", "4,8,768,16"), tiny=_TINY,
        hand=(Route("SDPA, distance as columns", hand.points_sdpa, SDPA_BIAS), Route("Flex", hand.points_flex)),
    ),
    Workload("sigmoid", sigmoid, qkv, (*_IN, "bh.."), pairs(lambda s: s.length**2)),
    Workload(
        "sink", sink, _with_sinks, (*_IN, "h", "bh.."), pairs(lambda s: s.length**2),
        hand=(Route("SDPA, rescaled", hand.sink_sdpa, SDPA_CAUSAL), Route("Flex, rescaled", hand.sink_flex)),
    ),
    Workload(
        "forgetting", forgetting, _with_gates, (*_IN, "bh.", "bh.."), pairs(lambda s: triangle_of(s.length)),
        hand=(
            Route("SDPA, decay as columns", hand.forgetting_sdpa, SDPA_CAUSAL),
            Route("Flex", hand.forgetting_flex, before=hand.causal_mask),
        ),
    ),
    Workload("stick_breaking", stick_breaking, qkv, (*_IN, "bh.."), pairs(lambda s: triangle_of(s.length - 1))),
    Workload(
        "entropy", entropy, qkv, (*_IN, "bh..", "bh.", "bh."), pairs(lambda s: s.length**2),
        hand=(
            Route("SDPA, keys as values", hand.entropy_sdpa, ("cudnn",)),
            Route("Flex, keys as values", hand.entropy_flex),
        ),
    ),
    Workload("softcap_loaded", softcap_loaded, _with_cap, (*_IN, "", "bh.."), pairs(lambda s: s.length**2)),
    Workload(
        "linear_cross_entropy", linear_cross_entropy, _tokens, ("r.", "..", "r", "r"),
        lambda s: 2.0 * s.batch * s.length * VOCABULARY * s.width, hand=(Route("chunks", hand.cross_entropy_chunks),),
        matrix=lambda s: (s.batch * s.length, VOCABULARY),
        shapes=shapes("4,1,2048,512", "4,1,2048,4096"), tiny=shapes("2,1,24,16"),
    ),
    Workload(
        "norm_product", norm_product, _norm, ("r.", ".", ".", "..", "r."),
        lambda s: (2.0 * s.width + 8) * s.batch * s.heads * s.width * s.length,
        hand=(Route("product first", hand.folded_norm),), shapes=shapes("4,16,4096,128"), tiny=_TINY,
    ),
    Workload(
        "k_means", k_means, _cloud, ("r.", "..", "r"), lambda s: 2.0 * s.batch * s.length * CENTRES * s.width,
        hand=(Route("chunks", hand.k_means_chunks),), matrix=lambda s: (s.batch * s.length, CENTRES),
        shapes=shapes("1,1,262144,64"), tiny=_TINY,
    ),
)  # fmt: skip

BEYOND: dict[str, Workload] = {w.name: w for w in _WORKLOADS}
