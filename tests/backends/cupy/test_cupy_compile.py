"""The text compiled by NVRTC for GPUs that are not here: it is taken, nothing spills, and tensor cores are used."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flashlight
from flashlight import cache
from flashlight.__main__ import main
from flashlight._conformance import CASES, Case, attention
from flashlight.backend import Target
from flashlight.backends.cupy import CupyBackend
from flashlight.backends.cupy import compile as compiling
from flashlight.backends.cupy.compile import Compiled, compile_only, compiled
from flashlight.backends.triton.compile import disassembled
from flashlight.errors import BackendUnavailable, InternalError
from tests.programs import causal

CUPY = CupyBackend()
TENSOR_CORES = (r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.M88", r"LDSM\.16\.MT88")
SHARED = {80: 166912, 90: 232448}


def _missing() -> str:
    try:
        compiling.compiler()
    except BackendUnavailable as error:
        return str(error)
    return ""


nvrtc = pytest.mark.skipif(bool(_missing()), reason=_missing() or "NVRTC is here")


def target(arch: int) -> Target:
    return Target("cuda", arch, 132, SHARED[arch])


def sass(made: Compiled) -> str:
    """The machine code as text, by a tool that comes with Triton."""
    pytest.importorskip("triton")
    return disassembled(made.cubin)


@nvrtc
def test_the_compiler_tells_of_code_that_it_has_made_before() -> None:
    """NVRTC keeps what it has compiled, and tells nothing of it again unless it is told not to keep it."""
    found = compiling.compiler()
    text = 'extern "C" __global__ void again(float* x) { x[threadIdx.x] *= 2.0f; }'
    options = ["-std=c++17", "-arch=sm_90", "--ptxas-options=-v", *found.options]
    assert ["Used" in found.compile(text, options)[1] for _ in range(3)] == [True] * 3


@nvrtc
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in ("full_64", "bias_expanded", "heads_inside")], ids=str
)
def test_every_case_compiles(case: Case, arch: int) -> None:
    if arch == 80 and case.name.startswith(("full", "logsumexp", "slopes")):
        pytest.skip("much the same as others: compiled for sm_90 only")
    made = compile_only(CUPY.emit(case.kernel, target(arch)), arch)
    assert made.cubin.startswith(b"\x7fELF")
    assert len(made.cubin) % 8 == 0
    assert made.spills == 0
    assert 0 < made.registers <= 255


@nvrtc
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("depth", [64, 128])
def test_16_bit_attention_is_tensor_cores_and_asynchronous_copies(arch: int, depth: int) -> None:
    kernel = attention("flash", dtype="bfloat16", row=128, stream=64, depth=depth, causal=True)
    made = compile_only(CUPY.emit(replace(kernel, warps=8), target(arch)), arch)
    assert (made.spills, made.threads % 128) == (0, 0)
    text = sass(made)
    for instruction in (*TENSOR_CORES, r"LDGSTS\.E\.(LTC128B\.)?BYPASS", r"MUFU\.EX2", r"SHFL\.BFLY"):
        assert re.search(instruction, text), instruction
    assert not re.search(r"\b(LDL|STL)\b", text)


@nvrtc
def test_float32_products_follow_the_precision() -> None:
    counts = []
    for precision, product in (("highest", r"HMMA\.16816\.F32\.BF16"), ("medium", r"HMMA\.1688\.F32\.TF32")):
        source = CUPY.emit(attention(), replace(target(90), precision=precision))
        counts.append(len(re.findall(product, sass(compile_only(source, 90)))))
    assert counts[0] == 3 * counts[1] > 0  # six for each 16 that are summed over, and one for each 8


@nvrtc
def test_a_second_process_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLIGHT_CACHE", str(tmp_path / "store"))
    source = CUPY.emit(CASES[0].kernel, target(90))
    first = compile_only(source, 90)

    class Broken:
        version, options = compiling.compiler().version, compiling.compiler().options

        def compile(self, text: str, options: list[str]) -> tuple[bytes, str]:
            raise AssertionError("compiled again")

    monkeypatch.setattr(compiling, "compiler", Broken)
    assert compile_only(source, 90) == first
    for other in ((source, 80), (source, 90, {"ALIGN_q": "0"})):
        with pytest.raises(AssertionError, match="again"):
            compile_only(*other)
    (entry,) = (tmp_path / "store").glob("*.entry")
    entry.write_bytes(entry.read_bytes()[:-9])
    with pytest.warns(cache.CacheWarning, match="damaged"), pytest.raises(AssertionError, match="again"):
        compile_only(source, 90)


@nvrtc
def test_reports_tell_what_a_kernel_takes() -> None:
    args = tuple(torch.randn(1, 2, 9, 64).bfloat16() for _ in range(3))
    report = flashlight.explain(causal, *args, backend="cupy")
    (line,) = report.kernels["cupy"].resources
    assert re.fullmatch(
        r"nest0: \d+ registers a thread, none spilled; \d+ bytes of shared memory; 128 threads a block \(sm_90\)", line
    )
    assert report.kernels["cpu"].resources == ()


@nvrtc
def test_what_the_compiler_refuses_is_told() -> None:
    text = CUPY.emit(CASES[0].kernel, target(90)).text.replace("float m[2]", "flaot m[2]")
    with pytest.raises(InternalError, match=r"NVRTC refuses the kernel: .*flaot"):
        compiled(text, 90, ())


def test_the_text_with_its_headers_is_one_file() -> None:
    whole = compiling.expanded(CUPY.emit(CASES[0].kernel, target(90)).text)
    assert not re.search("#include|#pragma once", whole)
    assert whole.count("struct Tile {") == whole.count("struct Sum {") == 1


def test_without_nvrtc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    compiling.compiler.cache_clear()
    monkeypatch.setattr("builtins.__import__", _without(("cupy_backends", "cuda"), __import__))
    with pytest.raises(BackendUnavailable, match=r"needs NVRTC, which comes with CuPy .* or cuda-bindings"):
        compiling.compiler()
    example = Path(__file__).parents[3] / "examples" / "alibi.py"
    assert main(["explain", f"{example}:attention", "--backend", "cupy", "--source"]) == 0
    assert "CUDA C++ needs NVRTC" in capsys.readouterr().out.splitlines()[-1]
    compiling.compiler.cache_clear()


def _without(names: tuple[str, ...], real: object) -> object:
    def imported(name: str, *more: object, **others: object) -> object:
        if name.partition(".")[0] in names:
            raise ImportError(f"No module named {name!r}")
        return real(name, *more, **others)  # type: ignore[operator]

    return imported
