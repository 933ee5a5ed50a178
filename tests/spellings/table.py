"""What a spelling is, and the groups that they are kept in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

B, H, N, D = (
    2,
    3,
    300,
    32,
)  # batch, heads, tokens (more than two tiles of 128), head dimension (its root is no binary fraction)
EVERY = (torch.float32, torch.bfloat16, torch.float16)

Random = Callable[..., torch.Tensor]
"""``random(*shape)``: normal numbers of the dtype that is wanted."""
Inputs = Callable[[Random], tuple[Any, ...]]


@dataclass(frozen=True)
class Spelling:
    """One way to write a group's mathematics.

    ``make(dtype)`` gives the program; ``inputs`` its arguments; ``dtypes`` those in which it is tried.  ``apart`` says
    why its kernel is another than the group's, ``kernels`` how many it takes, ``fails`` why it takes none;
    ``repeats``: how often it computes every score.
    """

    name: str
    group: str
    what: str
    make: Callable[[torch.dtype], Callable[..., Any]]
    source: Callable[..., Any]
    inputs: Inputs
    dtypes: tuple[torch.dtype, ...]
    apart: str
    kernels: int
    fails: str
    repeats: int

    @property
    def key(self) -> str:
        return f"{self.group}.{self.name}"

    def arguments(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, ...]:
        g = torch.Generator().manual_seed(seed)
        return self.inputs(lambda *shape: torch.randn(*shape, generator=g).to(dtype))

    def program(self, dtype: torch.dtype = torch.float32) -> Callable[..., Any]:
        """The function or module; modules get the same parameters every time."""
        torch.manual_seed(0)
        made = self.make(dtype)
        return made.to(dtype).eval() if isinstance(made, torch.nn.Module) else made

    def reference(self, dtype: torch.dtype) -> Callable[..., Any]:
        """The program for arguments of this dtype and for float64 ones, as a function of all tensors in a row."""
        narrow = self.program(dtype)
        wide = copy.deepcopy(narrow).double() if isinstance(narrow, torch.nn.Module) else narrow
        _, spec = tree_flatten(self.arguments(dtype))

        def call(*leaves: Any) -> torch.Tensor:
            floating = next(t.dtype for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point())
            return (wide if floating == torch.float64 else narrow)(*tree_unflatten(leaves, spec))

        return call


@dataclass
class Group:
    """Programs that compute the same numbers from the same inputs; ``note`` says what sets the group apart.

    ``scores``: how many scores there are.
    """

    name: str
    title: str
    inputs: Inputs
    note: str = ""
    scores: int = B * H * N * N
    spellings: list[Spelling] = field(default_factory=list)

    def add(self, what: str, *, made: bool = False, **changed: Any) -> Callable[[Callable[..., Any]], Any]:
        """Enter a program; with ``made`` the function makes it for a dtype (a closure, a module)."""

        def enter(fn: Callable[..., Any]) -> Callable[..., Any]:
            facts = {
                "inputs": self.inputs,
                "dtypes": EVERY,
                "apart": "",
                "kernels": 1,
                "fails": "",
                "repeats": 1,
            } | changed
            make = fn if made else lambda dtype: fn
            name = fn.__name__.strip("_")
            assert all(s.name != name for s in self.spellings), name
            self.spellings.append(Spelling(name, self.name, what, make, fn, **facts))
            return fn

        return enter


def qkv(r: Random) -> tuple[torch.Tensor, ...]:
    return r(B, H, N, D), r(B, H, N, D), r(B, H, N, D)


def positions(n: int, m: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A column of the rows' and a row of the columns' numbers."""
    return torch.arange(n)[:, None], torch.arange(n if m is None else m)[None, :]
