"""What the benchmarks' command lines share: devices and names that exist, or an error that lists those that do."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch


def device_of(ask: argparse.ArgumentParser, name: str) -> torch.device:
    """Ends the program where there is no such device."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        ask.error("this PyTorch sees no CUDA device; use --device cpu")
    return device


def some_of(ask: argparse.ArgumentParser, text: str, known: Iterable[str], what: str) -> tuple[str, ...]:
    """The names in a text, by commas; ends the program at one that is not known."""
    names, there = tuple(text.split(",")), list(known)
    if unknown := [n for n in names if n not in there]:
        ask.error(f"no {what} {', '.join(unknown)}; there are {', '.join(there)}")
    return names


def backend_of(device: torch.device, asked: str | None = None) -> str:
    """flashlight's backend: the one asked for, else the device's."""
    return asked or ("triton" if device.type == "cuda" else "cpu")
