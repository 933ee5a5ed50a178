"""Differential attention (Ye and others, 2024): two maps, one subtracted from the other, one value."""

from __future__ import annotations

import torch


def attention(q1, k1, q2, k2, v, scale):
    future = torch.ones(q1.shape[-2], k1.shape[-2], dtype=torch.bool, device=q1.device).triu(1)
    first = (q1 @ k1.transpose(-2, -1) * q1.shape[-1] ** -0.5).masked_fill(future, float("-inf"))
    second = (q2 @ k2.transpose(-2, -1) * q2.shape[-1] ** -0.5).masked_fill(future, float("-inf"))
    return (torch.softmax(first, dim=-1) - scale * torch.softmax(second, dim=-1)) @ v


def example_inputs():
    return *(torch.randn(1, 4, 512, 32) for _ in range(4)), torch.randn(1, 4, 512, 64), torch.tensor(0.8)
