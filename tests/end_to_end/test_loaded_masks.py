"""Masks over loaded values: one kernel, right, and no more tiles visited than interval arithmetic must."""

from __future__ import annotations

import pytest
import torch

import flashlight
from tests.programs import error_within_twice_eager

BLOCK = 128  # of rows and of the streamed axis, on the CPU


def attention(q, k, v, live):
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~live, float("-inf")), -1) @ v


def document(q, k, v, doc):
    return attention(q, k, v, doc[:, None, :, None] == doc[:, None, None, :])


def document_and_causal(q, k, v, doc):
    i = torch.arange(q.shape[2], device=q.device)
    return attention(q, k, v, (doc[:, None, :, None] == doc[:, None, None, :]) & (i <= i[:, None]))


def document_as_a_bias(q, k, v, doc):
    same = doc[:, None, :, None] == doc[:, None, None, :]
    bias = torch.where(same, 0.0, float("-inf")).to(q.dtype)
    return torch.softmax((q @ k.mT) * q.shape[-1] ** -0.5 + bias, -1) @ v


def document_by_multiplication(q, k, v, doc):
    same = doc[:, None, :, None] == doc[:, None, None, :]
    weights = torch.exp((q @ k.mT) * q.shape[-1] ** -0.5) * same
    return (weights @ v) / weights.sum(-1, keepdim=True)


def document_in_sdpa(q, k, v, doc):
    same = doc[:, None, :, None] == doc[:, None, None, :]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same)


def lengths(q, k, v, doc):
    j = torch.arange(k.shape[2])
    return attention(q, k, v, j < 1 + 60 * doc[:, -1, None, None, None])


def limits(q, k, v, doc):
    j = torch.arange(k.shape[2])
    return attention(q, k, v, (j <= 100 * doc[:, None, :, None]) | (j == 3))


def padding(q, k, v, doc):
    return attention(q, k, v, (doc > 1)[:, None, None, :])


def blocks(q, k, v, doc):
    table = (doc[:, :8, None] + doc[:, None, :8]) % 2 == 0
    i = torch.arange(q.shape[2]) // 128
    return attention(q, k, v, table[:, None, i[:, None], i] | (i[:, None] == i))


PROGRAMS = [
    document,
    document_and_causal,
    document_as_a_bias,
    document_by_multiplication,
    document_in_sdpa,
    lengths,
    limits,
    padding,
    blocks,
]


def inputs(n: int, dtype=torch.float32, heads: int = 2):
    q, k, v = (torch.randn(2, heads, n, 16, dtype=dtype) for _ in range(3))
    doc = torch.randint(0, 6, (2, n)).sort(-1).values
    doc[:, -1] = 5
    return q, k, v, doc


def found_out(fast, args):
    """The tile classes of a call, and its tensors by their names, with what the finders wrote."""
    (known,) = fast._known.values()
    variant, sizes = known.variant, known.sizes
    env = {n: (args[x.position] if x.value is None else x.value) for n, x in variant.lifted.inputs}
    for step in variant.steps:
        step(env, sizes)
    (found,) = (s.found for g in variant.generated for low in g.lowered for s in low.sweeps if s.found)
    return found, env


def visited(fast, args) -> dict[str, int]:
    """How many trips of each kind the last kernel of a call takes, by the bounds that the finders wrote."""
    found, env = found_out(fast, args)
    out = {"partial": 0, "full": 0}
    for r in found.ranges:
        out[r.kind] += int((env[r.hi.tensor] - env[r.lo.tensor]).clamp(min=0).sum())
    return out


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_right_at_every_length(program):
    fast = flashlight.optimize(program, strict=True)
    for n in (1, 7, 127, 129, 700, 1024):
        args = inputs(n)
        if program is blocks and n < 8:
            continue
        ok, ours, eager = error_within_twice_eager(program, args, fast(*args))
        assert ok, (n, ours, eager)
    assert fast.compilations <= 2
    report = fast.explain(*inputs(700))
    assert report.launches == 1
    assert report.finders in (1, 2)
    bounds = "partial [0, nest0_pass1_partial_many" if program is blocks else "partial [nest0_pass1_lo"
    assert bounds in report.tiles[0]


def test_visited_tiles_are_those_of_the_documents():
    fast = flashlight.optimize(document, strict=True)
    q, k, v, _ = inputs(1000)
    ends = (100, 400, 410, 999)
    doc = torch.bucketize(torch.arange(1000), torch.tensor(ends)).expand(2, -1).contiguous()
    doc[1] = 0
    fast(q, k, v, doc)
    live = (doc[:, :, None] == doc[:, None, :]).float()
    live = torch.nn.functional.pad(live, (0, 24, 0, 24), value=0.5)  # beyond the axis: neither live nor dead
    tiles = live.unflatten(1, (8, BLOCK)).unflatten(3, (8, BLOCK))
    some = (tiles == 1).any(4).any(2)
    every = (tiles[..., :, :, :] == 1).logical_or(tiles == 0.5).all(4).all(2)
    every[:, :, -1] = False  # the last tile ends beyond the axis
    seen = visited(fast, (q, k, v, doc))
    assert seen["full"] == int(every.sum())
    assert seen["partial"] == int(some.sum()) - int(every.sum())
    assert seen["full"] + seen["partial"] < 2 * 64


def test_full_tiles_carry_no_mask():
    source = flashlight.explain(document, *inputs(700)).kernels["cpu"].sources[-1].text
    partial, full, last = source.split("# partial")[1], source.split("# full")[1], source.split("# partial")[2]
    full = full.split("# partial")[0]
    assert "doc" in partial.split("# full")[0]
    assert "doc" in last
    assert "doc" not in full
    assert "masked_fill" not in full


def test_dense_masks_are_read_a_tile_at_a_time():
    def dense(q, k, v, live):
        i = torch.arange(q.shape[2])
        return attention(q, k, v, live & (i <= i[:, None]))

    q, k, v, _ = inputs(300)
    live = torch.rand(300, 300) > 0.3
    live.fill_diagonal_(True)
    report = flashlight.explain(dense, q, k, v, live)
    assert (report.launches, report.finders) == (1, 0)
    assert "full [0, i)" in report.tiles[0]  # what is known of the causal part stays known
    ok, ours, eager = error_within_twice_eager(dense, (q, k, v, live), flashlight.optimize(dense)(q, k, v, live))
    assert ok, (ours, eager)


def test_reals_are_compared_as_they_are():
    q, k, v, _ = inputs(400)

    def near(q, k, v, place):
        return attention(q, k, v, (place[:, None] - place).abs() < 40.5)

    place = torch.arange(400) * 0.75
    fast = flashlight.optimize(near, strict=True)
    ok, ours, eager = error_within_twice_eager(near, (q, k, v, place), fast(q, k, v, place))
    assert ok, (ours, eager)
    place[37] = float("nan")  # its row and column hold nothing
    want, got = near(q, k, v, place), fast(q, k, v, place)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.allclose(got.nan_to_num(), want.nan_to_num(), atol=1e-5)


def test_nothing_of_quadratic_size_is_allocated():
    report = flashlight.explain(document_and_causal, *inputs(700))
    shapes = [b.shape for s in report.kernels["cpu"].sources for b in s.kernel.outputs]
    assert all(len([e for e in shape if "N" in str(e)]) <= 1 for shape in shapes)


def test_proofs_are_in_the_report():
    text = str(flashlight.explain(document_and_causal, *inputs(700)))
    assert "a tile that is not visited holds no live point: Proved (isl, whatever is loaded)" in text
    assert "a full tile holds no dead point: Proved (isl, whatever is loaded)" in text
    assert "1 kernel on cpu, 1 small one to find its tiles, no fallback" in text


@pytest.mark.parametrize("backend", ["triton", "cupy"])
def test_the_tiles_of_one_row_may_be_long(backend):
    """With one row a tile has 4096 keys, and finding those alive is a reduction of its own: it is no running one."""

    def program(q, k, v, label, labels):
        s = q @ k.mT
        far = (torch.arange(s.shape[-1]) - torch.arange(s.shape[-2])[:, None]).abs() >= 3
        s = s.masked_fill(~(far & (label[:, None] == labels)), float("-inf"))
        return torch.where(s > -1e30, torch.sigmoid(s), 0.0) @ v

    args = (torch.randn(1, 1), torch.randn(13, 1), torch.randn(13, 20), torch.tensor([1]), torch.randint(3, (13,)))
    found = flashlight.explain(program, *args, backend=backend).kernels[backend].sources
    assert any(d.block == 4096 for d in found[-1].kernel.dims)
    assert len(found) > 1


def test_a_bound_that_begins_with_a_number():
    """``0 % N`` is a parameter of isl's, whose name may not look like a number."""

    def program(q, k):
        first = torch.arange(q.shape[2]) * 2 % k.shape[2]
        return (q @ k.mT).masked_fill(torch.arange(k.shape[2]) > first.max(), -torch.inf).softmax(-1)

    q, k = torch.randn(2, 2, 1, 16), torch.randn(2, 2, 300, 16)
    torch.testing.assert_close(flashlight.optimize(program, backend="cpu", strict=True)(q, k), program(q, k))
