"""Every operator in the text of the triton backend, against torch, in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from flashlight._conformance import block
from flashlight.backends import scalar
from flashlight.expr import OPS, Const, Expr, Index, Ref, Size, apply
from flashlight.tile import (
    Buffer,
    Dim,
    GridAxis,
    Kernel,
    LoadOp,
    Stmt,
    Store,
)
from tests.backends.kernels import ON_INTS, ON_REALS, SHIFTS
from tests.backends.test_triton_interpreter import call, inside, quiet

N, M = Size("N"), Size("M")
b, i, j, d, e, f = map(Index, "bijdef")
__all__ = ["quiet"]


REALS = [-2.5, -1.0, -0.25, 0.0, 0.5, 1.0, 1.75, 3.0, math.inf, -math.inf, math.nan]
FINITE = [x for x in REALS if math.isfinite(x)]
INTS = [-7, -2, -1, 1, 2, 5]


def mapped(body: Expr, names: Sequence[str], dtype: str, out: str) -> Kernel:
    loads = tuple(block(n, "i", dtype, LoadOp(f"{n}_in", (i,), ("i",))) for n in names)
    body_: tuple[Stmt, ...] = (*loads, block("y_tile", "i", out, body), Store("y", (i,), "y_tile", ("i",)))
    buffers = tuple(Buffer(f"{n}_in", dtype, (N,)) for n in names)
    dims = (Dim("i", 64, N, "row"),)
    return Kernel("k", ("N",), buffers, (Buffer("y", out, (N,)),), (GridAxis("i", N, 64),), dims, body_)


def table(op: str, values: Sequence[float], dtype: torch.dtype) -> list[torch.Tensor]:
    columns = torch.cartesian_prod(*[torch.tensor(values, dtype=dtype)] * OPS[op].arity)
    return list(columns.reshape(-1, OPS[op].arity).T.contiguous())


@inside
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ON_REALS)
def test_reals(op: str, dtype: str) -> None:
    columns = table(op, FINITE if op in ("floordiv", "mod") else REALS, getattr(torch, dtype))
    if op in ("floordiv", "mod", "fmod"):
        columns = [c[columns[1] != 0] for c in columns]
    if op in ("exp", "tanh", "sigmoid"):
        columns = [torch.cat([columns[0], torch.linspace(-20, 20, 30, dtype=columns[0].dtype)])]
    names = ["u", "v"][: OPS[op].arity]
    out = "bool" if OPS[op].kind == "bool" else dtype
    got = call(mapped(apply(op, *map(Ref, names)), names, dtype, out), columns, columns[0].shape, [len(columns[0])])
    space = dict(zip(names, columns, strict=True)) | {"torch": torch}
    expected = eval(scalar.fill(scalar.TORCH, op, *names), space)
    rtol = 1e-12 if dtype == "float64" else 2e-6
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-7 if dtype == "float32" else 1e-15, equal_nan=True)


@inside
@pytest.mark.parametrize("op", ON_INTS)
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers(op: str, dtype: str) -> None:
    columns = table(op, INTS, getattr(torch, dtype))
    if op in SHIFTS:
        columns = [c[columns[1] >= 0] for c in columns]
    names = ["u", "v"][: OPS[op].arity]
    out = "bool" if OPS[op].kind == "bool" else dtype
    got = call(mapped(apply(op, *map(Ref, names)), names, dtype, out), columns, columns[0].shape, [len(columns[0])])
    rows = zip(*(c.tolist() for c in columns), strict=True)
    assert got.tolist() == [OPS[op].evaluate(*row) for row in rows]


@inside
@pytest.mark.parametrize("exponent", [2, 3, 2.0, -1.0, 0.5, 1.5])
def test_powers_by_literals(exponent: float) -> None:
    whole = isinstance(exponent, int)
    u = torch.tensor([1, 2, 5]) if whole else torch.tensor([0.25, 1.0, 3.0])
    kernel = mapped(apply("pow", Ref("u"), Const(exponent)), ["u"], str(u.dtype).removeprefix("torch."), "float32")
    torch.testing.assert_close(call(kernel, [u], [3], [3]), (u**exponent).float())


@inside
def test_logic_select_and_conversions() -> None:
    u = torch.tensor([-1.5, 0.0, 2.5, math.nan])
    positive, small = apply("gt", Ref("u"), Const(0.0)), apply("lt", Ref("u"), Const(2.0))
    whole = apply("real", apply("int", Ref("u")))
    body = apply("select", apply("and", apply("not", positive), small), Const(1.0), whole)
    assert call(mapped(body, ["u"], "float32", "float32"), [u[:3]], [3], [3]).tolist() == [1.0, 1.0, 2.0]
    either = mapped(apply("or", positive, apply("isnan", Ref("u"))), ["u"], "float32", "bool")
    assert call(either, [u], [4], [4]).tolist() == [False, False, True, True]
    flags = torch.tensor([True, False])
    mixed = apply("select", apply("not", Ref("u")), Const(3), apply("int", apply("and", Ref("u"), Ref("u"))))
    assert call(mapped(mixed, ["u"], "bool", "int64"), [flags], [2], [2]).tolist() == [1, 3]
    both = apply("add", apply("real", Ref("u")), apply("bool", apply("real", Ref("u"))))
    assert call(mapped(both, ["u"], "bool", "float32"), [flags], [2], [2]).tolist() == [2.0, 0.0]


@inside
def test_constants_keep_float64() -> None:
    third = apply("select", apply("gt", i, Const(1)), Const(1 / 3), apply("mul", apply("real", i), Const(1 / 3)))
    got = call(mapped(apply("add", Ref("u"), third), ["u"], "float64", "float64"), [torch.zeros(4).double()], [4], [4])
    assert got.tolist() == [0.0, 1 / 3, 1 / 3, 1 / 3]
    alone = mapped(Const(0.1), ["u"], "float64", "float64")
    assert call(alone, [torch.zeros(2).double()], [2], [2]).tolist() == [0.1, 0.1]


@inside
def test_numbers_of_sizes_and_far_products() -> None:
    body = apply("add", Ref("u"), apply("log", apply("real", apply("floordiv", N, Const(2)))))
    got = call(mapped(body, ["u"], "float32", "float32"), [torch.zeros(9)], [9], [9])
    torch.testing.assert_close(got, torch.full((9,), math.log(4)))
    far = apply("mod", apply("mul", apply("add", i, Const(2**20)), apply("add", N, Const(2**20))), Const(1000))
    got = call(mapped(far, ["u"], "float32", "int64"), [torch.zeros(3)], [3], [3])
    assert got.tolist() == [(k + 2**20) * (3 + 2**20) % 1000 for k in range(3)]


@inside
@pytest.mark.parametrize("n", [5, 16])
def test_signed_index_arithmetic(n: int) -> None:
    """Coordinates that may be negative round towards minus infinity."""
    back = apply("sub", i, Const(3))
    body = apply("add", apply("mul", apply("floordiv", back, Const(2)), Const(10)), apply("mod", back, Const(2)))
    got = call(mapped(body, ["u"], "float32", "int32"), [torch.zeros(n)], [n], [n])
    assert got.tolist() == [(k - 3) // 2 * 10 + (k - 3) % 2 for k in range(n)]


@inside
def test_nothing_to_do() -> None:
    assert call(mapped(Ref("u"), ["u"], "float32", "float32"), [torch.zeros(0)], [0], [0]).numel() == 0
