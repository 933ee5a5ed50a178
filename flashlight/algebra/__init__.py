"""The reduction algebra: when may a reduction that reads another's result be fused with it, and how.

No torch and no isl here; sympy and mpmath only inside functions, off the common path.
"""

from __future__ import annotations

from flashlight.algebra.proof import (
    Cascade,
    Certificate,
    Fact,
    Gauge,
    Link,
    Proved,
    Refuted,
    Slot,
    Stage,
    Unknown,
    Verdict,
)

__all__ = [
    "Cascade",
    "Certificate",
    "Fact",
    "Gauge",
    "Link",
    "Proved",
    "Refuted",
    "Slot",
    "Stage",
    "Unknown",
    "Verdict",
]
