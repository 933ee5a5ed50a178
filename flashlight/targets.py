"""Facts about the devices at hand, and the ones assumed when code is emitted for a device that is not here."""

from __future__ import annotations

import os

import torch

from flashlight import backend as registry
from flashlight.backend import Target

HOPPER = Target("cuda", 90, 132, 232448, precision="highest")


def detect(device: torch.device, backend: str) -> Target:
    """The target of tensors on ``device``; CPU tensors under TRITON_INTERPRET=1 make an interpreted one."""
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.cuda.is_available():
        p = torch.cuda.get_device_properties(device)
        shared = getattr(p, "shared_memory_per_block_optin", HOPPER.shared_bytes)
        return Target("cuda", p.major * 10 + p.minor, p.multi_processor_count, shared, precision=precision)
    if device.type == "cuda":
        return HOPPER
    interpret = backend != "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return Target("cpu", 0, 1, 0, interpret, torch.get_num_threads(), precision)


def assumed(backend: str) -> Target:
    """The target to emit for when no device of the kind is here: a Hopper GPU, or this CPU."""
    return detect(torch.device("cpu"), "cpu") if backend == "cpu" else HOPPER


def place(backend: str, own: torch.device) -> tuple[torch.device | None, str]:
    """A device whose tensors a backend takes here: ``own`` if it does, else a GPU, else the CPU.  None, and why not."""
    reasons = []
    for device in dict.fromkeys((own, torch.device("cuda", 0), torch.device("cpu"))):
        try:
            declined = registry.get(backend).supports(detect(device, backend))
        except Exception as error:  # a broken third-party backend is a fact to report
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        if declined is not None:
            reasons.append(declined.reason)
        elif device.type == "cuda" and not torch.cuda.is_available():
            reasons.append("PyTorch sees no CUDA device")
        else:
            return device, ""
    return None, "; ".join(dict.fromkeys(reasons))
