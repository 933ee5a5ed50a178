"""One program on every backend that can run here, each result held against float64 eager."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

import flashlight
from flashlight import backend as registry
from flashlight.runtime import FallbackWarning
from flashlight.targets import place
from flashlight.testing import assert_close, tolerance


@dataclass(frozen=True)
class Difference:
    """How far one output of a backend (or of eager in the inputs' own dtypes) lies from float64 eager.

    ``error``: the largest absolute difference, ``where``: its index in the output, ``allowed``: what the error rule
    grants.  ``problem``: "" where the output is within the rule.
    """

    by: str
    device: str
    output: int
    error: float
    where: tuple[int, ...]
    allowed: float
    problem: str

    def __str__(self) -> str:
        at = f" at [{', '.join(map(str, self.where))}]" if self.where else ""
        verdict = f"NOT within: {self.problem}" if self.problem else f"within {self.allowed:.3g}"
        return f"{self.by} on {self.device}, output {self.output}: largest difference {self.error:.3g}{at}; {verdict}"


@dataclass(frozen=True)
class Comparison:
    """``absent``: backends that did not take part, and why; ``unfused``: what ran as it would have without us."""

    differences: tuple[Difference, ...]
    absent: tuple[tuple[str, str], ...]
    unfused: tuple[tuple[str, str], ...]

    @property
    def problems(self) -> tuple[Difference, ...]:
        return tuple(d for d in self.differences if d.problem)

    @property
    def ran(self) -> tuple[str, ...]:
        """The backends that took part."""
        return tuple(dict.fromkeys(d.by for d in self.differences if d.by != "eager"))

    def __str__(self) -> str:
        lines = [str(d) for d in self.differences]
        lines += [f"{name} ran part of it unfused: {why}" for name, why in self.unfused]
        lines += [f"{name} took no part: {why}" for name, why in self.absent]
        wrong = sorted({d.by for d in self.problems})
        lines.append(f"not equivalent: {', '.join(wrong)}" if wrong else f"equivalent: {', '.join(self.ran) or 'none'}")
        return "\n".join(lines)


def compare(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    backends: Sequence[str] | None = None,
    factor: float = 2.0,
) -> Comparison:
    """Run ``function(*args, **kwargs)`` by eager in float64, by eager as it is, and by every backend.

    ``backends``: by default all registered ones.  A backend that does not run on the arguments' device gets copies of
    them on one where it runs.  Nothing that the function does to its arguments outlasts a run.  Raises UnknownBackend.
    """
    names = registry.names() if backends is None else tuple(backends)
    for name in backends or ():
        registry.get(name)
    given = (tuple(args), dict(kwargs or {}))
    own = next((t.device for t in tree_leaves(given) if isinstance(t, torch.Tensor)), torch.device("cpu"))
    exact = [t.double() if t.is_floating_point() else t for t in _run(function, _wide(given), own)]
    eager = _run(function, given, own)
    found = [
        Difference("eager", str(own), k, *_largest(out, ref), tolerance(ref, out, factor), "")
        for k, (out, ref) in enumerate(zip(eager, exact, strict=True))
    ]
    absent: list[tuple[str, str]] = []
    unfused: list[tuple[str, str]] = []
    for name in names:
        device, why = place(name, own)
        if device is None:
            absent.append((name, why))
            continue
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", FallbackWarning)
            results = _run(flashlight.optimize(function, backend=name), given, device)
        unfused += [(name, str(w.message)) for w in heard if issubclass(w.category, FallbackWarning)]
        for k, (out, ref, plain) in enumerate(zip(results, exact, eager, strict=True)):
            found.append(_difference(name, device, k, out, ref, plain, factor))
    return Comparison(tuple(found), tuple(absent), tuple(unfused))


def _run(function: Callable[..., Any], given: Any, device: torch.device) -> list[torch.Tensor]:
    """The tensors that a function returns for copies of its arguments on a device; they come back to the CPU."""
    args, kwargs = tree_map(lambda x: _copy(x, device) if isinstance(x, torch.Tensor) else x, given)
    with torch.no_grad():
        return [t.cpu() for t in tree_leaves(function(*args, **kwargs)) if isinstance(t, torch.Tensor)]


def _copy(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """With the same strides where elements do not share memory (those that do are not written to)."""
    if x.device != device:
        return x.to(device)
    return x if any(s == 0 and n > 1 for s, n in zip(x.stride(), x.shape, strict=True)) else x.clone()


def _wide(given: Any) -> Any:
    return tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, given)


def _difference(
    name: str,
    device: torch.device,
    k: int,
    out: torch.Tensor,
    ref: torch.Tensor,
    eager: torch.Tensor,
    factor: float,
) -> Difference:
    try:
        assert_close(out, ref, eager, factor, f"output {k}")
        problem = ""
    except AssertionError as error:
        problem = str(error)
    far, where = _largest(out, ref) if out.shape == ref.shape else (math.nan, ())
    return Difference(name, str(device), k, far, where, tolerance(ref, eager, factor), problem)


def _largest(out: torch.Tensor, ref: torch.Tensor) -> tuple[float, tuple[int, ...]]:
    """The largest absolute difference and its index; NaN or an infinity in one place and not the other counts most."""
    if out.numel() == 0:
        return 0.0, ()
    got, want = out.double(), ref.double()
    off = (got - want).abs()
    same = (got == want) | (got.isnan() & want.isnan())
    off = torch.where(same, 0.0, off.nan_to_num(math.inf))
    at = int(off.argmax())
    return off.flatten()[at].item(), tuple(int(n) for n in torch.unravel_index(torch.tensor(at), out.shape))
