"""Kernels made to try one rule of the triton backend each: padding, dots, places, loops, fills (in the interpreter)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from flashlight._conformance import block, ceildiv, floordiv, real
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
    MapOp,
    ReduceOp,
    Segment,
    Stmt,
    Store,
)
from tests.backends.test_triton_interpreter import HERE, TRITON, call, inside, quiet

N, M = Size("N"), Size("M")
b, i, j, d, e, f = map(Index, "bijdef")
__all__ = ["quiet"]


def rowwise(body: Sequence[Stmt], inputs: Sequence[Buffer], out: Buffer, dims: Sequence[Dim] = (), row: int = 16,
            batch: Sequence[GridAxis] = (), stream: int = 16) -> Kernel:  # fmt: skip
    all_dims = (Dim("i", row, N, "row"), Dim("j", stream, M, "stream"), *dims)
    grid = (*batch, GridAxis("i", N, row))
    return Kernel("k", ("N", "M"), tuple(inputs), (out,), grid, all_dims, tuple(body))


def point(axis: str, n: int) -> Dim:
    return Dim(axis, n, Const(n), "point")


@inside
@pytest.mark.parametrize("monoid", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("columns", [1, 5, 16])
def test_reductions_pad_with_the_identity(monoid: str, columns: int) -> None:
    kernel = rowwise(
        [
            block("x_tile", "id", "float32", LoadOp("x", (i, d), ("i",))),
            block("shifted", "id", "float32", apply("add", Ref("x_tile"), Const(3.0))),
            block("y_tile", "i", "float32", ReduceOp(monoid, "shifted", "d")),
            Store("y", (i,), "y_tile", ("i",)),
        ],
        [Buffer("x", "float32", (N, Const(columns)))],
        Buffer("y", "float32", (N,)),
        [point("d", columns)],
    )
    x = torch.randn(20, columns)
    method = {"sum": "sum", "prod": "prod", "max": "amax", "min": "amin"}[monoid]
    torch.testing.assert_close(call(kernel, [x], [20], [20, 0]), getattr(x + 3, method)(1), rtol=1e-5, atol=1e-5)


@inside
@pytest.mark.parametrize("monoid", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_reductions_of_integers(monoid: str, dtype: str) -> None:
    out = dtype if monoid in ("max", "min") else "int64"
    kernel = rowwise(
        [
            block("x_tile", "id", dtype, LoadOp("x", (i, d), ("i",))),
            block("y_tile", "i", out, ReduceOp(monoid, "x_tile", "d")),
            Store("y", (i,), "y_tile", ("i",)),
        ],
        [Buffer("x", dtype, (N, Const(5)))],
        Buffer("y", out, (N,)),
        [point("d", 5)],
    )
    x = torch.randint(0 if dtype in ("uint8", "bool") else -9, 9, (20, 5)).to(getattr(torch, dtype))
    method = {"sum": "sum", "prod": "prod", "max": "amax", "min": "amin"}[monoid]
    assert torch.equal(call(kernel, [x], [20], [20, 0]), getattr(x, method)(1).to(getattr(torch, out)))


@inside
@pytest.mark.parametrize("depth", [1, 5, 16, 24])
@pytest.mark.parametrize("width", [1, 7, 32])
@pytest.mark.parametrize("mapped_", [False, True])
def test_dots_pad_with_zero(depth: int, width: int, mapped_: bool) -> None:
    name = "shifted" if mapped_ else "x_tile"
    kernel = rowwise(
        [
            block("x_tile", "id", "float32", LoadOp("x", (i, d), ("i",))),
            block("shifted", "id", "float32", apply("exp", Ref("x_tile"))),
            block("w_tile", "de", "float32", LoadOp("w", (d, e))),
            block("y_tile", "ie", "float32", DotOp(name, "w_tile", "d")),
            Store("y", (i, e), "y_tile", ("i",)),
        ],
        [Buffer("x", "float32", (N, Const(depth))), Buffer("w", "float32", (Const(depth), Const(width)))],
        Buffer("y", "float32", (N, Const(width))),
        [point("d", depth), point("e", width)],
    )
    x, w = torch.randn(20, depth), torch.randn(depth, width)
    expected = (x.exp() if mapped_ else x) @ w
    torch.testing.assert_close(call(kernel, [x, w], [20, width], [20, 0]), expected, rtol=1e-5, atol=1e-5)


@inside
@pytest.mark.parametrize("dims", ["if", "fi", "di", "dif"])
def test_dots_of_other_shapes(dims: str) -> None:
    """A result whose dimensions come in another order; a vector on one side; a shared dimension."""
    shared = "d" in dims and "f" in dims
    left = ("d", "i", "e") if shared else ("i", "e")
    right = {"if": ("f", "e"), "fi": ("e", "f"), "di": ("d", "e"), "dif": ("d", "f", "e")}[dims]
    length = {"d": 3, "e": 24, "f": 8}
    made = tuple(a for a in ("d", "i", "f") if a in dims) if dims != "fi" else ("i", "f")
    order = tuple(map(Index, made))

    def shape(dims: Sequence[str]) -> tuple[Expr, ...]:
        return tuple(N if a == "i" else Const(length[a]) for a in dims)

    kernel = rowwise(
        [
            block("x_tile", "".join(left), "float32", LoadOp("x", tuple(map(Index, left)), ("i",))),
            block("w_tile", "".join(right), "float32", LoadOp("w", tuple(map(Index, right)))),
            block("y_tile", "".join(made), "float32", DotOp("x_tile", "w_tile", "e")),
            Store("y", order, "y_tile", ("i",)),
        ],
        [Buffer("x", "float32", shape(left)), Buffer("w", "float32", shape(right))],
        Buffer("y", "float32", shape(made)),
        [point("d", 3), point("e", 24), point("f", 8)],
    )
    n = 20
    x = torch.randn([n if a == "i" else length[a] for a in left])
    w = torch.randn([length[a] for a in right])
    expected = torch.einsum(f"{''.join(left)},{''.join(right)}->{''.join(made)}", x, w)
    torch.testing.assert_close(call(kernel, [x, w], expected.shape, [n, 0]), expected, rtol=1e-5, atol=1e-5)


@inside
def test_a_dot_too_small_for_tensor_cores() -> None:
    segments = (Segment("full", Const(0), floordiv(M, 4), _products()),)
    kernel = rowwise(
        [
            Loop("j", (Carry("acc", ("i", "d"), "float32", 0.0, "acc_next"),), segments),
            Store("y", (i, d), "acc", ("i",)),
        ],
        [Buffer("x", "float32", (N, M)), Buffer("w", "float32", (M, Const(6)))],
        Buffer("y", "float32", (N, Const(6))),
        [point("d", 6)],
        stream=4,
    )
    assert "tl.dot" not in TRITON.emit(kernel, HERE).text
    x, w = torch.randn(20, 12), torch.randn(12, 6)
    torch.testing.assert_close(call(kernel, [x, w], [20, 6], [20, 12]), x @ w, rtol=1e-5, atol=1e-5)


def _products() -> tuple[Stmt, ...]:
    return (
        block("x_tile", "ij", "float32", LoadOp("x", (i, j), ("i",))),
        block("w_tile", "jd", "float32", LoadOp("w", (j, d))),
        block("acc_next", "id", "float32", DotOp("x_tile", "w_tile", "j", "acc")),
    )


@inside
def test_a_spread_value_counts_every_point() -> None:
    kernel = rowwise(
        [
            block("x_tile", "i", "float32", LoadOp("x", (i,), ("i",))),
            block("spread", "id", "float32", Ref("x_tile")),
            block("y_tile", "i", "float32", ReduceOp("sum", "spread", "d")),
            Store("y", (i,), "y_tile", ("i",)),
        ],
        [Buffer("x", "float32", (N,))],
        Buffer("y", "float32", (N,)),
        [point("d", 6)],
    )
    x = torch.randn(20)
    torch.testing.assert_close(call(kernel, [x], [20], [20, 0]), 6 * x)


@inside
def test_loads_at_strange_places() -> None:
    """Strided, reversed, repeated, shifted and gathered indices; expanded and transposed tensors."""
    index = (apply("sub", Const(63), apply("mul", i, Const(2))), apply("mod", apply("add", b, Const(1)), N))
    kernel = rowwise(
        [
            block("x_tile", "i", "float32", LoadOp("x", index, ("i",))),
            block("at", "i", "int64", LoadOp("places", (i,), ("i",))),
            block("first", "", "int64", LoadOp("places", (Const(0),))),
            block("z_tile", "id", "float32", LoadOp("z", (Ref("at"), apply("add", d, Const(1))), ("i",))),
            block("u_tile", "i", "float32", LoadOp("z", (apply("add", Ref("first"), i), Const(2)), ("i",))),
            block("y_tile", "id", "float32",
                  apply("add", apply("add", Ref("x_tile"), Ref("u_tile")), apply("mul", Ref("z_tile"), Const(2.0)))),
            Store("y", (b, i, d), "y_tile", ("i",)),
        ],
        [
            Buffer("x", "float32", (Const(64), N)),
            Buffer("places", "int64", (N,)),
            Buffer("z", "float32", (Const(90), Const(6))),
        ],
        Buffer("y", "float32", (Const(3), N, Const(5))),
        [point("d", 5)],
        batch=[GridAxis("b", Const(3))],
    )  # fmt: skip
    n = 20
    x, z = torch.randn(n).expand(64, n), torch.randn(6, 90).T
    places = torch.randint(0, 60, (n,))
    rows = torch.arange(n)
    expected = torch.stack(
        [x[63 - 2 * rows, (k + 1) % n, None] + z[places[0] + rows, 2, None] + 2 * z[places][:, 1:] for k in range(3)]
    )
    torch.testing.assert_close(call(kernel, [x, places, z], expected.shape, [n, 0]), expected)


@inside
def test_loops_in_loops_and_states_that_change_places() -> None:
    """sum over j, k of x[i, j] * w[k], with two states that swap names at every trip of the outer loop."""
    K = Size("M")
    inner = Loop(
        "k",
        (Carry("s", ("i",), "float32", 0.0, "s_next"),),
        (
            Segment("full", Const(0), ceildiv(K, 8), (
                block("w_tile", "k", "float32", LoadOp("w", (Index("k"),), ("k",))),
                block("part", "", "float32", ReduceOp("sum", "w_tile", "k")),
                block("s_next", "i", "float32", apply("add", Ref("s"), Ref("part"))),
            )),
        ),
    )  # fmt: skip
    trip: tuple[Stmt, ...] = (
        inner,
        block("x_tile", "ij", "float32", LoadOp("x", (i, j), ("i", "j"))),
        block("row", "i", "float32", ReduceOp("sum", "x_tile", "j")),
        block("more", "i", "float32", apply("add", Ref("b1"), apply("mul", Ref("row"), Ref("s")))),
    )
    carries = (Carry("a1", ("i",), "float32", 0.0, "b1"), Carry("b1", ("i",), "float32", 0.0, "more"))
    dims = (Dim("i", 16, N, "row"), Dim("j", 8, M, "stream"), Dim("k", 8, K, "stream"))
    kernel = Kernel(
        "k", ("N", "M"), (Buffer("x", "float32", (N, M)), Buffer("w", "float32", (M,))),
        (Buffer("y", "float32", (N,)), Buffer("before", "float32", (N,))), (GridAxis("i", N, 16),), dims,
        (Loop("j", carries, (Segment("full", Const(0), ceildiv(M, 8), trip),)),
         Store("y", (i,), "b1", ("i",)), Store("before", (i,), "a1", ("i",))),
    )  # fmt: skip
    x, w = torch.randn(20, 19), torch.randn(19)
    out, before = torch.empty(20), torch.empty(20)
    TRITON.build(TRITON.emit(kernel, HERE))([x, w], [out, before], [20, 19])
    torch.testing.assert_close(out, x.sum(1) * w.sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(before, x[:, :16].sum(1) * w.sum(), rtol=1e-5, atol=1e-5)


@inside
def test_bfloat16_rounds_to_nearest() -> None:
    x = torch.randn(200) * 100
    x[:3] = torch.tensor([math.nan, math.inf, 1 + 2**-8])
    kernel = rowwise(
        [
            block("x_tile", "i", "float32", LoadOp("x", (i,), ("i",))),
            block("narrow", "i", "bfloat16", CastOp("x_tile")),
            block("again", "i", "float32", MapOp(apply("add", Ref("narrow"), Const(0.0)))),
            Store("y", (i,), "again", ("i",)),
        ],
        [Buffer("x", "float32", (N,))],
        Buffer("y", "bfloat16", (N,)),
    )
    assert torch.equal(call(kernel, [x], [200], [200, 0]).nan_to_num(5.0), x.bfloat16().nan_to_num(5.0))


# ---- fills -----------------------------------------------------------------------------------------------------------
def filled(fill: float, dtype: str = "float32", added: bool = False) -> Kernel:
    """Rows of softmax(x) over the first half of the columns; the others hold ``fill`` (or have it added)."""
    half = apply("and", apply("lt", j, floordiv(M, 2)), apply("ne", i, Const(1)))
    x: Expr = apply("mul", Ref("x_wide"), real(0.3))
    x = apply("add", x, Ref("mask_tile")) if added else apply("select", half, x, real(fill))
    x = apply("select", apply("lt", j, M), x, real(-math.inf))
    safe = apply("select", apply("eq", Ref("m_next"), real(-math.inf)), real(0), Ref("m_next"))
    before = apply("select", apply("eq", Ref("m"), real(-math.inf)), Ref("m_new"), Ref("m"))
    loads = [block("mask_tile", "ij", "float32", LoadOp("mask", (i, j), ("i", "j")))] if added else []
    trip = (
        block("x_tile", "ij", dtype, LoadOp("x", (i, j), ("i", "j"))),
        block("x_wide", "ij", "float32", CastOp("x_tile")),
        *loads,
        block("z", "ij", "float32", x),
        block("top", "i", "float32", ReduceOp("max", "z", "j")),
        block("m_next", "i", "float32", apply("maximum", Ref("m"), Ref("top"))),
        block("m_new", "i", "float32", safe),
        block("r", "i", "float32", apply("exp", apply("sub", before, Ref("m_new")))),
        block("p", "ij", "float32", apply("exp", apply("sub", Ref("z"), Ref("m_new")))),
        block("part", "i", "float32", ReduceOp("sum", "p", "j")),
        block("l_next", "i", "float32", apply("add", apply("mul", Ref("l"), Ref("r")), Ref("part"))),
    )
    carries = (Carry("m", ("i",), "float32", -math.inf, "m_next"), Carry("l", ("i",), "float32", 0.0, "l_next"))
    mask = [Buffer("mask", "float32", (N, M))] if added else []
    return rowwise(
        [
            Loop("j", carries, (Segment("partial", Const(0), ceildiv(M, 16), trip),)),
            Store("y", (i,), "l", ("i",)),
        ],
        [Buffer("x", dtype, (N, M)), *mask],
        Buffer("y", "float32", (N,)),
    )


@inside
@pytest.mark.parametrize("fill", [-math.inf, -1e9, -1e30, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("added", [False, True])
def test_fills_of_every_size(fill: float, added: bool) -> None:
    """Rows that hold nothing but fills are uniform, as they are in eager mode, however large the fill."""
    n, m = 5, 40
    x = torch.randn(n, m)
    z = 0.3 * x
    mask = torch.zeros(n, m)
    mask[:, m // 2 :] = fill
    mask[1] = fill
    z = (z + mask) if added else torch.where(mask == 0, z, fill)
    inputs = [x, mask] if added else [x]
    top = z.amax(1, keepdim=True)
    expected = (z - torch.where(top == -math.inf, 0.0, top)).exp().sum(1)
    torch.testing.assert_close(call(filled(fill, added=added), inputs, [n], [n, m]), expected, rtol=1e-5, atol=0)
