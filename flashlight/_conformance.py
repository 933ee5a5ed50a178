"""Hand-written tile programs with inputs and references: what a backend must be able to print."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashlight.expr import Const, Expr, Index, Load, Ref, Size, apply
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
    ScanOp,
    Segment,
    Stmt,
    Store,
)

INF = math.inf
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A kernel, sizes to run it at, its inputs at given sizes, and the same computation in torch (any dtype)."""

    name: str
    kernel: Kernel
    sizes: tuple[tuple[int, ...], ...]
    inputs: Callable[..., Tensors]
    reference: Callable[..., Tensors]

    def __str__(self) -> str:
        return self.name


# ---- a short hand for expressions --------------------------------------------------------------------------------
B, H, N, M, C = map(Size, "BHNMC")
b, h, i, j, d, e, f, c = map(Index, "bhijdefc")


def ceildiv(a: Expr, n: int) -> Expr:
    return apply("floordiv", apply("add", a, Const(n - 1)), Const(n))


def floordiv(a: Expr, n: int) -> Expr:
    return apply("floordiv", a, Const(n))


def minimum(a: Expr, x: Expr) -> Expr:
    return apply("minimum", a, x)


def maximum(a: Expr, x: Expr) -> Expr:
    return apply("maximum", a, x)


def real(x: float) -> Const:
    return Const(float(x))


def block(name: str, dims: str, dtype: str, op: object, note: str = "") -> Let:
    return Let(name, tuple(dims), dtype, op if not isinstance(op, Expr) else MapOp(op), note)  # type: ignore[arg-type]


def rows(block_: int, stream: int, length: Expr = N, keys: Expr = M) -> tuple[Dim, Dim]:
    return Dim("i", block_, length, "row"), Dim("j", stream, keys, "stream")


def point(axis: str, n: int) -> Dim:
    return Dim(axis, n, Const(n), "point")


# ---- attention: one pass with a running maximum ---------------------------------------------------------------------
def attention(
    name: str = "attention",
    dtype: str = "float32",
    row: int = 16,
    stream: int = 16,
    depth: int = 16,
    width: int | None = None,
    causal: bool = False,
    window: int = 0,
    group: int = 1,
    bias: bool = False,
    lengths: bool = False,
    slopes: bool = False,
    listed: bool = False,
) -> Kernel:
    """``softmax(q k' / sqrt(depth) + ...) v`` over batch b, heads h; sizes B, H, N (queries), M (keys).

    ``causal`` (and ``window``: that many keys back) need N == M.  ``group`` query heads share a key head.  ``bias``: a
    dense bias[h, i, j].  ``lengths``: keys beyond lens[b] are dead.  ``slopes``: a bias linear in the distance.
    ``listed``: of the keys, the first many[b] blocks of list[b, :] alone.
    """
    width = depth if width is None else width
    wide = "float64" if dtype == "float64" else "float32"
    heads = floordiv(H, group)
    kv = floordiv(h, group)
    inputs = [Buffer("q", dtype, (B, H, N, Const(depth)))]
    inputs += [Buffer("k", dtype, (B, heads, M, Const(depth))), Buffer("v", dtype, (B, heads, M, Const(width)))]
    inputs += [Buffer("bias", dtype, (H, N, M))] if bias else []
    inputs += [Buffer("lens", "int64", (B,))] if lengths else []
    places = apply("add", ceildiv(M, stream), Const(1))
    inputs += [Buffer("many", "int32", (B,)), Buffer("list", "int32", (B, places))] if listed else []

    def live(partial: bool) -> Expr | None:
        terms: list[Expr] = []
        if partial:
            terms += [apply("le", j, i)] if causal else []
            terms += [apply("gt", j, apply("sub", i, Const(window)))] if window else []
            terms.append(apply("lt", j, M))
        terms += [apply("lt", j, Ref("len"))] if lengths else []
        out: Expr | None = None
        for t in terms:
            out = t if out is None else apply("and", out, t)
        return out

    def trip(partial: bool) -> tuple[Stmt, ...]:
        guard = ("j",) if partial else ()
        score = apply("mul", Ref("s"), real(depth**-0.5))
        body: list[Stmt] = [
            block("k_tile", "jd", dtype, LoadOp("k", (b, kv, j, d), guard)),
            block("v_tile", "je", dtype, LoadOp("v", (b, kv, j, e), guard)),
            block("s", "ij", wide, DotOp("q_tile", "k_tile", "d")),
        ]
        if bias:
            body.append(block("bias_tile", "ij", dtype, LoadOp("bias", (h, i, j), (*guard, "i"))))
            body.append(block("bias_wide", "ij", wide, CastOp("bias_tile")))
            score = apply("add", score, Ref("bias_wide"))
        if slopes:
            score = apply("add", score, apply("mul", Ref("slope"), apply("real", apply("sub", j, i))))
        if (alive := live(partial)) is not None:
            score = apply("select", alive, score, real(-INF))
        safe = apply("select", apply("eq", Ref("m_next"), real(-INF)), real(0), Ref("m_next"))
        before = apply("select", apply("eq", Ref("m"), real(-INF)), Ref("m_new"), Ref("m"))
        body += [
            block("x", "ij", wide, score, "the scores of this block"),
            block("top", "i", wide, ReduceOp("max", "x", "j")),
            block("m_next", "i", wide, apply("maximum", Ref("m"), Ref("top"))),
            block("m_new", "i", wide, safe),
            block("r", "i", wide, apply("exp", apply("sub", before, Ref("m_new"))), "moves the states"),
            block("p", "ij", wide, apply("exp", apply("sub", Ref("x"), Ref("m_new")))),
            block("p_sum", "i", wide, ReduceOp("sum", "p", "j")),
            block("l_next", "i", wide, apply("add", apply("mul", Ref("l"), Ref("r")), Ref("p_sum"))),
            block("p_cast", "ij", dtype, CastOp("p")),
            block("moved", "ie", wide, apply("mul", Ref("acc"), Ref("r"))),
            block("acc_next", "ie", wide, DotOp("p_cast", "v_tile", "j", "moved")),
        ]
        return tuple(body)

    start = apply("mul", i, Const(row))  # Index(i) in bounds is the block's number
    last = apply("add", start, Const(row))
    hi = minimum(ceildiv(last, stream), ceildiv(M, stream)) if causal else ceildiv(M, stream)
    full_hi = floordiv(apply("add", start, Const(1)), stream) if causal else floordiv(M, stream)
    lo: Expr = Const(0)
    full_lo: Expr = Const(0)
    if window:
        lo = maximum(Const(0), floordiv(apply("sub", start, Const(window - 1)), stream))
        full_lo = minimum(hi, maximum(lo, ceildiv(apply("sub", last, Const(window)), stream)))
    full_hi = maximum(full_lo, full_hi)
    segments = [Segment("partial", lo, full_lo, trip(True))] if window else []
    segments += [Segment("full", full_lo, full_hi, trip(False)), Segment("partial", full_hi, hi, trip(True))]
    if listed:
        segments = [Segment("partial", Const(0), Load("many", (b,), "int"), trip(True), Load("list", (b, j), "int"))]
    carries = (
        Carry("m", ("i",), wide, -INF, "m_next"),
        Carry("l", ("i",), wide, 0.0, "l_next"),
        Carry("acc", ("i", "e"), wide, 0.0, "acc_next"),
    )
    body: list[Stmt] = [block("q_tile", "id", dtype, LoadOp("q", (b, h, i, d), ("i",)))]
    body += [block("len", "", "int64", LoadOp("lens", (b,)))] if lengths else []
    if slopes:
        power = apply("mul", apply("real", apply("add", h, Const(1))), real(-0.5))
        body.append(block("slope", "", wide, apply("exp2", power)))
    body += [
        Loop("j", carries, tuple(segments)),
        block("o", "ie", wide, apply("div", Ref("acc"), Ref("l"))),
        Store("out", (b, h, i, e), "o", ("i",)),
    ]
    return Kernel(
        name,
        ("B", "H", "N", "M"),
        tuple(inputs),
        (Buffer("out", dtype, (B, H, N, Const(width))),),
        (GridAxis("b", B), GridAxis("h", H), GridAxis("i", N, row, reverse=causal)),
        (*rows(row, stream), point("d", depth), point("e", width)),
        tuple(body),
    )


def attention_case(name: str, sizes: tuple[tuple[int, ...], ...], layout: str = "bhnd", **options: object) -> Case:
    """A case of :func:`attention`; ``layout`` "bnhd": heads are not the outer dimension in memory; "expanded": the
    bias has stride 0 along heads."""
    kernel = attention(name, **options)  # type: ignore[arg-type]
    depth, width = (int(kernel.dim(a).block) for a in "de")
    dtype = getattr(torch, kernel.inputs[0].dtype)
    group = int(options.get("group", 1))  # type: ignore[call-overload]
    names = [x.name for x in kernel.inputs]

    def inputs(g: torch.Generator, nb: int, nh: int, n: int, m: int) -> Tensors:
        def random(*shape: int) -> torch.Tensor:
            if layout == "bnhd" and len(shape) == 4:
                return torch.randn(shape[0], shape[2], shape[1], shape[3], generator=g).to(dtype).transpose(1, 2)
            return torch.randn(*shape, generator=g).to(dtype)

        out = [random(nb, nh, n, depth), random(nb, nh // group, m, depth), random(nb, nh // group, m, width)]
        if "bias" in names:
            out.append(random(1, n, m).expand(nh, n, m) if layout == "expanded" else random(nh, n, m))
        if "lens" in names:
            out.append(torch.randint(0, m + 1, (nb,), generator=g))
        if "list" in names:
            blocks = -(-m // kernel.dim("j").block)
            some = torch.rand(nb, blocks, generator=g) < 0.5
            some[:, 0] |= ~some.any(-1)
            places = torch.where(some, torch.arange(blocks), blocks).sort(-1).values.int()
            out += [some.sum(-1).int(), torch.cat((places, torch.full((nb, 1), blocks, dtype=torch.int32)), -1)]
        return tuple(out)

    def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: torch.Tensor) -> Tensors:
        extra = dict(zip(names[3:], more, strict=True))
        s = q @ k.repeat_interleave(group, 1).mT * depth**-0.5
        at_i, at_j = torch.arange(s.shape[2])[:, None], torch.arange(s.shape[3])
        if "bias" in extra:
            s = s + extra["bias"]
        if options.get("slopes"):
            s = s + torch.exp2(-0.5 * torch.arange(1, s.shape[1] + 1, dtype=s.dtype))[:, None, None] * (at_j - at_i)
        if options.get("causal"):
            s = s.masked_fill(at_j > at_i, -INF)
        if options.get("window"):
            s = s.masked_fill(at_j <= at_i - int(options["window"]), -INF)  # type: ignore[call-overload]
        if "lens" in extra:
            s = s.masked_fill(at_j >= extra["lens"][:, None, None, None], -INF)
        if "list" in extra:
            here = (extra["list"][:, None, :] == (at_j // kernel.dim("j").block)[None, :, None]).any(-1)
            s = s.masked_fill(~here[:, None, None, :], -INF)
        return (s.softmax(-1) @ v.repeat_interleave(group, 1),)

    return Case(name, kernel, sizes, inputs, reference)


# ---- row statistics -----------------------------------------------------------------------------------------------
def logsumexp(row: int = 16, stream: int = 16) -> Kernel:
    """The maximum and the logsumexp of each row of x[N, M], with a maximum that must propagate NaN."""

    def trip(partial: bool) -> tuple[Stmt, ...]:
        tail = ("j",) if partial else ()
        x: Expr = Ref("x_tile")
        x = apply("select", apply("lt", j, M), x, real(-INF)) if partial else x
        return (
            block("x_tile", "ij", "float32", LoadOp("x", (i, j), ("i", *tail))),
            block("y", "ij", "float32", x),
            block("top", "i", "float32", ReduceOp("max", "y", "j")),
            block("m_next", "i", "float32", maximum(Ref("m"), Ref("top"))),
            block("old", "i", "float32", apply("select", apply("eq", Ref("m"), real(-INF)), Ref("m_next"), Ref("m"))),
            block("r", "i", "float32", apply("exp", apply("sub", Ref("old"), Ref("m_next")))),
            block("p", "ij", "float32", apply("exp", apply("sub", Ref("y"), Ref("m_next")))),
            block("part", "i", "float32", ReduceOp("sum", "p", "j")),
            block("l_next", "i", "float32", apply("add", apply("mul", Ref("l"), Ref("r")), Ref("part"))),
        )

    full, whole = floordiv(M, stream), ceildiv(M, stream)
    carries = (Carry("m", ("i",), "float32", -INF, "m_next"), Carry("l", ("i",), "float32", 0.0, "l_next"))
    segments = (Segment("full", Const(0), full, trip(False)), Segment("partial", full, whole, trip(True)))
    return Kernel(
        "logsumexp",
        ("N", "M"),
        (Buffer("x", "float32", (N, M)),),
        (Buffer("top_of", "float32", (N,)), Buffer("lse", "float32", (N,))),
        (GridAxis("i", N, row),),
        rows(row, stream),
        (
            Loop("j", carries, segments),
            block("z", "i", "float32", apply("add", apply("log", Ref("l")), Ref("m"))),
            Store("top_of", (i,), "m", ("i",)),
            Store("lse", (i,), "z", ("i",)),
        ),
    )


def layer_norm(row: int = 16, stream: int = 16) -> Kernel:
    """``(x - mean) * rsqrt(var + eps) * w`` of rows of x[N, M]: two loops with states, and one that stores."""

    def load_x(partial: bool) -> Let:
        return block("x_tile", "ij", "float32", LoadOp("x", (i, j), ("i", "j") if partial else ("i",)))

    def summed(name: str, term: Expr, partial: bool) -> tuple[Stmt, ...]:
        term = apply("select", apply("lt", j, M), term, real(0)) if partial else term
        return (
            load_x(partial),
            block("t", "ij", "float32", term),
            block("part", "i", "float32", ReduceOp("sum", "t", "j")),
            block(f"{name}_next", "i", "float32", apply("add", Ref(name), Ref("part"))),
        )

    full, whole = floordiv(M, stream), ceildiv(M, stream)

    def loop(name: str, term: Expr) -> Loop:
        return Loop(
            "j",
            (Carry(name, ("i",), "float32", 0.0, f"{name}_next"),),
            (
                Segment("full", Const(0), full, summed(name, term, False)),
                Segment("partial", full, whole, summed(name, term, True)),
            ),
        )

    def write(partial: bool) -> tuple[Stmt, ...]:
        y = apply("mul", apply("mul", apply("sub", Ref("x_tile"), Ref("mean")), Ref("scale")), Ref("w_tile"))
        return (
            load_x(partial),
            block("w_tile", "j", "float32", LoadOp("w", (j,), ("j",) if partial else ())),
            block("y_tile", "ij", "float32", y),
            Store("y", (i, j), "y_tile", ("i", "j") if partial else ("i",)),
        )

    centred = apply("sub", Ref("x_tile"), Ref("mean"))
    variance = apply("add", apply("div", Ref("squares"), apply("real", M)), real(1e-5))
    return Kernel(
        "layer_norm",
        ("N", "M"),
        (Buffer("x", "float32", (N, M)), Buffer("w", "float32", (M,))),
        (Buffer("y", "float32", (N, M)),),
        (GridAxis("i", N, row),),
        rows(row, stream),
        (
            loop("total", Ref("x_tile")),
            block("mean", "i", "float32", apply("div", Ref("total"), apply("real", M))),
            loop("squares", apply("mul", centred, centred)),
            block("scale", "i", "float32", apply("rsqrt", variance)),
            Loop(
                "j",
                (),
                (Segment("map", Const(0), full, write(False)), Segment("map", full, whole, write(True))),
            ),
        ),
    )


def rms_norm(row: int = 16, columns: int = 80) -> Kernel:
    """``x * rsqrt(mean(x^2) + eps) * w`` without a loop; the number of columns is no power of two."""
    mean = apply("mul", Ref("squares"), real(1 / columns))
    y = apply("mul", apply("mul", Ref("x_tile"), Ref("scale")), Ref("w_tile"))
    return Kernel(
        "rms_norm",
        ("N",),
        (Buffer("x", "float32", (N, Const(columns))), Buffer("w", "float32", (Const(columns),))),
        (Buffer("y", "float32", (N, Const(columns))),),
        (GridAxis("i", N, row),),
        (Dim("i", row, N, "row"), point("d", columns)),
        (
            block("x_tile", "id", "float32", LoadOp("x", (i, d), ("i",))),
            block("w_tile", "d", "float32", LoadOp("w", (d,))),
            block("square", "id", "float32", apply("mul", Ref("x_tile"), Ref("x_tile"))),
            block("squares", "i", "float32", ReduceOp("sum", "square", "d")),
            block("scale", "i", "float32", apply("rsqrt", apply("add", mean, real(1e-6)))),
            block("y_tile", "id", "float32", y),
            Store("y", (i, d), "y_tile", ("i",)),
        ),
    )


def total(stream: int = 32) -> Kernel:
    """The sum and the largest magnitude of x[M]: no grid, scalar states."""

    def trip(partial: bool) -> tuple[Stmt, ...]:
        x: Expr = Ref("x_tile")
        x = apply("select", apply("lt", j, M), x, real(0)) if partial else x
        return (
            block("x_tile", "j", "float32", LoadOp("x", (j,), ("j",) if partial else ())),
            block("y", "j", "float32", x),
            block("size", "j", "float32", apply("abs", Ref("y"))),
            block("part", "", "float32", ReduceOp("sum", "y", "j")),
            block("top", "", "float32", ReduceOp("max", "size", "j")),
            block("s_next", "", "float32", apply("add", Ref("s"), Ref("part"))),
            block("t_next", "", "float32", maximum(Ref("t"), Ref("top"))),
        )

    full, whole = floordiv(M, stream), ceildiv(M, stream)
    carries = (Carry("s", (), "float32", 0.0, "s_next"), Carry("t", (), "float32", 0.0, "t_next"))
    segments = (Segment("full", Const(0), full, trip(False)), Segment("partial", full, whole, trip(True)))
    return Kernel(
        "total",
        ("M",),
        (Buffer("x", "float32", (M,)),),
        (Buffer("sum", "float32", ()), Buffer("top_of", "float32", ())),
        (),
        (Dim("j", stream, M, "stream"),),
        (Loop("j", carries, segments), Store("sum", (), "s"), Store("top_of", (), "t")),
    )


def running(row: int = 16, stream: int = 16) -> Kernel:
    """``y[i] = sum{j} exp(-(|x[i, 0]| + ... + |x[i, j]|))`` of x[N, M]: a running sum, carried from block to block."""

    def trip(partial: bool) -> tuple[Stmt, ...]:
        size: Expr = apply("abs", Ref("x_tile"))
        size = apply("select", apply("lt", j, M), size, real(0)) if partial else size
        decay: Expr = apply("exp", apply("neg", apply("add", Ref("c"), Ref("inside"))))
        decay = apply("select", apply("lt", j, M), decay, real(0)) if partial else decay
        return (
            block("x_tile", "ij", "float32", LoadOp("x", (i, j), ("i", "j") if partial else ("i",))),
            block("size", "ij", "float32", size),
            block("inside", "ij", "float32", ScanOp("size", "j")),
            block("decay", "ij", "float32", decay),
            block("all", "i", "float32", ReduceOp("sum", "size", "j")),
            block("part", "i", "float32", ReduceOp("sum", "decay", "j")),
            block("c_next", "i", "float32", apply("add", Ref("c"), Ref("all"))),
            block("s_next", "i", "float32", apply("add", Ref("s"), Ref("part"))),
        )

    full, whole = floordiv(M, stream), ceildiv(M, stream)
    carries = tuple(Carry(n, ("i",), "float32", 0.0, f"{n}_next") for n in ("c", "s"))
    segments = (Segment("full", Const(0), full, trip(False)), Segment("partial", full, whole, trip(True)))
    return Kernel(
        "running",
        ("N", "M"),
        (Buffer("x", "float32", (N, M)),),
        (Buffer("y", "float32", (N,)),),
        (GridAxis("i", N, row),),
        (Dim("i", row, N, "row"), Dim("j", stream, M, "stream")),
        (Loop("j", carries, segments), Store("y", (i,), "s", ("i",))),
    )


# ---- products and gathers -----------------------------------------------------------------------------------------
def matmul(row: int = 16, column: int = 32, stream: int = 16) -> Kernel:
    """``tanh(a[N, M] @ w[M, C] + u[C])`` with two tiled axes on the grid."""

    def trip(partial: bool) -> tuple[Stmt, ...]:
        guard = ("j",) if partial else ()
        return (
            block("a_tile", "ij", "float32", LoadOp("a", (i, j), ("i", *guard))),
            block("w_tile", "fj", "float32", LoadOp("w", (j, f), ("f", *guard))),
            block("acc_next", "if", "float32", DotOp("a_tile", "w_tile", "j", "acc")),
        )

    full, whole = floordiv(M, stream), ceildiv(M, stream)
    segments = (Segment("full", Const(0), full, trip(False)), Segment("partial", full, whole, trip(True)))
    return Kernel(
        "matmul",
        ("N", "M", "C"),
        (Buffer("a", "float32", (N, M)), Buffer("w", "float32", (M, C)), Buffer("u", "float32", (C,))),
        (Buffer("y", "float32", (N, C)),),
        (GridAxis("i", N, row), GridAxis("f", C, column)),
        (Dim("i", row, N, "row"), Dim("f", column, C, "row"), Dim("j", stream, M, "stream")),
        (
            Loop("j", (Carry("acc", ("i", "f"), "float32", 0.0, "acc_next"),), segments),
            block("u_tile", "f", "float32", LoadOp("u", (f,), ("f",))),
            block("y_tile", "if", "float32", apply("tanh", apply("add", Ref("acc"), Ref("u_tile")))),
            Store("y", (i, f), "y_tile", ("i", "f")),
        ),
    )


def gather(row: int = 16, columns: int = 24) -> Kernel:
    """``table[index[i], d] * [i is even] + table[i // 2, d]``: rows named by a loaded table, and an index repeated."""
    even = apply("eq", apply("mod", i, Const(2)), Const(0))
    y = apply("add", apply("select", even, Ref("rows"), real(0)), Ref("pairs"))
    return Kernel(
        "gather",
        ("N", "M"),
        (Buffer("table", "float32", (M, Const(columns))), Buffer("index", "int64", (N,))),
        (Buffer("y", "float32", (N, Const(columns))),),
        (GridAxis("i", N, row),),
        (Dim("i", row, N, "row"), point("d", columns)),
        (
            block("index_tile", "i", "int64", LoadOp("index", (i,), ("i",))),
            block("rows", "id", "float32", LoadOp("table", (Ref("index_tile"), d), ("i",))),
            block("pairs", "id", "float32", LoadOp("table", (floordiv(i, 2), d), ("i",))),
            block("y_tile", "id", "float32", y),
            Store("y", (i, d), "y_tile", ("i",)),
        ),
    )


def _random(*shapes: Callable[..., tuple[int, ...]]) -> Callable[..., Tensors]:
    return lambda g, *sizes: tuple(torch.randn(shape(*sizes), generator=g) for shape in shapes)


def _with_nan(g: torch.Generator, n: int, m: int) -> Tensors:
    x = torch.randn(n, m, generator=g)
    x[n // 2, m - 1] = math.nan
    return (x,)


def _rms(x: torch.Tensor, w: torch.Tensor) -> Tensors:
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w,)


def _gathered(table: torch.Tensor, index: torch.Tensor) -> Tensors:
    at = torch.arange(len(index))
    return (torch.where((at % 2 == 0)[:, None], table[index], 0.0) + table[at // 2],)


CASES: tuple[Case, ...] = (
    attention_case("full", ((2, 3, 33, 41), (1, 1, 1, 1), (1, 2, 16, 16)), row=16, stream=16),
    attention_case("full_64", ((1, 2, 70, 130),), row=64, stream=64, depth=64),
    attention_case("causal", ((2, 2, 50, 50), (1, 1, 16, 16), (1, 2, 65, 65)), causal=True),
    attention_case("causal_wide_stream", ((1, 2, 50, 50),), row=16, stream=64, causal=True),
    attention_case("window", ((1, 2, 90, 90),), causal=True, window=20, row=16, stream=16),
    attention_case("bias", ((2, 3, 20, 37),), bias=True),
    attention_case("bias_expanded", ((2, 3, 20, 37),), "expanded", bias=True),
    attention_case("grouped_heads", ((2, 4, 20, 37),), group=2),
    attention_case("heads_inside", ((2, 3, 20, 37),), "bnhd"),
    attention_case("lengths", ((4, 2, 20, 37),), lengths=True),
    attention_case("slopes", ((2, 3, 20, 37),), slopes=True),
    attention_case("listed", ((3, 2, 20, 150), (1, 1, 16, 16)), listed=True),
    attention_case("depth_1", ((1, 2, 20, 37),), depth=1),
    attention_case("depth_80", ((1, 2, 20, 37),), depth=80, width=48),
    attention_case("full_float16", ((1, 2, 33, 41),), dtype="float16"),
    attention_case("causal_bfloat16", ((1, 2, 50, 50),), dtype="bfloat16", causal=True),
    attention_case("full_float64", ((1, 2, 33, 41),), dtype="float64"),
    Case(
        "logsumexp",
        logsumexp(),
        ((20, 37), (16, 16), (1, 5)),
        _random(lambda n, m: (n, m)),
        lambda x: (x.amax(-1), x.logsumexp(-1)),
    ),
    Case("logsumexp_nan", logsumexp(), ((20, 37),), _with_nan, lambda x: (x.amax(-1), x.logsumexp(-1))),
    Case(
        "layer_norm",
        layer_norm(),
        ((20, 37), (16, 32)),
        _random(lambda n, m: (n, m), lambda n, m: (m,)),
        lambda x, w: (torch.nn.functional.layer_norm(x, x.shape[-1:], w),),
    ),
    Case("rms_norm", rms_norm(), ((20,), (16,)), _random(lambda n: (n, 80), lambda n: (80,)), _rms),
    Case("total", total(), ((100,), (64,), (5,)), _random(lambda m: (m,)), lambda x: (x.sum(), x.abs().amax())),
    Case(
        "running",
        running(),
        ((20, 37), (16, 32), (3, 100)),
        _random(lambda n, m: (n, m)),
        lambda x: (x.abs().cumsum(-1).neg().exp().sum(-1),),
    ),
    Case(
        "matmul",
        matmul(),
        ((20, 37, 40), (16, 16, 32)),
        _random(lambda n, m, c: (n, m), lambda n, m, c: (m, c), lambda n, m, c: (c,)),
        lambda a, w, u: (torch.tanh(a @ w + u),),
    ),
    Case(
        "gather",
        gather(),
        ((20, 37),),
        lambda g, n, m: (torch.randn(m, 24, generator=g), torch.randint(0, m, (n,), generator=g)),
        _gathered,
    ),
)
