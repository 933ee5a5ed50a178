"""Shapes at the edge: narrow and wide heads, values of another width, no queries or keys, very many heads."""

from __future__ import annotations

import pytest
import torch

import flashlight
from flashlight.targets import HOPPER
from flashlight.testing import assert_close

WIDTHS = [(1, 1), (2, 5), (7, 7), (17, 33), (64, 256), (80, 80), (192, 128), (256, 256), (256, 64), (576, 512)]


def causal(q, k, v):
    live = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


def full(q, k, v):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def right(program, args):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    return fast


@pytest.mark.parametrize(("d", "e"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_head_dimensions(d, e, dtype):
    if dtype == torch.float64 and d > 256:
        pytest.skip("float64 eager is as far off itself as the bound")
    fast = right(causal, [torch.randn(2, 3, 50, x).to(dtype) for x in (d, d, e)])
    assert fast.compilations == 1


@pytest.mark.parametrize(("d", "e"), WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_fit_the_shared_memory_of_a_gpu(d, e, dtype):
    args = [torch.randn(2, 3, 300, x).to(getattr(torch, dtype)) for x in (d, d, e)]
    kernel = flashlight.explain(causal, *args, backend="triton").kernels["triton"].sources[-1].kernel
    row, stream = (next((x.block for x in kernel.dims if x.role == role), 1) for role in ("row", "stream"))
    width = {n: 1 << max(0, n - 1).bit_length() for n in (d, e)}
    held, flow = row * width[d], stream * (width[d] + width[e])
    if d > 1:  # products of one element are no dots: nothing is kept
        assert (held + kernel.stages * flow) * getattr(torch, dtype).itemsize <= HOPPER.shared_bytes


@pytest.mark.parametrize(
    ("queries", "keys"),
    [((2, 3, 0, 16), (2, 3, 9, 16)), ((2, 3, 9, 16), (2, 3, 0, 16)), ((0, 3, 9, 16), (0, 3, 9, 16))],
)
def test_empty_tensors_give_what_eager_gives(queries, keys):
    args = [torch.randn(queries), torch.randn(keys), torch.randn(keys)]
    fast = flashlight.optimize(full, backend="cpu", strict=True)
    assert torch.equal(fast(*args), full(*args))
    right(full, [torch.randn(2, 3, 9, 16) for _ in range(3)])


def test_batch_times_heads_beyond_65535():
    right(full, [torch.randn(1000, 70, 3, 4) for _ in range(3)])


def test_broadcast_and_strided_inputs():
    q = torch.randn(2, 50, 3, 16).transpose(1, 2)
    k = torch.randn(1, 1, 60, 32)[..., ::2].expand(2, 3, 60, 16)
    v = torch.randn(2, 3, 16, 60).mT
    right(full, [q, k, v])


def points(q, k, x, y, v):
    """Scores of features and of points; as many heads as a point has columns."""
    near = ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)
    return torch.softmax(q @ k.mT - 0.1 * near, -1) @ v


def penalised(q, k, v, penalty):
    """``penalty``: for each key, last in its tensor."""
    return torch.softmax(q @ k.mT + penalty, -1) @ v


def test_a_width_is_no_length_though_it_equals_one():
    args = [torch.randn(2, 6, 40, d) for d in (16, 16, 6, 6, 16)]
    fast = flashlight.optimize(points, strict=True)
    assert_close(fast(*args), points(*(a.double() for a in args)), points(*args))
    inputs = {t.name: [str(n) for n in t.shape] for t in fast.explain(*args).program.inputs}
    assert inputs["x"] == ["B", "H", "N", "6"]
    more = [torch.randn(2, 5, 40, d) for d in (16, 16, 6, 6, 16)]
    assert_close(fast(*more), points(*(a.double() for a in more)), points(*more))
    assert fast.compilations == 1


def test_a_length_that_stands_last_is_one():
    args = [*(torch.randn(2, 3, 40, 16) for _ in range(3)), torch.randn(2, 1, 1, 40)]
    fast = flashlight.optimize(penalised, strict=True)
    for n in (40, 57):
        args = [*(torch.randn(2, 3, n, 16) for _ in range(3)), torch.randn(2, 1, 1, n)]
        assert_close(fast(*args), penalised(*(a.double() for a in args)), penalised(*args))
    assert fast.compilations == 1
