"""Random programs (tests/drawn.py) on a GPU, each backend held against float64 eager: a line for each program.

Part ``random`` of benchmarks/device.py.  A line's ``share`` is the largest error of each backend over what the rule of
design section 9 allows it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from flashlight import equivalence
from tests.drawn import draw
from tests.end_to_end.test_equivalence import LONG, told

BACKENDS = ("triton", "cupy")


def check(seed: int, device: torch.device, backends: Sequence[str], largest: int = LONG) -> dict[str, Any]:
    """Draw a program and run it.  ``problems``: what is wrong, "" where nothing is."""
    os.environ["FLASHLIGHT_TUNE"] = "off"  # which compiles each program three times
    drawn = draw(seed, largest)
    row: dict[str, Any] = {"workload": f"random {seed}", "dtype": str(drawn.dtype).removeprefix("torch.")}
    row |= {"shape": ":".join(map(str, drawn.lengths)), "backend": ", ".join(backends), "share": {}}
    try:
        found = equivalence.compare(lambda *args: drawn(*args), drawn.arguments(str(device)), backends=backends)
        for name in found.ran:
            shares = [d.error / d.allowed if d.allowed else d.error for d in found.differences if d.by == name]
            row["share"][name] = round(max(shares), 4)
        problems = "\n".join(told(found))
    except Exception:
        problems = traceback.format_exc()
    return row | {"ok": not problems, "problems": problems}
