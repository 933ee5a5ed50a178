"""Running sums as the cupy backend prints them: over registers, lanes and warps, along any dimension of a block."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from flashlight._conformance import Case, block, point, running
from flashlight.testing import run_case
from flashlight.tile import Buffer, Dim, GridAxis, Index, Kernel, LoadOp, ScanOp, Size, Store
from tests.backends.cupy.shim import TARGET, ShimBackend
from tests.backends.cupy.test_cupy_conformance import Wrong
from tests.end_to_end import test_operators as programs
from tests.end_to_end import test_running_sums as sums

SHIM = ShimBackend()
N, i, c, d = Size("N"), Index("i"), Index("c"), Index("d")


def case(row: int, stream: int) -> Case:
    return Case(
        f"running_{row}_{stream}",
        running(row, stream),
        ((20, 37), (3, 2 * stream + 5)),
        lambda g, n, m: (torch.randn(n, m, generator=g) / 8,),
        lambda x: (x.abs().cumsum(-1).neg().exp().sum(-1),),
    )


@pytest.mark.parametrize(
    ("row", "stream", "digits"),
    [
        (4, 48, ["registers", "lanes"]),
        (2, 256, ["registers", "lanes", "registers"]),
        (128, 16, ["warps", "registers"]),
        (8, 1024, ["registers", "lanes", "warps", "registers"]),
    ],
)
def test_a_digit_of_the_coordinate_at_a_time(row: int, stream: int, digits: list[str]) -> None:
    made = case(row, stream)
    found = re.findall(r"run_over_(\w+)<", SHIM.emit(made.kernel, TARGET).text)
    assert found == digits * 2  # a full trip and a partial one
    run_case(made, SHIM, TARGET)


@pytest.mark.parametrize(
    ("pattern", "by"),
    [(r"run_over_lanes<16, 1, 4, 1, 32>", "run_over_lanes<16, 1, 4, 1, 16>"), (r"run_over_warps<\d+.*?;", ";"),
     (r"run_over_registers<16, 1, 4, 4>", "run_over_registers<16, 1, 4, 2>")],
)  # fmt: skip
def test_a_digit_left_out_shows(pattern: str, by: str) -> None:
    with pytest.raises(AssertionError, match="running_8_1024"):
        run_case(case(8, 1024), Wrong(pattern, by), TARGET)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64"])
@pytest.mark.parametrize("axis", ["i", "c", "d"])
def test_along_any_dimension(axis: str, dtype: str) -> None:
    kernel = Kernel(
        "along",
        ("N",),
        (Buffer("x", dtype, (N, 5, 24)),),
        (Buffer("y", dtype, (N, 5, 24)),),
        (GridAxis("i", N, 16),),
        (Dim("i", 16, N, "row"), point("c", 5), point("d", 24)),
        (
            block("x_tile", "icd", dtype, LoadOp("x", (i, c, d), ("i",))),
            block("y_tile", "icd", dtype, ScanOp("x_tile", axis)),
            Store("y", (i, c, d), "y_tile", ("i",)),
        ),
    )
    x = torch.randint(-4, 5, (32, 5, 24)).to(getattr(torch, dtype))  # whole numbers: no sum is rounded
    y = torch.empty_like(x)
    SHIM.build(SHIM.emit(kernel, TARGET))([x], [y], [32])
    blocks = x.unflatten(0, (2, 16))
    want = blocks.cumsum({"i": 1, "c": 2, "d": 3}[axis]).flatten(0, 1).to(x.dtype)
    assert torch.equal(y, want)


@pytest.mark.parametrize("name", ["stick_breaking", "running_scores", "contextual_positions", "forgetting", "running"])
def test_programs(name: str, shim: str) -> None:
    import flashlight
    from tests.programs import error_within_twice_eager

    program = getattr(programs, name)
    fast = flashlight.optimize(program, backend=shim, strict=True)
    for n in (129, 40):
        args = tuple(t[:1, :, :n].contiguous() for t in programs.inputs())
        got, want = (torch.utils._pytree.tree_leaves(f(*args)) for f in (fast, program))
        for k, p in enumerate(got):
            assert p.dtype == want[k].dtype
            if not p.is_floating_point():
                assert torch.equal(p, want[k])
                continue
            ok, ours, eager = error_within_twice_eager(
                lambda *a, k=k: torch.utils._pytree.tree_leaves(program(*a))[k], args, p
            )
            assert ok, (k, ours, eager)


WRITTEN = [
    sums.forward, sums.exclusive_backward, sums.conditional, sums.both_ways, sums.counted, sums.middle, sums.twice,
    sums.of_probabilities, sums.scores,
]  # fmt: skip


@pytest.mark.parametrize("program", WRITTEN, ids=lambda f: f.__name__)
def test_written_as_they_run(program: Any, shim: str) -> None:
    for rows, n in ((3, 300), (17, 5)):
        sums.check(program, shim, rows, n)


@pytest.mark.parametrize("make", [torch.randn, sums.with_odd_values], ids=["finite", "odd"])
def test_written_in_several_blocks(make: Any, shim: str) -> None:
    sums.check(sums.forward, shim, 4, 5000, make=make)
    sums.check(sums.exclusive_backward, shim, 4, 5000, make=make)


def test_written_in_sixteen_bits(shim: str) -> None:
    sums.check(sums.forward, shim, 3, 300, dtype=torch.bfloat16)
