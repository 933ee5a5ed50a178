"""The conformance suite on the cupy backend, run on the CPU by the shim; and that the shim sees what is wrong."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from flashlight._conformance import CASES, Case, attention_case
from flashlight.backend import Source, Target
from flashlight.testing import run_case
from flashlight.tile import Kernel
from tests.backends.cupy.shim import TARGET, Failed, ShimBackend

SHIM = ShimBackend()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    assert SHIM.supports(TARGET, case.kernel) is None
    run_case(case, SHIM, TARGET)


SEVERAL_WARPS = [
    attention_case("rows_64", ((1, 2, 70, 130),), dtype="bfloat16", row=64, stream=16),
    attention_case("rows_128", ((1, 1, 150, 41),), dtype="float16", row=128, stream=16, depth=48, width=80),
    attention_case("narrow_keys", ((1, 2, 20, 37),), dtype="bfloat16", row=16, stream=16, group=2, layout="bnhd"),
    attention_case("float32_64", ((1, 1, 70, 41),), row=64, stream=32, bias=True),
    attention_case("float32_deep", ((1, 1, 70, 41),), row=64, stream=32, depth=160),
    attention_case("bfloat16_deep", ((1, 1, 70, 41),), dtype="bfloat16", row=64, stream=16, depth=192),
    attention_case("float64_32", ((1, 2, 33, 40),), dtype="float64", row=32, stream=16),
]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", SEVERAL_WARPS, ids=str)
def test_any_order_of_threads_gives_the_same(case: Case, seed: int) -> None:
    shim = ShimBackend()
    shim.seed = seed << 20
    run_case(case, shim, TARGET)


@pytest.mark.parametrize(
    ("name", "dot"), [("float32_deep", r"dot<6, true, 160, 64>"), ("bfloat16_deep", r"dot<bf16, true, 192, 64>")]
)
def test_left_operands_too_large_for_registers_stay_in_shared_memory(name: str, dot: str) -> None:
    (case,) = (c for c in SEVERAL_WARPS if c.name == name)
    assert re.search(dot, SHIM.emit(case.kernel, TARGET).text)


class Wrong(ShimBackend):
    """The backend with one piece of its text replaced: the ``place``-th match of a pattern, or all of them."""

    def __init__(self, pattern: str, by: str = "", place: int | None = None, target: Target = TARGET) -> None:
        self.pattern, self.by, self.place, self.target = pattern, by, place, target

    def emit(self, kernel: Kernel, target: Target) -> Source:
        source = super().emit(kernel, self.target)
        found = list(re.finditer(self.pattern, source.text))
        assert found, self.pattern
        text = source.text
        for m in reversed(found if self.place is None else [found[self.place]]):
            text = text[: m.start()] + self.by + text[m.end() :]
        return replace(source, text=text)


@pytest.mark.parametrize(
    ("what", "place"),
    [(r"__syncthreads\(\);", 1), (r"__syncthreads\(\);", 2), (r"copies_wait<\d+>\(\);", 0), (r"copies_commit\(\);", 0),
     (r"copies_commit\(\);", 1)],
)  # fmt: skip
@pytest.mark.parametrize("case", [SEVERAL_WARPS[0], SEVERAL_WARPS[3]], ids=str)
def test_a_missing_barrier_or_wait_shows(case: Case, what: str, place: int) -> None:
    with pytest.raises((AssertionError, Failed)):
        run_case(case, Wrong(what, "", place), TARGET)


@pytest.mark.parametrize(
    ("name", "pattern", "by"),
    [
        ("causal", r"across_lanes<Max, 1, 4>", "across_lanes<Max, 1, 2>"),
        ("causal_bfloat16", r"dot<bf16, true>", "dot<bf16, false>"),
        ("full_float16", r"pair<f16>", "pair<bf16>"),
        ("logsumexp", r"across_lanes<Sum", "across_lanes<Max"),
        ("grouped_heads", r"h / 2", "h % 2"),
        ("heads_inside", r"\* q_s2", "* q_s1"),
    ],
)
def test_the_suite_notices(name: str, pattern: str, by: str) -> None:
    case = next(c for c in CASES if c.name == name)
    with pytest.raises(AssertionError, match=name):
        run_case(case, Wrong(pattern, by), TARGET)


def test_the_shim_tells_of_a_barrier_that_not_all_reach() -> None:
    case = SEVERAL_WARPS[0]
    with pytest.raises(Failed, match=r"different barriers|wait for each other"):
        run_case(case, Wrong(r"__syncthreads\(\);", "if (warp > 0) __syncthreads();", 0), TARGET)


def test_the_shim_tells_of_lanes_that_part() -> None:
    case = next(c for c in CASES if c.name == "causal")
    parted = "if (lane < 16) top[i] = across_lanes<Max, 1, 4>"
    with pytest.raises(Failed, match=r"wait for each other|different operations"):
        run_case(case, Wrong(r"top\[i\] = across_lanes<Max, 1, 4>", parted, 0), TARGET)
