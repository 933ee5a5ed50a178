"""Few rows, many keys: the streamed axis is split over programs, and the parts merged by the derived operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight import runtime
from flashlight.variant import Divisible
from tests.programs import CASES, error_within_twice_eager, inputs

F = torch.nn.functional
ALONG = {"log_softmax", "layer_norm", "layer_norm_by_hand"}  # results as long as the axis: one program writes a row


@pytest.fixture(autouse=True)
def many_processors(monkeypatch):
    """The CPU as if it had so many processors that none of these programs fills them."""
    detect = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(detect(device, name), processors=1000))


def parts(fast) -> int:
    """Into how many parts the last nest's axis was split, at the most."""
    found = [(s, x.sizes) for x in fast._known.values() for s in x.variant.steps if isinstance(s, Divisible)]
    return max(s.parts(sizes) if s.divided and s.launches(sizes)[0][0] in s.divided else 1 for s, sizes in found)


@pytest.mark.parametrize("name", sorted(CASES.keys() - ALONG))
def test_parts_give_what_the_whole_gives(name):
    fast = flashlight.optimize(CASES[name].fn, strict=True)
    for n in (40, 1100, 3000):
        args = inputs(name, 3 if CASES[name].cross else n, n)
        args = tuple(t[:1, :1] if t.ndim == 4 and not CASES[name].cross else t for t in args)
        ok, ours, eager = error_within_twice_eager(CASES[name].fn, args, fast(*args))
        assert ok, (n, ours, eager)
    assert parts(fast) > 1 or name == "rms_norm_product"  # its streamed axis is the width, and does not grow


def test_states_are_merged_at_exact_gauges():
    """A variance about a mean far from 0: parts are moved to the mean of the whole, not summed as squares."""
    name = "weighted_variance"
    args = inputs(name, 4, 3000)
    shifted = (args[0], args[1] + 1000.0)
    fast = flashlight.optimize(CASES[name].fn, strict=True)
    ok, ours, eager = error_within_twice_eager(CASES[name].fn, shifted, fast(*shifted))
    assert ok, (ours, eager)


def decode(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def decode_up_to(q, k, v, n):
    j = torch.arange(k.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(j < n[:, None, None, None]), enable_gqa=True)


def test_one_query_with_grouped_keys():
    q, (k, v) = torch.randn(2, 8, 1, 32), torch.randn(2, 2, 2, 4000, 32).unbind()
    fast = flashlight.optimize(decode, strict=True)
    ok, ours, eager = error_within_twice_eager(decode, (q, k, v), fast(q, k, v))
    assert ok, (ours, eager)
    assert parts(fast) == -(-4000 // 128) // Divisible.SHORTEST
    nest = str(fast.explain(q, k, v).nests[0])
    assert "_in<4 tiled" in nest  # the four heads of a group are the rows of a block


def test_lengths_that_are_loaded():
    q, (k, v) = torch.randn(3, 8, 1, 32), torch.randn(2, 3, 2, 4000, 32).unbind()
    n = torch.tensor([4000, 130, 1])
    fast = flashlight.optimize(decode_up_to, strict=True)
    ok, ours, eager = error_within_twice_eager(decode_up_to, (q, k, v, n), fast(q, k, v, n))
    assert ok, (ours, eager)
    assert parts(fast) > 1


def test_a_row_that_sees_nothing_stays_empty():
    q, k, v = (torch.randn(1, 1, 2000, 16) for _ in range(3))
    live = torch.ones(2000, 2000, dtype=torch.bool)
    live[7] = False

    def masked(q, k, v, live):
        return torch.softmax((q @ k.mT).masked_fill(~live, float("-inf")), -1) @ v

    fast = flashlight.optimize(masked, strict=True)
    out, want = fast(q, k, v, live), masked(q, k, v, live)
    assert parts(fast) > 1
    assert out[0, 0, 7].isnan().all()
    assert torch.equal(out.isnan(), want.isnan())


def test_enough_rows_stay_whole(monkeypatch):
    fast = flashlight.optimize(decode, strict=True)
    monkeypatch.setattr(
        runtime, "detect", lambda device, name: replace(flashlight.targets.detect(device, name), processors=2)
    )
    q, (k, v) = torch.randn(2, 8, 1, 32), torch.randn(2, 2, 2, 4000, 32).unbind()
    fast(q, k, v)
    assert parts(fast) == 1
