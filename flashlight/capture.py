"""From a user's function to one functional ATen graph in which every number that depends on lengths is known to.

The function is traced on fake tensors, twice, at two sets of made-up sizes.  It sees shapes as :class:`Length`, so what
it computes from them is followed exactly; what PyTorch derives inside (a flattened dimension) is found as the
expression that agrees at both sets.  A number that differs between the traces and is no such expression, or another
sequence of operators, means that the function depends on the lengths in a way that cannot be followed: then they are
literal, and another length is another capture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flashlight.errors import CaptureError, DataDependent, NeedsLiteral
from flashlight.kept import Watch
from flashlight.lifted import Captured, GraphInput, SizeBinding
from flashlight.origins import place_of
from flashlight.trace import Dims, Subject, Trace
from flashlight.witnesses import agree, guards_of


class NoTensorResult(CaptureError):
    """The function returns no tensor, so there is nothing to compile."""


def capture(program: Any, flat: Sequence[Any], spec: TreeSpec, dims: Dims) -> Captured:
    """Capture ``program`` on the flattened call ``(args, kwargs)``.

    Raises NeedsLiteral (these sizes must be numbers), DataDependent (control flow on values), CaptureError (the
    function failed while it was traced, or it returns no tensor).
    """
    names = _bindings(dims)
    actual = {b.name: flat[b.position].shape[b.dim] for b in names}
    function, held = _callable(program)
    watch = Watch(program)
    subject = Subject(watch, function, held, flat, spec)
    try:
        first, second, nodes, outputs = agree(subject, dims, actual)
    except (NeedsLiteral, DataDependent):
        raise
    except Exception as failure:
        where = place_of(failure)
        raise CaptureError(f"{where + ': ' if where else ''}{failure}") from failure
    finally:
        watch.end()
    guards = guards_of(first, second, actual)
    if not any(isinstance(o, torch.fx.Node) for o in outputs):
        raise NoTensorResult("the function returns no tensor, so there is nothing to compile")
    return Captured(
        graph=first.graph,
        inputs=_inputs(first, flat, spec, program),
        nodes=nodes,
        sizes=names,
        actual=tuple(actual.values()),
        constants=tuple((k, x) for k, x in enumerate(flat) if not isinstance(x, torch.Tensor)),
        shapes=tuple(
            (k, tuple(n if n is not None else int(t.shape[d]) for d, n in enumerate(row)))
            for k, (t, row) in enumerate(zip(flat, dims, strict=True))
            if row is not None
        ),
        guards=guards,
        outputs=tuple(o.name if isinstance(o, torch.fx.Node) else o for o in outputs),
        mutated=first.mutated,
        out_spec=first.out_spec,
        switches=first.switches,
    )


def _bindings(dims: Dims) -> tuple[SizeBinding, ...]:
    out: dict[str, SizeBinding] = {}
    for position, row in enumerate(dims):
        for d, name in enumerate(row or ()):
            if name is not None:
                out.setdefault(name, SizeBinding(name, position, d))
    return tuple(out.values())


def _inputs(trace: Trace, flat: Sequence[Any], spec: TreeSpec, program: Any) -> tuple[GraphInput, ...]:
    names = argument_names(program, flat, spec)
    out = []
    holders = [n for n in trace.graph.graph.nodes if n.op == "placeholder"]
    for node, position in zip(holders, trace.positions, strict=False):
        out.append(GraphInput(node.name, names[position], position))
    for node, (name, value) in zip(holders[len(trace.positions) :], trace.held.items(), strict=True):
        out.append(GraphInput(node.name, name, None, value))
    for node in trace.graph.graph.nodes:
        if node.op == "get_attr":
            out.append(GraphInput(node.name, node.name.strip("_"), None, getattr(trace.graph, node.target)))
    return tuple(out)


# ---- what is traced --------------------------------------------------------------------------------------------------
def _callable(program: Any) -> tuple[Callable[..., Any], dict[str, torch.Tensor]]:
    """The program as ``function(held, args, kwargs)``, and the tensors it holds (parameters and buffers) by name."""
    if isinstance(program, torch.export.ExportedProgram):
        program = exported_module(program)
    if not isinstance(program, torch.nn.Module):
        return lambda held, args, kwargs: program(*args, **kwargs), {}
    module = program
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return lambda held, args, kwargs: torch.func.functional_call(module, held, args, kwargs), tensors


def exported_module(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """The module of an exported program, without its checks of lengths (the capture makes its own)."""
    checks = "check_guards" in inspect.signature(program.module).parameters
    module = program.module(check_guards=False) if checks else program.module()
    module._forward_pre_hooks.clear()
    return module


def argument_names(program: Any, flat: Sequence[Any], spec: TreeSpec) -> tuple[str, ...]:
    """A readable, unique name for each flat argument, from the signature where there is one."""
    function = program.forward if isinstance(program, torch.nn.Module) else program
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    args, kwargs = tree_unflatten(list(range(len(flat))), spec)
    names = [""] * len(flat)
    for k, value in enumerate(args):
        _name(positional[k] if k < len(positional) else f"arg{k}", value, names)
    for key, value in kwargs.items():
        _name(str(key), value, names)
    return tuple(names)


def _name(stem: str, value: Any, names: list[str]) -> None:
    leaves = tree_flatten(value)[0]
    for k, position in enumerate(leaves):
        names[position] = stem if len(leaves) == 1 else f"{stem}{k}"
