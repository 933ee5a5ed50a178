"""``torch.compile(fn, backend="flashlight")``: Dynamo's graph goes through :func:`flashlight.optimize`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flashlight.pipeline import optimize


def backend(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The Dynamo backend.  ``options`` may hold "backend" and "strict", as for optimize; ``mode`` is accepted and
    changes nothing."""
    gm, dropped = _sizes_from_tensors(gm)
    fast = optimize(gm, **(options or {}))

    def run(*args: Any) -> Any:
        return fast(*(a for k, a in enumerate(args) if k not in dropped))

    return run


def _sizes_from_tensors(gm: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, frozenset[int]]:
    """Dynamo passes symbolic sizes as arguments of their own; read them off the tensors instead, so that a length
    stays a length.  On a copy: Dynamo calls us with what its own graph takes."""
    gm = torch.fx.GraphModule(gm, copy.deepcopy(gm.graph))
    holders = list(gm.graph.find_nodes(op="placeholder"))
    where: dict[str, tuple[torch.fx.Node, int]] = {}
    for node in holders:
        example = node.meta.get("example_value")
        if isinstance(example, torch.Tensor):
            for d, n in enumerate(example.shape):
                if isinstance(n, torch.SymInt):
                    where.setdefault(str(n), (node, d))
    gone = set()
    for k, node in enumerate(holders):
        example = node.meta.get("example_value")
        if isinstance(example, torch.SymInt) and str(example) in where:
            tensor, d = where[str(example)]
            with gm.graph.inserting_after(holders[-1]):
                size = gm.graph.call_function(torch.ops.aten.sym_size.int, (tensor, d))
                size.meta["example_value"] = example
            node.replace_all_uses_with(size)
            gm.graph.erase_node(node)
            gone.add(k)
    if gone:
        gm.graph.lint()
        gm.recompile()
    return gm, frozenset(gone)
