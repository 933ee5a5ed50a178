"""Block lengths by trial: the first call of a nest on a GPU times a few tilings, and the fastest stays.

The model of :mod:`flashlight.roofline` says which are worth a trial; they run on the call's own tensors, each kernel
checked like any other before it is printed.  What was chosen is kept on disk with all that it depends on, so that the
next process compiles one kernel; it is also what a report shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Protocol

import torch

from flashlight import cache as disk
from flashlight import config
from flashlight.backend import Target
from flashlight.lower import Lowered, Tiling
from flashlight.nests import Nest
from flashlight.program import Program
from flashlight.roofline import tilings

Environment = dict[str, Any]
Clock = Callable[[Sequence[Callable[[], None]]], list[float]]

LIMIT = 2  # kernels compiled to try others than the tiling that the scheduler chose
MARGIN = 0.98  # of that one's time: what differs less is not told from noise
HEAT, SETTLE, TIMED = 100.0, 40.0, 40.0  # ms of load before all, before each, and while each is timed
CLOCK, LONGEST_WAIT = 2e9, 0.02  # of a GPU, about, and at the most; seconds that it is made to wait


class Step(Protocol):
    """A part of a call.  ``launches``: what it does with these sizes, if that is only launches and known by now."""

    def __call__(self, env: Environment, sizes: Sequence[int]) -> None: ...

    def launches(self, sizes: Sequence[int]) -> Any: ...


@dataclass(frozen=True)
class Trial:
    """A tiling and the milliseconds it took; None where it did not run, and why."""

    tiling: Tiling
    ms: float | None
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.tiling}: " + (self.failure if self.ms is None else f"{self.ms:.4g} ms")


@dataclass(frozen=True)
class Tuner:
    """What is known of the tilings of a signature's nests, for lengths like those of one call.

    ``sizes``: symbolic lengths by name.  ``clock``: milliseconds of each of several calls.
    """

    backend: str
    target: Target
    device: torch.device
    sizes: dict[str, int]
    clock: Clock

    def key(self, nest: Nest, program: Program) -> str:
        """All that a choice depends on; lengths by their powers of two."""
        inputs = "; ".join(map(str, program.inputs))
        like = json.dumps({n: max(0, s - 1).bit_length() for n, s in self.sizes.items()})
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return disk.key("tilings 1", self.backend, repr(self.target), name, like, inputs, str(nest))

    def trials(self, nest: Nest, program: Program) -> tuple[Trial, ...]:
        """What was tried before, fastest first; () if nothing was."""
        key = self.key(nest, program)
        if key not in _known():
            store = disk.default()
            text = store.get(key) if store else None
            if text is None:
                return ()
            _known()[key] = tuple(_trial(r) for r in json.loads(text))
        return _known()[key]

    def recall(self, nest: Nest, program: Program) -> Tiling | None:
        """The tiling that was fastest before."""
        found = self.trials(nest, program)
        return found[0].tiling if found else None

    def keep(self, nest: Nest, program: Program, trials: Sequence[Trial]) -> None:
        key = self.key(nest, program)
        _known()[key] = tuple(trials)
        if store := disk.default():
            store.put(key, json.dumps([asdict(t) for t in trials]))


@cache
def _known() -> dict[str, tuple[Trial, ...]]:
    """What this process knows, with a disk store or without."""
    return {}


def _trial(row: dict[str, Any]) -> Trial:
    t = row["tiling"]
    return Trial(Tiling(**{**t, "rows": tuple(t["rows"])}), row["ms"], row["failure"])


class Tuned:
    """The step of a nest; its first call finds out which.

    ``first``: the nest as it was lowered.  ``make``: the step for another tiling; may raise.
    """

    def __init__(self, first: Step, low: Lowered, make: Callable[[Tiling], Step], tuner: Tuner):
        self.first, self.low, self.make, self.tuner = first, low, make, tuner
        self.step: Step | None = None

    def __call__(self, env: Environment, sizes: Sequence[int]) -> None:
        if self.step is None:
            if self.tuner.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return self.first(env, sizes)  # nothing can be timed now
            self.step = self.chosen(env, sizes)
        self.step(env, sizes)
        return None

    def launches(self, sizes: Sequence[int]) -> Any:
        return None if self.step is None else self.step.launches(sizes)

    def chosen(self, env: Environment, sizes: Sequence[int]) -> Step:
        """The fastest of the tilings that run; raises what the scheduler's own raises."""
        low, tuner = self.low, self.tuner
        steps: dict[Tiling, Step] = {low.tiling: self.first}
        failed: list[Trial] = []

        def attempt(tiling: Tiling, run: Callable[[], Any]) -> None:
            try:
                run()
            except Exception as error:
                if tiling == low.tiling:
                    raise
                steps.pop(tiling, None)
                failed.append(Trial(tiling, None, f"{type(error).__name__}: {error}"))

        for t in tilings(low, tuner.target, tuner.sizes, LIMIT):
            attempt(t, lambda t=t: steps.update({t: self.make(t)}))  # type: ignore[misc]
        if len(steps) == 1:
            return self.first
        calls = {t: (lambda step=step: step(dict(env), sizes)) for t, step in steps.items()}
        _settle(tuner.device)
        for t, call in calls.items():  # the first call of each compiles it
            attempt(t, call)
        _settle(tuner.device)
        left = list(steps)
        times = dict(zip(left, tuner.clock([calls[t] for t in left]), strict=True))
        best = min(left, key=lambda t: times[t] * (MARGIN if t == low.tiling else 1.0))
        order = sorted(left, key=lambda t: (t != best, times[t]))
        tuner.keep(low.nest, low.program, [*(Trial(t, times[t]) for t in order), *failed])
        return steps[best]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tuner_for(backend: str, target: Target, device: torch.device, sizes: dict[str, int]) -> Tuner | None:
    """A tuner where there is a GPU to time on, and FLASHLIGHT_TUNE does not forbid it."""
    if target.device != "cuda" or device.type != "cuda" or not config.TUNE.get():
        return None
    return Tuner(backend, target, device, sizes, lambda calls: events(calls, device))


def events(calls: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """Milliseconds of each call under load, by CUDA events.

    A card's clock falls under load, and not as far for each kernel: on an H200, attention over 16,384 tokens takes 2.35
    ms in tiles of 64 rows for a moment and 2.66 from then on, in tiles of 128 2.40 and 2.54.  So each is timed after
    the load that it is itself.
    """
    with torch.cuda.device(device):
        issuing = [max(_issued(call) for _ in range(2)) for call in calls]
        once = [min(_between(call, 1, host) for _ in range(2)) for call, host in zip(calls, issuing, strict=True)]
        _load(calls[0], max(once[0], 1e3 * issuing[0]), HEAT)
        return [_sustained(*each) for each in zip(calls, once, issuing, strict=True)]


def _load(call: Callable[[], None], ms: float, during: float) -> None:
    for _ in range(int(during / ms)):
        call()


def _sustained(call: Callable[[], None], ms: float, issuing: float) -> float:
    """Milliseconds of one of many calls, that one having taken ``ms``."""
    if ms < 2e3 * issuing:  # Python hardly keeps up: there is no load to speak of
        return min(ms, *(_between(call, max(2, min(20, int(3 / ms))), issuing) for _ in range(2)))
    _load(call, ms, SETTLE)
    return _timed(call, max(2, int(TIMED / ms)))


def _issued(call: Callable[[], None]) -> float:
    """The seconds that Python takes to issue a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _between(call: Callable[[], None], times: int, issuing: float) -> float:
    """Milliseconds of one of several calls.  The GPU waits until all of them are issued: else a call of several short
    kernels would seem as long as Python takes to launch them."""
    torch.cuda._sleep(int(CLOCK * min(LONGEST_WAIT, times * issuing)))  # type: ignore[no-untyped-call]
    return _timed(call, times)


def _timed(call: Callable[[], None], times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / times
