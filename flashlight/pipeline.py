"""The table of contents: from a captured graph to kernels, one line a stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flashlight import backend as registry
from flashlight.apart import apart
from flashlight.backend import Backend, Source, Target, Unsupported
from flashlight.errors import BackendUnavailable, InternalError, Unplannable
from flashlight.fuse import fuse
from flashlight.legality import verify_legality
from flashlight.lift import lift
from flashlight.lifted import Captured, Lifted, Region
from flashlight.lower import Lowered, Tiling
from flashlight.nests import Nest, Plan
from flashlight.polyhedral.dependence import Dependence, flow
from flashlight.program import Program
from flashlight.schedule import of_parts, of_statistics, schedule
from flashlight.split import split
from flashlight.verify import Obligation, verify_lowered, verify_program

T = TypeVar("T")


@dataclass
class Record:
    """Keeps what each stage made and how long it took; the only hook of the pipeline."""

    timings: dict[str, float] = field(default_factory=dict)
    stages: list[tuple[str, Any]] = field(default_factory=list)

    def __call__(self, stage: str, make: Callable[[], T]) -> T:
        start = time.perf_counter()
        value = make()
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start
        self.stages.append((stage, value))
        return value


@dataclass(frozen=True)
class Analysis:
    """One region, understood: all that does not depend on a device."""

    region: Region
    dependences: tuple[Dependence, ...]
    plan: Plan


@dataclass(frozen=True)
class Generated:
    """One region for one target: a tile program and its text for each nest."""

    analysis: Analysis
    target: Target
    lowered: tuple[Lowered, ...]
    obligations: tuple[Obligation, ...]
    sources: tuple[Source, ...]
    declined: Unsupported | None


def analyse(captured: Captured, record: Record) -> tuple[Lifted, tuple[Analysis, ...]]:
    """Graph -> programs -> plans: what the program means and what may be fused."""
    refused: dict[str, str] = {}
    while True:
        try:
            lifted = record("lift", lambda refused=refused: lift(captured, refused))  # type: ignore[misc]
            return lifted, _planned(lifted, record)
        except Unplannable as why:
            if refused.keys() >= set(why.nodes):
                raise InternalError(f"{', '.join(why.nodes)}: {why}") from why
            refused = refused | dict.fromkeys(why.nodes, str(why))


def _planned(lifted: Lifted, record: Record) -> tuple[Analysis, ...]:
    analyses = []
    for region in (s for s in lifted.steps if isinstance(s, Region)):
        program = record("verify program", lambda region=region: verify_program(region.program))  # type: ignore[misc]
        flows = record("depend", lambda program=program: flow(program.statements))  # type: ignore[misc]
        plan = record("fuse", lambda program=program: fuse(program))  # type: ignore[misc]
        analyses.append(Analysis(region, flows, plan))
    return tuple(analyses)


def generate(
    analysis: Analysis,
    target: Target,
    backend: Backend,
    record: Record,
    tiling: Tiling | None = None,
    recall: Callable[[Nest, Program], Tiling | None] = lambda nest, program: None,
) -> Generated:
    """Plan -> tile programs -> text, each checked against what was asked.

    ``tiling``: of every nest; else what ``recall`` knows of one, else the scheduler's choice.
    """
    program = analysis.plan.program

    def scheduled(nest: Nest) -> Lowered:
        return schedule(nest, program, target, tiling or recall(nest, program))

    made = [record("schedule", lambda n=n: scheduled(n)) for n in analysis.plan.nests]  # type: ignore[misc]
    return _emitted(analysis, [x for low in made for x in (*low.before, low)], target, backend, record)


def retiled(generated: Generated, low: Lowered, tiling: Tiling, backend: Backend, record: Record) -> Generated:
    """One nest again with other block lengths, checked like the first time.  Raises BackendUnavailable: the backend
    declines it."""
    target = generated.target
    made = record("schedule", lambda: schedule(low.nest, low.program, target, tiling))
    out = _emitted(generated.analysis, (*made.before, made), target, backend, record)
    if out.declined:
        raise BackendUnavailable(out.declined.reason)
    return out


def divide(generated: Generated, low: Lowered, backend: Backend, record: Record) -> Generated | None:
    """The same nest with its streamed axis split over programs, for calls with few rows; None if it cannot be."""
    target = generated.target
    asked = split(low.nest, low.program)
    if asked is None:
        return None
    plan = record("fuse", lambda: fuse(verify_program(asked.merge), merge=False))
    made = record("schedule", lambda: [schedule(asked.parts, asked.program, target, low.tiling)])
    merges = [replace(n, name=f"{low.nest.name}_merge{k or ''}") for k, n in enumerate(plan.nests)]
    made += record("schedule", lambda: [schedule(n, plan.program, target, of_parts(n, target)) for n in merges])
    out = _emitted(generated.analysis, [x for low in made for x in (*low.before, low)], target, backend, record)
    return None if out.declined else out


def separate(generated: Generated, low: Lowered, backend: Backend, record: Record) -> Generated | None:
    """The same nest of several sweeps as one nest for each, for calls with few rows; None if it cannot be."""
    plan = record("fuse", lambda: apart(low.nest, low.program))
    if plan is None:
        return None
    target, analysis = generated.target, replace(generated.analysis, plan=plan)
    out = generate(analysis, target, backend, record, recall=lambda nest, program: of_statistics(nest, target))
    return None if out.declined else out


def _emitted(
    analysis: Analysis, lowered: Sequence[Lowered], target: Target, backend: Backend, record: Record
) -> Generated:
    obligations: list[Obligation] = []
    sources: list[Source] = []
    for low in lowered:
        obligations += record("verify", lambda low=low: (*verify_legality(low), *verify_lowered(low)))  # type: ignore[misc]
        if declined := backend.supports(target, low.kernel):
            return Generated(analysis, target, tuple(lowered), tuple(obligations), tuple(sources), declined)
        sources.append(record("emit", lambda low=low: backend.emit(low.kernel, target)))  # type: ignore[misc]
    return Generated(analysis, target, tuple(lowered), tuple(obligations), tuple(sources), None)


def build(generated: Generated, backend: Backend, record: Record) -> tuple[registry.Run, ...]:
    """Text -> callables."""
    return record("build", lambda: tuple(backend.build(s) for s in generated.sources))


def optimize(graph: Any, backend: str | None = None, *, strict: bool = False, tiling: Tiling | None = None) -> Any:
    """Return a function that computes what ``graph`` computes, in fused kernels.

    ``graph``: a callable, nn.Module, fx.GraphModule or ExportedProgram on tensors.  ``backend``: "cpu", "triton" or a
    registered name; by default the tensors' device decides.  ``strict``: raise FallbackRefused where a part of the
    program would run unfused (otherwise such a part runs as it would have, and one warning says so).  ``tiling``
    overrides the block lengths of every nest (for experiments).

    The first call with new ranks, dtypes or literal dimensions compiles; a new length does not.  Raises
    UnknownBackend here; InvalidInput, CaptureError, BackendUnavailable, FallbackRefused at calls.
    """
    from flashlight.runtime import Optimized

    return Optimized(graph, backend, strict, tiling)


def explain(graph: Any, *args: Any, backend: str | None = None, **kwargs: Any) -> Any:
    """What flashlight makes of ``graph(*args, **kwargs)``: a :class:`flashlight.Report`.  Nothing is run.

    With ``backend="triton"`` the kernels are emitted on any machine.
    """
    return optimize(graph, backend).explain(*args, **kwargs)
