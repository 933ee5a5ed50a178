"""The text the triton backend prints, and what it declines."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight._conformance import CASES, Case, attention, block, gather, layer_norm, matmul, rms_norm
from flashlight.backend import Target
from flashlight.backends import scalar
from flashlight.backends.triton import LARGEST_BLOCK, TritonBackend
from flashlight.errors import InternalError
from flashlight.expr import OPS, Const, Index, Ref, Size, apply
from flashlight.tile import Buffer, Dim, DotOp, GridAxis, Kernel, Let, LoadOp, ReduceOp, Store
from tests.processes import printed

TRITON, HOPPER, HERE = TritonBackend(), Target("cuda", 90, 132, 232448), Target("cpu", interpret=True)
N, i, d = Size("N"), Index("i"), Index("d")


def text(kernel: Kernel, target: Target = HOPPER) -> str:
    return TRITON.emit(kernel, target).text


def segments_of(source: str) -> dict[str, str]:
    """The text of each segment, by kind."""
    out: dict[str, str] = {}
    for head, body in re.findall(r"( +for .* in tl.range.*)\n((?: {8,}.*\n)+)", source):
        out[head.rsplit("# ", 1)[1]] = body
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", [HOPPER, HERE], ids=["gpu", "interpreter"])
def test_text_is_python_that_names_what_it_uses(case: Case, target: Target) -> None:
    source = TRITON.emit(case.kernel, target)
    tree = ast.parse(source.text)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert source.entry in functions
    assert {"programs", source.entry} <= set(functions)
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    used = called | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert {f for f in functions if f.startswith("_")} <= used  # no helper that nothing calls
    imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
    assert ("libdevice" in imported) == ("libdevice." in source.text)
    assert all(len(line) < 200 for line in source.text.splitlines())


def test_full_segments_hold_no_mask_code() -> None:
    for kernel in (attention(causal=True), attention(bias=True), attention(causal=True, dtype="bfloat16", group=2)):
        parts = segments_of(text(kernel))
        assert "mask=" in parts["partial"]
        assert "tl.where" in parts["partial"]
        for word in ("mask", "<", "tl.minimum", "inside", "_in"):
            assert word not in re.sub(r"j_in[a-z]*|p_sum|tl.where\(m.*", "", parts["full"]), word


def test_rows_are_clamped_once_and_stores_masked() -> None:
    source = text(attention())
    assert source.count("tl.minimum(i_lane, N - 1 - i0)") == 1
    assert source.count("i_inside") == 2  # defined, and used by the store
    assert "mask" not in next(line for line in source.splitlines() if "q_tile = " in line)


def test_places_are_computed_before_the_loop_in_64_bits_and_within_it_in_32() -> None:
    source = text(attention(dtype="bfloat16", group=2))
    for body in segments_of(source).values():
        assert "int64" not in body
        assert re.search(r"tl.load\(k_at \+ \(j0 \* k_s2 \+ k_lanes\)", body)
    assert "k_at = k + b.to(tl.int64) * k_s0 + (h // 2).to(tl.int64) * k_s1" in source
    assert source.index("k_lanes = ") < source.index("for j_block")


def test_a_grid_has_a_dimension_for_each_axis_fastest_first() -> None:
    source = text(attention(causal=True))
    places = source[source.index("else:") : source.index("i0 = ")].split("\n")
    assert [line.strip() for line in places] == [
        "else:",
        "i_block = i_blocks - 1 - tl.program_id(0)",  # reversed: the long rows start first
        "h = tl.program_id(1)",
        "b = tl.program_id(2)",
        "",
    ]
    assert "return ((N + 15) // 16, H, B)" in source
    assert "i_block = tl.program_id(0)" in text(attention())


def test_a_flat_grid_is_one_number() -> None:
    source = text(attention(causal=True))
    flat = source[source.index("if FLAT:") : source.index("else:")]
    assert re.findall(r"tl.program_id\((\d)\)", flat) == ["0"]
    assert flat.index("i_block = i_blocks - 1 - pid % i_blocks") < flat.index("h = pid % H") < flat.index("b = pid")


def test_the_loop_is_what_one_would_write() -> None:
    full = segments_of(text(attention(causal=True, dtype="bfloat16", depth=64, row=128, stream=64)))["full"]
    assert [line.strip() for line in full.splitlines()] == [
        "j0 = j_block * 64",
        "k_tile = tl.load(k_at + (j0 * k_s2 + k_lanes))",
        "v_tile = tl.load(v_at + (j0 * v_s2 + v_lanes))",
        "s = tl.dot(q_tile, k_tile)",
        "top_raw = tl.reduce(s, 1, _max)",
        "top = top_raw * 0.125",
        "m_next = _max(m, top)",
        'm_new = tl.where(m_next == float("-inf"), 0.0, m_next)',
        'r = tl.exp2((tl.where(m == float("-inf"), m_new, m) - m_new) * 1.4426950408889634)  # moves the states',
        "low = m_new * 1.4426950408889634",
        "p = tl.exp2(s * 0.18033688011112042 - low[:, None])",
        "p_sum = tl.sum(p, axis=1)",
        "l_next = l * r + p_sum",
        "p_cast = p.to(tl.bfloat16)",
        "moved = acc * r[:, None]",
        "acc_next = tl.dot(p_cast, v_tile, moved)",
        "m = m_next",
        "l = l_next",
        "acc = acc_next",
    ]


def test_maxima_propagate_nan() -> None:
    source = text(attention())
    assert "tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)" in source
    assert not re.search(r"tl\.(max|min)\(", source)


def test_point_dimensions_are_padded_and_masked_only_where_they_must_be() -> None:
    assert "d_inside" not in text(attention(depth=64))
    odd = text(attention(depth=80, width=48))
    assert "d_inside = d < 80" in odd
    assert "e_inside = e < 48" in odd
    norm = text(rms_norm())
    assert "tl.where" not in norm  # the padding of a square of zeros is zero: no second mask before the sum
    assert norm.count("mask=") == 3


def test_right_operands_are_loaded_as_the_dot_takes_them() -> None:
    assert "tl.trans" not in text(attention())
    assert "j_lane[None, :] * k_s2 + d[:, None] * k_s3" in text(attention())
    assert "j_lane[:, None] * v_s2 + e[None, :] * v_s3" in text(attention())
    assert "tl.trans" not in text(matmul())


@pytest.mark.parametrize(("precision", "word"), [("highest", "bf16x6"), ("high", "bf16x6"), ("medium", "tf32")])
def test_float32_dots_follow_the_targets_precision(precision: str, word: str) -> None:
    source = text(attention(), replace(HOPPER, precision=precision))
    assert source.count(f'input_precision="{word}"') == 4
    assert "input_precision" not in text(attention(dtype="bfloat16"), replace(HOPPER, precision=precision))


def test_the_interpreter_multiplies_no_bfloat16() -> None:
    kernel = attention(dtype="bfloat16")
    assert ".to(tl.float32)" not in segments_of(text(kernel))["full"]
    assert "tl.dot(q_tile.to(tl.float32), k_tile.to(tl.float32)" in text(kernel, HERE)
    assert "_bfloat16(p)" in text(kernel, HERE).replace(".to(tl.float32))", ")")


def test_accurate_functions_where_results_are_wide() -> None:
    assert "from triton.language.extra import libdevice" in text(matmul())
    assert "libdevice.tanh(" in text(matmul())
    assert "from flashlight.backends.triton.interpreter import libdevice" in text(matmul(), HERE)


def test_stride_arguments_are_those_that_are_used() -> None:
    assert "STRIDES = [(0, 0, 16), (0, 1, 0), (1, 0, 0), (2, 0, 16), (2, 1, 0)]" in text(layer_norm())
    assert "STRIDES = [(0, 0, 1), (0, 1, 32), (1, 0, 16), (2, 0, 16), (2, 1, 32)]" in text(gather())


def test_text_is_the_same_in_every_process() -> None:
    code = "from flashlight._conformance import *; from flashlight.backends.triton.emit import text_of\n"
    code += "from flashlight.backend import Target\n"
    code += "for k in (attention(causal=True, bias=True, slopes=True, group=2, dtype='bfloat16'), layer_norm()):\n"
    code += "    print(text_of(k, Target('cuda', 90)), end='')"
    made = printed(code)
    here = [attention(causal=True, bias=True, slopes=True, group=2, dtype="bfloat16"), layer_norm()]
    assert made == {"".join(map(text, here))}


def test_emitting_needs_neither_triton_nor_a_device() -> None:
    code = "import sys; sys.modules['triton'] = None\n"
    code += "from flashlight._conformance import attention; from flashlight.backend import Target\n"
    code += "from flashlight.backends.triton import TritonBackend\n"
    code += "print(len(TritonBackend().emit(attention(), Target('cuda', 90)).text) > 1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_table_spells_every_operator() -> None:
    assert set(OPS) <= set(scalar.TRITON)
    assert set(scalar.TRITON) - set(OPS) == {"floordiv_real", "mod_real"}


# ---- what is declined -----------------------------------------------------------------------------------------------
def test_targets_that_are_declined() -> None:
    def reason(target: Target, kernel: Kernel | None = None) -> str:
        declined = TRITON.supports(target, kernel)
        return declined.reason if declined else ""

    assert "CUDA tensors, not on cpu" in reason(Target())
    assert "TRITON_INTERPRET=1" in reason(Target())
    assert "8.0 or later, not 7.5" in reason(Target("cuda", 75), attention())
    assert reason(HOPPER, attention()) == ""  # a question about the kernel, not about this machine
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert "TRITON_INTERPRET=1" in reason(HERE)
    assert reason(HERE, attention()) == ""


def pointwise(block_: int = 16, dtype: str = "float32", columns: int = 16) -> Kernel:
    body = (
        block("x_tile", "id", dtype, LoadOp("x", (i, d), ("i",))),
        Store("y", (i, d), "x_tile", ("i",)),
    )
    buffers = [Buffer(n, dtype, (N, Const(columns))) for n in "xy"]
    dims = (Dim("i", block_, N, "row"), Dim("d", columns, Const(columns), "point"))
    return Kernel("k", ("N",), (buffers[0],), (buffers[1],), (GridAxis("i", N, block_),), dims, body)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (pointwise(dtype="complex64"), "no complex64 \\(x\\)"),
        (pointwise(block_=48), "power of two, and i has 48"),
        (
            pointwise(block_=1024, columns=1025),
            f"x_tile\\[i, d\\] has {1 << 21} elements, more than the {LARGEST_BLOCK}",
        ),
    ],
)
def test_kernels_that_are_declined(kernel: Kernel, words: str) -> None:
    declined = TRITON.supports(HOPPER, kernel)
    assert declined is not None
    assert re.search(words, declined.reason), declined.reason


@pytest.mark.parametrize(
    "let",
    [
        Let("bad", ("i",), "float32", ReduceOp("sum", "x_tile", "j")),
        Let("bad", ("i",), "float32", DotOp("x_tile", "x_tile", "i")),
        block("bad", "i", "float32", apply("add", Ref("nobody"), Const(1.0))),
        block("bad", "i", "float32", apply("real", d)),
        block("bad", "i", "float32", apply("add", Ref("x_tile"), Const(1.0))),
    ],
)
def test_malformed_kernels_are_our_fault(let: Let) -> None:
    kernel = pointwise()
    with pytest.raises(InternalError, match="kernel k: "):
        text(replace(kernel, body=(kernel.body[0], let, Store("y", (i, d), "bad"))))


def test_names_of_the_user_that_mean_something_here() -> None:
    """Buffers called like modules, builtins and keywords, and a size called like an axis."""
    kernel = Kernel(
        "tl", ("i",), (Buffer("for", "float32", (Size("i"),)),), (Buffer("pid", "float32", (Size("i"),)),),
        (GridAxis("i", Size("i"), 16),), (Dim("i", 16, Size("i"), "row"),),
        (block("triton", "i", "float32", LoadOp("for", (i,), ("i",))), Store("pid", (i,), "triton", ("i",))),
    )  # fmt: skip
    source = TRITON.emit(kernel, HOPPER)
    names = [n.arg for f in ast.walk(ast.parse(source.text)) if isinstance(f, ast.FunctionDef) for n in f.args.args]
    assert len(set(names)) == len({"for_1", "pid_1", "i", "for_1_s0", "pid_1_s0"})
    assert source.entry == "tl_1"


@pytest.mark.parametrize(
    ("bias", "room", "stages"), [(False, 232448, 8), (True, 232448, 5), (False, 166912, 6), (False, 0, 9)]
)
def test_no_more_trips_ahead_than_shared_memory_holds(bias: bool, room: int, stages: int) -> None:
    """A trip takes 16 KiB of keys, of values and of a bias."""
    kernel = replace(attention(depth=64, row=64, stream=64, bias=bias), stages=9)
    assert f'"num_stages": {stages}}}' in text(kernel, replace(HOPPER, shared_bytes=room))
    assert '"num_stages": 3}' in text(replace(kernel, stages=3))


def test_a_name_may_be_another_load_after_the_loop() -> None:
    """Keys that were rolled are in two parts, each in its own orientation, and both are called ``k_tile``."""
    args = [torch.randn(2, 3, 37, 16) for _ in range(3)]
    rolled = flashlight.explain(
        lambda q, k, v: torch.softmax(q @ torch.roll(k, 3, -2).mT, -1) @ v, *args, backend="triton"
    )
    assert rolled.kernels["triton"].source.count("k_tile = tl.load(") >= 2
