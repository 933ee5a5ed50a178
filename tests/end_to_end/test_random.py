"""Random programs, put together from what people write, against float64 eager.

A program is a choice of scores, mask, normaliser and outputs; sizes are odd on purpose.  Nothing here is meant to be a
known variant.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flashlight

SCORES = {
    "scaled": lambda s, i, j: s * 0.25,
    "divided": lambda s, i, j: s / 3.0,
    "tanh": lambda s, i, j: 5.0 * torch.tanh(s / 5.0),
    "distance": lambda s, i, j: s - 0.1 * (i - j).abs(),
    "squared": lambda s, i, j: s - 0.01 * s * s,
    "relu": lambda s, i, j: torch.relu(s),
    "sigmoid": lambda s, i, j: torch.sigmoid(s) * 4.0,
}
MASKS = {
    "none": lambda i, j: None,
    "causal": lambda i, j: j <= i,
    "band": lambda i, j: (i - j).abs() < 9,
    "prefix": lambda i, j: (j <= i) | (j < 5),
    "strided": lambda i, j: (i - j) % 3 == 0,
    "chunked": lambda i, j: i // 16 == j // 16,
    "but the first": lambda i, j: (j > 0) | (i < 4),
}


def _softmax(s, v):
    return torch.softmax(s, -1) @ v


def _by_hand(s, v):
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / e.sum(-1, keepdim=True)


def _through_lse(s, v):
    return torch.exp(s - torch.logsumexp(s, -1, keepdim=True)) @ v


def _with_lse(s, v):
    return torch.softmax(s, -1) @ v, torch.logsumexp(s, -1)


def _difference(s, v):
    return (torch.softmax(s, -1) - 0.3 * torch.softmax(s * 0.5, -1)) @ v


def _bare_sum(s, v):
    return torch.where(s > -1e30, torch.sigmoid(s), 0.0) @ v


def _moments(s, v):
    p = torch.softmax(s, -1)
    mean = p @ v
    return mean, p @ (v * v) - 0.5 * mean * mean  # a half: with one key all of it would cancel


def _peak(s, v):
    return s.amax(-1), torch.softmax(s, -1).amax(-1)


OUTPUTS = {
    f.__name__: f for f in (_softmax, _by_hand, _through_lse, _with_lse, _difference, _bare_sum, _moments, _peak)
}


def program(score, mask, output):
    def attention(q, k, v):
        i = torch.arange(q.shape[-2], device=q.device)[:, None]
        j = torch.arange(k.shape[-2], device=q.device)[None, :]
        s = SCORES[score](q @ k.transpose(-1, -2), i, j)
        keep = MASKS[mask](i, j)
        if keep is not None:
            s = s.masked_fill(~keep, float("-inf"))
        return OUTPUTS[output](s, v)

    return attention


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SCORES)),
    st.sampled_from(sorted(MASKS)),
    st.sampled_from(sorted(OUTPUTS)),
    st.integers(2, 140),
    st.integers(2, 140),
    st.sampled_from([1, 5, 16, 40]),
    st.integers(0, 9),
)
def test_random_programs(score, mask, output, n, m, d, seed):
    fn = program(score, mask, output)
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 2, length, d, generator=g) for length in (n, m, m))
    got = flashlight.optimize(fn, strict=True)(q, k, v)
    want, wide = fn(q, k, v), fn(q.double(), k.double(), v.double())
    for a, b, c in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want, wide)), strict=True):
        assert torch.equal(a.isnan(), c.isnan())
        scale = max(1.0, c.nan_to_num(0, 0, 0).abs().max().item())
        ours, eager = ((x.double() - c).nan_to_num(0, 0, 0).abs().max().item() for x in (a, b))
        assert ours <= max(2 * eager, 1e-6 * scale), (ours, eager)
