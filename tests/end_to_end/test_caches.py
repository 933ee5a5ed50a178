"""Keys and values behind those of a cache: two tensors along what is streamed, in one pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

import flashlight
from flashlight.testing import assert_close

INF = float("inf")


def joined(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def causal(q, k, v, past_k, past_v):
    """And the cache for the next call."""
    k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    n, m = q.shape[2], k.shape[2]
    keep = torch.arange(m) <= torch.arange(n)[:, None] + (m - n)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep), k, v


def window(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    n, m = q.shape[2], k.shape[2]
    distance = torch.arange(n)[:, None] + (m - n) - torch.arange(m)
    s = (q @ k.mT).masked_fill((distance < 0) | (distance >= 90), -INF)
    return s.softmax(-1) @ v


def grouped(q, k, v, past_k, past_v):
    k, v = (torch.cat(x, 2)[:, :2] for x in ((past_k, k), (past_v, v)))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def tokens_first(q, k, v, past_k, past_v):
    """(batch, tokens, heads, width) in memory, as most models keep their caches."""
    k, v = (torch.cat([a.transpose(1, 2), b.transpose(1, 2)], 1).transpose(1, 2) for a, b in ((past_k, k), (past_v, v)))
    return (q @ k.mT * 0.25).softmax(-1) @ v


def rotated(q, k, v, past_k, past_v):
    """What is new is rotated before it is kept."""
    k = torch.cat([past_k, torch.cat([-k[..., 8:], k[..., :8]], -1)], 2)
    return (q @ k.mT).softmax(-1) @ torch.cat([past_v, v], 2)


def three(q, k, v, past_k, past_v):
    """A cache, what is new, and a few tokens that all see."""
    k, v = (torch.cat([a, b, a[:, :, :70] * 0.5], 2) for a, b in ((past_k, k), (past_v, v)))
    return (q @ k.mT * 0.25).softmax(-1) @ v


def static(q, k, v, past_k, past_v):
    """New keys and values written at their places in a cache of some length."""
    n = q.shape[2]
    at = torch.arange(n) * 2 % past_k.shape[2]
    past_k, past_v = past_k.index_copy(2, at, k), past_v.index_copy(2, at, v)
    live = torch.arange(past_k.shape[2]) <= at.max()
    return (q @ past_k.mT * 0.25).masked_fill(~live, -INF).softmax(-1) @ past_v


PROGRAMS = {joined: 1, causal: 3, window: 1, grouped: 1, tokens_first: 1, rotated: 1}


def arguments(new, past, dtype=torch.float32, width=16, heads=4):
    g = torch.Generator("cpu").manual_seed(new + past)
    return [torch.randn(2, heads, n, width, generator=g, device="cpu").to(dtype) for n in (new, new, new, past, past)]


def agrees(fn, args, fast):
    exact, plain, ours = fn(*(x.double() for x in args)), fn(*args), fast(*args)
    for got, want, eager in zip(*map(tree_leaves, (ours, exact, plain)), strict=True):
        assert_close(got, want, eager, what=fn.__name__)


@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda f: f.__name__)
def test_one_pass_over_both(fn):
    fast = flashlight.optimize(fn, backend="cpu", strict=True)
    for new, past in ((130, 200), (40, 7), (64, 128), (1, 333)):
        agrees(fn, arguments(new, past), fast)
    assert fast.compilations <= 2  # one query is another program
    report = flashlight.optimize(fn, backend="cpu", strict=True).explain(*arguments(130, 200))
    assert len(report.kernels["cpu"].sources) == PROGRAMS[fn]


def test_lengths_that_are_numbers():
    """Neither part is short enough to be taken whole."""
    a = [x[:, :, :512] for x in arguments(600, 600)]

    def program(q, k, v, past_k, past_v):
        k, v = (torch.cat([x.reshape(2, 4, 512, 16) for x in two], 2) for two in ((past_k, k), (past_v, v)))
        return (q @ k.mT).softmax(-1) @ v

    fast = flashlight.optimize(program, backend="cpu", strict=True)
    agrees(program, a, fast)
    assert len(fast.explain(*a).kernels["cpu"].sources) == 1


def test_an_empty_cache():
    agrees(causal, arguments(70, 0), flashlight.optimize(causal, backend="cpu", strict=True))


@pytest.mark.parametrize(("new", "past"), [(40, 200), (1, 333)])
def test_places_in_a_cache(new, past):
    agrees(static, arguments(new, past), flashlight.optimize(static, backend="cpu", strict=True))


def test_three_pieces_agree():
    agrees(three, arguments(130, 200), flashlight.optimize(three, backend="cpu"))
