"""Machine code without a GPU: the emitted kernels compiled ahead of time for sm_80 and sm_90."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import flashlight
from benchmarks.machine import loops
from flashlight._conformance import CASES, Case, attention, ceildiv, floordiv, real
from flashlight.backend import Source, Target
from flashlight.backends.triton import TritonBackend
from flashlight.backends.triton import compile as made
from flashlight.backends.triton.launch import _within_a_size, compile_only
from flashlight.errors import InternalError
from flashlight.expr import Apply, Const, Expr, Index, Ref, Size, apply
from flashlight.tile import Kernel, Let, LoadOp, Loop, MapOp, ReduceOp, Stmt
from tests import programs

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
TRITON, HOPPER = TritonBackend(), Target("cuda", 90, 132, 232448)
i, j = Index("i"), Index("j")


def flash(depth: int, row: int, stream: int, warps: int, stages: int, causal: bool = True) -> Kernel:
    """Attention as it is lowered for long sequences: what is masked needs no second test of the end."""
    kernel = attention(causal=causal, dtype="bfloat16", depth=depth, row=row, stream=stream)
    alone = apply("le", j, i)

    def simpler(s: Stmt) -> Stmt:
        if isinstance(s, Let) and s.name == "x" and isinstance(s.op, MapOp) and isinstance(s.op.body, Apply):
            match s.op.body:
                case Apply("select", (_, score, fill)) if causal:
                    return replace(s, op=MapOp(apply("select", alone, score, fill)))
        return s

    def body(statements: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        out = []
        for s in statements:
            if isinstance(s, Loop):
                s = replace(s, segments=tuple(replace(g, body=body(g.body)) for g in s.segments))
            out.append(simpler(s))
        return tuple(out)

    return replace(kernel, body=body(kernel.body), warps=warps, stages=stages)


def compiled(kernel: Kernel, arch: int = 90) -> made.Compiled:
    return compile_only(TRITON.emit(kernel, replace(HOPPER, arch=arch)), arch)


# ---- what the tilings of the scheduler give --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("depth", "stream", "warps", "stages"), [(64, 128, 4, 3), (64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 8, 3)]
)
def test_causal_attention_on_hopper(depth: int, stream: int, warps: int, stages: int) -> None:
    info = compiled(flash(depth, 128, stream, warps, stages))
    assert info.spills == 0
    assert info.serialized == (depth == 64 and stream == 128)  # 128 x 128 scores are too many for four warps
    assert info.shared <= HOPPER.shared_bytes
    assert info.count(r"wgmma\.mma_async") >= 2 * (depth // 16 + stream // 16)
    assert info.count(r"cp\.async\.cg") > 0  # keys and values are copied ahead
    assert info.count("mma.sync") == 0
    elements = 128 * stream // (warps * 32)
    full = loops(info.sass())[0]
    per = {op: full[op] / elements for op in ("MUFU", "FFMA", "FMNMX", "FADD", "FMUL", "FSEL", "FSETP", "F2FP", "I2FP")}
    # An element: one multiply-add, one power, one maximum, one sum; the rest is a row's, or the accumulator's.
    row = 32 / stream  # what a row costs, shared by its elements
    limits = {"MUFU": 1, "FFMA": 1, "FMNMX": 1, "FADD": 1, "F2FP": 0.5, "FMUL": depth / stream, "FSEL": 0, "FSETP": 0}
    assert all(per[op] <= limit + row for op, limit in limits.items()), per
    assert per["I2FP"] == 0


def test_keys_and_values_stay_in_flight() -> None:
    """The product with the values is waited for in the next trip, not where it was issued."""
    info = compiled(flash(64, 128, 64, 4, 3))
    assert re.search(r"ttng\.warp_group_dot .*isAsync = true", info.ttgir)
    assert info.spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "tiling",
    [(64, 128, 64, 4, 3), (64, 128, 128, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 2), (128, 128, 128, 8, 2)],
)
def test_nothing_spills_that_was_not_withheld(tiling: tuple[int, int, int, int, int], causal: bool, arch: int) -> None:
    if arch == 80 and tiling[2] == 128:
        pytest.skip("more shared memory than sm_80 has")
    assert compiled(flash(*tiling, causal=causal), arch).spills <= made.KEPT


# ---- everything compiles ---------------------------------------------------------------------------------------------
QUICK = ("gather", "rms_norm", "logsumexp", "depth_1", "full_float64")


@pytest.mark.parametrize(
    ("case", "arch"),
    [
        pytest.param(c, arch, marks=() if c.name in QUICK and arch == 90 else pytest.mark.slow)
        for c in CASES
        for arch in (80, 90)
        if c.name != "logsumexp_nan"
    ],
    ids=str,
)
def test_conformance_kernels_compile(case: Case, arch: int) -> None:
    info = compiled(case.kernel, arch)
    narrow = case.kernel.inputs[0].dtype in ("bfloat16", "float16")
    assert info.spills == 0 or not narrow  # products of float32 in full precision are not for tensor cores
    assert info.registers > 0
    assert ".target sm_" + str(arch) in info.ptx


def test_maxima_cost_one_instruction() -> None:
    """Propagating NaN is free from sm_80 on."""
    info = compiled(next(c.kernel for c in CASES if c.name == "logsumexp"), 80)
    assert info.count(r"max\.NaN\.f32") > 0
    assert info.count(r"max\.f32") == 0
    assert info.count(r"setp\.nan") == 0


@pytest.mark.parametrize(
    ("op", "instruction"),
    [("exp", "ex2.approx.ftz.f32"), ("sigmoid", "ex2.approx.ftz.f32"), ("tanh", "ex2.approx.ftz.f32")],
)
def test_functions_of_16_bit_inputs_are_powers_of_two(op: str, instruction: str) -> None:
    kernel = attention(dtype="bfloat16", depth=64, row=64, stream=64)

    def capped(s: Stmt) -> Stmt:
        if isinstance(s, Let) and s.name == "x" and s.note and isinstance(s.op, MapOp):
            return replace(s, op=MapOp(apply("mul", apply(op, apply("div", Ref("s"), real(40))), real(5))))
        return s

    loop = next(s for s in kernel.body if isinstance(s, Loop))
    full = next(g for g in loop.segments if g.kind == "full")
    only = replace(loop, segments=(replace(full, body=tuple(map(capped, full.body))),))
    info = compiled(replace(kernel, body=tuple(only if s is loop else s for s in kernel.body)))
    elements = 64 * 64 // 128
    assert info.count(re.escape(instruction)) >= 2 * elements
    loop_ = loops(info.sass())[0]
    assert loop_["MUFU"] <= elements * (2.1 if op == "exp" else 3.1)
    assert loop_["FSETP"] + loop_["FSEL"] <= elements / 2  # no branches or range reduction an element


# ---- layouts ---------------------------------------------------------------------------------------------------------
def layouts(kernel: Kernel) -> made.Module:
    return made.load(TRITON.emit(kernel, HOPPER))


def test_layouts_of_lengths_are_one() -> None:
    module = layouts(attention(dtype="bfloat16", depth=64))

    def of(b: int, h: int, n: int, m: int, kind: str = "own", inside: bool = False) -> made.Layout:
        def strides(rows: int) -> tuple[int, ...]:
            return (rows * h * 64, 64, h * 64, 1) if inside else (h * rows * 64, rows * 64, 64, 1)

        shapes = [(b, h, n, 64), (b, h, m, 64), (b, h, m, 64), (b, h, n, 64)]
        return made.layout_of(module, shapes, [strides(s[2]) for s in shapes], [0] * 4, [b, h, n, m], kind)

    first = of(1, 2, 64, 64)
    assert len({of(b, h, n, m) for b, h, n, m in [(1, 2, 64, 64), (7, 3, 1, 999), (64, 128, 100_000, 4096)]}) == 1
    assert first.strides == ("i32*", "i32*", "i32*", "1") * 4
    assert of(1, 2, 64, 64, "literal").strides == ("i32*", "i32*", "64", "1") * 4
    assert of(1, 2, 64, 64, "literal", inside=True).strides == ("i32*", "i32*", "128", "1") * 4
    assert of(1, 2, 64, 64, "general") == made.Layout((False,) * 4, ("i32",) * 4, ("i32", "i32", "i32", "1") * 4)
    assert of(1, 2, 64, 2**26).strides[6] == "i64*"  # one head's keys lie further apart than 32 bits reach
    assert of(1, 2, 64, 2**26).strides[2] == "i32*"


def test_layouts_know_strides_that_grow() -> None:
    """The stride of a depth that lies across the keys is their number: no literal."""
    module = layouts(attention(dtype="bfloat16", depth=64))
    shapes = [(1, 2, 64, 64)] * 4
    strides = [(8192, 4096, 64, 1), (8192, 4096, 1, 64), (8192, 4096, 64, 1), (8192, 4096, 64, 1)]
    layout = made.layout_of(module, shapes, strides, [0, 8, 0, 0], [1, 2, 64, 64], "literal")
    assert layout.strides[4:8] == ("i32*", "i32*", "1", "i32*")
    assert layout.aligned == (True, False, True, True)


def test_expanded_inputs_may_have_literal_zeros() -> None:
    module = layouts(attention(bias=True))
    shapes = [(1, 2, 64, 16)] * 3 + [(2, 64, 64), (1, 2, 64, 16)]
    strides = [(2048, 1024, 16, 1)] * 3 + [(0, 0, 1), (2048, 1024, 16, 1)]
    layout = made.layout_of(module, shapes, strides, [0] * 5, [1, 2, 64, 64], "literal")
    assert layout.strides[12:15] == ("i32*", "0", "1")


def test_compiling_text_of_the_interpreter_is_refused() -> None:
    with pytest.raises(InternalError, match="interpreter"):
        compile_only(TRITON.emit(attention(), Target("cpu", interpret=True)))


def test_tracebacks_show_the_text() -> None:
    source = TRITON.emit(attention(dtype="bfloat16"), HOPPER)
    broken = replace(source, text=source.text.replace("tl.dot(q_tile", "tl.dot(q_lost", 1))
    with pytest.raises(Exception, match="q_lost"):
        compile_only(broken)


@pytest.mark.parametrize(
    ("length", "known"),
    [
        (Size("N"), True),
        (ceildiv(Size("N"), 64), True),
        (floordiv(Size("N"), 64), True),
        (apply("mul", Size("N"), Const(2)), False),
    ],
    ids=["a size", "its blocks", "whole blocks", "twice"],
)
def test_lengths_that_no_size_is_shorter_than(length: Expr, known: bool) -> None:
    """Launches compare strides with sizes only; other lengths are looked at once for each call's sizes."""
    assert _within_a_size(length) == known


# ---- programs as users write them ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "causal" else pytest.mark.slow) for n in programs.CASES]
)
def test_programs_compile_for_hopper(name: str) -> None:
    report = flashlight.explain(programs.CASES[name].fn, *programs.inputs(name, 64, dtype=torch.bfloat16))
    for source in report.kernels["triton"].sources:
        info = compile_only(source)
        assert info.shared <= HOPPER.shared_bytes
        assert info.registers > 0


# ---- programs on a multiprocessor ------------------------------------------------------------------------------------
def test_registers_are_spared_for_one_more_program() -> None:
    room = HOPPER.shared_bytes
    assert made.capped(138, 57344, 4, room) == 128  # four programs instead of three, as shared memory allows
    assert made.capped(128, 57344, 4, room) == 0  # four there are
    assert made.capped(168, 58368, 4, room) == 0  # shared memory has no room for a fourth
    assert made.capped(255, 40000, 4, room) == 0  # that many would spill
    assert made.capped(68, 512, 4, room) == 0  # warps enough
    assert made.capped(0, 512, 4, room) == 0  # not known


def test_a_kernel_with_fewer_registers_is_kept_where_nothing_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    args = programs.inputs("causal", 64, dtype=torch.bfloat16)
    source = flashlight.explain(programs.CASES["causal"].fn, *args).kernels["triton"].sources[-1]
    monkeypatch.setattr(made, "capped", lambda registers, *_: registers - 8)
    fewer = compile_only(source)
    monkeypatch.setattr(made, "capped", lambda *_: 0)
    assert 0 < fewer.registers < compile_only(source).registers
    with_option = made._compiled(
        made.load(source), made.contiguous(made.load(source)), 90, {"maxnreg": fewer.registers}
    )
    assert made.withholding(compile_only(source).ptx, fewer.registers) == with_option.ptx  # as Triton itself writes it
    for few in (72, 32):  # spills; is not enough for the assembler
        monkeypatch.setattr(made, "capped", lambda *_, few=few: few)
        assert compile_only(source).spills == 0


# ---- lengths of contiguous dimensions --------------------------------------------------------------------------------
def product_source():
    report = flashlight.explain(
        lambda x, w: x @ w.T, torch.randn(4, 256, 512).bfloat16(), torch.randn(384, 512).bfloat16(), backend="triton"
    )
    return report.kernels["triton"].sources[-1]


def test_results_along_a_length_are_stored_in_vectors() -> None:
    assert compile_only(product_source()).count(r"st\.global\.v4") > 0


def test_an_odd_length_is_another_layout() -> None:
    module = made.load(product_source())

    def layout(length: int, row: int):
        shapes = [(length, 512), (4, 256, 512), (4, 256, length)]
        strides = [(512, 1), (256 * 512, 512, 1), (256 * row, row, 1)]
        return made.layout_of(module, shapes, strides, [0] * 3, [4, 256, length])

    assert layout(384, 384).sizes[2] == "i32*"
    assert layout(380, 384).sizes[2] == "i32"  # part of wider rows: the same strides, another length
    assert layout(384, 384).sizes[:2] == ("i32", "i32")  # contiguous along neither


def test_literal_strides_are_for_what_they_may_save() -> None:
    assert made.tight(255, 0)
    assert made.tight(128, 8)
    assert not made.tight(254, 0)
    assert not made.tight(255, 26492)  # the second compilation of the longest kernels


# ---- loads that take their place from products -----------------------------------------------------------------------
def positions(q, k, v, table):
    """Scores with a bias at places that they tell."""
    at = (q @ k.mT).sigmoid().mul(7.9).floor().long()
    return (q @ k.mT + table[at]).softmax(-1) @ v


def last(program: Callable[..., torch.Tensor], dtype: torch.dtype) -> Source:
    args = [torch.randn(1, 2, 300, 64).to(dtype) for _ in range(3)]
    report = flashlight.explain(program, *args, torch.randn(8).to(dtype), backend="triton")
    return report.kernels["triton"].sources[-1]


def values_at_scores(dtype: str) -> Kernel:
    """Attention to the values that lie where the block's largest scores tell."""
    kernel = attention(dtype=dtype, depth=64, row=64, stream=64)
    place = apply("int", apply("minimum", apply("abs", Ref("best")), real(3)))

    def moved(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        values = next(s for s in body if isinstance(s, Let) and s.name == "v_tile")
        assert isinstance(values.op, LoadOp)
        index = (*values.op.index[:2], Ref("place"), values.op.index[3])
        out: list[Stmt] = []
        for s in body:
            if s is not values:
                out.append(s)
            if isinstance(s, Let) and s.name == "s":
                out.append(Let("best", ("j",), "float32", ReduceOp("max", "s", "i")))
                out.append(Let("place", ("j",), "int32", MapOp(place)))
                out.append(replace(values, op=replace(values.op, index=index)))
        return tuple(out)

    def looped(s: Stmt) -> Stmt:
        if not isinstance(s, Loop):
            return s
        return replace(s, segments=tuple(replace(g, body=moved(g.body)) for g in s.segments))

    return replace(kernel, body=tuple(map(looped, kernel.body)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dots_that_tell_what_others_load_stay_in_their_trip(dtype: str) -> None:
    """Triton would load ahead of them, for which it has no predicate."""
    kernel = values_at_scores(dtype)
    source = TRITON.emit(kernel, HOPPER)
    assert source.text.count("num_stages=1)") == 2
    assert compile_only(source).count(r"wgmma\.mma_async") > 0
    older = TRITON.emit(kernel, replace(HOPPER, arch=80))
    assert "num_stages=1)" not in older.text  # dots of a warp need no predicate
    assert compile_only(older, 80).registers > 0


def test_a_table_read_where_scores_tell() -> None:
    source = last(positions, torch.float32)
    assert source.text.count("num_stages=1)") == source.text.count("tl.range(") > 0
    assert compile_only(source).registers > 0


@pytest.mark.parametrize(
    ("program", "dtype"),
    [
        (positions, torch.bfloat16),  # single elements of two bytes: never loaded ahead
        (lambda q, k, v, t: (q @ k.mT + t[k.shape[2] % 8]).softmax(-1) @ v, torch.float32),
        (lambda q, k, v, t: t[(q @ k.mT).sigmoid().mul(7.9).long()].sum(-1), torch.float32),  # no dot reads it
    ],
    ids=["narrow", "plain", "summed"],
)
def test_other_loops_load_ahead(program: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
    source = last(program, dtype)
    assert "num_stages=1)" not in source.text
    assert compile_only(source).registers > 0


def windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    near = (j <= i) & (i - j < 256)
    return torch.softmax((q @ k.mT).masked_fill(~near, -torch.inf), -1) @ v


def test_the_products_of_a_window_do_not_wait_for_each_other() -> None:
    """With its full tiles before its partial ones ptxas serialises both loops (C7515)."""
    args = [torch.randn(1, 2, 96, 64).bfloat16() for _ in range(3)]
    (source,) = flashlight.explain(windowed, *args, backend="triton").kernels["triton"].sources
    assert "_within(i[:, None] - j[None, :], 255)" in source.text
    assert source.text.index("# partial") < source.text.index("# full")
    assert not compile_only(source).serialized
