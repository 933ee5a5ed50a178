"""Cheaper arithmetic: the same values within rounding, and no more operators an element than it takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight._conformance import CASES, Case, attention, block, ceildiv, floordiv, real
from flashlight.backend import Target
from flashlight.backends.arith import LANE, START, cheap, rough
from flashlight.backends.cpu import CpuBackend
from flashlight.expr import Apply, Const, Expr, Index, Ref, Size, apply
from flashlight.testing import assert_close
from flashlight.tile import (
    Buffer,
    Carry,
    CastOp,
    Dim,
    DotOp,
    GridAxis,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Segment,
    Stmt,
    Store,
    walk,
)

N, M = Size("N"), Size("M")
i, j, h = map(Index, "ijh")


def lets(body: Iterable[Stmt]) -> list[Let]:
    out: list[Let] = []
    for s in body:
        if isinstance(s, Loop):
            out += [x for g in s.segments for x in lets(g.body)]
        elif isinstance(s, Let):
            out.append(s)
    return out


def segment(kernel: Kernel, kind: str) -> tuple[Stmt, ...]:
    loop = next(s for s in kernel.body if isinstance(s, Loop))
    return next(g.body for g in loop.segments if g.kind == kind)


def elementwise(body: Iterable[Stmt], dims: tuple[str, ...] = ("i", "j")) -> Counter[str]:
    """The operators applied to each element of blocks with these dimensions."""
    out: Counter[str] = Counter()
    for s in lets(body):
        match s.op:
            case MapOp(e) if s.dims == dims:
                out.update(n.op for n in walk(e) if isinstance(n, Apply))
            case CastOp() if s.dims == dims:
                out["cast"] += 1
    return out


def run(
    kernel: Kernel, inputs: Iterable[torch.Tensor], shapes: Iterable[torch.Size], sizes: Iterable[int]
) -> list[torch.Tensor]:
    cpu = CpuBackend()
    dtypes = [getattr(torch, b.dtype) for b in kernel.outputs]
    out = [torch.empty(s, dtype=t) for s, t in zip(shapes, dtypes, strict=True)]
    cpu.build(cpu.emit(kernel, Target()))(list(inputs), out, list(sizes))
    return out


# ---- the conformance kernels ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_stay(case: Case) -> None:
    sizes = case.sizes[0]
    inputs = case.inputs(torch.Generator().manual_seed(0), *sizes)
    eager = case.reference(*inputs)
    exact = case.reference(*(x.double() if x.is_floating_point() else x for x in inputs))
    ours = run(cheap(case.kernel), inputs, [x.shape for x in eager], sizes)
    for got, own, reference in zip(ours, eager, exact, strict=True):
        assert_close(got, reference, own, what=case.name)


def test_large_literals_that_cancel_stay_together() -> None:
    """``(keep - 1) * 1e9`` is 0 or -1e9; ``keep * 1e9`` plus a score would be the score no more."""

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.mT * 0.25 + (keep - 1) * 1e9, dim=-1) @ v

    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 80, 16, generator=g).bfloat16() for _ in range(3))
    args = (q, k, v, (torch.rand(80, generator=g) < 0.7).bfloat16())
    (source,) = flashlight.explain(masked, *args, backend="triton").kernels["triton"].sources
    given = dict(zip("qkv", args, strict=False)) | {"keep": args[3]}
    inputs = [given[b.name] for b in source.kernel.inputs]
    (out,) = run(cheap(source.kernel), inputs, [v.shape], [2, 80])
    assert_close(out, masked(*(x.double() for x in args)), masked(*args), what="masked by a large number")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_exp_is_left_in_float32(case: Case) -> None:
    wide = any(b.dtype == "float64" for b in case.kernel.inputs)
    bodies = [s.op.body for s in lets(cheap(case.kernel).body) if isinstance(s.op, MapOp)]
    left = {n.op for e in bodies for n in walk(e) if isinstance(n, Apply)}
    assert ("exp" in left) == (wide and "exp" in str(case.kernel))


def test_an_element_of_attention_costs_what_it_must() -> None:
    kernel = cheap(attention(causal=True, dtype="bfloat16"))
    assert elementwise(segment(kernel, "full")) == {"exp2": 1, "mul": 1, "sub": 1, "cast": 1}  # one multiply-add
    partial = elementwise(segment(kernel, "partial"))
    assert partial == {"exp2": 1, "mul": 1, "sub": 1, "cast": 1, "select": 1, "le": 1, "lt": 1, "and": 1}
    for kind in ("full", "partial"):
        assert not any(s.name == "x" for s in lets(segment(kernel, kind)))  # the scaled scores are not needed


def test_a_rescale_is_exactly_one_where_the_maximum_stays() -> None:
    """The factor is a power of (old - new), not a quotient of two rounded powers."""
    kernel = cheap(attention())
    r = next(s for s in lets(kernel.body) if s.name == "r")
    assert isinstance(r.op, MapOp)
    match r.op.body:
        case Apply("exp2", (Apply("mul", (Apply("sub", (_, Ref("m_new"))), Const())),)):
            pass
        case other:
            pytest.fail(f"{other}")


def test_what_is_the_same_for_a_row_leaves_the_elements() -> None:
    """A bias linear in the distance: the row's part joins the maximum, the column's is the same at every trip."""
    full = segment(cheap(attention(slopes=True, dtype="bfloat16")), "full")
    base = next(s for s in lets(full) if s.name == "x_base")
    assert base.op == MapOp(
        apply(
            "add", apply("mul", Ref("s"), real(0.25)), apply("mul", Ref("slope"), Apply("real", (Index("j" + LANE),)))
        )
    )
    top = next(s for s in lets(full) if s.name == "top")
    assert Index("j" + START) in set(walk(top.op.body))  # type: ignore[union-attr]
    assert elementwise(full) == {"exp2": 1, "mul": 3, "add": 1, "sub": 1, "real": 1, "cast": 1}  # two are a column's


def test_dead_code_goes_and_states_stay() -> None:
    kernel = attention()
    dead = block("unused", "i", "float32", apply("exp", Ref("top")))
    loop = next(s for s in kernel.body if isinstance(s, Loop))
    loop_ = replace(loop, segments=tuple(replace(g, body=(*g.body, dead)) for g in loop.segments))
    body = tuple(loop_ if s is loop else s for s in kernel.body)
    assert cheap(replace(kernel, body=body)) == cheap(kernel)
    assert {c.name for c in next(s for s in cheap(kernel).body if isinstance(s, Loop)).carries} == {"m", "l", "acc"}


# ---- rows of exponentials -------------------------------------------------------------------------------------------
def rows(make: Callable[[Expr], Expr], dtype: str = "float32", names: str = "", also: str = "float32") -> Kernel:
    """max and sum of exp(z - max) of each row of x[N, M], where z = make(x).

    ``names``: other operands of rows.  ``also``: the dtype of a third result, the maximum again.
    """
    safe = apply("select", apply("eq", Ref("m_next"), real(-math.inf)), real(0), Ref("m_next"))
    before = apply("select", apply("eq", Ref("m"), real(-math.inf)), Ref("m_new"), Ref("m"))

    def trip(partial: bool) -> tuple[Stmt, ...]:
        z = make(Ref("x_wide"))
        if partial:
            z = apply("select", apply("lt", j, M), z, real(-math.inf))
        return (
            block("x_tile", "ij", dtype, LoadOp("x", (i, j), ("i", "j") if partial else ("i",))),
            block("x_wide", "ij", "float32", CastOp("x_tile")),
            block("z", "ij", "float32", z),
            block("top", "i", "float32", ReduceOp("max", "z", "j")),
            block("m_next", "i", "float32", apply("maximum", Ref("m"), Ref("top"))),
            block("m_new", "i", "float32", safe),
            block("old", "i", "float32", before),
            block("r", "i", "float32", apply("exp", apply("sub", Ref("old"), Ref("m_new")))),
            block("p", "ij", "float32", apply("exp", apply("sub", Ref("z"), Ref("m_new")))),
            block("part", "i", "float32", ReduceOp("sum", "p", "j")),
            block("l_next", "i", "float32", apply("add", apply("mul", Ref("l"), Ref("r")), Ref("part"))),
        )

    full, whole = floordiv(M, 16), ceildiv(M, 16)
    segments = (Segment("full", Const(0), full, trip(False)), Segment("partial", full, whole, trip(True)))
    carries = (Carry("m", ("i",), "float32", -math.inf, "m_next"), Carry("l", ("i",), "float32", 0.0, "l_next"))
    loads = [block(n, "i", "float32", LoadOp(f"{n}_in", (i,), ("i",))) for n in names]
    return Kernel(
        "rows",
        ("N", "M"),
        (Buffer("x", dtype, (N, M)), *(Buffer(f"{n}_in", "float32", (N,)) for n in names)),
        (Buffer("top_of", "float32", (N,)), Buffer("sum_of", "float32", (N,)), Buffer("again", also, (N,))),
        (GridAxis("i", N, 16),),
        (Dim("i", 16, N, "row"), Dim("j", 16, M, "stream")),
        (
            *loads,
            Loop("j", carries, segments),
            Store("top_of", (i,), "m", ("i",)),
            Store("sum_of", (i,), "l", ("i",)),
            Store("again", (i,), "m", ("i",)),
        ),
    )


def column(x: Expr) -> Expr:
    return apply("lt", apply("mod", j, Const(3)), Const(2))


FORMS: dict[str, tuple[Callable[[Expr], Expr], Callable[..., torch.Tensor]]] = {
    "scaled": (lambda x: apply("mul", x, real(0.3)), lambda x, u, c: x * 0.3),
    "scaled down": (lambda x: apply("div", x, real(-7)), lambda x, u, c: x / -7),
    "negated": (lambda x: apply("neg", apply("mul", real(2), x)), lambda x, u, c: -2 * x),
    "shifted": (lambda x: apply("add", apply("mul", x, real(3)), Ref("u")), lambda x, u, c: 3 * x + u),
    "from a row": (lambda x: apply("sub", Ref("u"), x), lambda x, u, c: u - x),
    "shifted twice": (
        lambda x: apply("mul", apply("sub", apply("add", Ref("u"), x), real(4)), real(0.5)),
        lambda x, u, c: (u + x - 4) * 0.5,
    ),
    "sum of both": (
        lambda x: apply("add", apply("sub", x, Ref("u")), apply("mul", x, apply("sub", x, Ref("u")))),
        lambda x, u, c: (x - u) + x * (x - u),
    ),
    "masked": (
        lambda x: apply("select", column(x), apply("mul", x, real(0.3)), real(-math.inf)),
        lambda x, u, c: torch.where(c, x * 0.3, -math.inf),
    ),
    "masked the other way": (
        lambda x: apply("select", apply("not", column(x)), real(-math.inf), apply("neg", x)),
        lambda x, u, c: torch.where(c, -x, -math.inf),
    ),
    "masked after a shift": (
        lambda x: apply("select", column(x), apply("add", x, Ref("u")), real(-math.inf)),
        lambda x, u, c: torch.where(c, x + u, -math.inf),
    ),
    "filled": (
        lambda x: apply("select", column(x), apply("mul", x, real(0.3)), real(-1e9)),
        lambda x, u, c: torch.where(c, x * 0.3, -1e9),
    ),
    "filled by a power of two": (
        lambda x: apply("select", column(x), apply("mul", x, real(0.25)), real(-1e9)),
        lambda x, u, c: torch.where(c, x * 0.25, -1e9),
    ),
    "capped": (
        lambda x: apply("mul", apply("tanh", apply("div", x, real(5))), real(5)),
        lambda x, u, c: torch.tanh(x / 5) * 5,
    ),
    "gated": (lambda x: apply("mul", apply("sigmoid", x), Ref("u")), lambda x, u, c: torch.sigmoid(x) * u),
}


@pytest.mark.parametrize("also", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, dtype: str, also: str) -> None:
    make, reference = FORMS[name]
    kernel = rows(make, dtype, "u", also)
    n, m = 20, 70
    x = (3 * torch.randn(n, m)).to(getattr(torch, dtype))
    u = torch.randn(n)
    kept = (torch.arange(m) % 3 < 2).expand(n, m)

    def both(wide: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        z = reference(x.to(wide), u.to(wide)[:, None], kept)
        top = z.amax(1)
        return top, (z - top[:, None]).exp().sum(1)

    got = run(cheap(kernel), [x, u], [torch.Size([n])] * 3, [n, m])
    for ours, own, exact in zip(got[:2], both(torch.float32), both(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=3e-6, atol=3e-6)
        assert ours.dtype == own.dtype


@pytest.mark.parametrize("name", ["scaled", "shifted", "masked", "filled", "plain"])
def test_float32_results_come_of_differences(name: str) -> None:
    """A fused multiply-add sees a rounded product in one of them only, and compilers choose which: two loops over the
    same scores would disagree by 2**-24 of the maximum."""
    make = FORMS[name][0] if name in FORMS else lambda x: x
    for narrow in (False, True):
        kernel = cheap(rows(make, names="u", also="bfloat16" if narrow else "float32"))
        powers = [n for x in lets(kernel.body) if isinstance(x.op, MapOp) for n in walk(x.op.body)]
        folded = [n for n in powers if isinstance(n, Apply) and n.op == "exp2" and n.args[0].op == "sub"]
        assert bool(folded) == narrow


def test_large_shifts_cost_no_accuracy() -> None:
    """Scores around 1000 that a row's shift brings back to 0: float32 results have float32's error."""
    make, _ = FORMS["shifted"]
    n, m = 20, 70
    x = 400 + torch.randn(n, m)
    u = -3 * x.amax(1)
    z = 3 * x.double() + u.double()[:, None]
    expected = (z - z.amax(1, keepdim=True)).exp().sum(1)
    _, got, _ = run(cheap(rows(make, names="u")), [x, u], [torch.Size([n])] * 3, [n, m])
    own = (3 * x + u[:, None]).sub((3 * x + u[:, None]).amax(1, keepdim=True)).exp().sum(1)
    allowed = 2 * (own.double() - expected).abs().max() + 1e-6
    assert (got.double() - expected).abs().max() <= allowed


def test_maxima_are_exactly_those_of_the_program() -> None:
    """Where only a scale or a shift is moved, rounding is monotone: not a bit of the maximum changes."""
    n, m = 20, 70
    x, u = torch.randn(n, m), torch.randn(n)
    for name in ("scaled", "negated", "masked", "from a row", "filled"):
        make, reference = FORMS[name]
        kept = (torch.arange(m) % 3 < 2).expand(n, m)
        got, *_ = run(cheap(rows(make, names="u", also="bfloat16")), [x, u], [torch.Size([n])] * 3, [n, m])
        assert torch.equal(got, reference(x, u[:, None], kept).amax(1)), name


@pytest.mark.parametrize("fill", [-1e30, -1.7e38, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min])
@pytest.mark.parametrize("scale", [0.3, 0.25, 4.0])
@pytest.mark.parametrize("also", ["float32", "bfloat16"])
def test_large_fills_do_not_overflow(fill: float, scale: float, also: str) -> None:
    """A row of fills is uniform, as in eager mode, though the fill times log2(e) is no float32."""
    other = apply("ne", i, Const(1))
    kept = apply("and", other, column(Ref("x_wide")))
    kernel = rows(lambda x: apply("select", kept, apply("mul", x, real(scale)), real(fill)), also=also)
    x = torch.randn(3, 40)
    z = torch.where(torch.arange(40) % 3 < 2, x * scale, fill)
    z[1] = fill
    expected = (z - z.amax(1, keepdim=True)).exp().sum(1)
    _, got, _ = run(cheap(kernel), [x], [torch.Size([3])] * 3, [3, 40])
    torch.testing.assert_close(got, expected)
    assert got[1] == 40


def test_tanh_and_sigmoid_stay_accurate_in_float32() -> None:
    for name in ("capped", "gated"):
        make, _ = FORMS[name]
        assert ("tanh" in str(cheap(rows(make, names="u")))) == (name == "capped")
        assert ("sigmoid" in str(cheap(rows(make, names="u")))) == (name == "gated")
    make, _ = FORMS["capped"]
    kernel = rows(make, "bfloat16", also="bfloat16")
    full = segment(cheap(kernel), "full")
    assert "tanh" not in str(cheap(kernel))
    # exp2(x * c), + 1, a reciprocal; then one multiply-add and a second exp2: neither the cap nor its 1 - ... is left.
    assert elementwise(full) == {"exp2": 2, "mul": 2, "add": 1, "div": 1, "sub": 1, "cast": 1}


def test_rough_kernels_have_16_bit_inputs_or_results() -> None:
    def kernel(inputs: str, outputs: str) -> Kernel:
        dtypes = {"n": "bfloat16", "f": "float32", "d": "float64", "i": "int64"}
        ins = tuple(Buffer(f"x{k}", dtypes[c], (N,)) for k, c in enumerate(inputs))
        outs = tuple(Buffer(f"y{k}", dtypes[c], (N,)) for k, c in enumerate(outputs))
        return Kernel("k", ("N",), ins, outs, (), (), ())

    assert [rough(kernel(*io.split())) for io in ("nn n", "nn f", "ni f", "nf n")] == [True] * 4
    assert [rough(kernel(*io.split())) for io in ("nf f", "f f", "nd n", "i i")] == [False] * 4


def test_products_that_overflow_are_left_to_the_program() -> None:
    """A dot's results are scaled without a guard: none of them is near the largest float32."""
    plain = attention(dtype="bfloat16")
    assert "unit" not in str(cheap(plain))
    assert "unit" in str(cheap(attention(bias=True, dtype="bfloat16")))  # what is loaded may be
    assert isinstance(next(s for s in lets(plain.body) if s.name == "s").op, DotOp)
