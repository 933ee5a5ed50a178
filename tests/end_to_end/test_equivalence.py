"""Random programs on every backend: the same seed draws the same program, and each result is held against float64.

The programs are those of test_random.py with more parts: scores and masks are put together from several, and outputs
are cascades of reductions that read one another.  ``python -m tests.end_to_end.test_equivalence FIRST LAST`` tries
seeds here as the tests do: Triton's text by its interpreter, CUDA C++ by the shim.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from flashlight import equivalence
from tests.end_to_end import test_random

ROOT = Path(__file__).resolve().parents[2]
HERE, CHUNK = 300, 50  # programs that every CI run tries; programs of one test
ON_A_GPU = 1000
DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)

SCORES: dict[str, Callable[..., torch.Tensor]] = test_random.SCORES | {
    "by head": lambda s, i, j: s * (torch.arange(s.shape[1], device=s.device)[:, None, None] + 1) * 0.5,
    "softplus": lambda s, i, j: F.softplus(s),
    "silu": lambda s, i, j: F.silu(s) + 0.1,
    "distance": lambda s, i, j: s - 0.1 * (i - j).abs().to(s.dtype),
    "waves": lambda s, i, j: s + torch.cos(0.3 * (i - j).to(s.dtype)),
    "clipped": lambda s, i, j: s.clamp(-2.0, 3.0),
    "root": lambda s, i, j: torch.sign(s) * torch.sqrt(s.abs() + 0.01),
}
MASKS: dict[str, Callable[..., Any]] = {k: f for k, f in test_random.MASKS.items() if k != "chunked"} | {
    "later": lambda i, j: j >= i,
    "checkered": lambda i, j: (i + j) % 2 == 0,
    "others": lambda i, j: i != j,
    "dilated": lambda i, j: ((i - j) % 4 == 0) & ((i - j).abs() < 40),
    "far": lambda i, j: (i - j).abs() >= 3,
}


def _twice(s, v):
    return torch.softmax(3.0 * torch.softmax(s, -1), -1) @ v


def _thresholded(s, v):
    p = torch.softmax(s, -1)
    above = torch.relu(p - 0.25 * p.amax(-1, keepdim=True))
    return (above @ v) / above.sum(-1, keepdim=True)


def _entropy(s, v):
    p = torch.softmax(s, -1)
    return -(p * torch.log(p + 1e-6)).sum(-1), p @ v


def _by_length(s, v):
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / (e * e).sum(-1, keepdim=True).sqrt()


def _spread(s, v):
    p, s = torch.softmax(s, -1), s.clamp(min=-30.0)
    mean = (p * s).sum(-1, keepdim=True)
    return (p * (s - mean) ** 2).sum(-1)


def _centred(s, v):
    p = torch.softmax(s, -1)
    return (p - p.mean(-1, keepdim=True)) @ v


def _standardised(s, v):
    s = s.clamp(min=-8.0)
    mean = s.mean(-1, keepdim=True)
    return torch.softmax((s - mean) * torch.rsqrt(((s - mean) ** 2).mean(-1, keepdim=True) + 0.1), -1) @ v


def _squares(s, v):
    w = torch.relu(s) ** 2
    return (w @ v) / (w.sum(-1, keepdim=True) + 0.5)


def _extremes(s, v):
    return s.amax(-1), s.clamp(min=-9.0).amin(-1), torch.sigmoid(s - s.amax(-1, keepdim=True)) @ v


OUTPUTS = test_random.OUTPUTS | {
    f.__name__: f
    for f in (_twice, _thresholded, _entropy, _by_length, _spread, _centred, _standardised, _squares, _extremes)
}


CANCELS = ("_moments", "_centred", "_spread", "_difference")
"""Small differences of larger numbers: float64 eager shows no error that theirs could be held against."""


@dataclass(frozen=True)
class Drawn:
    """One program and the sizes it is called with; ``largest``: of the lengths."""

    seed: int
    largest: int

    def __post_init__(self) -> None:
        pick = random.Random(self.seed)
        self.__dict__.update(
            scores=pick.sample(sorted(SCORES), pick.choice((1, 1, 2, 3))),
            masks=pick.sample(sorted(MASKS), pick.choice((1, 1, 2))),
            either=pick.random() < 0.5,
            output=pick.choice(sorted(OUTPUTS)),
            dtype=pick.choice(DTYPES),
            shape=(pick.choice((1, 2)), pick.choice((1, 2))),
            lengths=(pick.randint(1, self.largest), pick.randint(1, self.largest)),
            depths=(pick.choice((1, 5, 16, 32)), pick.choice((1, 8, 20))),
        )
        if self.output in CANCELS and self.dtype == torch.float64:
            self.__dict__["dtype"] = torch.float32

    def __str__(self) -> str:
        told = ("scores", "masks", "either", "output", "dtype", "shape", "lengths", "depths")
        return f"seed {self.seed}: " + ", ".join(f"{name} {getattr(self, name)}" for name in told)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        i = torch.arange(q.shape[-2], device=q.device)[:, None]
        j = torch.arange(k.shape[-2], device=q.device)[None, :]
        s = q @ k.mT * q.shape[-1] ** -0.5
        for name in self.scores:
            s = SCORES[name](s, i, j)
        kept = [keep for name in self.masks if (keep := MASKS[name](i, j)) is not None]
        if kept:
            both = kept[0] | kept[-1] if self.either else kept[0] & kept[-1]
            s = s.masked_fill(~both, float("-inf"))
        return OUTPUTS[self.output](s, v)

    def arguments(self, device: str = "cpu") -> tuple[torch.Tensor, ...]:
        g = torch.Generator().manual_seed(self.seed)
        (n, m), (d, e) = self.lengths, self.depths
        shapes = ((n, d), (m, d), (m, e))
        return tuple(torch.randn(*self.shape, *x, generator=g).to(device, self.dtype) for x in shapes)


def problems(drawn: Drawn, backends: tuple[str, ...], device: str = "cpu") -> list[str]:
    """What is wrong with a program: results out of bounds, or a backend that does not take all of it."""
    program = lambda q, k, v: drawn(q, k, v)  # noqa: E731
    found = equivalence.compare(program, drawn.arguments(device), backends=backends)
    told = [str(d) for d in found.problems] + [f"{name}: {why}" for name, why in (*found.absent, *found.unfused)]
    return [f"{drawn}\n  " + "\n  ".join(told)] if told else []


def main(first: int, last: int) -> None:
    """Seeds through cpu, triton and cupy on this machine's CPU; what is wrong is printed."""
    from flashlight import backend, runtime
    from tests.backends.cupy.shim import TARGET

    detect = runtime.detect
    backend.BUILTIN["cupy_shim"] = "tests.backends.cupy.shim:ShimBackend"
    runtime.detect = lambda device, name: TARGET if name == "cupy_shim" else detect(device, name)
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, at infinities
    told = [x for seed in range(first, last) for x in problems(Drawn(seed, 70), ("cpu", "triton", "cupy_shim"))]
    print("\n".join(told) or f"{last - first} programs agree")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
