"""Causal attention as anybody writes it, made fast: ``python examples/attention.py``, on whatever device is there."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import flashlight


def attention(q, k, v):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    future = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v


def example_inputs(batch=1, heads=8, length=2048, width=64, dtype=torch.float32, device="cpu"):
    return tuple(torch.randn(batch, heads, length, width, dtype=dtype, device=device) for _ in range(3))


def milliseconds(call: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """The median of some calls, after one to warm up."""
    times = []
    for _ in range(8):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times[1:])[3]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--length", type=int, default=2048)
    ask.add_argument("--backend", help="cpu, triton, ...; by default the device's")
    asked = ask.parse_args()

    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    q, k, v = example_inputs(length=asked.length, dtype=dtype, device=device)

    fast = flashlight.optimize(attention, backend=asked.backend)  # the one line

    exact = attention(q.double(), k.double(), v.double())
    error = (fast(q, k, v) - exact).abs().max().item()
    usual = (attention(q, k, v) - exact).abs().max().item()
    wait = torch.cuda.synchronize if gpu else lambda: None
    eager_ms = milliseconds(lambda: attention(q, k, v), wait)
    fast_ms = milliseconds(lambda: fast(q, k, v), wait)

    print(fast.explain(q, k, v))
    print(f"\n{tuple(q.shape)} {str(dtype).removeprefix('torch.')} on {device}")
    print(f"largest error against float64: {error:.2e} (eager: {usual:.2e})")
    print(f"time: {fast_ms:.2f} ms (eager: {eager_ms:.2f} ms, {eager_ms / fast_ms:.1f} times as long)")


if __name__ == "__main__":
    main()
