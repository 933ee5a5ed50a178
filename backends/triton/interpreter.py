"""Stand-ins for what Triton's interpreter lacks: libdevice, computed by numpy, and loop bounds that numpy accepts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl


def _lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        first = next(a for a in args if isinstance(a, tl.tensor))
        handle = first.handle
        with np.errstate(all="ignore"):
            data = function(*(a.handle.data if isinstance(a, tl.tensor) else handle.data.dtype.type(a) for a in args))
        shaped = np.asarray(data, dtype=handle.data.dtype)
        widest = max((a for a in args if isinstance(a, tl.tensor)), key=lambda a: a.handle.data.ndim)
        return tl.tensor(type(handle)(shaped, handle.dtype), widest.type)

    return call


libdevice = SimpleNamespace(
    tanh=_lifted(np.tanh),
    expm1=_lifted(np.expm1),
    log1p=_lifted(np.log1p),
    atan=_lifted(np.arctan),
    pow=_lifted(np.power),
    fmod=_lifted(np.fmod),
    rint=_lifted(np.rint),
    trunc=_lifted(np.trunc),
    fast_dividef=_lifted(np.divide),
)
"""What the emitted text calls of libdevice."""


def whole(bound: Any) -> int:
    """A loop bound as a number.  Triton 3.6 holds scalars in arrays of length 1, which numpy 2.4 does not take for
    numbers any more."""
    return int(np.asarray(bound.handle.data).reshape(-1)[0]) if isinstance(bound, tl.tensor) else int(bound)
