"""Where one pass would carry more than registers hold: what is read first, then one sum, one product of matrices."""

from __future__ import annotations

import re

import pytest
import torch

import flashlight
from flashlight import passes
from flashlight.expr import FALSE
from flashlight.testing import assert_close

F = torch.nn.functional
INF = float("inf")


def scores(q, k):
    return q @ k.mT * q.shape[-1] ** -0.5


def masked(s, keep):
    n = s.shape[-1]
    return s.masked_fill(~keep(torch.arange(n)[:, None], torch.arange(n)), -INF)


def causal(s):
    return masked(s, lambda i, j: j <= i)


def of_weights(q, k, v, lam):
    p = torch.softmax(scores(q, k), dim=-1)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


def of_results(q, k, v, lam):
    p = torch.softmax(scores(q, k), dim=-1)
    return p[:, 0::2] @ v - lam * (p[:, 1::2] @ v)


def divided_last(q, k, v, lam):
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    total = e.sum(-1, keepdim=True)
    return (e[:, 0::2] @ v) / total[:, 0::2] - lam * (e[:, 1::2] @ v) / total[:, 1::2]


def of_weights_causal(q, k, v, lam):
    p = torch.softmax(causal(scores(q, k)), dim=-1)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


def shared_heads(q, k, v, lam):
    k, v = (x.repeat_interleave(2, dim=1) for x in (k[:, : v.shape[1]], v))
    out = torch.softmax(causal(scores(q, k)), dim=-1) @ v
    return out[:, 0::2] - torch.sigmoid(lam) * out[:, 1::2]


def two_calls(q, k, v, lam):
    first, second = (F.scaled_dot_product_attention(q[:, n::2], k[:, n::2], v, is_causal=True) for n in (0, 1))
    return first - lam * second


def three_maps(q, k, v, lam):
    p = torch.softmax(scores(q, k), dim=-1)
    v = v[:, :1]
    return p[:, 0:1] @ v - lam * (p[:, 1:2] @ v) + lam * lam * (p[:, 2:3] @ v)


PROGRAMS = (
    of_weights, of_results, divided_last, of_weights_causal, shared_heads, two_calls, three_maps,
)  # fmt: skip


def inputs(n, dtype=torch.float32, width=128, rows=None):
    g = torch.Generator().manual_seed(n)
    q, k = (torch.randn(1, 4, m, width, generator=g).to(dtype) for m in (rows or n, n))
    return q, k, torch.randn(1, 2, n, 2 * width, generator=g).to(dtype), torch.tensor(0.3)


def right(program, args, backend="cpu"):
    out = flashlight.optimize(program, backend=backend, strict=True)(*args)
    exact = program(*(x.double() if x.is_floating_point() else x for x in args))
    assert_close(out, exact, program(*args))
    return out


def plan(program, *args, backend="triton"):
    report = flashlight.optimize(program, backend=backend).explain(*args)
    assert report.fallbacks == ()
    (nest,) = report.nests
    return report, re.split(r"  pass \d along", nest)[1:]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_wide_values_take_two_passes_and_one_sum(program):
    report, (first, second) = plan(program, *inputs(48, torch.float16))
    assert first.count("slot") == 2 * first.count("= max ")
    assert second.count("slot") == 1
    assert "g->h" not in second
    (note,) = report.notes
    assert "takes a pass of its own over j" in note
    assert "test_statistics_first.py" in note
    last = report.kernels["triton"].source.rpartition("tl.range")[2].partition("tl.store")[0]
    maps = first.count("= max ")
    assert last.count("tl.dot(") == maps + 1
    assert "libdevice" not in last


@pytest.mark.parametrize("program", PROGRAMS[:6], ids=lambda p: p.__name__)
def test_narrow_values_take_one(program):
    report, (only,) = plan(program, *inputs(48, torch.float16, width=64))
    assert only.count("slot") == 6
    assert not report.notes


def test_a_slot_that_is_one_either_way_takes_one():
    def attention(q, k, v):
        return torch.softmax(scores(q, k), dim=-1) @ v

    report, (only,) = plan(attention, *(torch.randn(1, 2, 48, 256, dtype=torch.float16) for _ in "qkv"))
    assert not report.notes
    assert only.count("slot") == 3


def test_one_row_takes_one():
    report, _ = plan(of_weights, *inputs(300, rows=1))
    assert not report.notes


def test_what_reads_no_result_is_one_sum_in_one_pass():
    def gated(q, k, v, lam):
        p = torch.sigmoid(scores(q, k))
        return p[:, 0::2] @ v - lam * (p[:, 1::2] @ v)

    for width in (64, 128):
        args = inputs(130, width=width)
        report, (only,) = plan(gated, *args)
        assert not report.notes
        assert only.count("slot") == 1
        right(gated, args)


def test_a_sum_that_is_read_by_itself_stays_one():
    def both(q, k, v, lam):
        p = torch.softmax(scores(q, k), dim=-1)
        out = p[:, 0::2] @ v
        return out - lam * (p[:, 1::2] @ v), out

    args = inputs(130)
    report, (only,) = plan(both, *args)
    assert only.count("slot") == 6
    assert not report.notes


def test_a_factor_along_the_columns_joins_nothing():
    def columns(q, k, v, lam):
        p = torch.softmax(scores(q, k), dim=-1)
        return p[:, 0::2] @ v - lam * torch.arange(v.shape[-1]) * (p[:, 1::2] @ v)

    args = inputs(130)
    report, (only,) = plan(columns, *args)
    assert only.count("slot") == 6
    assert not report.notes
    right(columns, args)


def test_registers():
    pytest.importorskip("triton")
    from flashlight.backends.triton.compile import compile_only

    report, _ = plan(of_weights, *inputs(48, torch.float16))
    (source,) = report.kernels["triton"].sources
    made = compile_only(source, 90)
    assert not made.spills
    assert not made.serialized


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_values(program, dtype):
    for n in (1, 48, 257):
        right(program, inputs(n, dtype))


# ---- rows without live points ----------------------------------------------------------------------------------------
def far(s):
    return masked(s, lambda i, j: j < i - 200)


def empty_rows(q, k, v, lam):
    p = torch.softmax(far(scores(q, k)), dim=-1)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


def empty_rows_of_results(q, k, v, lam):
    p = torch.softmax(far(scores(q, k)), dim=-1)
    return p[:, 0::2] @ v - lam * (p[:, 1::2] @ v)


def mixed(q, k, v, lam):
    """Not separable, so in two passes anyway."""
    p = torch.softmax(far(scores(q, k))[:, :2], dim=-1)
    return (p * torch.tanh(p - p.amax(-1, keepdim=True))) @ v


def zeroed(q, k, v, lam):
    p = torch.softmax(scores(q, k), dim=-1)
    n = p.shape[-1]
    p = p.masked_fill(torch.arange(n) >= torch.arange(n)[:, None] - 200, 0.0)
    return (p[:, 0::2] - lam * p[:, 1::2]) @ v


@pytest.mark.parametrize("program", [empty_rows, empty_rows_of_results, mixed, zeroed], ids=lambda p: p.__name__)
def test_rows_without_live_points(program):
    args = inputs(257)
    assert len(plan(program, *args)[1]) == 2
    out = right(program, args)
    nan = out.isnan().all(-1)[0, 0]
    assert nan.sum() == (0 if program is zeroed else 201)


def test_what_the_last_pass_skips_is_remembered(monkeypatch):
    monkeypatch.setattr(passes, "lost", lambda *_: FALSE)
    with pytest.raises(AssertionError, match="NaN is not where eager has it"):
        right(empty_rows, inputs(257))


def test_one_pass_where_that_differs_from_point_to_point():
    def zeroed_later(q, k, v, lam):
        p = torch.softmax(far(scores(q, k)), dim=-1)
        n = p.shape[-1]
        p = p.masked_fill(torch.arange(n) % 3 == torch.arange(n)[:, None] % 3, 0.0)
        return (p[:, 0::2] - lam * p[:, 1::2]) @ v

    args = inputs(257)
    assert len(plan(zeroed_later, *args)[1]) == 1
    right(zeroed_later, args)


def layer_norm_product(x, gain, shift, w):
    return F.layer_norm(x, (x.shape[-1],), gain, shift) @ w


def rms_norm_product(x, gain, shift, w):
    return (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain) @ w + shift @ w


@pytest.mark.parametrize("program", [layer_norm_product, rms_norm_product], ids=lambda f: f.__name__)
def test_sums_that_all_rows_share_are_not_made_for_each_block(program):
    """Centred, a product has ``sum gain w`` and ``sum shift w`` beside it until the mean is known."""
    args = [torch.randn(300, 700) + 0.5, *(torch.randn(700) for _ in range(2)), torch.randn(700, 48) / 26]
    fast = flashlight.optimize(program, strict=True)
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    report, count = fast.explain(*args), 2 if program is layer_norm_product else 1
    nest = next(n for n in map(str, report.nests) if "pass 1 along" in n)
    assert nest.count(" pass ") == count
    assert any("the same for all" in n for n in report.notes) == (count == 2)
