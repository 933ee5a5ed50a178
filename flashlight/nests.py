"""Nests: what is launched together, as the planner leaves it to the scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flashlight.algebra import Certificate, Stage, Verdict
from flashlight.algebra.proof import Scan
from flashlight.expr import Expr, Fold, Index, Load, Ref, axes, children, loads
from flashlight.program import Axis, Origin, Program, Tensor


@dataclass(frozen=True)
class State:
    """A reduction over the streamed axis: what it was in the program, at which index, and its body over elements."""

    name: str
    statement: str
    monoid: str
    body: Expr
    dtype: str
    origin: Origin = field(default=Origin(), compare=False)
    place: int = 0

    @property
    def stage(self) -> Stage:
        scan = Scan() if self.monoid == "scan" else None
        return Stage(self.name, self.monoid, self.body, scan, rank=self.place)

    def __str__(self) -> str:
        return f"{self.name} = {self.monoid}{f'[{self.place}]' if self.place else ''} {self.body}"


@dataclass(frozen=True)
class Pass:
    """Stages that share one sweep along the streamed axis, and the certificate that licenses it."""

    certificate: Certificate
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    """``tensor[index] = body`` at all points of ``axes``; body reads inputs, Ref(state) and Folds.

    The index is that of the axes themselves unless one of them has been split.
    """

    tensor: Tensor
    axes: tuple[Axis, ...]
    index: tuple[Expr, ...]
    body: Expr
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def __str__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.index))}] = {self.body}"


@dataclass(frozen=True)
class Nest:
    """One launch.  ``grid``: parallel axes, ``blocked``: those of them that are tiled (the row axis first), ``points``:
    bounded parallel axes kept whole.  ``verdicts``: every question put to the algebra, as (stages, answer).

    ``part``: a grid axis that numbers parts of the streamed axis, of which an instance takes one; outputs then read
    slots, not states.
    """

    name: str
    grid: tuple[Axis, ...]
    blocked: tuple[str, ...]
    stream: Axis | None
    points: tuple[Axis, ...]
    states: tuple[State, ...]
    passes: tuple[Pass, ...]
    outputs: tuple[Output, ...]
    verdicts: tuple[tuple[tuple[str, ...], Verdict], ...] = ()
    part: Axis | None = None

    def state(self, name: str) -> State:
        return next(s for s in self.states if s.name == name)

    def __str__(self) -> str:
        grid = ", ".join(f"{a}{' tiled' if a.name in self.blocked else ''}" for a in self.grid)
        lines = [f"nest {self.name}: grid {grid or '(one instance)'}"]
        if self.points:
            lines.append(f"  points {', '.join(map(str, self.points))}")
        for k, p in enumerate(self.passes):
            lines.append(f"  pass {k + 1} along {self.stream}: {', '.join(p.stages)}")
            lines += [f"    {line}" for line in str(p.certificate).splitlines()]
        if self.swept:
            lines.append(f"  written along {self.stream} as it runs: {', '.join(o.name for o in self.swept)}")
        if self.maps:
            lines.append(f"  map along {self.stream}: {', '.join(o.name for o in self.maps)}")
        lines += [f"  {o}" for o in self.outputs]
        return "\n".join(lines)

    @property
    def maps(self) -> tuple[Output, ...]:
        """Outputs that carry the streamed axis: written by a sweep of their own, after the passes."""
        along = (o for o in self.outputs if self.stream and any(a.name == self.stream.name for a in o.axes))
        return tuple(o for o in along if not self.running(o))

    @property
    def sweeps(self) -> int:
        """How often the streamed axis is gone along: once a pass, and once more for what is written along it."""
        return len(self.passes) + bool(self.maps)

    @property
    def swept(self) -> tuple[Output, ...]:
        """Outputs that carry the streamed axis and read running values: written by the pass that has these."""
        return tuple(o for o in self.outputs if self.running(o))

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that its kernel reads."""
        bodies = (*(s.body for s in self.states), *(o.body for o in self.outputs))
        return tuple(
            sorted({x.tensor for b in bodies for x in loads(b)} - {s.name for s in self.states if s.stage.scan})
        )

    def real(self, program: Program) -> str:
        """The dtype of its arithmetic."""
        known = (*(program.tensor(n).dtype for n in self.reads), *(o.dtype for o in self.outputs))
        return "float64" if "float64" in known else "float32"

    def running(self, o: Output) -> frozenset[str]:
        """The states that an output reads as they run."""
        return frozenset(x.tensor for x in loads(o.body)) & {s.name for s in self.states if s.monoid == "scan"}

    def swept_with(self, stages: Iterable[str]) -> tuple[Output, ...]:
        """Those that a pass of these stages writes."""
        own = frozenset(stages)
        return tuple(o for o in self.swept if self.running(o) & own)


@dataclass(frozen=True)
class Plan:
    """Nests in order of execution.

    ``temporaries``: tensors written by one nest for another.  ``notes``: cuts and refusals in words, each with the line
    it is about.
    """

    program: Program
    nests: tuple[Nest, ...]
    temporaries: tuple[Tensor, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.nests), *(f"note: {n}" for n in self.notes)])


def free_axes(e: Expr, states: dict[str, State], memo: dict[Expr, frozenset[str]] | None = None) -> frozenset[str]:
    """The axes an expression varies along, through the states it reads."""
    memo = {} if memo is None else memo
    if e not in memo:
        match e:
            case Ref(name) if name in states:
                memo[e] = free_axes(states[name].body, states, memo)
            case Load(name, index) if name in states and states[name].monoid == "scan":
                memo[e] = free_axes(states[name].body, states, memo).union(*map(axes, index))
            case Index(axis):
                memo[e] = frozenset((axis,))
            case Fold(_, axis, _, body):
                memo[e] = free_axes(body, states, memo) - {axis}
            case _:
                memo[e] = frozenset[str]().union(*(free_axes(c, states, memo) for c in children(e)))
    return memo[e]
