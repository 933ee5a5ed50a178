"""Calls: which compiled variant a call belongs to, what is compiled when none fits, fallbacks, gradients."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from flashlight import backend as registry
from flashlight import config
from flashlight.capture import NoTensorResult, capture
from flashlight.dims import History
from flashlight.errors import BackendUnavailable, CaptureError, FallbackRefused, InvalidInput, NeedsLiteral
from flashlight.lifted import Eager, Lifted
from flashlight.lower import Tiling
from flashlight.origins import users_line
from flashlight.pipeline import Analysis, Record, analyse, generate
from flashlight.replay import Recognised
from flashlight.report import Fallback, Kernels, KernelText, Report, report
from flashlight.targets import assumed, detect
from flashlight.trace import Dims
from flashlight.tune import Step, tuner_for
from flashlight.variant import Variant, steps_of


class FallbackWarning(UserWarning):
    """Part of a program runs unfused; filter this class to silence it."""


class _RunEagerly(Exception):
    """This call is left to the user's own function, for this reason."""


class Optimized:
    """The callable that :func:`flashlight.optimize` returns: the user's values, signature and pytree."""

    def __init__(self, graph: Any, backend: str | None, strict: bool, tiling: Tiling | None):
        exported = isinstance(graph, torch.export.ExportedProgram)
        if not callable(graph) and not exported:
            raise InvalidInput(
                f"optimize takes a callable, module, graph module or exported program, not {type(graph).__name__}"
            )
        self.backend = backend or config.BACKEND.get()
        if self.backend is not None:
            registry.get(self.backend)
        self.graph, self.strict, self.tiling = graph, strict, tiling
        self.eager: Callable[..., Any] = graph.module() if exported else graph
        self._variants: list[Variant] = []
        self._known: dict[Any, Recognised] = {}
        self._histories: dict[Any, History] = {}
        self._eager_for: dict[Any, str] = {}
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        if not isinstance(graph, torch.nn.Module) and not exported:
            functools.update_wrapper(self, graph)

    # ---- calling -----------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat: list[Any] = list(args)
        spec: TreeSpec | None = None  # of nothing but tensors, the common call, there is nothing to take apart
        if kwargs or {*map(type, args)} != TENSORS:
            flat, spec = tree_flatten((args, kwargs))
        try:
            key = _key(flat, spec)
        except (RuntimeError, NotImplementedError):  # no shape, or no strides
            if not (why := _without_strides(flat)):
                raise
            return self._unread(why, args, kwargs)
        if torch._C._is_any_autocast_enabled():
            key = (key, _autocast())
        found = self._known.get(key)
        if found is None:
            if spec is None:
                flat, spec = tree_flatten((args, kwargs))
            if why := _without_strides(flat):
                return self._unread(why, args, kwargs)
            device = _device(flat)
            if any(isinstance(t, torch.Tensor) and t.numel() == 0 for t in flat):
                return self.eager(*args, **kwargs)  # nothing to reduce, nothing to gain
            try:
                found = Recognised(*self._find(flat, spec, device))
            except _RunEagerly:
                return self.eager(*args, **kwargs)
            except NoTensorResult:
                raise
            except CaptureError as error:
                return self._after_failed_capture(error, flat, spec, args, kwargs)
            if len(self._known) > 4096:
                self._known.clear()
            self._known[key] = found
        v = found.variant
        if v.whole is not None:
            return self.eager(*args, **kwargs)
        if not torch.is_grad_enabled():
            return found.run(flat)
        if _wants_grad(flat, v):
            return self._with_grad(found, flat, args, kwargs)
        with torch.no_grad():
            return found.run(flat)

    @property
    def compilations(self) -> int:
        """How many signatures have been compiled so far."""
        return len(self._variants)

    def explain(self, *args: Any, **kwargs: Any) -> Report:
        """The report for this call; compiles the analysis, builds and runs nothing.

        Raises what a call would raise, and DataDependent or CaptureError where a call would run eagerly.
        """
        flat, spec = tree_flatten((args, kwargs))
        if why := _without_strides(flat):
            raise InvalidInput(why)
        v = self._compile(flat, spec, _device(flat), run=False)

        def text(name: str) -> KernelText:
            if name == v.backend and not any(g.declined for g in v.generated):
                return KernelText(name, tuple(s for g in v.generated for s in g.sources))
            made = [generate(a, assumed(name), registry.get(name), Record(), self.tiling) for a in v.analyses]
            for g in made:
                if g.declined:
                    raise BackendUnavailable(f"{name} declines this program: {g.declined.reason}")
            return KernelText(name, tuple(s for g in made for s in g.sources))

        eager = tuple(s for s in v.lifted.steps if isinstance(s, Eager) and s.reason)
        extra = (Fallback("the whole call", v.whole, ""),) if v.whole else ()
        kernels = Kernels(registry.names(), text)
        return report(v.analyses, v.generated, eager, extra, kernels, v.record.timings, v.backend, v.tuner)

    # ---- compiling ---------------------------------------------------------------------------------------------
    def _find(self, flat: list[Any], spec: TreeSpec, device: torch.device) -> tuple[Variant, tuple[int, ...]]:
        """The variant that this call belongs to, compiled if need be."""
        with self._lock:
            casts = _autocast()
            for v in self._variants:
                if v.casts == casts and (sizes := v.match(flat, spec, device)) is not None:
                    return v, sizes
            if _signature(flat, spec) in self._eager_for:
                raise _RunEagerly
            v = self._compile(flat, spec, device)
            self._variants.append(v)
            sizes = v.match(flat, spec, device)
            if sizes is None:
                raise InvalidInput("the compiled signature does not accept the call it was made from")
            return v, sizes

    def _compile(self, flat: list[Any], spec: TreeSpec, device: torch.device, run: bool = True) -> Variant:
        name = self.backend or ("triton" if device.type == "cuda" else "cpu")
        backend = registry.get(name)
        target = detect(device, name)
        if declined := backend.supports(target):
            if run:
                raise BackendUnavailable(f"backend {name!r}: {declined.reason}")
            target = assumed(name)
        if run and isinstance(backend, registry.Startable):
            backend.start(target)
        record = Record()
        lifted, analyses = self._understand(flat, spec, record)
        sizes = {b.name: int(flat[b.position].shape[b.dim]) for b in lifted.captured.sizes}
        tuner = None if self.tiling else tuner_for(name, target, device, sizes)
        recall = tuner.recall if tuner else lambda nest, program: None
        generated = tuple(generate(a, target, backend, record, self.tiling, recall) for a in analyses)
        eager = [s for s in lifted.steps if isinstance(s, Eager) and s.reason]
        reasons = [f"{e.reason} ({e.origin})" for e in eager]
        reasons += [g.declined.reason for g in generated if g.declined]
        if reasons and self.strict:
            raise FallbackRefused("strict=True, and this would run unfused: " + "; ".join(reasons))
        if run:
            for reason in reasons:
                self._warn(f"part of the program runs unfused: {reason}")
        whole = next((g.declined.reason for g in generated if g.declined), None)
        steps: tuple[Step, ...] = ()
        if run and whole is None:
            steps = steps_of(lifted, generated, backend, record, device, tuner)
        dtypes = tuple((p, t.dtype) for p, t in enumerate(flat) if isinstance(t, torch.Tensor))
        return Variant(
            spec, len(flat), device, dtypes, lifted, analyses, generated, steps, record, name, whole, tuner, _autocast()
        )  # fmt: skip

    def _understand(self, flat: list[Any], spec: TreeSpec, record: Record) -> tuple[Lifted, tuple[Analysis, ...]]:
        """Capture with the lengths symbolic, and those that the mathematics needs as numbers literal."""
        history = self._histories.setdefault(_signature(flat, spec), History())
        while True:
            dims: Dims = history.plan(flat)
            try:
                captured = record("capture", lambda dims=dims: capture(self.graph, flat, spec, dims))  # type: ignore[misc]
                return analyse(captured, record)
            except NeedsLiteral as need:
                if not history.need(dims, need.sizes):
                    raise

    def _after_failed_capture(
        self, error: CaptureError, flat: list[Any], spec: TreeSpec, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The function could not be traced.  Where it fails by itself, that is the error; otherwise it runs."""
        if self.strict:
            raise error
        try:
            out = self.eager(*args, **kwargs)
        except Exception as own:
            where = users_line(own)
            if where is None or where[2].startswith(("raise", "assert")):
                raise  # the user's own check
            raise InvalidInput(f"{where[0]}:{where[1]}: `{where[2]}`: {own}") from own
        self._warn(f"runs eagerly: {error}")
        self._eager_for[_signature(flat, spec)] = str(error)
        return out

    def _unread(self, why: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Some argument cannot be read by strides."""
        if self.strict:
            raise FallbackRefused(f"strict=True, and this would run unfused: {why}")
        self._warn(f"runs eagerly: {why}")
        return self.eager(*args, **kwargs)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            name = getattr(self, "__name__", type(self.graph).__name__)
            warnings.warn(f"flashlight: {name} {message}", FallbackWarning, stacklevel=_users_level())

    # ---- gradients ---------------------------------------------------------------------------------------------
    def _with_grad(self, found: Recognised, flat: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Fused forward; the backward runs the user's own program again under autograd (training is not fused yet)."""
        v = found.variant
        if v.lifted.mutated or any(isinstance(s, Eager) for s in v.lifted.steps):
            return self.eager(*args, **kwargs)
        if v.lifted.captured.switches and found.differentiable is None:
            found.differentiable = _differentiable(self.eager, args, kwargs)
        if found.differentiable is not None and not any(found.differentiable):
            with torch.no_grad():
                return found.run(flat)
        held = v.held
        own = [t for t in flat if isinstance(t, torch.Tensor)]
        out_spec: list[TreeSpec] = []

        def forward(tensors: Sequence[torch.Tensor]) -> list[Any]:
            leaves, outs = tree_flatten(v.run(_refill(flat, tensors), found.sizes))
            out_spec.append(outs)
            return leaves

        def again(tensors: Sequence[torch.Tensor]) -> list[Any]:
            a, k = tree_unflatten(_refill(flat, tensors), v.spec)
            return tree_flatten(self.eager(*a, **k))[0]

        leaves = _Recompute.apply(forward, again, found.differentiable, len(own), *own, *held)
        return tree_unflatten(list(leaves), out_spec[0])


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: Any, again: Any, differentiable: Sequence[bool] | None, own: int, *tensors: torch.Tensor
    ) -> tuple[Any, ...]:
        ctx.again, ctx.own = again, own
        ctx.save_for_backward(*tensors)
        leaves = tuple(forward(tensors[:own]))
        if differentiable is not None:
            ctx.mark_non_differentiable(*(x for x, yes in zip(leaves, differentiable, strict=True) if not yes))
        return leaves

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        with torch.enable_grad():
            own = [t.detach().requires_grad_(t.requires_grad) for t in tensors[: ctx.own]]
            outs = ctx.again(own)
            pairs = [
                (o, g) for o, g in zip(outs, grads, strict=True) if isinstance(o, torch.Tensor) and o.requires_grad
            ]
            wanted = [t for t in (*own, *tensors[ctx.own :]) if t.requires_grad]
            got = iter(torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True))
        return (None, None, None, None, *(next(got) if t.requires_grad else None for t in tensors))


# ---- small questions -------------------------------------------------------------------------------------------------
TENSORS = {torch.Tensor}


def _key(flat: Sequence[Any], spec: TreeSpec | None) -> Any:
    """All that a call is recognised by; no ``spec``: positional tensors only."""
    if spec is None:
        return tuple([(t.shape, t.stride(), t.dtype, t.device, t.is_neg()) for t in flat])
    return spec, tuple([_key([t], None) if isinstance(t, torch.Tensor) else (type(t), repr(t)) for t in flat])


def _signature(flat: Sequence[Any], spec: TreeSpec) -> Any:
    """What two calls share when only their lengths differ."""
    return (spec, tuple((t.dtype, t.ndim) if isinstance(t, torch.Tensor) else (type(t), repr(t)) for t in flat))


def _autocast() -> tuple[tuple[str, torch.dtype], ...]:
    """What operators cast their arguments to here (``torch.autocast``): it is in the graph that they are traced to."""
    kinds = ("cuda", "cpu")
    return tuple((k, torch.get_autocast_dtype(k)) for k in kinds if torch.is_autocast_enabled(k))


def _without_strides(flat: Sequence[Any]) -> str:
    """Which argument has no strides that a kernel could read by, "" for none."""
    for k, t in enumerate(flat):
        if isinstance(t, torch.Tensor) and (t.is_nested or t.layout is not torch.strided):
            kind, hint = ("nested", "to_padded_tensor()") if t.is_nested else (str(t.layout)[6:], "to_dense()")
            return f"argument {k} is a {kind} tensor, and only strided ones are read: pass what its {hint} gives"
        if isinstance(t, torch.Tensor) and t.is_neg():
            return f"argument {k} is the negative of what its memory holds: pass what its resolve_neg() gives"
    return ""


def _wants_grad(flat: Sequence[Any], v: Variant) -> bool:
    return any(isinstance(t, torch.Tensor) and t.requires_grad for t in (*flat, *v.held))


def _differentiable(eager: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, ...]:
    """Which results of a call require gradients, found without computing them."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.enable_grad():
        own = tree_map(lambda x: fake.from_tensor(x) if isinstance(x, torch.Tensor) else x, (args, kwargs))
        return tuple(isinstance(x, torch.Tensor) and x.requires_grad for x in tree_leaves(eager(*own[0], **own[1])))


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


def _users_level() -> int:
    """The stack level of the user's call, so that a warning points there."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "flashlight":
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level
