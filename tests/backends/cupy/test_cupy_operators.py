"""Every operator as CUDA C++, against torch and the operator table, and the names that the text must not take."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from flashlight._conformance import attention, block
from flashlight.backends import scalar
from flashlight.backends.cupy.compile import HEADERS
from flashlight.backends.cupy.state import RESERVED
from flashlight.expr import OPS, Const, Expr, Index, Ref, Size, apply
from flashlight.tile import Buffer, Dim, GridAxis, Kernel, LoadOp, Stmt, Store
from tests.backends.cupy.shim import TARGET, ShimBackend
from tests.backends.kernels import ON_INTS, ON_REALS, SHIFTS

SHIM = ShimBackend()
N, i = Size("N"), Index("i")
REALS = [-2.5, -1.0, -0.25, 0.0, 0.5, 1.0, 1.75, 3.0, math.inf, -math.inf, math.nan]
FINITE = [x for x in REALS if math.isfinite(x)]
INTS = [-7, -2, -1, 1, 2, 5]
DIVIDES = ("floordiv", "mod", "fmod")


def run(bodies: dict[str, tuple[Expr, str]], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One kernel that computes every body (and its dtype) from the inputs, point by point."""
    dtypes = {name: str(x.dtype).removeprefix("torch.") for name, x in inputs.items()}
    loads = [block(name, "i", dtypes[name], LoadOp(f"{name}_in", (i,), ("i",))) for name in inputs]
    made: list[Stmt] = [*loads]
    for name, (body, dtype) in bodies.items():
        made += [block(f"{name}_y", "i", dtype, body), Store(f"{name}_out", (i,), f"{name}_y", ("i",))]
    ins = tuple(Buffer(f"{name}_in", dtypes[name], (N,)) for name in inputs)
    outs = tuple(Buffer(f"{name}_out", dtype, (N,)) for name, (_, dtype) in bodies.items())
    grid, dims = (GridAxis("i", N, 64),), (Dim("i", 64, N, "row"),)
    kernel = Kernel("every", ("N",), ins, outs, grid, dims, tuple(made))
    (n,) = {len(x) for x in inputs.values()}
    results = [torch.full((n,), 7, dtype=getattr(torch, b.dtype)) for b in outs]
    SHIM.build(SHIM.emit(kernel, TARGET))(list(inputs.values()), results, [n])
    return dict(zip(bodies, results, strict=True))


def operands(values: list[float] | list[int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    u, v = torch.cartesian_prod(*[torch.tensor(values, dtype=dtype)] * 2).T
    return {"u": u.contiguous(), "v": v.contiguous()}


def body(op: str) -> Expr:
    return apply(op, *[Ref("u"), Ref("v")][: OPS[op].arity])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reals(dtype: str) -> None:
    given = operands(REALS, getattr(torch, dtype))
    got = run({op: (body(op), "bool" if OPS[op].kind == "bool" else dtype) for op in ON_REALS}, given)
    for op in ON_REALS:
        expected = eval(scalar.fill(scalar.TORCH, op, *["u", "v"][: OPS[op].arity]), given | {"torch": torch})
        out = got[op]
        if op in DIVIDES:  # torch has its own view of infinite quotients
            kept = (given["v"] != 0) & given["v"].isfinite() & given["u"].isfinite()
            expected, out = expected[kept], out[kept]
        rtol, atol = (1e-12, 1e-15) if dtype == "float64" else (2e-6, 1e-7)
        torch.testing.assert_close(
            out, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, op=op: f"{op}: {m}"
        )


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers(dtype: str) -> None:
    given = operands(INTS, getattr(torch, dtype))
    got = run({op: (body(op), "bool" if OPS[op].kind == "bool" else dtype) for op in ON_INTS}, given)
    for op in ON_INTS:
        kept = given["v"] >= 0 if op in SHIFTS else given["v"] == given["v"]
        rows = zip(*[given[n][kept].tolist() for n in ("u", "v")[: OPS[op].arity]], strict=True)
        assert got[op][kept].tolist() == [OPS[op].evaluate(*row) for row in rows], op


def test_powers_logic_and_conversions() -> None:
    u = Ref("u")
    positive, small = apply("gt", u, Const(0.0)), apply("lt", u, Const(2.0))
    back = apply("sub", i, Const(3))
    got = run(
        {
            "square": (apply("pow", u, Const(2.0)), "float32"),
            "root": (apply("pow", apply("abs", u), Const(0.5)), "float32"),
            "odd": (apply("pow", apply("abs", u), Const(1.5)), "float32"),
            "cube": (apply("pow", i, Const(3)), "int64"),
            "chosen": (apply("select", apply("and", apply("not", positive), small), Const(1.0), u), "float32"),
            "either": (apply("or", positive, apply("isnan", u)), "bool"),
            "whole": (apply("int", apply("select", apply("isnan", u), Const(0.0), u)), "int64"),
            "behind": (apply("floordiv", back, Const(2)), "int32"),
            "rest": (apply("mod", back, Const(2)), "int32"),
            "far": (apply("mul", apply("add", i, Const(2**20)), apply("add", N, Const(2**20))), "int64"),
            "narrow": (apply("mul", u, Const(1 / 3)), "bfloat16"),
        },
        {"u": torch.tensor([-1.5, 0.0, 2.5, math.nan])},
    )
    u_ = torch.tensor([-1.5, 0.0, 2.5, math.nan])
    torch.testing.assert_close(got["square"], u_**2, equal_nan=True)
    torch.testing.assert_close(got["root"], u_.abs() ** 0.5, equal_nan=True)
    torch.testing.assert_close(got["odd"], u_.abs() ** 1.5, equal_nan=True)
    assert got["cube"].tolist() == [0, 1, 8, 27]
    torch.testing.assert_close(got["chosen"], torch.tensor([1.0, 1.0, 2.5, math.nan]), equal_nan=True)
    assert got["either"].tolist() == [False, False, True, True]
    assert got["whole"].tolist() == [-1, 0, 2, 0]
    assert got["behind"].tolist() == [-2, -1, -1, 0]
    assert got["rest"].tolist() == [1, 0, 1, 0]
    assert got["far"].tolist() == [(k + 2**20) * (4 + 2**20) for k in range(4)]
    torch.testing.assert_close(got["narrow"], (u_ * (1 / 3)).bfloat16(), equal_nan=True)


def test_the_text_takes_no_name_of_the_headers() -> None:
    found: set[str] = set()
    for file in HEADERS.glob("*.cuh"):
        text = file.read_text()
        found |= set(re.findall(r"DEVICE [\w&<>:, *]*?(\w+)(?:<\w+>)?\(", text))
        found |= {n for m in re.findall(r"struct (\w+)|#define (\w+)|typedef \w+ (\w+);", text) for n in m if n}
    assert len(found) > 60
    assert found <= set(RESERVED), sorted(found - set(RESERVED))


def test_names_of_the_program_that_cuda_has_already() -> None:
    """A kernel called ``double`` with buffers ``float`` and ``lane`` is as good as any."""
    kernel = attention("double")
    renamed = {"q": "float", "k": "lane", "v": "each", "out": "exp"}

    def again(s: Stmt) -> Stmt:
        if isinstance(s, Store):
            return replace(s, buffer=renamed[s.buffer])
        if hasattr(s, "segments"):
            return replace(s, segments=tuple(replace(g, body=tuple(map(again, g.body))) for g in s.segments))
        return replace(s, op=replace(s.op, buffer=renamed[s.op.buffer])) if isinstance(s.op, LoadOp) else s

    buffers = {f: tuple(replace(b, name=renamed[b.name]) for b in getattr(kernel, f)) for f in ("inputs", "outputs")}
    kernel = replace(kernel, body=tuple(map(again, kernel.body)), **buffers)
    q, k, v = (torch.randn(1, 1, n, 16) for n in (9, 20, 20))
    out = torch.empty_like(q)
    SHIM.build(SHIM.emit(kernel, TARGET))([q, k, v], [out], [1, 1, 9, 20])
    torch.testing.assert_close(out, torch.softmax(q @ k.mT / 4, -1) @ v)
