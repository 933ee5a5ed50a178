"""The text the cpu backend prints, and kernels made to try one rule of printing each."""

from __future__ import annotations

import math
import traceback
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import flashlight
from flashlight._conformance import attention, block, ceildiv, floordiv, real
from flashlight.backend import Target
from flashlight.backends.cpu import CpuBackend
from flashlight.backends.cpu_runtime import filled
from flashlight.errors import InternalError
from flashlight.expr import Const, Expr, Index, Ref, Size, apply
from flashlight.tile import (
    Buffer,
    Carry,
    CastOp,
    Dim,
    DotOp,
    GridAxis,
    Kernel,
    LoadOp,
    Loop,
    ReduceOp,
    Segment,
    Stmt,
    Store,
)
from tests.processes import printed

CPU, HERE = CpuBackend(), Target()
B, H, N, M = map(Size, "BHNM")
b, h, i, j, d, e = map(Index, "bhijde")


def text(kernel: Kernel) -> str:
    return CPU.emit(kernel, HERE).text


def call(kernel: Kernel, inputs: Sequence[torch.Tensor], shape: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    out = torch.full(tuple(shape), 7, dtype=getattr(torch, kernel.outputs[0].dtype))
    CPU.build(CPU.emit(kernel, HERE))(list(inputs), [out], list(sizes))
    return out


def rowwise(
    body: Sequence[Stmt],
    inputs: Sequence[Buffer],
    out: Buffer,
    dims: Sequence[Dim] = (),
    batch: Sequence[GridAxis] = (),
    row: int = 4,
) -> Kernel:
    """Rows i < N in blocks, whatever else the test needs."""
    grid = (*batch, GridAxis("i", N, row))
    return Kernel("k", ("N", "M"), tuple(inputs), (out,), grid, (Dim("i", row, N, "row"), *dims), tuple(body))


def streamed(trip: Sequence[Stmt], carry: Carry, after: Sequence[Stmt], block_: int = 4, **more: Any) -> Kernel:
    """One loop over j < M, its tail a partial segment with the same body (nothing in it needs a mask)."""
    segments = (
        Segment("full", Const(0), floordiv(M, block_), tuple(trip)),
        Segment("partial", floordiv(M, block_), ceildiv(M, block_), tuple(trip)),
    )
    dims = (Dim("j", block_, M, "stream"), *more.pop("dims", ()))
    return rowwise((Loop("j", (carry,), segments), *after), dims=dims, **more)


# ---- what the text looks like ---------------------------------------------------------------------------------------
def segments_of(source: str) -> dict[str, str]:
    """The text of each segment, by kind."""
    out: dict[str, list[str]] = {}
    kind = ""
    for line in source.splitlines():
        if " in trips(" in line:
            kind = line.rsplit("# ", 1)[1]
        elif kind and not line.startswith(" " * 20):
            kind = ""
        if kind:
            out.setdefault(kind, []).append(line)
    return {k: "\n".join(v) for k, v in out.items()}


def test_full_segments_hold_no_mask_code() -> None:
    parts = segments_of(text(attention(causal=True)))
    assert "filled(" in parts["partial"]
    assert "filled(" not in parts["full"]
    assert "arange" not in parts["full"]


def test_scores_live_in_one_piece_of_memory() -> None:
    full = segments_of(text(attention()))["full"]
    assert "alpha=0.25" in full  # the scale goes into the product
    assert "x.sub_(m_new[..., None]).mul_(1.4426950408889634).exp2_()" in full
    assert "acc.mul_(r[..., None])" in full
    assert "dot_into(moved, p_cast, v_tile)" in full


def test_clipping_decides_bounds_checks() -> None:
    assert "< M" not in segments_of(text(attention()))["partial"]
    assert "filled(" not in segments_of(text(attention()))["partial"]


def test_text_is_the_same_in_every_process() -> None:
    code = "from flashlight._conformance import *; from flashlight.backends.cpu_emit import text_of\n"
    code += "print(text_of(attention(causal=True, bias=True, group=2, dtype='bfloat16')), end='')"
    texts = printed(code)
    assert texts == {text(attention(causal=True, bias=True, group=2, dtype="bfloat16"))}


def test_a_traceback_shows_the_line() -> None:
    kernel = attention()
    with pytest.raises(RuntimeError) as caught:
        call(kernel, [torch.zeros(1, 1, 4, 16), torch.zeros(1, 1, 4, 3), torch.zeros(1, 1, 4, 16)], (1,), (1, 1, 4, 4))
    shown = "".join(traceback.format_exception(caught.value))
    assert "s = dot(q_tile, k_tile.mT" in shown


def test_the_bare_name_is_refused() -> None:
    with pytest.raises(ImportError, match=r"import flashlight\.backends"):
        exec(compile("import backends", "x", "exec"), {})


def test_supports() -> None:
    assert CPU.supports(HERE, attention()) is None
    cuda = CPU.supports(Target("cuda", 90))
    assert cuda is not None
    assert "cuda" in cuda.reason
    complex_ = CPU.supports(HERE, rowwise((), [Buffer("x", "complex64", (N,))], Buffer("y", "float32", (N,))))
    assert complex_ is not None
    assert "complex64 (x)" in complex_.reason


def test_unknown_names_are_internal_errors() -> None:
    broken = rowwise([Store("y", (i,), "nothing", ("i",))], [], Buffer("y", "float32", (N,)))
    with pytest.raises(InternalError, match="nothing"):
        text(broken)


# ---- views -------------------------------------------------------------------------------------------------------
def loaded(index: Sequence[Expr], shape: Sequence[Expr], dims: str, extra: Sequence[Dim] = (), **more: Any) -> Kernel:
    """``y[(b,) i, ...] = x[index]``."""
    batch = more.pop("batch", ())
    place = (*(Index(g.axis) for g in batch), *(Index(a) for a in dims))
    extents = {"i": N, **{x.axis: x.extent for x in extra}, **{g.axis: g.extent for g in batch}}
    out = Buffer("y", "float32", tuple(extents[p.axis] for p in place))
    body = (block("t", dims, "float32", LoadOp("x", tuple(index))), Store("y", place, "t", ("i",)))
    return rowwise(body, [Buffer("x", "float32", tuple(shape))], out, extra, batch, **more)


D3 = Dim("d", 3, Const(3), "point")


def test_transposed_load_is_a_view() -> None:
    x = torch.randn(3, 9)
    kernel = loaded((d, i), (Const(3), N), "id", (D3,))
    assert torch.equal(call(kernel, [x], (9, 3), (9, 0)), x.T)
    assert "[:, i0:i1].permute(1, 0)" in text(kernel)


def test_packed_heads_are_one_strided_view() -> None:
    """x[i, h*6 + d + 3]: two axes in one dimension."""
    x = torch.randn(9, 24)
    index = (i, apply("add", apply("add", apply("mul", h, Const(6)), d), Const(3)))
    kernel = loaded(index, (N, Const(24)), "id", (D3,), batch=(GridAxis("h", Const(4)),))
    assert "lattice(" in text(kernel)
    assert torch.equal(call(kernel, [x], (4, 9, 3), (9, 0)), x.view(9, 4, 6)[:, :, 3:].transpose(0, 1))


def test_diagonal_is_a_view() -> None:
    x = torch.randn(9, 9)
    kernel = loaded((i, i), (N, N), "i")
    assert "lattice(" in text(kernel)
    assert torch.equal(call(kernel, [x], (9,), (9, 0)), x.diagonal())


def test_strided_and_shifted() -> None:
    x = torch.randn(23)
    kernel = loaded((apply("add", apply("mul", i, Const(2)), Const(3)),), (M,), "i")
    assert torch.equal(call(kernel, [x], (10,), (10, 23)), x[3::2])


def test_reversed_and_repeated() -> None:
    x = torch.randn(9)
    flipped = loaded((apply("sub", apply("sub", N, Const(1)), i),), (N,), "i")
    assert torch.equal(call(flipped, [x], (9,), (9, 0)), x.flip(0))
    repeated = loaded((floordiv(i, 2),), (M,), "i")
    assert torch.equal(call(repeated, [x], (18,), (18, 9)), x.repeat_interleave(2))


def test_relative_position() -> None:
    """x[h, i - d + 2]: a gather in one dimension, a slice in the other."""
    x = torch.randn(2, 11)
    index = (h, apply("add", apply("sub", i, d), Const(2)))
    kernel = loaded(index, (Const(2), M), "id", (D3,), batch=(GridAxis("h", Const(2)),))
    at = torch.arange(9)[:, None] - torch.arange(3) + 2
    assert torch.equal(call(kernel, [x], (2, 9, 3), (9, 11)), x[:, at])


def test_lattice_outside_is_an_error() -> None:
    kernel = loaded((apply("add", i, d),), (M,), "id", (D3,))
    with pytest.raises(IndexError, match="elements"):
        call(kernel, [torch.randn(10)], (9, 3), (9, 10))


def paged(dtype: str) -> Kernel:
    """``y[b, i, d] = sum{j} x[table[b, j], d]`` (for each i): pages named by a table."""
    trip = (
        block("page", "j", "int64", LoadOp("table", (b, j), ("j",))),
        block("x_tile", "jd", dtype, LoadOp("x", (Ref("page"), d), ("j",))),
        block("wide", "jd", "float32", CastOp("x_tile")),
        block("part", "d", "float32", ReduceOp("sum", "wide", "j")),
        block("s_next", "d", "float32", apply("add", Ref("s"), Ref("part"))),
    )
    return streamed(
        trip,
        Carry("s", ("d",), "float32", 0.0, "s_next"),
        (
            block("y_tile", "id", "float32", apply("add", Ref("s"), apply("real", i))),
            Store("y", (b, i, d), "y_tile", ("i",)),
        ),
        inputs=[Buffer("x", dtype, (Const(20), Const(3))), Buffer("table", "int64", (Const(2), M))],
        out=Buffer("y", "float32", (Const(2), N, Const(3))),
        dims=(D3,),
        batch=(GridAxis("b", Const(2)),),
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pages(dtype: str) -> None:
    x, table = torch.randn(20, 3).to(getattr(torch, dtype)), torch.randint(0, 20, (2, 11))
    expected = x.float()[table].sum(1)[:, None] + torch.arange(5.0)[:, None]
    torch.testing.assert_close(call(paged(dtype), [x, table], (2, 5, 3), (5, 11)), expected)


# ---- loops and memory --------------------------------------------------------------------------------------------
def test_a_broadcast_block_is_summed_over_every_position() -> None:
    """sum{j} of what does not vary along j, over trips of any length: M times it."""
    trip = (
        block("one", "ij", "float32", Ref("x_tile")),
        block("part", "i", "float32", ReduceOp("sum", "one", "j")),
        block("n_next", "i", "float32", apply("add", Ref("n"), Ref("part"))),
    )
    kernel = streamed(
        trip,
        Carry("n", ("i",), "float32", 0.0, "n_next"),
        (Store("y", (i,), "n", ("i",)),),
        inputs=[Buffer("x", "float32", (N,))],
        out=Buffer("y", "float32", (N,)),
    )
    head = block("x_tile", "i", "float32", LoadOp("x", (i,), ("i",)))
    kernel = Kernel(**{**vars(kernel), "body": (head, *kernel.body)})
    x = torch.randn(6)
    torch.testing.assert_close(call(kernel, [x], (6,), (6, 11)), 11 * x)


def test_states_keep_memory_of_their_own() -> None:
    """Two states set to one value, one to the other's old value, one kept; a value read after it is a state."""
    trip = (
        block("x_tile", "j", "float32", LoadOp("x", (j,), ("j",))),
        block("top", "", "float32", ReduceOp("sum", "x_tile", "j")),
        block("up", "i", "float32", apply("add", Ref("a"), Ref("top"))),
        block("both", "i", "float32", apply("mul", Ref("up"), real(1.0))),
    )
    names = {"a": "both", "c": "both", "old": "a", "kept": "kept"}
    carries = tuple(Carry(n, ("i",), "float32", 1.0, after) for n, after in names.items())
    y = apply("add", apply("add", Ref("a"), apply("mul", Ref("c"), real(10))), apply("mul", Ref("old"), real(100)))
    segments = (Segment("partial", Const(0), ceildiv(M, 4), trip),)
    body = (
        Loop("j", carries, segments),
        block("t", "i", "float32", apply("add", y, apply("mul", Ref("kept"), real(1000)))),
        Store("y", (i,), "t", ("i",)),
    )
    kernel = rowwise(body, [Buffer("x", "float32", (M,))], Buffer("y", "float32", (N,)), (Dim("j", 4, M, "stream"),))
    kernel_text = text(kernel).replace("most(", "min(1, ")  # trip by trip, so that old is the last but one
    scope: dict[str, Any] = {}
    exec(kernel_text, scope)
    out = torch.zeros(6)
    scope["run"]([torch.arange(11.0)], [out], [6, 11])
    total, before = 1.0 + 55, 1.0 + sum(range(8))
    assert torch.equal(out, torch.full((6,), total + 10 * total + 100 * before + 1000))


def test_a_value_read_later_is_not_written_over() -> None:
    body = (
        block("x_tile", "id", "float32", LoadOp("x", (i, d), ("i",))),
        block("u", "id", "float32", apply("add", Ref("x_tile"), real(1))),
        block("same", "id", "float32", Ref("u")),
        block("v", "id", "float32", apply("exp", Ref("same"))),
        block("w", "id", "float32", apply("mul", Ref("u"), apply("sub", Ref("u"), Ref("v")))),
        Store("y", (i, d), "w", ("i",)),
    )
    kernel = rowwise(body, [Buffer("x", "float32", (N, Const(3)))], Buffer("y", "float32", (N, Const(3))), (D3,))
    x = torch.randn(9, 3)
    kept = x.clone()
    u = x + 1
    torch.testing.assert_close(call(kernel, [x], (9, 3), (9, 0)), u * (u - u.exp()))
    assert torch.equal(x, kept)


def test_bounds_that_depend_on_a_batch_axis() -> None:
    """Head h sums the first (h + 1) blocks of 2."""
    trip = (
        block("x_tile", "j", "float32", LoadOp("x", (h, j))),
        block("part", "", "float32", ReduceOp("sum", "x_tile", "j")),
        block("s_next", "", "float32", apply("add", Ref("s"), Ref("part"))),
    )
    segments = (Segment("full", Const(0), apply("add", h, Const(1)), trip),)
    kernel = Kernel(
        "k",
        (),
        (Buffer("x", "float32", (Const(3), Const(6))),),
        (Buffer("y", "float32", (Const(3),)),),
        (GridAxis("h", Const(3)),),
        (Dim("j", 2, Const(6), "stream"),),
        (Loop("j", (Carry("s", (), "float32", 0.0, "s_next"),), segments), Store("y", (h,), "s")),
    )
    x = torch.randn(3, 6)
    torch.testing.assert_close(call(kernel, [x], (3,), ()), torch.stack([x[k, : 2 * k + 2].sum() for k in range(3)]))


def test_dots_in_any_arrangement() -> None:
    """Result transposed, two dimensions on a side, a dimension shared, and a vector."""
    dims = (Dim("d", 3, Const(3), "point"), Dim("e", 5, Const(5), "point"), Dim("f", 2, Const(2), "point"))
    f = Index("f")
    body = (
        block("x_tile", "idf", "float32", LoadOp("x", (i, d, f), ("i",))),
        block("w_tile", "df", "float32", LoadOp("w", (d, f))),
        block("z_tile", "ide", "float32", LoadOp("z", (i, d, e), ("i",))),
        block("p", "id", "float32", DotOp("w_tile", "x_tile", "f")),  # d in both
        block("q", "ie", "float32", DotOp("z_tile", "p", "d")),  # i in both
        block("r", "edf", "float32", DotOp("z_first", "x_first", "i")),
        Store("y", (e, d, f), "r"),
    )
    whole = Kernel(
        "k",
        (),
        (Buffer("x", "float32", (Const(4), Const(3), Const(2))), Buffer("z", "float32", (Const(4), Const(5)))),
        (Buffer("y", "float32", (Const(5), Const(3), Const(2))),),
        (),
        (Dim("i", 4, Const(4), "point"), *dims),
        (
            block("x_first", "idf", "float32", LoadOp("x", (i, d, f))),
            block("z_first", "ie", "float32", LoadOp("z", (i, e))),
            *body[5:],
        ),
    )
    x, z = torch.randn(4, 3, 2), torch.randn(4, 5)
    torch.testing.assert_close(call(whole, [x, z], (5, 3, 2), ()), torch.einsum("idf,ie->edf", x, z))
    shared = rowwise(
        (*body[:5], Store("y", (i, e), "q", ("i",))),
        [Buffer(n, "float32", s) for n, s in (("x", (N, 3, 2)), ("w", (3, 2)), ("z", (N, 3, 5)))],  # type: ignore[arg-type]
        Buffer("y", "float32", (N, Const(5))),
        dims,
    )
    shared = Kernel(
        **{
            **vars(shared),
            "inputs": (
                Buffer("x", "float32", (N, Const(3), Const(2))),
                Buffer("w", "float32", (Const(3), Const(2))),
                Buffer("z", "float32", (N, Const(3), Const(5))),
            ),
        }
    )
    x, w, z = torch.randn(9, 3, 2), torch.randn(3, 2), torch.randn(9, 3, 5)
    expected = torch.einsum("idf,df,ide->ie", x, w, z)
    torch.testing.assert_close(call(shared, [x, w, z], (9, 5), (9, 0)), expected)


def test_rows_whose_bounds_do_not_differ_are_grouped() -> None:
    assert "(N, 16, True)" in text(attention())
    assert "(N, 16, False)" in text(attention(causal=True))


@pytest.mark.parametrize("value", [-math.inf, 0.0, -0.0, -1e4, 3.0, math.nan, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("shape", [(12, 13), (1, 12, 13), (8, 12, 13)], ids=str)
def test_what_a_mask_covers_is_the_value_whatever_it_was(value: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(8, 12, 13)
    x[:, 0, 0], x[:, 1, 1] = math.nan, math.inf
    mask = torch.rand(shape) > 0.5
    got, want = filled(x.clone(), mask, value), x.masked_fill(mask, value)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.signbit()[want == 0], want.signbit()[want == 0])


def test_a_factor_goes_with_its_product_and_not_with_its_name() -> None:
    """The loop's product takes ``* 10`` along; what is called alike after the loop has to be multiplied still."""

    def clip(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scores = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T * 10
        return F.cross_entropy(scores, torch.arange(x.shape[0]))

    x, y = torch.randn(64, 32), torch.randn(64, 32)
    fast = flashlight.optimize(clip, backend="cpu", strict=True)
    torch.testing.assert_close(fast(x, y), clip(x, y))


def test_what_lies_at_a_loaded_place_is_not_written_over() -> None:
    """One number as an index selects a view, where several gather a copy."""
    x, at = torch.arange(7.0) + 1, torch.tensor(3)
    fast = flashlight.optimize(lambda x, at: F.nll_loss(x, at, reduction="none"), backend="cpu", strict=True)
    for _ in range(2):
        assert fast(x, at).item() == -4
    assert x.tolist() == [1, 2, 3, 4, 5, 6, 7]
