"""The report: what became of a program, in a form a person reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashlight import backend as registry
from flashlight.algebra import Verdict
from flashlight.backend import Source
from flashlight.lifted import Eager
from flashlight.polyhedral.dependence import Dependence
from flashlight.program import Program
from flashlight.verify import Obligation

if TYPE_CHECKING:
    from flashlight.pipeline import Analysis, Generated
    from flashlight.tune import Tuner


@dataclass(frozen=True)
class Proof:
    """A question put to the algebra or the polyhedral layer, and its answer."""

    claim: str
    verdict: Verdict | Obligation

    def __str__(self) -> str:
        return f"{self.claim}: {self.verdict}"


@dataclass(frozen=True)
class KernelText:
    """A backend's kernels for this program; ``source`` is their text, ``sources`` one a launch."""

    backend: str
    sources: tuple[Source, ...]

    @property
    def source(self) -> str:
        return "\n\n".join(s.text for s in self.sources)

    @property
    def resources(self) -> tuple[str, ...]:
        """What the compiler makes of each kernel, a line each; () where the backend has none to ask.  Compiles."""
        made = registry.get(self.backend)
        return tuple(made.resources(s) for s in self.sources) if isinstance(made, registry.Measured) else ()

    def __str__(self) -> str:
        return self.source


class Kernels(Mapping[str, KernelText]):
    """Backend name -> its text; emitted when first asked for (no device is needed)."""

    def __init__(self, names: tuple[str, ...], make: Callable[[str], KernelText]):
        self._names, self._make, self._made = names, make, dict[str, KernelText]()

    def __getitem__(self, name: str) -> KernelText:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Fallback:
    """Something that runs as it would have run without us, and why, with the user's line."""

    what: str
    reason: str
    where: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}" + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Report:
    """Everything that was decided about one call.

    ``program``: level 1 (several regions: a tuple).  ``dependences``: exact flow dependences.  ``proofs``: every
    verdict, refused ones too.  ``schedule``: the schedule trees as text.  ``tiles``: the tile classes of every sweep.
    ``launches``: kernels a call; ``finders``: those before them that find out tile classes from loaded values.
    ``tilings``: the block lengths of every kernel, and what others took where they were timed.
    ``kernels``: backend -> text.  ``fallbacks``: what runs unfused.  ``notes``: cuts and extra passes.  ``timings``:
    seconds a stage.
    """

    programs: tuple[Program, ...]
    dependences: tuple[Dependence, ...]
    proofs: tuple[Proof, ...]
    nests: tuple[str, ...]
    schedule: str
    tiles: tuple[str, ...]
    kernels: Mapping[str, KernelText]
    fallbacks: tuple[Fallback, ...]
    notes: tuple[str, ...]
    timings: dict[str, float]
    backend: str
    launches: int
    finders: int = 0
    tilings: tuple[str, ...] = ()

    @property
    def program(self) -> Any:
        return self.programs[0] if len(self.programs) == 1 else self.programs

    def __str__(self) -> str:
        def block(title: str, text: str) -> str:
            return f"{title}\n" + "\n".join("  " + line for line in text.splitlines()) if text else ""

        parts = [
            f"flashlight: {self.launches} kernel{'s' if self.launches != 1 else ''} on {self.backend}, "
            + (
                f"{self.finders} small one{'s' if self.finders != 1 else ''} to find its tiles, "
                if self.finders
                else ""
            )
            + (f"{len(self.fallbacks)} fallbacks" if self.fallbacks else "no fallback"),
            *(block("program", str(p)) for p in self.programs),
            block("dependences", "\n".join(map(str, self.dependences))),
            block("proofs", "\n".join(map(str, self.proofs))),
            *(block("fused", n) for n in self.nests),
            block("schedule", self.schedule),
            block("tiles", "\n".join(self.tiles)),
            block("tilings", "\n".join(self.tilings)),
            block("notes", "\n".join(self.notes)),
            block("fallbacks", "\n".join(map(str, self.fallbacks))),
            block("timings", "  ".join(f"{k} {v * 1e3:.1f} ms" for k, v in self.timings.items())),
        ]
        return "\n\n".join(p for p in parts if p)

    def save(self, path: str) -> None:
        """Write the report, sources included, as one HTML page."""
        from rich.console import Console
        from rich.syntax import Syntax

        with open("/dev/null", "w") as quiet:
            console = Console(record=True, width=140, file=quiet)
            console.print(str(self), markup=False, highlight=False)
            for name in [self.backend]:
                console.rule(name)
                text = self.kernels[name]
                cuda = any(s.language == "cuda" for s in text.sources)
                console.print(Syntax(text.source, "cuda" if cuda else "python"))
            console.save_html(path)


def report(
    analyses: tuple[Analysis, ...],
    generated: tuple[Generated, ...],
    eager: tuple[Eager, ...],
    extra: tuple[Fallback, ...],
    kernels: Mapping[str, KernelText],
    timings: dict[str, float],
    backend: str,
    tuner: Tuner | None = None,
) -> Report:
    proofs: list[Proof] = []
    tiles: list[str] = []
    tilings: list[str] = []
    finders = {id(low) for g in generated for main in g.lowered for low in main.before}
    for g in generated:
        for low in g.lowered:
            nest = low.nest
            proofs += [
                Proof(f"{nest.name}: one pass over {nest.stream} for {', '.join(names)}", v)
                for names, v in nest.verdicts
            ]
            if id(low) not in finders:
                trials = tuner.trials(nest, low.program) if tuner else ()
                tilings.append(f"{nest.name}: {low.tiling}" + (", the fastest of these" if trials else ""))
                tilings += [f"  {t}" for t in trials]
            for sweep in () if id(low) in finders else low.sweeps:
                ranges = "; ".join(map(str, sweep.classes.ranges))
                tiles.append(f"{nest.name} {sweep.label}: live where {sweep.live}: {ranges}")
                tiles += [f"  {r}" for r in sweep.refusals]
        proofs += [Proof(o.claim, o) for o in g.obligations]
    fallbacks = (*extra, *(Fallback(e.node, e.reason, str(e.origin)) for e in eager))
    fallbacks += tuple(Fallback("the whole call", g.declined.reason, "") for g in generated if g.declined)
    return Report(
        programs=tuple(a.region.program for a in analyses),
        dependences=tuple(d for a in analyses for d in a.dependences),
        proofs=tuple(proofs),
        nests=tuple(str(n) for a in analyses for n in a.plan.nests),
        schedule="\n".join(o.tree for g in generated for o in g.obligations if o.tree),
        tiles=tuple(tiles),
        kernels=kernels,
        fallbacks=fallbacks,
        notes=tuple(n for a in analyses for n in a.plan.notes),
        timings=timings,
        backend=backend,
        launches=sum(len(a.plan.nests) for a in analyses),
        finders=len(finders),
        tilings=tuple(tilings),
    )
