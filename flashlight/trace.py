"""One trace of the user's function on fake tensors, which sees its shapes as lengths."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo  # fake tensors import it when first used: a second, which belongs here and not in a first call
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flashlight.errors import DataDependent, FlashlightError, NeedsLiteral
from flashlight.expr import Expr
from flashlight.kept import Watch
from flashlight.lengths import Length, Real, Sizes, plain, sizes_of
from flashlight.origins import place_of, stack

Dims = tuple[tuple[Any, ...] | None, ...]
"""Per flat argument: None for what is no tensor, else per dimension a size's name or None where it is literal."""


TENSOR = object()  # stands for one that was returned


class TooLong(FlashlightError):
    """A trace calls more operators than it may."""


@dataclass(frozen=True)
class Subject:
    """What is traced: ``function(held, args, kwargs)``, what it keeps of its traces, the tensors it holds, and the
    flattened call."""

    watch: Watch
    function: Callable[..., Any]
    held: dict[str, torch.Tensor]
    flat: Sequence[Any]
    spec: TreeSpec


@dataclass(frozen=True)
class Trace:
    graph: torch.fx.GraphModule
    sizes: Sizes
    outputs: tuple[Any, ...]  # a node or a plain value
    mutated: tuple[tuple[int, str], ...]
    held: dict[str, torch.Tensor]
    positions: tuple[int, ...]  # of the tensor arguments, in placeholder order (held ones follow)
    out_spec: TreeSpec
    count: int  # of operators called
    switches: bool  # does the function turn gradients on or off


SURROUNDINGS = (  # what they do to values is in the graph: casts, and nothing
    torch.ops.aten._assert_tensor_metadata.default,  # the dtype is part of the signature
    torch._C._set_grad_enabled,
    torch.amp.autocast_mode._enter_autocast,
    torch.amp.autocast_mode._exit_autocast,
)


def trace(subject: Subject, dims: Dims, values: dict[str, int], limit: int) -> Trace:
    """Trace at the lengths ``values``.  Raises DataDependent, NeedsLiteral, TooLong, and what the function raises."""
    function, held, flat, spec = subject.function, subject.held, subject.flat, subject.spec
    sizes = Sizes(values)
    watch = subject.watch
    following = _Following(sizes, limit, watch)
    positions = tuple(k for k, x in enumerate(flat) if isinstance(x, torch.Tensor))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    specs: list[TreeSpec] = []
    results: list[Any] = []
    written: list[int] = []

    def called(tensors: Sequence[torch.Tensor]) -> list[Any]:
        watch.given(tensors[: len(positions)])
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, torch.Tensor) else x for x in flat]
        args, kwargs = tree_unflatten(leaves, spec)
        with following:
            out = function(dict(zip(held, given, strict=True)), args, kwargs)
        flat_out, out_spec = tree_flatten(out)
        specs.append(out_spec)
        results.extend(flat_out)
        return flat_out

    def traced(*tensors: torch.Tensor) -> list[torch.Tensor]:
        wrapped = [FunctionalTensor.to_functional(t) for t in tensors]
        flat_out = called(wrapped)
        changed = [
            k
            for k, w in enumerate(wrapped)
            if torch._functionalize_has_data_mutation(w.elem)  # type: ignore[attr-defined]
        ]
        written.extend(changed)
        return [_unwrapped(t) for t in (*flat_out, *(wrapped[k] for k in changed)) if isinstance(t, torch.Tensor)]

    def functional(*tensors: torch.Tensor) -> list[torch.Tensor]:
        off = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize))
        with off, FunctionalTensorMode(pre_dispatch=True, export=True):
            return traced(*tensors)

    def mapped(*tensors: torch.Tensor) -> list[torch.Tensor]:
        """For what works below the operators that are seen otherwise: vmap's rules, and TorchScript."""
        with sdpa_kernel(SDPBackend.MATH):
            return [t for t in called(tensors) if isinstance(t, torch.Tensor)]

    with fake, torch.no_grad(), fx_traceback.preserve_node_meta(), _quiet():
        graph: torch.fx.GraphModule | None = None
        examples = [_fake(flat[k], dims[k], values) for k in positions] + [_fake(t, None, {}) for t in held.values()]
        try:
            graph = _seen(lambda: make_fx(functional, pre_dispatch=True, tracing_mode="real")(*examples))
            if graph is None:
                for noted in (specs, results, written):
                    noted.clear()
                following.count = 0
                graph = _seen(lambda: make_fx(torch.func.functionalize(mapped), tracing_mode="real")(*examples))
            if graph is None:
                raise RuntimeError("something in it computes where PyTorch cannot follow (compiled code, say)")
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise DataDependent(_data_dependent(error)) from error
        except RuntimeError as error:
            if "tracing tensor" in str(error) or "_local_scalar_dense" in str(error):
                raise DataDependent(_data_dependent(error)) from error
            raise
        finally:
            results[:] = [TENSOR if isinstance(x, torch.Tensor) else x for x in results]
            if graph is None:
                watch.fail()
    if not watch.forgotten():
        raise RuntimeError("it keeps a tensor that it computes from its arguments (in a list, an attribute, a cache)")
    switches = any(node.target is torch._C._set_grad_enabled for node in graph.graph.nodes)
    for node in reversed(graph.graph.nodes):
        if node.target in SURROUNDINGS or getattr(node.target, "namespace", "") == "profiler":
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    (ending,) = (n for n in graph.graph.nodes if n.op == "output")
    nodes = iter(ending.args[0])
    outputs = tuple(next(nodes) if x is TENSOR else x for x in results)
    mutated = tuple((positions[k], next(nodes).name) for k in written if k < len(positions))
    return Trace(graph, sizes, outputs, mutated, held, positions, specs[0], following.count, switches)


def _seen(make: Callable[[], torch.fx.GraphModule]) -> torch.fx.GraphModule | None:
    """A graph in which every tensor comes from an argument, or is real; None where some were made unseen."""
    try:
        graph = make()
    except RuntimeError as error:
        if "FunctionalTensor on its own" not in str(error):
            raise
        return None
    constants = [getattr(graph, str(n.target)) for n in graph.graph.nodes if n.op == "get_attr"]
    return None if any(isinstance(x, FakeTensor | FunctionalTensor) for x in constants) else graph


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch logs every error inside a fake tensor's operator; ours is told once, with the user's line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _unwrapped(t: torch.Tensor) -> torch.Tensor:
    if not isinstance(t, FunctionalTensor):
        return t
    torch._sync(t)  # type: ignore[attr-defined,no-untyped-call]
    return torch._from_functional_tensor(t.elem)


def _fake(t: torch.Tensor, row: tuple[Any, ...] | None, values: dict[str, int]) -> torch.Tensor:
    """A fake tensor of the given sizes whose dimensions lie in memory in the same order."""
    shape = [values[n] if (n := row[d] if row else None) else int(t.shape[d]) for d in range(t.ndim)]
    order = sorted(range(t.ndim), key=lambda d: (-t.stride()[d], d))
    strides, step = [0] * t.ndim, 1
    for d in reversed(order):
        if t.stride(d) != 0 or t.shape[d] == 1:
            strides[d], step = step, step * shape[d]
    return torch.empty_strided(shape, strides, dtype=t.dtype, device=t.device)


class _Following(TorchFunctionMode):
    """Hands out shapes as lengths, and notes the user's line at which each operator is called."""

    _SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]

    def __init__(self, sizes: Sizes, limit: int, watch: Watch):
        super().__init__()
        self.sizes, self.count, self.limit, self.watch = sizes, 0, limit, watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sizes = self.sizes
        self.count += 1
        if self.count > self.limit:
            raise TooLong(f"the function calls more than {self.limit} operators")
        if func is torch.Tensor.size or func == self._SHAPE or func is torch.ops.aten.sym_size.int:
            shape = torch.Size(map(sizes.dimension, func(args[0]) if func == self._SHAPE else args[0].shape))
            which = args[1] if len(args) > 1 else kwargs.get("dim")
            return shape if which is None else shape[which]
        if func in (torch.Tensor.numel, torch.Tensor.nelement, torch.numel):
            out: Any = 1
            for n in args[0].shape:
                out = out * sizes.dimension(n)
            return out
        if func is torch.Tensor.__len__:
            return len(args[0])
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and args:
            data = args[-1]
            if isinstance(data, Length | Real):  # its value would be a constant of the graph
                like = {"device": args[0].device} if func is torch.Tensor.new_tensor else {}
                dtype = {"dtype": torch.int64 if isinstance(data, Length) else torch.get_default_dtype()}
                return torch.full((), plain(data), **{**like, **dtype, **kwargs})
            if lengths := _lengths(data):
                raise NeedsLiteral(frozenset().union(*map(sizes_of, lengths)), "a tensor is made of lengths")
        fx_traceback.current_meta["stack_trace"] = stack(sys._getframe(1))
        out = func(*map(plain, args), **plain(kwargs))
        self.watch.computed(out, args, kwargs)
        return out


def _lengths(data: Any) -> list[Expr]:
    return [x.expr for x in tree_flatten(data)[0] if isinstance(x, Length | Real)]


def _data_dependent(error: BaseException) -> str:
    where = place_of(error)
    return (
        f"{where + ': ' if where else ''}control flow or a shape depends on the values of a tensor, so the function "
        "has no one graph; use torch.where, or a mask, instead of the branch"
    )
