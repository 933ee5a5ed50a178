"""Calls: which compiled variant a call belongs to, its buffers, its fallbacks, its gradients."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flashlight import backend as registry
from flashlight.backend import Run, Target
from flashlight.capture import capture
from flashlight.errors import (
    BackendUnavailable, DataDependent, FallbackRefused, InvalidInput, NeedsLiteral,
)
from flashlight.explain import Fallback, Kernels, KernelText, Report, report
from flashlight.expr import Const, Expr, Size, evaluate
from flashlight.lifted import Captured, Eager, Lifted, Region
from flashlight.lower import Tiling
from flashlight.pipeline import Analysis, Generated, Record, analyse, build, generate
from flashlight.program import Tensor
from flashlight.targets import assumed, detect


class FallbackWarning(UserWarning):
    """Part of a program runs unfused; filter this class to silence it."""


@dataclass
class Variant:
    """A compiled signature: how to recognise its calls and how to run them."""

    captured: Captured
    spec: TreeSpec
    count: int
    lifted: Lifted
    analyses: tuple[Analysis, ...]
    generated: tuple[Generated, ...]
    steps: tuple[Callable[[dict[str, Any], Sequence[int]], None], ...]
    record: Record
    backend: str
    whole: str | None  # why the whole call runs eagerly, if it does

    def __post_init__(self) -> None:
        self._checks = []
        for gi, shape in zip(self.captured.inputs, self.captured.shapes, strict=True):
            if gi.position is not None:
                meta = _placeholder(self.captured, gi.name)
                dims = [(d, n if isinstance(n, int) else compile(n, "size", "eval")) for d, n in enumerate(shape)]
                literal = [(d, n) for d, n in dims if isinstance(n, int)]
                symbolic = [(d, n) for d, n in dims if not isinstance(n, int)]
                self._checks.append((gi.position, meta.dtype, len(shape), literal, symbolic))
        self._reads = [(self.captured.inputs[b.input].position, b.dim) for b in self.captured.sizes]
        self._names = [b.name for b in self.captured.sizes]

    def match(self, flat: list[Any], spec: TreeSpec, device: torch.device) -> list[int] | None:
        """The call's sizes if it belongs here."""
        if len(flat) != self.count or spec != self.spec or device != self.device:
            return None
        for position, value in self.captured.constants:
            if type(flat[position]) is not type(value) or flat[position] != value:
                return None
        for position, dtype, rank, literal, _ in self._checks:
            t = flat[position]
            if not isinstance(t, torch.Tensor) or t.dtype is not dtype or t.ndim != rank:
                return None
            for d, n in literal:
                if t.shape[d] != n:
                    return None
        sizes = [flat[p].shape[d] for p, d in self._reads]
        env = dict(zip(self._names, sizes, strict=True))
        for position, _, _, _, symbolic in self._checks:
            for d, code in symbolic:
                if flat[position].shape[d] != eval(code, {"__builtins__": {}}, env):
                    return None
        return sizes if self.captured.holds(sizes) else None

    device: torch.device = torch.device("cpu")

    def run(self, flat: list[Any], sizes: list[int]) -> Any:
        env: dict[str, Any] = {}
        for gi in self.captured.inputs:
            env[gi.name] = gi.value if gi.position is None else flat[gi.position]
        for step in self.steps:
            step(env, sizes)
        leaves = [env[o] if isinstance(o, str) else o for o in self.lifted.outputs]
        return tree_unflatten(leaves, self.captured.out_spec)


class Optimized:
    """The callable that :func:`flashlight.optimize` returns: the user's values, signature and pytree."""

    def __init__(self, graph: Any, backend: str | None, strict: bool, tiling: Tiling | None):
        if not callable(graph) and not isinstance(graph, torch.export.ExportedProgram):
            raise InvalidInput(f"optimize takes a callable, module, graph module or exported program, not {type(graph).__name__}")
        if backend is not None:
            registry.get(backend)
        self.graph, self.backend, self.strict, self.tiling = graph, backend, strict, tiling
        self.eager = graph.module() if isinstance(graph, torch.export.ExportedProgram) else graph
        self._variants: list[Variant] = []
        self._seen: dict[Any, tuple[list[tuple[int, ...] | None], set[tuple[int, int]], set[tuple[int, int]]]] = {}
        self._warned: set[str] = set()
        self._eager_for: set[Any] = set()
        if not isinstance(graph, torch.nn.Module | torch.export.ExportedProgram):
            functools.update_wrapper(self, graph)

    # ---- calling -----------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat, spec = tree_flatten((args, kwargs))
        device = _device(flat)
        if any(isinstance(t, torch.Tensor) and t.numel() == 0 for t in flat):
            return self.eager(*args, **kwargs)  # nothing to reduce, nothing to gain
        for v in self._variants:
            sizes = v.match(flat, spec, device)
            if sizes is not None:
                break
        else:
            if _signature(flat, spec) in self._eager_for:
                return self.eager(*args, **kwargs)
            compiled = self._compile(args, kwargs, flat, spec, device)
            if compiled is None:
                return self.eager(*args, **kwargs)
            v = compiled
            self._variants.append(v)
            sizes = v.match(flat, spec, device)
            if sizes is None:
                raise InvalidInput("the compiled signature does not accept the call it was made from")
        if v.whole is not None:
            return self.eager(*args, **kwargs)
        if torch.is_grad_enabled() and self._wants_grad(flat, v):
            return self._with_grad(v, flat, sizes, args, kwargs)
        with torch.no_grad():
            return v.run(flat, sizes)

    @property
    def compilations(self) -> int:
        """How many signatures have been compiled so far."""
        return len(self._variants)

    def explain(self, *args: Any, **kwargs: Any) -> Report:
        """The report for this call; compiles the analysis, builds and runs nothing."""
        flat, spec = tree_flatten((args, kwargs))
        v = self._compile(args, kwargs, flat, spec, _device(flat), run=False)
        assert v is not None  # run=False raises instead
        own = v.generated

        def text(name: str) -> KernelText:
            if name == v.backend and not any(g.declined for g in own):
                return KernelText(name, tuple(s for g in own for s in g.sources))
            other = registry.get(name)
            made = [generate(a, assumed(name), other, Record(), self.tiling) for a in v.analyses]
            for g in made:
                if g.declined:
                    raise BackendUnavailable(f"{name} declines this program: {g.declined.reason}")
            return KernelText(name, tuple(s for g in made for s in g.sources))

        eager = tuple(s for s in v.lifted.steps if isinstance(s, Eager)) if v.lifted else ()
        extra = (Fallback("the whole call", v.whole, ""),) if v.whole and not any(g.declined for g in own) else ()
        kernels = Kernels(registry.names(), text)
        return report(v.analyses, own, eager, extra, kernels, v.record.timings, v.backend)

    # ---- compiling ---------------------------------------------------------------------------------------------
    def _compile(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], flat: list[Any], spec: TreeSpec, device: torch.device, run: bool = True
    ) -> Variant | None:
        name = self.backend or ("triton" if device.type == "cuda" else "cpu")
        backend = registry.get(name)
        target = detect(device, name)
        if run:
            if declined := backend.supports(target):
                raise BackendUnavailable(f"backend {name!r}: {declined.reason}")
        elif backend.supports(target):
            target = assumed(name)
        record = Record()
        try:
            captured, lifted, analyses = self._capture(args, kwargs, flat, spec, record)
        except DataDependent as error:
            if self.strict or not run:
                raise
            self._warn(f"runs eagerly: {error}")
            self._eager_for.add(_signature(flat, spec))
            return None
        generated = tuple(generate(a, target, backend, record, self.tiling) for a in analyses)
        eager = [s for s in lifted.steps if isinstance(s, Eager)]
        reasons = [f"{e.node}: {e.reason} ({e.origin})" for e in eager] + [g.declined.reason for g in generated if g.declined]
        if reasons and self.strict:
            raise FallbackRefused("strict=True, and this would run unfused: " + "; ".join(reasons))
        for reason in reasons:
            self._warn(f"part of the program runs unfused: {reason}")
        whole = next((g.declined.reason for g in generated if g.declined), None)
        steps = () if whole or not run else _steps(lifted, generated, [build(g, backend, record) for g in generated], device)
        v = Variant(captured, spec, len(flat), lifted, analyses, generated, steps, record, name, whole)
        v.device = device
        return v

    def _capture(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], flat: list[Any], spec: TreeSpec, record: Record
    ) -> tuple[Captured, Lifted, tuple[Analysis, ...]]:
        """Capture with the sizes that have changed between calls symbolic, and those the mathematics needs literal."""
        key = _signature(flat, spec)
        shapes = [tuple(t.shape) if isinstance(t, torch.Tensor) else None for t in flat]
        first, dynamic, literal = self._seen.setdefault(key, (shapes, set(), set()))
        for p, (a, b) in enumerate(zip(first, shapes, strict=True)):
            if a is not None and b is not None:
                dynamic |= {(p, d) for d, (m, n) in enumerate(zip(a, b, strict=True)) if m != n}
        while True:
            captured = record("capture", lambda: capture(
                self.graph, args, kwargs, literal=frozenset(literal), dynamic=frozenset(dynamic - literal)))
            try:
                lifted, analyses = analyse(captured, record)
            except NeedsLiteral as need:
                more = _positions(captured, need.sizes) - literal
                if not more:
                    raise
                literal |= more
                continue
            return captured, lifted, analyses

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"flashlight: {getattr(self, '__name__', type(self.graph).__name__)} {message}", FallbackWarning, stacklevel=4)

    # ---- gradients ---------------------------------------------------------------------------------------------
    def _wants_grad(self, flat: list[Any], v: Variant) -> bool:
        tensors = [*flat, *(gi.value for gi in v.captured.inputs if gi.position is None)]
        return any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)

    def _with_grad(self, v: Variant, flat: list[Any], sizes: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Fused forward; the backward runs the user's own program again under autograd (training is not fused yet)."""
        if any(isinstance(s, Eager) for s in v.lifted.steps):
            return self.eager(*args, **kwargs)
        held = [gi.value for gi in v.captured.inputs if gi.position is None and gi.value is not None]
        own = [t for t in flat if isinstance(t, torch.Tensor)]
        out_spec: list[TreeSpec] = []

        def forward(tensors: Sequence[torch.Tensor]) -> list[Any]:
            leaves, outs = tree_flatten(v.run(_refill(flat, tensors), sizes))
            out_spec.append(outs)
            return leaves

        def again(tensors: Sequence[torch.Tensor]) -> list[Any]:
            a, k = tree_unflatten(_refill(flat, tensors), v.spec)
            return tree_flatten(self.eager(*a, **k))[0]

        leaves = _Recompute.apply(forward, again, len(own), *own, *held)
        return tree_unflatten(list(leaves), out_spec[0])


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Any, again: Any, own: int, *tensors: torch.Tensor) -> tuple[Any, ...]:
        ctx.again, ctx.own = again, own
        ctx.save_for_backward(*tensors)
        return tuple(forward(tensors[:own]))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        with torch.enable_grad():
            own = [t.detach().requires_grad_(t.requires_grad) for t in tensors[: ctx.own]]
            outs = ctx.again(own)
            pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if isinstance(o, torch.Tensor) and o.requires_grad]
            wanted = [t for t in (*own, *tensors[ctx.own :]) if t.requires_grad]
            got = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
        return (None, None, None, *(next(got) if t.requires_grad else None for t in tensors))


# ---- steps -----------------------------------------------------------------------------------------------------------
def _steps(lifted: Lifted, generated: tuple[Generated, ...], runs: list[tuple[Run, ...]], device: torch.device) -> tuple[Any, ...]:
    steps: list[Any] = []
    regions = iter(zip(generated, runs, strict=True))
    for s in lifted.steps:
        if isinstance(s, Region):
            g, built = next(regions)
            names = g.analysis.plan.program.sizes
            where = [_index_of(lifted.captured, n) for n in names]
            for low, run in zip(g.lowered, built, strict=True):
                steps.append(_Launch(low.kernel.inputs, low.kernel.outputs, names, where, run, device))
        else:
            steps.append(_EagerStep(lifted.captured, s))
    return tuple(steps)


class _Launch:
    """Allocate a kernel's outputs and run it."""

    def __init__(self, inputs: Any, outputs: Any, names: Sequence[str], where: list[int], run: Run, device: torch.device):
        self.inputs = [b.name for b in inputs]
        self.outputs = [(b.name, getattr(torch, b.dtype), _shape(b.shape, names)) for b in outputs]
        self.where, self.run, self.device = where, run, device

    def __call__(self, env: dict[str, Any], sizes: Sequence[int]) -> None:
        own = [sizes[k] for k in self.where]
        outs = []
        for name, dtype, shape in self.outputs:
            env[name] = torch.empty(shape(own), dtype=dtype, device=self.device)
            outs.append(env[name])
        self.run([env[n] for n in self.inputs], outs, own)


class _EagerStep:
    """One node of the graph, run as it is."""

    def __init__(self, captured: Captured, step: Eager):
        self.node = next(n for n in captured.graph.graph.nodes if n.name == step.node)
        self.names = {b.name: k for k, b in enumerate(captured.sizes)}

    def __call__(self, env: dict[str, Any], sizes: Sequence[int]) -> None:
        def value(n: torch.fx.Node) -> Any:
            if n.name in env:
                return env[n.name]
            symbolic = n.meta.get("val")
            if isinstance(symbolic, torch.SymInt):
                return _sym(symbolic, n, env, value)
            raise KeyError(n.name)

        args, kwargs = torch.fx.map_arg((self.node.args, self.node.kwargs), value)
        env[self.node.name] = self.node.target(*args, **kwargs)


def _sym(symbolic: torch.SymInt, n: torch.fx.Node, env: dict[str, Any], value: Callable[[torch.fx.Node], Any]) -> Any:
    """Size arithmetic is replayed from the tensors at hand."""
    args, kwargs = torch.fx.map_arg((n.args, n.kwargs), value)
    env[n.name] = n.target(*args, **kwargs)  # type: ignore[operator]
    return env[n.name]


def _shape(shape: tuple[Expr, ...], names: Sequence[str]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    position = {n: k for k, n in enumerate(names)}

    def one(e: Expr) -> Callable[[Sequence[int]], int]:
        if isinstance(e, Const):
            n = int(e.value)
            return lambda sizes: n
        if isinstance(e, Size):
            k = position[e.name]
            return lambda sizes: sizes[k]
        return lambda sizes: int(evaluate(e, lambda leaf: sizes[position[leaf.name]]))  # type: ignore[union-attr]

    parts = [one(e) for e in shape]
    return lambda sizes: tuple(p(sizes) for p in parts)


# ---- small questions -------------------------------------------------------------------------------------------------
def _device(flat: Sequence[Any]) -> torch.device:
    devices = list(dict.fromkeys(t.device for t in flat if isinstance(t, torch.Tensor) and t.ndim > 0))
    if not devices:
        devices = list(dict.fromkeys(t.device for t in flat if isinstance(t, torch.Tensor)))
    if not devices:
        raise InvalidInput("no argument is a tensor; flashlight needs at least one to know shapes and device")
    if len(devices) > 1:
        raise InvalidInput(f"the tensors are on different devices: {', '.join(map(str, devices))}; move them to one")
    return devices[0]


def _refill(flat: Sequence[Any], tensors: Sequence[torch.Tensor]) -> list[Any]:
    fresh = iter(tensors)
    return [next(fresh) if isinstance(t, torch.Tensor) else t for t in flat]


def _placeholder(captured: Captured, name: str) -> torch.Tensor:
    return next(n for n in captured.graph.graph.nodes if n.op == "placeholder" and n.name == name).meta["val"]  # type: ignore[no-any-return]


def _index_of(captured: Captured, name: str) -> int:
    return next(k for k, b in enumerate(captured.sizes) if b.name == name)


def _positions(captured: Captured, sizes: frozenset[str]) -> set[tuple[int, int]]:
    """Every (argument, dim) whose extent mentions one of these sizes."""
    out = set()
    for gi, shape in zip(captured.inputs, captured.shapes, strict=True):
        for d, n in enumerate(shape):
            if gi.position is not None and isinstance(n, str) and set(compile(n, "size", "eval").co_names) & sizes:
                out.add((gi.position, d))
    return out


def _signature(flat: Sequence[Any], spec: TreeSpec) -> Any:
    """What two calls share when only their lengths differ."""
    return (spec, tuple((t.dtype, t.ndim) if isinstance(t, torch.Tensor) else repr(t) for t in flat))
