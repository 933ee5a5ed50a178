"""flashlight: ordinary PyTorch attention programs in, proved and fused kernels out.

The public names are resolved on first use, so that ``import flashlight.polyhedral`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "optimize": "flashlight.pipeline",
    "explain": "flashlight.pipeline",
    "Report": "flashlight.report",
    "Target": "flashlight.backend",
}
__all__ = ["Report", "Target", "explain", "optimize"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'flashlight' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
