"""The hand-written tile programs, for tests that look at one of them."""

from __future__ import annotations

from flashlight._conformance import (
    CASES,
    Case,
    attention,
    attention_case,
    gather,
    layer_norm,
    logsumexp,
    matmul,
    rms_norm,
    total,
)

__all__ = [
    "CASES",
    "Case",
    "attention",
    "attention_case",
    "gather",
    "layer_norm",
    "logsumexp",
    "matmul",
    "rms_norm",
    "total",
]
