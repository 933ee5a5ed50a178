"""Few rows, many keys: the streamed axis is split over programs, and the parts merged by the derived operation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import flashlight
from flashlight import apart, passes, runtime, variant
from flashlight.expr import FALSE, Const
from flashlight.testing import assert_close
from flashlight.variant import Divisible
from tests.end_to_end import test_statistics_first as first
from tests.programs import CASES, error_within_twice_eager, inputs
from tests.variants.thresholds import entmax

F = torch.nn.functional
WIDTH = {"layer_norm", "layer_norm_by_hand", "rms_norm_product"}  # their streamed axis is a width, and does not grow


@pytest.fixture(autouse=True)
def many_processors(monkeypatch):
    """The CPU as if it had so many processors that none of these programs fills them."""
    detect = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(detect(device, name), processors=1000))


def parts(fast) -> int:
    """Into how many parts the last nest's axis was split, at the most."""
    found = [(s, x.sizes) for x in fast._known.values() for s in x.variant.steps if isinstance(s, Divisible)]
    found = [(p, sizes) for s, sizes in found for p in ((s.divided or [s]) if s.sweeps > 1 else [s])]
    return max(s.parts(sizes) if s.divided and s.launches(sizes)[0][0] in s.divided else 1 for s, sizes in found)


@pytest.mark.parametrize("name", sorted(CASES))
def test_parts_give_what_the_whole_gives(name):
    fast = flashlight.optimize(CASES[name].fn, strict=True)
    for n in (40, 1100, 3000):
        args = inputs(name, 3 if CASES[name].cross else n, n)
        args = tuple(t[:1, :1] if t.ndim == 4 and not CASES[name].cross else t for t in args)
        ok, ours, eager = error_within_twice_eager(CASES[name].fn, args, fast(*args))
        assert ok, (n, ours, eager)
    assert parts(fast) > 1 or name in WIDTH


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


def absorbed(q, c, up):
    p = torch.softmax(torch.einsum("bhil,bjl->bhij", q, c) * 0.1, -1)
    return torch.einsum("bhil,hlv->bhiv", torch.einsum("bhij,bjl->bhil", p, c), up)


def mixed_heads(q, c, mix):
    p = torch.softmax(torch.einsum("bhil,bjl->bhij", q, c) * 0.1, -1)
    return torch.einsum("hgv,bgij,bjl->bhil", mix, p, c)


@pytest.mark.parametrize("program", [absorbed, mixed_heads], ids=lambda p: p.__name__)
def test_results_that_what_reads_them_folds(program):
    """A latent's width, heads that are mixed: axes that only the fold knows."""
    args = torch.randn(1, 4, 3, 64), torch.randn(1, 1500, 64), torch.randn(4, 64 if program is absorbed else 4, 16)
    fast = flashlight.optimize(program, strict=True)
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    assert parts(fast) > 1


def test_enough_rows_stay_whole(monkeypatch):
    fast = flashlight.optimize(decode, strict=True)
    monkeypatch.setattr(
        runtime, "detect", lambda device, name: replace(flashlight.targets.detect(device, name), processors=2)
    )
    q, (k, v) = torch.randn(2, 8, 1, 32), torch.randn(2, 2, 2, 4000, 32).unbind()
    fast(q, k, v)
    assert parts(fast) == 1


# ---- several passes --------------------------------------------------------------------------------------------------
def pieces(fast):
    """What the last nest of a program is run as, where its rows are few: nests of one pass, each divided or not."""
    ((step, sizes),) = [(s, x.sizes) for x in fast._known.values() for s in x.variant.steps][-1:]
    step.launches(sizes)
    return step.divided


def norm_args(rows, width, dtype=torch.float32):
    g = torch.Generator().manual_seed(width)
    x, gain, shift = (torch.randn(*n, width, generator=g) for n in ((rows,), (), ()))
    return [t.to(dtype) for t in (x + 0.5, gain, shift, torch.randn(width, 48, generator=g) * width**-0.5)]


def variance_product(x, gain, shift, w):
    """RMS norm of what the mean is taken off, so that the product reads what a pass found out, and not only scales."""
    centred = x - x.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6) * gain + shift.sin()) @ w


def gated_product(x, gain, shift, w):
    """RMS norm inside a function that is not linear."""
    return F.silu(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain + shift) @ w


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "program", [first.layer_norm_product, first.rms_norm_product, variance_product, gated_product],
    ids=lambda p: p.__name__,
)  # fmt: skip
def test_statistics_and_a_product(program, dtype):
    fast = flashlight.optimize(program, strict=True)
    for rows, width in ((5, 1100), (130, 3000), (1, 5000)):
        args = norm_args(rows, width, dtype)
        assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    if program is not first.rms_norm_product:  # a factor of the whole: one pass
        assert [type(p) for p in pieces(fast)] == [Divisible, Divisible]
        assert all(len(p.divided) == 2 for p in pieces(fast))


def test_statistics_are_as_precise_as_in_one_nest():
    args = norm_args(5, 3000, torch.float64)
    fast = flashlight.optimize(first.layer_norm_product, strict=True)
    torch.testing.assert_close(fast(*args), first.layer_norm_product(*args), rtol=1e-12, atol=1e-12)
    assert len(pieces(fast)) == 2


def test_each_pass_has_its_own_grid_and_reads_what_was_found_out():
    args = norm_args(300, 4000, torch.bfloat16)
    fast = flashlight.optimize(first.layer_norm_product, strict=True)
    fast(*args)
    statistics, product = pieces(fast)
    (found,) = statistics.whole
    assert [(name, kind) for name, kind, _ in found.outputs] == [
        ("nest0_layer_norm", torch.float32),
        ("nest0_layer_norm_1", torch.float32),
    ]
    assert {"w", "gain", "shift"}.isdisjoint(found.inputs)
    assert {"nest0_layer_norm", "nest0_layer_norm_1", "x", "w"} <= {*product.whole[0].inputs}
    written = [name for piece in (statistics, product) for x in piece.divided for name, _, _ in x.outputs]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("program", first.PROGRAMS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_of_wide_heads(program, dtype):
    fast = flashlight.optimize(program, strict=True)
    causal = program in (first.of_weights_causal, first.shared_heads, first.two_calls)
    for n in (1100,) if causal else (1100, 1301):
        args = first.inputs(n, dtype, rows=None if causal else 3)
        assert_close(fast(*args), program(*(x.double() for x in args)), program(*args))
    assert len(pieces(fast)) == 2
    assert parts(fast) > 1


@pytest.mark.parametrize(
    "program", [first.empty_rows, first.empty_rows_of_results, first.mixed, first.zeroed], ids=lambda p: p.__name__
)
def test_rows_that_see_nothing_in_any_pass(program):
    args = first.inputs(1100)
    out = first.right(program, args)
    assert out.isnan().all(-1)[0, 0].sum() == (0 if program is first.zeroed else 201)


def test_passes_whose_tiles_are_found_out_inside_the_call():
    def program(q, k, v, lam, n):
        live = torch.arange(k.shape[2]) < n[:, None, None, None]
        p = torch.softmax(first.scores(q, k).masked_fill(~live, -first.INF), -1)
        return (p[:, 0::2] - lam * p[:, 1::2]) @ v

    q, k, v, lam = first.inputs(1300, rows=3)
    args = *(x.repeat(3, 1, 1, 1) for x in (q, k, v)), lam, torch.tensor([1300, 17, 0])
    fast = flashlight.optimize(program, strict=True)
    out, exact = fast(*args), program(*(x.double() if x.is_floating_point() else x for x in args))
    assert_close(out, exact, program(*args))
    assert out[2].isnan().all()
    assert len(pieces(fast)) == 2


def test_what_a_later_nest_skips_is_remembered(monkeypatch):
    monkeypatch.setattr(passes, "lost", lambda *_: FALSE)
    with pytest.raises(AssertionError, match="NaN is not where eager has it"):
        first.right(first.empty_rows, first.inputs(1100))


def test_no_length_compiles_more_than_the_kernels_that_calls_need(monkeypatch):
    built = []
    build = variant.build
    monkeypatch.setattr(variant, "build", lambda g, *rest: built.append(g) or build(g, *rest))
    fast = flashlight.optimize(first.layer_norm_product, strict=True)
    fast(*norm_args(3, 300))
    assert len(built) == 1  # short: whole
    fast(*norm_args(3, 3000))
    assert len(built) == 4  # two passes, each in parts
    for rows, width in ((3, 3001), (4, 2000), (2, 300)):
        fast(*norm_args(rows, width))
    assert len(built) == 4


def passed_on(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.tanh(centred).square().sum(-1, keepdim=True)


def test_what_is_as_long_as_the_axis_is_written_by_as_many_programs_as_it_takes():
    x = torch.randn(3, 3000)
    fast = flashlight.optimize(passed_on, strict=True)
    assert_close(fast(x), passed_on(x.double()), passed_on(x))
    first_pass, second_pass, written = pieces(fast)
    assert len(first_pass.divided) == len(second_pass.divided) == 2
    assert written.stream is None
    assert len(written.grid) == 2


def returned(q, k, v):
    p = torch.softmax(q @ k.mT * 0.25, -1)
    return p @ v, p


def stabilised(q, k, v):
    """Features whose largest is subtracted, over all positions: they are read at each position once that is known."""
    a, b = (torch.exp(x - x.amax((-1, -2), keepdim=True)) + 1e-4 for x in (q, k))
    return (a @ (b.mT @ v)) / (a @ b.sum(-2).unsqueeze(-1))


@pytest.mark.parametrize("program", [returned, stabilised], ids=lambda p: p.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_along_the_axis_beside_others(program, dtype):
    fast = flashlight.optimize(program, strict=True)
    for n in (1100, 2050):
        rows = n if program is stabilised else 3
        args = torch.randn(1, 2, rows, 16, dtype=dtype), *torch.randn(2, 1, 2, n, 16, dtype=dtype)
        got, want, eager = fast(*args), program(*(a.double() for a in args)), program(*args)
        for leaves in zip(*map(torch.utils._pytree.tree_leaves, (got, want, eager)), strict=True):
            assert_close(*leaves)
    *passes_, written = pieces(fast)
    assert passes_[-1].divided
    assert written.stream is None


def test_sums_of_features_are_a_nest_of_their_own():
    """One nest would have a program a head, and the sums of each feature as states of their own."""
    args = [torch.randn(1, 2, 300, 16) for _ in range(3)]
    fast = flashlight.optimize(stabilised, strict=True)
    fast(*args)
    sums, rest = (low.nest for low in fast._variants[0].generated[-1].lowered)
    assert [a.extent for a in sums.points] == [Const(16), Const(16)]
    assert [s.monoid for s in rest.states] == ["max"]


def test_many_passes_stay_one_nest():
    program = partial(entmax, iterations=3)
    args = [torch.randn(1, 1, 1100, 16) for _ in range(3)]
    fast = flashlight.optimize(lambda q, k, v: program(q, k, v), strict=True)
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    assert len(fast._variants[0].generated[-1].lowered[-1].nest.passes) > apart.MOST
    assert pieces(fast) == []


def test_a_sum_is_merged_by_whole_rows(monkeypatch):
    """Else it took a program an element, which read its parts one here and one there."""
    made = []
    divide = variant.divide
    monkeypatch.setattr(variant, "divide", lambda *args: made.append(divide(*args)) or made[-1])

    def gated(q, k, v):
        return torch.sigmoid(q @ k.mT) @ v

    args = torch.randn(1, 2, 3, 32), *torch.randn(2, 1, 2, 3000, 32)
    fast = flashlight.optimize(gated, strict=True)
    assert_close(fast(*args), gated(*(a.double() for a in args)), gated(*args))
    merge = made[0].lowered[-1].nest
    assert [a.extent for a in merge.points] == [Const(32)]
    assert len({n.nest.name for n in made[0].lowered}) == len(made[0].lowered)
