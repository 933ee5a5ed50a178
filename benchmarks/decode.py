"""Decoding: a query or a few against many keys, query heads in groups that share them.  Memory bounds it: the keys and
values are read once, and nothing else is of their size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.workloads import Args, Flex, Maker, Shape, Workload, pairs

# The share of the bandwidth of a device-to-device copy that flashlight is to reach.
BARS = {"1,32/8,1:32768,128": 0.6, "16,32/8,1:8192,128": 0.9, "64,32/8,1:4096,128": 0.95}


def decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The heads that share keys side by side."""
    batch, heads, queries, width = q.shape
    groups = k.shape[1]
    grouped = q.reshape(batch, groups, heads // groups, queries, width)
    scores = grouped @ k[:, :, None].transpose(-2, -1) * width**-0.5
    out = torch.softmax(scores, dim=-1) @ v[:, :, None]
    return out.reshape(batch, heads, queries, width)


def decode_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _cached(s: Shape, m: Maker) -> Args:
    """A query of every head, and the keys and values so far."""
    keys = s.batch, s.kv_heads, s.length, s.width
    return m.normal(s.batch, s.heads, s.queries, s.width), m.normal(*keys), m.normal(*keys)


def elements(s: Shape) -> int:
    """Of the queries, the output, the keys and the values."""
    return 2 * s.batch * s.width * (s.heads * s.queries + s.kv_heads * s.length)


_WORKLOADS = (
    Workload(
        program.__name__,
        program,
        _cached,
        ("bh..", "bg..", "bg..", "bh.."),
        pairs(lambda s: s.queries * s.length),
        sdpa=lambda a: {},
        flex=lambda a: Flex(),
        grouped=True,
        elements=elements,
    )
    for program in (decode, decode_sdpa)
)

DECODE: dict[str, Workload] = {w.name: w for w in _WORKLOADS}
