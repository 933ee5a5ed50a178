"""What a third party's own tests may look like."""

from __future__ import annotations

import pytest
import torch

from flashlight.testing import assert_equivalent, conformance


@pytest.mark.parametrize("check", conformance("loops"), ids=str)
def test_conformance(check):
    check()


def causal(q, k, v):
    n = q.shape[-2]
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(torch.ones(n, n).triu(1) > 0, float("-inf"))
    return torch.softmax(scores, -1) @ v


def test_programs():
    qkv = [torch.randn(1, 2, 150, 16) for _ in range(3)]
    assert_equivalent(causal, qkv, backends=["cpu", "loops"])
