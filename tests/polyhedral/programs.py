"""Small programs built by hand."""

from __future__ import annotations

from flashlight.expr import INF, Const, Expr, Index, Load, Size, apply
from flashlight.program import Axis, Program, Statement, Tensor

N = Size("N")
EXTENTS: dict[str, Expr] = {"b": Size("B"), "h": Size("H"), "i": N, "j": N, "d": Const(64), "e": Const(64)}


def axis(name: str, **extents: Expr) -> Axis:
    return Axis(name, extents.get(name, EXTENTS[name]))


def load(tensor: str, index: str) -> Load:
    """One letter an axis."""
    return Load(tensor, tuple(Index(a) for a in index))


def statement(
    name: str, index: str, body: Expr, monoid: str | None = None, over: str = "", **extents: Expr
) -> Statement:
    own, reduced = (tuple(axis(a, **extents) for a in letters) for letters in (index, over))
    return Statement(name, own, body, "float32", monoid, reduced)


def attention(width: int = 64) -> Program:
    """Causal attention in seven statements."""
    size = {"d": Const(width), "e": Const(width)}
    scaled = apply("mul", load("S", "bhij"), Const(0.125))
    masked = apply("select", apply("le", Index("j"), Index("i")), scaled, Const(-INF))
    statements = (
        statement("S", "bhij", apply("mul", load("Q", "bhid"), load("K", "bhjd")), "sum", "d", **size),
        statement("W", "bhij", masked),
        statement("M", "bhi", load("W", "bhij"), "max", "j"),
        statement("E", "bhij", apply("exp", apply("sub", load("W", "bhij"), load("M", "bhi")))),
        statement("L", "bhi", load("E", "bhij"), "sum", "j"),
        statement("P", "bhij", apply("div", load("E", "bhij"), load("L", "bhi"))),
        statement("O", "bhie", apply("mul", load("P", "bhij"), load("V", "bhje")), "sum", "j", **size),
    )
    shape = (Size("B"), Size("H"), N, Const(width))
    return Program(tuple(Tensor(n, "float32", shape) for n in "QKV"), statements, ("O",), ("B", "H", "N"))


def variance() -> Program:
    """The mean of the squares about the mean, along j."""
    wide = apply("real", N)
    mean = apply("div", load("A", "i"), wide)
    about = apply("sub", load("X", "ij"), mean)
    statements = (
        statement("A", "i", load("X", "ij"), "sum", "j"),
        statement("V", "i", apply("mul", about, about), "sum", "j"),
        statement("Y", "ij", apply("div", about, apply("sqrt", apply("div", load("V", "i"), wide)))),
    )
    return Program((Tensor("X", "float32", (N, N)),), statements, ("Y",), ("N",))
