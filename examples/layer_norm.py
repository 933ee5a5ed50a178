"""Nothing here is attention: the variance about a mean that is itself a sum, in one pass over each row."""

from __future__ import annotations

import torch


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * weight + bias


def example_inputs():
    return torch.randn(512, 1024), torch.randn(1024), torch.randn(1024)
