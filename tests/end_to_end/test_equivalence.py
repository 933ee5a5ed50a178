"""Random programs (tests/drawn.py) on every backend, each result held against float64 eager.

A backend that takes a program takes all of it, or all backends refuse the same part for the same reason.  ``python -m
tests.end_to_end.test_equivalence FIRST LAST`` tries seeds as the tests do where there is no GPU: Triton's text by its
interpreter, CUDA C++ by the shim.  More words are the backends to try: ``0 5000 cpu``.  ``found`` instead of two
numbers tries the programs that went wrong on a GPU.  On a GPU ``benchmarks/device.py --parts random`` runs the same
programs in many processes and keeps a line of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flashlight import backend as registry
from flashlight import equivalence, explain, runtime
from flashlight.targets import place
from tests.drawn import Drawn, draw

ROOT = Path(__file__).resolve().parents[2]
HERE, ON_A_GPU = 300, 1000  # programs of every run of the tests, and of one on a GPU
SHORT, LONG = 70, 700  # the largest length: of the interpreter and the shim, of a GPU
EMULATION = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
EMULATED = ("cpu", "triton", "cupy_shim")
FOUND = (  # on a GPU: rows that hold nothing but fills, in parts of an axis or in blocks that end beyond it
    Drawn(362, ("by head",), False, ("others", "causal"), False, False, -1e4, "_by_hand", torch.float64,
          "heads inside", (1, 1, 3), (251, 460), (32, 1)),
    Drawn(370, ("root",), False, ("later",), False, False, -1e4, "_in_float32", torch.float32,
          "plain", (1, 1, 3), (629, 494), (32, 1)),
    Drawn(162, ("clipped", "distance"), False, ("band",), False, False, -1e4, "_entropy", torch.float16,
          "plain", (1, 1, 2), (157, 130), (1, 1)),
)  # fmt: skip


def problems(drawn: Drawn, backends: Sequence[str], device: str = "cpu") -> list[str]:
    """What is wrong with a program: results out of bounds, backends that failed, or do not take the same parts."""
    program = lambda *args: drawn(*args)  # noqa: E731
    try:
        found = equivalence.compare(program, drawn.arguments(device), backends=backends)
    except Exception as error:
        return ["".join(traceback.format_exception(error, limit=-3, chain=False))]
    return told(found)


def told(found: equivalence.Comparison) -> list[str]:
    """What is wrong in a comparison: in words, none where nothing is."""
    refused = {name: frozenset(why for by, why in found.unfused if by == name) for name in found.ran}
    wrong = [str(d) for d in found.problems] + [f"{name} took no part: {why}" for name, why in found.absent]
    if len(set(refused.values())) > 1:
        wrong += [f"{name} refuses {sorted(why) or 'nothing'}" for name, why in refused.items()]
    return wrong


def tried(programs: Iterable[Drawn], backends: Sequence[str], device: str = "cpu") -> str:
    """All that is wrong with these programs, each with its program."""
    wrong = []
    for drawn in programs:
        wrong += [f"{drawn}\n  " + "\n  ".join(p) for p in [problems(drawn, backends, device)] if p]
    return "\n".join(wrong)


def drawn(seeds: range, largest: int) -> list[Drawn]:
    return [draw(seed, largest) for seed in seeds]


def chunks(programs: int, each: int) -> list[range]:
    return [range(k, min(k + each, programs)) for k in range(0, programs, each)]


@pytest.mark.gpu
@pytest.mark.parametrize("seeds", chunks(ON_A_GPU, 10), ids=str)
def test_on_a_gpu(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLIGHT_TUNE", "off")  # which compiles each program three times
    here = [name for name in ("triton", "cupy") if place(name, torch.device("cuda"))[0] is not None]
    assert "triton" in here
    assert not (wrong := tried(drawn(seeds, LONG), here, "cuda")), wrong


@pytest.mark.parametrize("seed", range(3))
def test_what_is_off_is_told_with_its_program(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = equivalence._run

    def off(function: Any, given: Any, device: torch.device) -> list[torch.Tensor]:
        outs = run(function, given, device)
        return [x + 0.5 for x in outs] if isinstance(function, runtime.Optimized) else outs

    monkeypatch.setattr(equivalence, "_run", off)
    wrong = tried([draw(seed, 20)], ("cpu",))
    assert str(draw(seed, 20)) in wrong
    assert "NOT within" in wrong


def test_queries_that_all_batches_share() -> None:
    """Seeds found it: batches and rows were tiled together, in blocks of three dimensions."""
    args = (torch.randn(1, 2, 13, 16), torch.randn(2, 2, 39, 16), torch.randn(2, 2, 39, 8))
    kernel = explain(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, *args, backend="triton").kernels["triton"]
    assert [d.axis for d in kernel.sources[-1].kernel.dims if d.role == "row"] == ["i"]


@pytest.mark.parametrize("asked", [*chunks(HERE, 75), FOUND], ids=lambda x: str(x) if isinstance(x, range) else "found")
def test_emulated(asked: range | tuple[Drawn, ...]) -> None:
    """In a process of its own: Triton's interpreter is chosen when triton is imported."""
    words = (str(asked.start), str(asked.stop)) if isinstance(asked, range) else ("found",)
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.test_equivalence", *words],
        env={**os.environ, **EMULATION},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert f"{len(asked)} programs agree" in done.stdout


# ---- quick emulation -------------------------------------------------------------------------------------------------
def understood_once() -> None:
    """One front end serves all backends: a call that was understood for one of them is not traced again."""
    understand: Callable[..., Any] = runtime.Optimized._understand
    last: list[Any] = [None, None]

    def once(self: Any, flat: Any, spec: Any, record: Any) -> Any:
        if last[0] is not self.graph:
            last[:] = [self.graph, understand(self, flat, spec, record)]
        return last[1]

    runtime.Optimized._understand = once  # type: ignore[method-assign]


def reduced_by_halves() -> None:
    """Triton's interpreter calls a reduction's function for each element; here it is called for arrays of neighbours,
    half as many each time (lengths of blocks are powers of two)."""
    import numpy as np
    from triton.runtime.interpreter import ReduceOps

    def reduce(self: Any, given: tuple[Any, ...]) -> list[Any]:
        given, axis = self.unravel(given, self.axis)
        arrays = [x.handle.data for x in given]
        while (n := arrays[0].shape[axis]) > 1:
            pairs = [
                [self.to_tensor(a.take(range(k, n, 2), axis), x.dtype) for a, x in zip(arrays, given, strict=True)]
                for k in (0, 1)
            ]
            made = self.combine_fn.fn(*pairs[0], *pairs[1])
            arrays = [x.handle.data for x in (made if isinstance(made, tuple) else (made,))]
        if not self.keep_dims:
            arrays = [np.squeeze(a, axis) for a in arrays]
        return [self.to_tensor(a, x.dtype) for a, x in zip(arrays, given, strict=True)]

    ReduceOps.generic_reduce = reduce


def main(first: str, last: str = "", *backends: str) -> int:
    """Prints what is wrong; returns an exit status."""
    from tests.backends.cupy import shim

    shim.FLAGS = (*shim.FLAGS, "-O0")  # kernels run once, and take longer to compile than to run
    detect = runtime.detect
    registry.BUILTIN["cupy_shim"] = "tests.backends.cupy.shim:ShimBackend"
    emulated = lambda device, name: shim.TARGET if name == "cupy_shim" else detect(device, name)  # noqa: E731
    runtime.detect = lambda device, name: replace(emulated(device, name), processors=132)  # a few rows do not fill it
    understood_once()
    reduced_by_halves()
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, at infinities
    asked = FOUND if first == "found" else drawn(range(int(first), int(last)), SHORT)
    wrong = tried(asked, backends or EMULATED)
    print(wrong or f"{len(asked)} programs agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    if not os.environ.items() >= EMULATION.items():  # triton, which torch imports, has read it by now
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], {**os.environ, **EMULATION})
    sys.exit(main(*sys.argv[1:]))
