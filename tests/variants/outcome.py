"""What becomes of a variant: what flashlight makes of it, and how far its values are from float64's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_leaves

import flashlight
from flashlight import backend
from flashlight.growth import is_fat
from flashlight.lifted import Eager
from flashlight.pipeline import Analysis, Record, generate
from flashlight.targets import assumed
from flashlight.testing import tolerance
from flashlight.variant import Variant as Compiled
from tests.variants.table import Variant


@dataclass(frozen=True)
class Outcome:
    """``passes``: sweeps along a streamed axis, over all kernels.  ``reasons``: what is not fused and why (nothing:
    fused).  ``declined``: why Triton takes no kernel of it.  ``error``: the largest against float64, of the output
    where it is largest beside eager's; ``eager`` eager's own there; ``wrong``: the outputs that are off by more than
    the rule allows."""

    kernels: int
    passes: int
    reasons: tuple[str, ...]
    declined: str
    error: float
    eager: float
    wrong: tuple[str, ...]

    @property
    def fused(self) -> bool:
        return not self.reasons and not self.declined


@torch.no_grad()
def outcome(v: Variant) -> Outcome:
    fast = flashlight.optimize(v.program, backend="cpu")
    outs = tree_leaves(fast(*v.arguments()))
    (compiled,) = fast._variants
    nests = [n for a in compiled.analyses for n in a.plan.nests]
    passes = sum(len(n.passes) + bool(n.maps) for n in nests)
    reasons = tuple(dict.fromkeys(reasons_of(compiled)))
    return Outcome(len(nests), passes, reasons, declined(compiled.analyses), *errors(v, outs))


def reasons_of(compiled: Compiled) -> list[str]:
    """Operators that run unfused, and tensors of more unbounded dimensions than comes in or goes out."""
    reasons = [s.reason for s in compiled.lifted.steps if isinstance(s, Eager) and s.reason]
    reasons += [compiled.whole] if compiled.whole else []
    for a in compiled.analyses:
        for t in a.plan.temporaries:
            if is_fat(a.plan.program, a.plan.program[t.name]):
                note = next(n for n in a.plan.notes if n.startswith(f"{t.name} "))
                reasons.append(note.partition(" (/")[0])
    return reasons


def declined(analyses: tuple[Analysis, ...]) -> str:
    """Why there is no Triton text for some kernel; empty if there is for all."""
    for a in analyses:
        made = generate(a, assumed("triton"), backend.get("triton"), Record())
        if made.declined:
            return made.declined.reason
        assert all("@triton.jit" in s.text for s in made.sources)
    return ""


def errors(v: Variant, outs: list[torch.Tensor]) -> tuple[float, float, tuple[str, ...]]:
    """The largest error beside eager's own, and what breaks the rule of at most twice that."""
    owns, exacts = tree_leaves(v.program(*v.arguments())), tree_leaves(v.program(*v.arguments(torch.float64)))
    pairs, wrong = [(0.0, 0.0)], []
    for k, (out, own, exact) in enumerate(zip(outs, owns, exacts, strict=True)):
        assert (out.shape, out.dtype) == (own.shape, own.dtype)
        if out.dtype.is_floating_point:
            ours, theirs = ((x.double() - exact).abs().nan_to_num(0).max().item() for x in (out, own))
            pairs.append((ours, theirs))
            if ours > tolerance(exact, own) or not torch.equal(out.isnan(), own.isnan()):
                wrong.append(f"output {k}: {ours:.2e}, eager {theirs:.2e}")
        elif not torch.equal(out, own):
            wrong.append(f"output {k}: {(out != own).sum().item()} differ")
    return *max(pairs, key=lambda p: p[0] / (p[1] or 1.0)), tuple(wrong)
