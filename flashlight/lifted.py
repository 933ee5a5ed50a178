"""What capture and lift hand on: the captured graph with its bindings, and the steps it was lifted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.utils._pytree import TreeSpec

from flashlight.expr import Expr
from flashlight.lengths import Guard, value_at
from flashlight.program import Origin, Program


@dataclass(frozen=True)
class GraphInput:
    """A placeholder or attribute of the graph: its node's name, a name for people, and either the position among the
    flattened call arguments (args, then kwargs, by torch's pytree order), or the tensor itself (a parameter, buffer or
    captured constant).  ``parts``: of a complex one, its real view is meant, with real and imaginary parts along the
    last dimension."""

    node: str
    name: str
    position: int | None
    value: torch.Tensor | None = None
    parts: bool = False

    def of(self, flat: Sequence[Any]) -> Any:
        """What it is in a call."""
        x = self.value if self.position is None else flat[self.position]
        return torch.view_as_real(x.resolve_conj()) if self.parts and isinstance(x, torch.Tensor) else x


@dataclass(frozen=True)
class SizeBinding:
    """A symbolic size is read off dimension ``dim`` of the flat call argument ``position``."""

    name: str
    position: int
    dim: int


@dataclass(frozen=True)
class Traced:
    """One node of the graph: its operator's arguments with every integer and real that depends on sizes as an Expr, and
    the shape and dtype of each tensor it gives."""

    node: torch.fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[Expr, ...], ...]
    dtypes: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True)
class Captured:
    """A functional ATen graph and how a call binds to it.

    ``constants``: non-tensor call arguments baked in, as (flat position, value): a call with others needs a new
    capture.  ``actual``: the sizes of the call it was made for.  ``shapes``: per tensor argument its flat position, and
    one literal or size name per dimension.  ``guards``: what the function asked about sizes on its way.  ``outputs``:
    per flat output a node's name, an Expr over sizes, or a plain value.  ``mutated``: (position, node) of arguments
    that the function wrote over.  ``out_spec`` rebuilds the result.  ``switches``: the function turns gradients on or
    off on its way.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[GraphInput, ...]
    nodes: tuple[Traced, ...]
    sizes: tuple[SizeBinding, ...]
    actual: tuple[int, ...]
    constants: tuple[tuple[int, Any], ...]
    shapes: tuple[tuple[int, tuple[int | str, ...]], ...]
    guards: tuple[Guard, ...]
    outputs: tuple[Any, ...]
    mutated: tuple[tuple[int, str], ...]
    out_spec: TreeSpec
    switches: bool = False

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(b.name for b in self.sizes)

    def holds(self, sizes: Sequence[int]) -> bool:
        """Whether the assumptions the trace made about the sizes hold for these values."""
        values = dict(zip(self.names, sizes, strict=True))
        return all(bool(value_at(g.condition, values)) == g.outcome for g in self.guards)


@dataclass(frozen=True)
class Region:
    """Nodes that became one program.  Program inputs and outputs are names in the call's environment."""

    program: Program
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Eager:
    """One node that runs as it would have run without us: ``environment[node] = target(*args)``."""

    traced: Traced
    reason: str

    @property
    def node(self) -> str:
        return self.traced.node.name

    @property
    def origin(self) -> Origin:
        return self.traced.origin


@dataclass(frozen=True)
class Lifted:
    """Steps in order, and the names that values go by in the environment of a call.

    ``inputs``: a name for each graph input.  ``outputs``: per flat output a name, an Expr over sizes, or a literal.
    ``mutated``: (flat position, name) of arguments to be written over.  ``where``: (node, name) of what eager steps
    read and write.  ``guards``: conditions on sizes that the lift relied on (a reshape's divisibility).
    """

    captured: Captured
    inputs: tuple[tuple[str, GraphInput], ...]
    steps: tuple[Region | Eager, ...]
    outputs: tuple[Any, ...]
    mutated: tuple[tuple[int, str], ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    guards: tuple[Expr, ...] = ()

    def holds(self, sizes: Sequence[int]) -> bool:
        """Whether a call with these sizes may use this capture."""
        values = dict(zip(self.captured.names, sizes, strict=True))
        return self.captured.holds(sizes) and all(bool(value_at(g, values)) for g in self.guards)
