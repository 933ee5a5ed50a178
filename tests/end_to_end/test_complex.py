"""Complex numbers as pairs: rotations as published models write them, scores of complex vectors, what stays unfused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import flashlight
from flashlight.runtime import FallbackWarning

B, H, N, M, D = 2, 3, 37, 53, 16


def rotations(n: int = N) -> torch.Tensor:
    angles = torch.outer(torch.arange(n).float(), 1 / 10000 ** (torch.arange(0, D, 2) / D))
    return torch.polar(torch.ones_like(angles), angles)


def rotated(x, by):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    shape = [d if k in (1, pairs.ndim - 1) else 1 for k, d in enumerate(pairs.shape)]
    return torch.view_as_real(pairs * by.view(*shape)).flatten(3).type_as(x)


def llama(q, k, v, by):
    q, k, v = (x.transpose(1, 2) for x in (rotated(q, by[: q.shape[1]]), rotated(k, by[: k.shape[1]]), v))
    scores = q @ k.transpose(2, 3) / math.sqrt(D)
    scores = scores + torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return F.softmax(scores.float(), -1).type_as(q) @ v


def made_inside(q, k, v, angles):
    by = torch.exp(1j * angles)

    def turn(x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * by).flatten(-2)

    return torch.softmax(turn(q) @ turn(k).mT, -1) @ v


def by_products(q, k, v):
    return torch.softmax((q @ k.mH).real, -1) @ v


def by_sums(q, k, v):
    return torch.softmax((q[..., :, None, :] * k[..., None, :, :].conj()).sum(-1).abs(), -1) @ v


def inputs(program):
    if program is llama:
        return [torch.randn(B, N, H, D) for _ in range(3)] + [rotations(N + 5)]
    if program is made_inside:
        return [torch.randn(B, H, N, D) for _ in range(3)] + [torch.randn(N, D // 2)]
    q, k = (torch.randn(B, H, n, D // 2, dtype=torch.complex64) for n in (N, M))
    return [q, k, torch.randn(B, H, M, D)]


@pytest.mark.parametrize("program", [llama, made_inside, by_products, by_sums], ids=lambda f: f.__name__)
def test_one_kernel(program):
    fast = flashlight.optimize(program, strict=True)
    for _ in range(3):
        args = inputs(program)
        torch.testing.assert_close(fast(*args), program(*args), atol=1e-5, rtol=1e-4)
    for backend in ("cpu", "triton", "cupy"):
        assert len(flashlight.explain(program, *args, backend=backend).kernels[backend].sources) == 1


def test_a_conjugate_that_is_passed():
    """It has the address of what it is the conjugate of."""
    q, k, v = inputs(by_products)
    fast = flashlight.optimize(by_sums, strict=True)
    for given in (k, k.conj(), k, k.conj()):
        torch.testing.assert_close(fast(q, given, v), by_sums(q, given, v), atol=1e-5, rtol=1e-4)


def test_both_parts_may_be_one_array():
    def program(x, z):
        return (torch.complex(x, x) @ z).abs(), (z.mT @ torch.complex(x, x).mT).imag

    x, z = torch.randn(5, 8), torch.randn(8, 6, dtype=torch.complex64)
    torch.testing.assert_close(flashlight.optimize(program)(x, z), program(x, z), atol=1e-5, rtol=1e-4)


def test_real_numbers_among_complex_ones():
    def program(x, z):
        return torch.cat((z, x), -1).imag.sum(-1), torch.stack((x, z)).abs().softmax(-1), (x + z * x - 2).imag

    x, z = torch.randn(5, 8), torch.randn(5, 8, dtype=torch.complex64)
    torch.testing.assert_close(flashlight.optimize(program)(x, z), program(x, z), atol=1e-5, rtol=1e-4)


def test_complex_results_run_as_they_would_have():
    def program(x, angles):
        return torch.polar(torch.ones_like(angles), angles) * 2, x.softmax(-1)

    args = torch.randn(B, N, D), torch.randn(N, D)
    with pytest.warns(FallbackWarning, match="complex result"):
        outs = flashlight.optimize(program)(*args)
    torch.testing.assert_close(outs, program(*args))
