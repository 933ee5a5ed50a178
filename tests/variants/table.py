"""What a variant is, and the families that they are kept in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

B, H, N, D = 2, 2, 300, 16  # batch, heads, tokens (more than two tiles of 128), head dimension


class Random:
    """Seeded inputs: normal numbers by ``r(*shape)``, integers by ``below``, booleans by ``chance``."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def below(self, n: int, *shape: int) -> torch.Tensor:
        return torch.randint(n, shape, generator=self.generator)

    def chance(self, p: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator) < p


Inputs = Callable[[Random], tuple[Any, ...]]


@dataclass(frozen=True)
class Variant:
    """One variant as its inventors would write it.

    ``number``: its row in the catalogue (0: not in it).  ``shows``: what it asks of a compiler.  What becomes of it is
    held by a test: ``kernels`` launches and ``passes`` over streamed axes; ``unfused``: the report's reason why some of
    it is not fused; ``declined``: Triton's; ``fails``: what is wrong with it.
    """

    name: str
    family: str
    number: int
    title: str
    shows: str
    paper: str
    program: Callable[..., Any]
    inputs: Inputs
    kernels: int
    passes: int
    unfused: str
    declined: str
    fails: str
    slow: bool

    @property
    def key(self) -> str:
        return f"{self.family}.{self.name}"

    def arguments(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, ...]:
        """The same numbers in every dtype: they are made in float32."""
        return tuple(a.to(dtype) if a.is_floating_point() else a for a in self.inputs(Random(seed)))


@dataclass
class Family:
    """Variants that ask for the same thing."""

    name: str
    title: str
    variants: list[Variant] = field(default_factory=list)

    def add(
        self,
        number: int,
        title: str,
        shows: str,
        paper: str,
        inputs: Inputs,
        *,
        kernels: int = 1,
        passes: int = 1,
        unfused: str = "",
        declined: str = "",
        fails: str = "",
        slow: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Enter a program."""

        def enter(fn: Callable[..., Any]) -> Callable[..., Any]:
            facts = (fn, inputs, kernels, passes, unfused, declined, fails, slow)
            self.variants.append(Variant(fn.__name__, self.name, number, title, shows, paper, *facts))
            return fn

        return enter


def qkv(r: Random) -> tuple[torch.Tensor, ...]:
    return r(B, H, N, D), r(B, H, N, D), r(B, H, N, D)


# ---- what every one of these papers takes for granted ----------------------------------------------------------------
def scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return q @ k.mT * q.shape[-1] ** -0.5


def positions(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A column of the queries' and a row of the keys' numbers."""
    return torch.arange(q.shape[-2], device=q.device)[:, None], torch.arange(k.shape[-2], device=k.device)[None, :]


def causal(s: torch.Tensor) -> torch.Tensor:
    future = torch.ones(s.shape[-2], s.shape[-1], dtype=torch.bool, device=s.device).triu(1)
    return s.masked_fill(future, float("-inf"))
