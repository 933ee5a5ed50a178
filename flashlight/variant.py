"""One compiled signature: how its calls are recognised, and the steps that run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_unflatten

from flashlight.backend import Run
from flashlight.expr import Const, Expr, Size
from flashlight.lengths import value_at
from flashlight.lifted import Eager, Lifted, Region, Traced
from flashlight.pipeline import Analysis, Generated, Record
from flashlight.tile import Buffer

Environment = dict[str, Any]
Step = Callable[[Environment, Sequence[int]], None]


@dataclass(frozen=True)
class Variant:
    """``steps`` run a call whose sizes :meth:`match` has read; ``whole``: why the whole call runs eagerly instead."""

    spec: TreeSpec
    count: int
    device: torch.device
    dtypes: tuple[tuple[int, torch.dtype], ...]
    lifted: Lifted
    analyses: tuple[Analysis, ...]
    generated: tuple[Generated, ...]
    steps: tuple[Step, ...]
    record: Record
    backend: str
    whole: str | None

    def match(self, flat: Sequence[Any], spec: TreeSpec, device: torch.device) -> tuple[int, ...] | None:
        """The call's sizes, if it belongs here."""
        captured = self.lifted.captured
        if len(flat) != self.count or spec != self.spec or device != self.device:
            return None
        if any(type(flat[p]) is not type(v) or flat[p] != v for p, v in captured.constants):
            return None
        if any(not isinstance(flat[p], torch.Tensor) or flat[p].dtype is not dtype for p, dtype in self.dtypes):
            return None
        if any(flat[p].ndim != len(shape) for p, shape in captured.shapes):
            return None
        values = {b.name: int(flat[b.position].shape[b.dim]) for b in captured.sizes}
        for p, shape in captured.shapes:
            for n, want in zip(flat[p].shape, shape, strict=True):
                if n != (values[want] if isinstance(want, str) else want):
                    return None
        sizes = tuple(values.values())
        return sizes if self.lifted.holds(sizes) else None

    def run(self, flat: Sequence[Any], sizes: Sequence[int]) -> Any:
        env: Environment = {}
        for name, given in self.lifted.inputs:
            env[name] = given.value if given.position is None else flat[given.position]
        for step in self.steps:
            step(env, sizes)
        values = dict(zip(self.lifted.captured.names, sizes, strict=True))
        leaves = [env[o] if isinstance(o, str) else value_of(o, values) for o in self.lifted.outputs]
        for position, name in self.lifted.mutated:
            flat[position].copy_(env[name])
        return tree_unflatten(leaves, self.lifted.captured.out_spec)


def value_of(x: Any, sizes: dict[str, int]) -> Any:
    """An argument or result as a plain value: expressions over sizes are evaluated."""
    if isinstance(x, _EXPR):
        return value_at(x, sizes)
    return type(x)(value_of(y, sizes) for y in x) if isinstance(x, list | tuple) else x


_EXPR = Expr.__args__


def steps_of(
    lifted: Lifted, generated: Sequence[Generated], runs: Sequence[Sequence[Run]], device: torch.device
) -> tuple[Step, ...]:
    steps: list[Step] = []
    regions = iter(zip(generated, runs, strict=True))
    for s in lifted.steps:
        if isinstance(s, Region):
            g, built = next(regions)
            for low, run in zip(g.lowered, built, strict=True):
                names = low.program.sizes
                steps.append(Launch(low.kernel.inputs, low.kernel.outputs, names, lifted.captured.names, run, device))
        else:
            steps.append(EagerStep(lifted, s))
    return tuple(steps)


class Launch:
    """Allocate a kernel's outputs and run it."""

    def __init__(
        self,
        inputs: Sequence[Buffer],
        outputs: Sequence[Buffer],
        names: Sequence[str],
        all_names: Sequence[str],
        run: Run,
        device: torch.device,
    ):
        self.inputs = [b.name for b in inputs]
        self.outputs = [(b.name, getattr(torch, b.dtype), shape_of(b.shape, names)) for b in outputs]
        self.where, self.run, self.device = [all_names.index(n) for n in names], run, device

    def __call__(self, env: Environment, sizes: Sequence[int]) -> None:
        own = [sizes[k] for k in self.where]
        outs = []
        for name, dtype, shape in self.outputs:
            env[name] = torch.empty(shape(own), dtype=dtype, device=self.device)
            outs.append(env[name])
        self.run([env[n] for n in self.inputs], outs, own)


class EagerStep:
    """One node of the graph, run as it is."""

    def __init__(self, lifted: Lifted, step: Eager):
        self.traced: Traced = step.traced
        self.where, self.names = dict(lifted.where), lifted.captured.names

    def __call__(self, env: Environment, sizes: Sequence[int]) -> None:
        values = dict(zip(self.names, sizes, strict=True))

        def value(x: Any) -> Any:
            if isinstance(x, torch.fx.Node):
                return env[self.where[x.name]]
            if isinstance(x, tuple):
                return [value(y) for y in x]
            return value_of(x, values)

        node = self.traced.node
        args = [value(x) for x in self.traced.args]
        kwargs = {k: value(x) for k, x in self.traced.kwargs.items()}
        env[self.where[node.name]] = node.target(*args, **kwargs)  # type: ignore[operator]


def shape_of(shape: tuple[Expr, ...], names: Sequence[str]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """A function from sizes to a shape."""
    position = {n: k for k, n in enumerate(names)}

    def one(e: Expr) -> Callable[[Sequence[int]], int]:
        if isinstance(e, Const):
            n = int(e.value)
            return lambda sizes: n
        if isinstance(e, Size):
            k = position[e.name]
            return lambda sizes: sizes[k]
        return lambda sizes: int(value_at(e, dict(zip(names, sizes, strict=True))))

    parts = [one(e) for e in shape]
    return lambda sizes: tuple([p(sizes) for p in parts])
