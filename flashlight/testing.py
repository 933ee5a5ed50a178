"""The suite every backend must pass, and the error rule results are held to.

A third party's backend checks itself with::

    @pytest.mark.parametrize("check", flashlight.testing.conformance("mine"), ids=str)
    def test_conformance(check):
        check()
"""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashlight import backend as registry
from flashlight._conformance import CASES, Case
from flashlight.backend import Backend, Target

__all__ = ["CASES", "Case", "Check", "assert_close", "assert_equivalent", "conformance", "run_case", "tolerance"]


def tolerance(reference: torch.Tensor, eager: torch.Tensor, factor: float = 2.0) -> float:
    """How far a result may lie from ``reference`` (float64): ``factor`` times what ``eager``, in the result's dtype, is
    off by at most, and a rounding or two of the largest value for where eager happens to be exact.

    Float64 eager is the reference itself, whose own error is then unknown, and differs between CPUs: four times as many
    roundings are allowed.
    """
    wrong = (eager.double() - reference).abs()[torch.isfinite(reference)]
    error = wrong.max().item() if wrong.numel() else 0.0
    if not eager.dtype.is_floating_point:
        return factor * error
    finite = reference[torch.isfinite(reference)].abs()
    top = finite.max().item() if finite.numel() else 0.0
    roundings = 8 if eager.dtype == torch.float64 else 2
    return factor * error + roundings * torch.finfo(eager.dtype).eps * max(top, torch.finfo(eager.dtype).tiny)


def assert_close(
    result: torch.Tensor, reference: torch.Tensor, eager: torch.Tensor, factor: float = 2.0, what: str = "result"
) -> None:
    """Raises AssertionError: the error exceeds :func:`tolerance`, or infinities and NaNs are not where eager's are."""
    assert result.shape == reference.shape, f"{what}: shape {tuple(result.shape)}, not {tuple(reference.shape)}"
    assert result.dtype == eager.dtype, f"{what}: {result.dtype}, not {eager.dtype}"
    if reference.numel() == 0:
        return
    got, eager64 = result.double().cpu(), eager.double().cpu()
    odd = ~torch.isfinite(eager64)
    assert torch.equal(torch.isnan(got), torch.isnan(eager64)), f"{what}: NaN is not where eager has it"
    assert torch.equal(got[odd].nan_to_num(7.0), eager64[odd].nan_to_num(7.0)), f"{what}: infinities differ"
    reference = reference.cpu()
    error = (got - reference)[~odd].abs()
    worst, allowed = (error.max().item() if error.numel() else 0.0), tolerance(reference, eager.cpu(), factor)
    assert worst <= allowed, f"{what}: error {worst:.3g}, allowed {allowed:.3g}"


def run_case(case: Case, backend: Backend, target: Target, device: str = "cpu", seed: int = 0) -> None:
    """Build the case's kernel and hold each output against float64.

    Raises AssertionError on a wrong result, unittest.SkipTest (which pytest reports as skipped) where the backend
    declines the kernel.
    """
    if declined := backend.supports(target, case.kernel):
        raise unittest.SkipTest(declined.reason)
    run = backend.build(backend.emit(case.kernel, target))
    for sizes in case.sizes:
        inputs = case.inputs(torch.Generator().manual_seed(seed), *sizes)
        eager = case.reference(*inputs)
        exact = case.reference(*(x.double() if x.is_floating_point() else x for x in inputs))
        placed = [x.to(device) for x in inputs]
        outputs = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in eager]
        for x in outputs:
            x.fill_(torch.nan if x.is_floating_point() else 1)  # what is never written shows
        run(placed, outputs, list(sizes))
        for buffer, out, ref, own in zip(case.kernel.outputs, outputs, exact, eager, strict=True):
            assert_close(out, ref, own, what=f"{case.name}{list(sizes)}: {buffer.name}")


@dataclass(frozen=True)
class Check:
    """One conformance case on one backend; calling it raises where the backend is wrong."""

    case: Case
    backend: str
    target: Target
    device: str

    def __str__(self) -> str:
        return self.case.name

    def __call__(self) -> None:
        run_case(self.case, registry.get(self.backend), self.target, self.device)


def conformance(backend: str, device: str = "cpu", target: Target | None = None) -> list[Check]:
    """Every case as a check of the registered ``backend``, with tensors on ``device``."""
    if target is None:
        from flashlight.targets import detect

        target = detect(torch.device(device), backend)
    return [Check(case, backend, target, device) for case in CASES]


def assert_equivalent(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    backends: Sequence[str] | None = None,
    factor: float = 2.0,
) -> None:
    """Every backend that can run here gives what ``function(*args, **kwargs)`` gives in eager mode, within the error
    rule: at most ``factor`` times eager's own distance from float64.

    ``backends``: names, all of which must take part; by default those of the registered ones that can, at least one.
    Raises AssertionError: the backends and outputs that are off, by how much and where.  BackendUnavailable: a backend
    that was named cannot run here.
    """
    from flashlight.equivalence import compare
    from flashlight.errors import BackendUnavailable

    found = compare(function, args, kwargs, backends, factor)
    if backends is not None and found.absent:
        raise BackendUnavailable("; ".join(f"backend {name!r}: {why}" for name, why in found.absent))
    assert found.ran, f"no backend is available here\n{found}"
    assert not found.problems, "\n".join(map(str, found.problems))
