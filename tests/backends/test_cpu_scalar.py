"""Every operator of the table, against its own definition."""

from __future__ import annotations

import math

import pytest
import torch

from flashlight._conformance import block
from flashlight.backend import Target
from flashlight.backends import scalar
from flashlight.backends.cpu import CpuBackend
from flashlight.backends.source import Names, Writer
from flashlight.expr import OPS, Const, Expr, Index, Ref, Size, apply
from flashlight.tile import Buffer, Dim, GridAxis, Kernel, LoadOp, Store
from tests.backends.kernels import ON_INTS, ON_REALS, SHIFTS

REALS = [-2.5, -1.0, -0.25, 0.0, 0.5, 1.0, 1.75, 3.0, math.inf, -math.inf, math.nan]
INTS = [-7, -2, -1, 1, 2, 5]
N, i = Size("N"), Index("i")


def mapped(body: Expr, names: list[str], dtype: str, out: str) -> Kernel:
    loads = tuple(block(n, "i", dtype, LoadOp(f"{n}_in", (i,), ("i",))) for n in names)
    body_ = (*loads, block("y_tile", "i", out, body), Store("y", (i,), "y_tile", ("i",)))
    buffers = tuple(Buffer(f"{n}_in", dtype, (N,)) for n in names)
    return Kernel(
        "k", ("N",), buffers, (Buffer("y", out, (N,)),), (GridAxis("i", N, 64),), (Dim("i", 64, N, "row"),), body_
    )


def run(kernel: Kernel, inputs: list[torch.Tensor]) -> torch.Tensor:
    cpu, n = CpuBackend(), len(inputs[0])
    out = torch.empty(n, dtype=getattr(torch, kernel.outputs[0].dtype))
    cpu.build(cpu.emit(kernel, Target()))(inputs, [out], [n])
    return out


def expected(op: str, rows: list[tuple[float, ...]]) -> list[float]:
    out = []
    for row in rows:
        try:
            out.append(float(OPS[op].evaluate(*row)))
        except (ValueError, ZeroDivisionError, OverflowError, TypeError):
            out.append(None)  # Python refuses where IEEE has an answer: not compared
    return out  # type: ignore[return-value]


@pytest.mark.parametrize("fresh", [False, True], ids=["copied", "in place"])
@pytest.mark.parametrize("op", ON_REALS)
def test_reals(op: str, fresh: bool) -> None:
    arity = OPS[op].arity
    rows = [tuple(r) for r in torch.cartesian_prod(*[torch.tensor(REALS).double()] * arity).reshape(-1, arity).tolist()]
    if op in ("pow", "fmod", "floordiv", "mod"):
        rows = [r for r in rows if all(map(math.isfinite, r)) and r[1] != 0]
    want = expected(op, rows)
    names = ["u", "v"][:arity]
    args = [apply("add", Ref(n), Const(0.0)) if fresh else Ref(n) for n in names]
    out = "bool" if OPS[op].kind == "bool" else "float64"
    got = run(mapped(apply(op, *args), names, "float64", out), list(torch.tensor(rows).double().T.contiguous()))
    for row, x, y in zip(rows, got.double().tolist(), want, strict=True):
        if y is not None and not isinstance(y, complex):
            assert x == pytest.approx(y, rel=1e-12, abs=1e-300, nan_ok=True), (op, row)


@pytest.mark.parametrize("op", ON_INTS)
def test_integers(op: str) -> None:
    arity = OPS[op].arity
    rows = [tuple(r) for r in torch.cartesian_prod(*[torch.tensor(INTS)] * arity).reshape(-1, arity).tolist()]
    rows = [r for r in rows if op not in SHIFTS or r[1] >= 0]
    names = ["u", "v"][:arity]
    out = "bool" if OPS[op].kind == "bool" else "int64"
    got = run(mapped(apply(op, *map(Ref, names)), names, "int64", out), list(torch.tensor(rows).T.contiguous()))
    assert got.tolist() == [OPS[op].evaluate(*row) for row in rows]


def test_logic_select_and_conversions() -> None:
    u = torch.tensor([-1.5, 0.0, 2.5, math.nan])
    positive, small = apply("gt", Ref("u"), Const(0.0)), apply("lt", Ref("u"), Const(2.0))
    body = apply(
        "select", apply("and", apply("not", positive), small), Const(1.0), apply("real", apply("int", Ref("u")))
    )
    kernel = mapped(body, ["u"], "float32", "float32")
    assert run(kernel, [u[:3]]).tolist() == [1.0, 1.0, 2.0]
    either = mapped(apply("or", positive, apply("isnan", Ref("u"))), ["u"], "float32", "bool")
    assert run(either, [u]).tolist() == [False, False, True, True]
    negated = mapped(apply("select", apply("not", positive), Const(5.0), Ref("u")), ["u"], "float32", "float32")
    assert run(negated, [u]).tolist() == [5.0, 5.0, 2.5, 5.0]  # not (NaN > 0)


def test_integers_among_reals_keep_float64() -> None:
    third = apply("mul", apply("real", i), Const(1 / 3))
    got = run(mapped(apply("add", Ref("u"), third), ["u"], "float64", "float64"), [torch.zeros(9).double()])
    assert got.tolist() == [k * (1 / 3) for k in range(9)]
    mixed = mapped(apply("add", Ref("u"), apply("mul", i, Const(1 / 3))), ["u"], "float64", "float64")
    assert run(mixed, [torch.zeros(9).double()]).tolist() == [k * (1 / 3) for k in range(9)]


def test_numbers_of_sizes() -> None:
    """Arithmetic of sizes alone, real functions of them included."""
    body = apply("add", Ref("u"), apply("log", apply("real", apply("floordiv", N, Const(2)))))
    got = run(mapped(body, ["u"], "float64", "float64"), [torch.zeros(9).double()])
    assert got.tolist() == pytest.approx([math.log(4)] * 9)


def test_a_shared_subexpression_is_evaluated_once() -> None:
    wave = apply("sin", Ref("u"))
    kernel = mapped(
        apply("mul", apply("add", wave, Const(1.0)), apply("sub", wave, Ref("u"))), ["u"], "float32", "float32"
    )
    text = CpuBackend().emit(kernel, Target()).text
    assert text.count("sin") == 1
    u = torch.randn(9)
    torch.testing.assert_close(run(kernel, [u]), (u.sin() + 1) * (u.sin() - u))


def test_tables_spell_every_operator() -> None:
    assert set(scalar.TORCH) == set(OPS)
    e = apply("select", apply("lt", i, N), apply("maximum", i, Const(3)), apply("mod", N, Const(4)))
    leaf = {i: "i", N: "n"}
    assert scalar.spell(e, scalar.PYTHON, leaf.__getitem__) == "(max(i, 3) if (i < n) else (n % 4))"
    with pytest.raises(Exception, match="'exp'"):
        scalar.spell(apply("exp", i), scalar.PYTHON, leaf.__getitem__)


def test_numbers_read_back() -> None:
    space = {"inf": math.inf, "nan": math.nan}
    for value in (0.1, -3.0, 1e-30, math.inf, -math.inf, 7, -7, True):
        assert eval(scalar.number(value), space) == value
    assert math.isnan(eval(scalar.number(math.nan), space))
    assert scalar.bare("(a + b)") == "a + b"
    assert scalar.bare("(a) + (b)") == "(a) + (b)"


def test_names_are_identifiers_and_unique() -> None:
    names = Names(["torch"])
    given = [names[n] for n in ("M'", "M_", "torch", "for", "sum", "1st", "x", "x")]
    assert all(n.isidentifier() for n in given)
    assert len(set(given)) == 7
    assert given[-1] == given[-2] == "x"


def test_writer() -> None:
    w = Writer()
    with w.block("if x:"):
        w.line("y = 1", "a\nnote")
    with w.block("else:"):
        pass
    assert w.text() == "if x:\n    y = 1  # a note\nelse:\n    pass\n"
