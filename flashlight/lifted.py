"""What capture and lift hand on: the captured graph with its bindings, and the steps it was lifted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch.utils._pytree import TreeSpec

from flashlight.program import Origin, Program


@dataclass(frozen=True)
class GraphInput:
    """A placeholder of the graph: its name, and either the position among the flattened call arguments (args, then
    kwargs, by torch's pytree order), or the tensor itself (a parameter, buffer or lifted constant)."""

    name: str
    position: int | None
    value: torch.Tensor | None = None


@dataclass(frozen=True)
class SizeBinding:
    """A symbolic size is read off dimension ``dim`` of graph input ``input`` (an index into ``inputs``)."""

    name: str
    input: int
    dim: int


@dataclass(frozen=True)
class Captured:
    """A functional ATen graph and how a call binds to it.

    ``constants``: non-tensor call arguments baked in, as (flat position, value): a call with others needs a new
    capture.  ``shapes``: per graph input, per dim, an int (literal) or a symbolic expression's text over size names.
    ``holds(sizes)``: whether the assumptions the trace made about the sizes hold for these values.
    ``out_spec``: rebuilds the user's result from the flat outputs.
    """

    graph: torch.fx.GraphModule
    inputs: tuple[GraphInput, ...]
    sizes: tuple[SizeBinding, ...]
    constants: tuple[tuple[int, Any], ...]
    shapes: tuple[tuple[int | str, ...], ...]
    holds: Callable[[Sequence[int]], bool]
    out_spec: TreeSpec


@dataclass(frozen=True)
class Region:
    """Nodes that became one program.  Program inputs and outputs are names in the call's environment."""

    program: Program
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Eager:
    """One node that runs as it would have run without us: ``environment[node] = target(*args)``."""

    node: str
    reason: str
    origin: Origin


@dataclass(frozen=True)
class Lifted:
    """Steps in order; ``outputs``: per flat output a name in the environment, or a literal (None, int, float)."""

    captured: Captured
    steps: tuple[Union[Region, Eager], ...]
    outputs: tuple[Any, ...]
