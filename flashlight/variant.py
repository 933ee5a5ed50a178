"""One compiled signature: how its calls are recognised, and the steps that run them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_unflatten

from flashlight.backend import Backend, Run
from flashlight.expr import Const, Expr, Size
from flashlight.lengths import value_at
from flashlight.lifted import Eager, Lifted, Region, Traced
from flashlight.lower import Lowered, Tiling
from flashlight.pipeline import Analysis, Generated, Record, build, divide, retiled, separate
from flashlight.tile import Kernel
from flashlight.tune import Step, Tuned, Tuner

Environment = dict[str, Any]
Pieces = Callable[[], "Sequence[Launch | Divisible]"]


@dataclass(frozen=True)
class Variant:
    """``steps`` run a call whose sizes :meth:`match` has read; ``whole``: why the whole call runs eagerly instead;
    ``tuner``: what times its nests' tilings; ``casts``: the autocast it was traced in."""

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
    tuner: Tuner | None = None
    casts: tuple[tuple[str, torch.dtype], ...] = ()

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
            env[name] = given.of(flat)
        for step in self.steps:
            step(env, sizes)
        for position, name in self.lifted.mutated:
            flat[position].copy_(env[name])
        return self.result(env, sizes)

    def result(self, env: Environment, sizes: Sequence[int]) -> Any:
        """What a call returns, of all that it was given and has made."""
        if self.single is not None:
            return env[self.single]
        values = dict(zip(self.lifted.captured.names, sizes, strict=True))
        leaves = [env[o] if isinstance(o, str) else value_of(o, values) for o in self.lifted.outputs]
        return tree_unflatten(leaves, self.lifted.captured.out_spec)

    def launches(self, sizes: Sequence[int]) -> list[tuple[Launch, Sequence[int]]] | None:
        """All that a call with these sizes does, if it is only launches and they are known by now."""
        if self.lifted.mutated:
            return None
        found: list[tuple[Launch, Sequence[int]]] = []
        for step in self.steps:
            own = step.launches(sizes)
            if own is None:
                return None
            found += own
        return found

    @cached_property
    def held(self) -> list[torch.Tensor]:
        """Tensors that the program holds besides its arguments: parameters, buffers, constants."""
        return [x.value for _, x in self.lifted.inputs if x.value is not None]

    @cached_property
    def single(self) -> str | None:
        """The one tensor that is the whole result, if it is so."""
        outputs = self.lifted.outputs
        one = len(outputs) == 1 and isinstance(outputs[0], str) and self.lifted.captured.out_spec.is_leaf()
        return str(outputs[0]) if one else None


def value_of(x: Any, sizes: dict[str, int]) -> Any:
    """An argument or result as a plain value: expressions over sizes are evaluated."""
    if isinstance(x, _EXPR):
        return value_at(x, sizes)
    return type(x)(value_of(y, sizes) for y in x) if isinstance(x, list | tuple) else x


_EXPR = Expr.__args__


def steps_of(
    lifted: Lifted,
    generated: Sequence[Generated],
    backend: Backend,
    record: Record,
    device: torch.device,
    tuner: Tuner | None = None,
) -> tuple[Step, ...]:
    steps: list[Step] = []
    regions = iter(generated)
    for s in lifted.steps:
        if isinstance(s, Region):
            steps += _launches(next(regions), lifted.captured.names, backend, record, device, tuner)
        else:
            steps.append(EagerStep(lifted, s))
    return tuple(steps)


def _launches(
    g: Generated,
    names: Sequence[str],
    backend: Backend,
    record: Record,
    device: torch.device,
    tuner: Tuner | None = None,
    pieces: Pieces | None = None,
) -> Iterator[Step]:
    """A step a nest: its kernel and those before it that find its tiles, or both in pieces where rows are few.  With a
    tuner, a nest that was not timed before is at its first call.  ``pieces``: of the nest, where they are known."""
    runs = build(g, backend, record)
    finders = {id(low) for main in g.lowered for low in main.before}
    group: list[Launch] = []

    def other(low: Lowered, own: Pieces) -> Callable[[Tiling], Step]:
        same = own if low.nest.sweeps > 1 else None  # a nest for each sweep has block lengths of its own

        def make(t: Tiling) -> Step:
            made = retiled(g, low, t, backend, record)
            return next(_launches(made, names, backend, record, device, pieces=same))

        return make

    for low, run in zip(g.lowered, runs, strict=True):
        group.append(Launch(low.kernel, low.program.sizes, names, run, device))
        if id(low) not in finders:
            own = pieces or _in_pieces(g, low, names, backend, record, device)
            step = Divisible(group, low, names, g.target.processors, own)
            known = tuner is None or tuner.recall(low.nest, low.program) is not None
            yield step if tuner is None or known else Tuned(step, low, other(low, own), tuner)
            group = []


def _in_pieces(
    g: Generated, low: Lowered, names: Sequence[str], backend: Backend, record: Record, device: torch.device
) -> Pieces:
    """A nest for each sweep, which may be in parts; of one sweep, its parts and their merge."""

    @cache
    def make() -> list[Launch | Divisible]:
        if low.nest.sweeps > 1:
            made = separate(g, low, backend, record)
            return list(_launches(made, names, backend, record, device)) if made else []  # type: ignore[arg-type]
        parts = divide(g, low, backend, record)
        if parts is None:
            return []
        runs = build(parts, backend, record)
        return [
            Launch(x.kernel, x.program.sizes, (*names, x.program.sizes[-1]), run, device)
            for x, run in zip(parts.lowered, runs, strict=True)
        ]

    return make


class Divisible:
    """A nest that runs whole, or, where that would leave most processors idle, with its streamed axis in parts; one of
    several sweeps one by one, each of which is such a nest.

    ``make`` compiles the kernels of the pieces when a call first needs them ([]: there are none).
    """

    WAVES = 1  # programs a processor that are aimed at (docs/decisions/0009)
    SHORTEST = 4  # tiles of a part: below, writing and merging its states costs more than it gains

    def __init__(
        self,
        whole: Sequence[Launch],
        low: Lowered,
        names: Sequence[str],
        processors: int,
        make: Pieces,
    ):
        self.whole, self.make = whole, make
        self.divided: Sequence[Launch | Divisible] | None = [] if processors <= 1 else None
        self.sweeps = low.nest.sweeps
        self.grid = [(_number(g.extent, names), g.block) for g in low.kernel.grid]
        stream = low.nest.stream
        self.stream = (_number(stream.extent, names), low.kernel.dim(stream.name).block) if stream else None
        self.processors = processors
        self._known: dict[Sequence[int], list[tuple[Launch, Sequence[int]]]] = {}

    def __call__(self, env: Environment, sizes: Sequence[int]) -> None:
        for launch, own in self.launches(sizes):
            launch(env, own)

    def launches(self, sizes: Sequence[int]) -> list[tuple[Launch, Sequence[int]]]:
        """What a call with these sizes does, each launch with the sizes that it takes."""
        found = self._known.get(sizes)
        if found is None:
            if len(self._known) > 4096:
                self._known.clear()
            parts = self.parts(sizes)
            if parts > 1 and self.divided is None:
                self.divided = self.make()
            if parts > 1 and self.divided:
                own = sizes if self.sweeps > 1 else (*sizes, parts)
                found = [x for piece in self.divided for x in piece.launches(own)]
            else:
                found = [(launch, sizes) for launch in self.whole]
            self._known[sizes] = found
        return found

    def parts(self, sizes: Sequence[int]) -> int:
        """How many parts the streamed axis of a call is worth."""
        if self.stream is None or self.processors <= 1:
            return 1
        programs = math.prod(-(-extent(sizes) // block) for extent, block in self.grid)
        extent, block = self.stream
        if programs >= self.processors:
            return 1
        return max(1, min(self.WAVES * self.processors // programs, -(-extent(sizes) // block) // self.SHORTEST))


class Launch:
    """Allocate a kernel's outputs and run it."""

    def __init__(
        self,
        kernel: Kernel,
        names: Sequence[str],
        all_names: Sequence[str],
        run: Run,
        device: torch.device,
    ):
        self.inputs = [b.name for b in kernel.inputs]
        self.outputs = [(b.name, getattr(torch, b.dtype), shape_of(b.shape, names)) for b in kernel.outputs]
        self.where, self.run, self.device = [all_names.index(n) for n in names], run, device
        self._known: dict[Sequence[int], tuple[list[int], list[tuple[str, torch.Tensor]]]] = {}

    def __call__(self, env: Environment, sizes: Sequence[int]) -> None:
        own, outputs = self.prepared(sizes)
        outs = []
        for name, kind in outputs:
            env[name] = out = torch.empty_like(kind)
            outs.append(out)
        self.run([env[n] for n in self.inputs], outs, own)

    def prepared(self, sizes: Sequence[int]) -> tuple[list[int], list[tuple[str, torch.Tensor]]]:
        """The kernel's own sizes, and the outputs' names with what they are made like."""
        known = self._known.get(sizes)
        if known is None:
            if len(self._known) > 4096:
                self._known.clear()
            own = [sizes[k] for k in self.where]
            likes = [(name, like(dtype, shape(own), self.device)) for name, dtype, shape in self.outputs]
            known = self._known[sizes] = own, likes
        return known

    def launches(self, sizes: Sequence[int]) -> list[tuple[Launch, Sequence[int]]]:
        return [(self, sizes)]


def like(dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """A tensor of no more than one element that torch.empty_like makes contiguous ones of a shape from, in half of
    torch.empty's time."""
    if math.prod(shape) <= 1:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.empty((), dtype=dtype, device=device).expand(tuple(shape))


class EagerStep:
    """One node of the graph, run as it is."""

    def __init__(self, lifted: Lifted, step: Eager):
        self.traced: Traced = step.traced
        self.where, self.names = dict(lifted.where), lifted.captured.names

    def launches(self, sizes: Sequence[int]) -> None:
        """It is no launch."""

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
    parts = [_number(e, names) for e in shape]
    return lambda sizes: tuple([p(sizes) for p in parts])


def _number(e: Expr, names: Sequence[str]) -> Callable[[Sequence[int]], int]:
    """A function from sizes to the value of an integer expression."""
    if isinstance(e, Const):
        n = int(e.value)
        return lambda sizes: n
    if isinstance(e, Size):
        k = names.index(e.name)
        return lambda sizes: sizes[k]
    return lambda sizes: int(value_at(e, dict(zip(names, sizes, strict=True))))
