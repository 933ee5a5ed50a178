"""From a user's function to one functional ATen graph in which every number that depends on lengths is known to.

The function is traced on fake tensors, twice, at two sets of made-up sizes.  It sees shapes as :class:`Length`, so what
it computes from them is followed exactly; what PyTorch derives inside (a flattened dimension) is found as the
expression that agrees at both sets.  A number that differs between the traces and is no such expression, or another
sequence of operators, means that the function depends on the lengths in a way that cannot be followed: then they are
literal, and another length is another capture.
"""

from __future__ import annotations

import inspect
import linecache
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo  # fake tensors import it when first used: a second, which belongs here and not in a first call
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flashlight.errors import CaptureError, DataDependent, FlashlightError, NeedsLiteral
from flashlight.expr import Const, Expr
from flashlight.lengths import Length, Real, Sizes, plain, same, sizes_of
from flashlight.lifted import Captured, GraphInput, SizeBinding, Traced
from flashlight.program import Origin

Dims = tuple[tuple[Any, ...] | None, ...]
"""Per flat argument: None for what is no tensor, else per dimension a size's name or None where it is literal."""

LIMIT = 20000  # operators of one trace
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


class NoTensorResult(CaptureError):
    """The function returns no tensor, so there is nothing to compile."""


class Untraceable(FlashlightError):
    """The two traces disagree: what the function does depends on its lengths in a way that cannot be followed."""


def capture(program: Any, flat: Sequence[Any], spec: TreeSpec, dims: Dims) -> Captured:
    """Capture ``program`` on the flattened call ``(args, kwargs)``.

    Raises NeedsLiteral (these sizes must be numbers), DataDependent (control flow on values), CaptureError (the
    function failed while it was traced, or it returns no tensor).
    """
    names = _bindings(dims)
    actual = {b.name: flat[b.position].shape[b.dim] for b in names}
    function, held = _callable(program)
    failure: Exception | None = None
    for choose in (larger, smaller) if actual else (larger,):
        try:
            first = _trace(function, held, flat, spec, dims, choose(actual, 0))
            second = _trace(function, held, flat, spec, dims, choose(actual, 1)) if actual else first
            nodes, outputs = _pair(first, second)
            break
        except (NeedsLiteral, DataDependent):
            raise
        except Exception as error:
            failure = failure or error
    else:
        if actual:  # it may be the made-up sizes that the function does not like
            raise NeedsLiteral(frozenset(actual), f"tracing with other lengths failed: {failure}") from failure
        where = _origin_of(failure) if failure else ""
        raise CaptureError(f"{where + ': ' if where else ''}{failure}") from failure
    wrong = [g for g in first.sizes.guards if bool(Sizes(actual).value(g.condition)) != g.outcome]
    wrong += [g for g in second.sizes.guards if g not in first.sizes.guards]
    if wrong:
        sizes = frozenset().union(*(sizes_of(g.condition) for g in wrong))
        raise NeedsLiteral(sizes, f"the program does something else depending on {wrong[0].condition}")
    if not any(isinstance(o, torch.fx.Node) for o in outputs):
        raise NoTensorResult("the function returns no tensor, so there is nothing to compile")
    return Captured(
        graph=first.graph,
        inputs=first.inputs(flat, spec, program),
        nodes=nodes,
        sizes=names,
        actual=tuple(actual.values()),
        constants=tuple((k, x) for k, x in enumerate(flat) if not isinstance(x, torch.Tensor)),
        shapes=tuple(
            (k, tuple(n if n is not None else int(t.shape[d]) for d, n in enumerate(row)))
            for k, (t, row) in enumerate(zip(flat, dims, strict=True))
            if row is not None
        ),
        guards=tuple(first.sizes.guards),
        outputs=tuple(o.name if isinstance(o, torch.fx.Node) else o for o in outputs),
        mutated=first.mutated,
        out_spec=first.out_spec,
    )


# ---- one trace -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Trace:
    graph: torch.fx.GraphModule
    sizes: Sizes
    outputs: tuple[Any, ...]  # a node or a plain value
    mutated: tuple[tuple[int, str], ...]
    held: dict[str, torch.Tensor]
    positions: tuple[int, ...]  # of the tensor arguments, in placeholder order (held ones follow)
    out_spec: TreeSpec

    def inputs(self, flat: Sequence[Any], spec: TreeSpec, program: Any) -> tuple[GraphInput, ...]:
        names = argument_names(program, flat, spec)
        out = []
        holders = [n for n in self.graph.graph.nodes if n.op == "placeholder"]
        for node, position in zip(holders, self.positions, strict=False):
            out.append(GraphInput(node.name, names[position], position))
        for node, (name, value) in zip(holders[len(self.positions) :], self.held.items(), strict=True):
            out.append(GraphInput(node.name, name, None, value))
        for node in self.graph.graph.nodes:
            if node.op == "get_attr":
                out.append(GraphInput(node.name, node.name.strip("_"), None, getattr(self.graph, node.target)))
        return tuple(out)


def _trace(
    function: Callable[..., Any],
    held: dict[str, torch.Tensor],
    flat: Sequence[Any],
    spec: TreeSpec,
    dims: Dims,
    values: dict[str, int],
) -> _Trace:
    sizes = Sizes(values)
    positions = tuple(k for k, x in enumerate(flat) if isinstance(x, torch.Tensor))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    specs: list[TreeSpec] = []
    results: list[Any] = []
    written: list[int] = []

    def traced(*tensors: torch.Tensor) -> list[torch.Tensor]:
        wrapped = [FunctionalTensor.to_functional(t) for t in tensors]
        given = iter(wrapped)
        leaves = [next(given) if isinstance(x, torch.Tensor) else x for x in flat]
        args, kwargs = tree_unflatten(leaves, spec)
        with _Following(sizes):
            out = function(dict(zip(held, given, strict=True)), args, kwargs)
        flat_out, out_spec = tree_flatten(out)
        specs.append(out_spec)
        results.extend(flat_out)
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

    with fake, torch.no_grad(), fx_traceback.preserve_node_meta(), _quiet():
        examples = [_fake(flat[k], dims[k], values) for k in positions] + [_fake(t, None, {}) for t in held.values()]
        try:
            graph = make_fx(functional, pre_dispatch=True, tracing_mode="real")(*examples)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise DataDependent(_data_dependent(error)) from error
        except RuntimeError as error:
            if "tracing tensor" in str(error) or "_local_scalar_dense" in str(error):
                raise DataDependent(_data_dependent(error)) from error
            raise
    for node in list(graph.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # the dtype is part of the signature
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    (ending,) = (n for n in graph.graph.nodes if n.op == "output")
    nodes = iter(ending.args[0])
    outputs = tuple(next(nodes) if isinstance(x, torch.Tensor) else x for x in results)
    mutated = tuple((positions[k], next(nodes).name) for k in written if k < len(positions))
    return _Trace(graph, sizes, outputs, mutated, held, positions, specs[0])


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

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes, self.count = sizes, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sizes = self.sizes
        self.count += 1
        if self.count > LIMIT:
            raise Untraceable(f"the function calls more than {LIMIT} operators")
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
        fx_traceback.current_meta["stack_trace"] = _stack(sys._getframe(1))
        return func(*map(plain, args), **plain(kwargs))


def _lengths(data: Any) -> list[Expr]:
    return [x.expr for x in tree_flatten(data)[0] if isinstance(x, Length | Real)]


# ---- two traces become one ------------------------------------------------------------------------------------------
def _pair(a: _Trace, b: _Trace) -> tuple[tuple[Traced, ...], tuple[Any, ...]]:
    """Every number of the graph as a literal or as an expression over sizes.  Raises Untraceable."""
    mine, other = list(a.graph.graph.nodes), list(b.graph.graph.nodes)
    if [(n.op, str(n.target)) for n in mine] != [(n.op, str(n.target)) for n in other]:
        raise Untraceable("another length makes it call other operators")
    twin = dict(zip(mine, other, strict=True))

    def number(x: int | float, y: int | float) -> Any:
        if same(x, y):
            return x
        for e in a.sizes.candidates(x):
            if same(b.sizes.value(e), y):
                return e
        for e in b.sizes.candidates(y):
            if same(a.sizes.value(e), x):
                return e
        raise Untraceable(f"a number is {x} at one length and {y} at another")

    def match(x: Any, y: Any) -> Any:
        match x:
            case torch.fx.Node():
                if twin[x] is not y:
                    raise Untraceable("another length makes it use other values")
                return x
            case bool() | None | str():
                if x != y:
                    raise Untraceable(f"an argument is {x} at one length and {y} at another")
                return x
            case int() | float():
                return number(x, y)
            case list() | tuple():
                return tuple(match(p, q) for p, q in zip(x, y, strict=True))
            case dict():
                return {k: match(v, y[k]) for k, v in x.items()}
        return x

    def shape(x: torch.Tensor, y: torch.Tensor) -> tuple[Expr, ...]:
        return tuple(_constant(number(int(m), int(n))) for m, n in zip(x.shape, y.shape, strict=True))

    nodes = []
    for n, m in twin.items():
        if n.op == "output":
            continue
        vals, others = _tensors(n.meta.get("val")), _tensors(m.meta.get("val"))
        if n.op == "get_attr":
            vals = others = [getattr(a.graph, n.target)]
        shapes = tuple(shape(x, y) for x, y in zip(vals, others, strict=True))
        dtypes = tuple(dtype_name(x.dtype) for x in vals)
        nodes.append(Traced(n, match(n.args, m.args), match(n.kwargs, m.kwargs), shapes, dtypes, _origin(n)))
    outputs = []
    for x, y in zip(a.outputs, b.outputs, strict=True):
        outputs.append(x.expr if isinstance(x, Length | Real) else match(x, y) if not isinstance(x, Expr) else x)
    return tuple(nodes), tuple(outputs)


def _constant(x: Any) -> Expr:
    return Const(x) if isinstance(x, int) else x


def _tensors(val: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(val)[0] if isinstance(t, torch.Tensor)]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- sizes -----------------------------------------------------------------------------------------------------------
def _bindings(dims: Dims) -> tuple[SizeBinding, ...]:
    out: dict[str, SizeBinding] = {}
    for position, row in enumerate(dims):
        for d, name in enumerate(row or ()):
            if name is not None:
                out.setdefault(name, SizeBinding(name, position, d))
    return tuple(out.values())


def larger(actual: dict[str, int], which: int) -> dict[str, int]:
    """Made-up sizes: multiples of the actual ones (so that what divides these divides those) by distinct primes."""
    primes = _primes()
    used: set[int] = set()
    out = {}
    for name, n in actual.items():
        for _ in range(which + 1):
            p = next(p for p in primes if p not in used and p * n >= 1000)
            used.add(p)
        out[name] = n * p
    return out


def smaller(actual: dict[str, int], which: int) -> dict[str, int]:
    """Made-up sizes for functions with a longest length (slices of a table, say): distinct primes below the actual
    sizes, but for those that are too small to have some."""
    out = larger(actual, which)
    used: set[int] = set()
    for name, n in actual.items():
        below = [p for p in _primes() if p < n and p not in used]
        if len(below) > 1 and n >= 16:
            out[name] = below[-1 - which]
            used |= {below[-1], below[-2]}
    return out


def _primes() -> list[int]:
    return [p for p in range(7, 2500) if all(p % q for q in range(2, int(p**0.5) + 1))]


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


# ---- the user's line -------------------------------------------------------------------------------------------------
def _users_frames(frame: Any) -> Iterator[Any]:
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_HERE, _TORCH, "<frozen", "<eval_with_key>")) and "contextlib" not in file:
            yield frame
        frame = frame.f_back


def _stack(frame: Any) -> str:
    """The line of the traced function that is running, as ``file\\nline``."""
    for f in _users_frames(frame):
        return f"{f.f_code.co_filename}\n{f.f_lineno}"
    return ""


def _origin(node: torch.fx.Node) -> Origin:
    file, _, line = (node.meta.get("stack_trace") or node.stack_trace or "").partition("\n")
    if not line.isdigit():
        return Origin((node.name,))
    return Origin((node.name,), file, int(line), linecache.getline(file, int(line)).strip() or None)


def users_line(error: BaseException) -> tuple[str, int, str] | None:
    """File, line and text of the innermost line of the user's that an exception came through."""
    tb, found = error.__traceback__, None
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if next(_users_frames(tb.tb_frame), None) is tb.tb_frame:
            found = (file, tb.tb_lineno, linecache.getline(file, tb.tb_lineno).strip())
        tb = tb.tb_next
    return found


def _origin_of(error: BaseException) -> str:
    where = users_line(error)
    return f"{where[0]}:{where[1]}" if where else ""


def _data_dependent(error: BaseException) -> str:
    where = _origin_of(error)
    return (
        f"{where + ': ' if where else ''}control flow or a shape depends on the values of a tensor, so the function "
        "has no one graph; use torch.where, or a mask, instead of the branch"
    )
