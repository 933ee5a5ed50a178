"""Scalar expressions: frozen, hash-consed trees, and the table of their operators.

A body is what one instance of a statement computes.  It is *our* tree and not sympy's, since sympy rewrites as it
builds (``x - x`` becomes 0, ``(x/m)**2`` becomes ``x**2/m**2``) and so changes numbers.  Equal trees are one object:
equality is identity, and sharing is free.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Any, ClassVar, TypeAlias

Number = bool | int | float
INF = math.inf


class _Interned(type):
    """Hash-consing: constructing a node that exists returns it (nodes hold no mutable state, so that is safe)."""

    _nodes: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Any]] = weakref.WeakValueDictionary()

    def __call__(cls, *args: Any) -> Any:
        fields = tuple(cls.__dataclass_fields__.values())  # type: ignore[attr-defined]
        if len(args) < len(fields):  # the same node with its defaults spelt out
            args = (*args, *(f.default for f in fields[len(args) :] if f.default is not MISSING))
        key = (cls, *((type(a), repr(a)) if isinstance(a, float) else (type(a), a) for a in args))
        node = _Interned._nodes.get(key)
        if node is None:
            node = _Interned._nodes.setdefault(key, super().__call__(*args))
        return node


@dataclass(frozen=True, eq=False)
class Const(metaclass=_Interned):
    """A literal; ``True`` and ``1`` and ``1.0`` are three different constants."""

    value: Number

    def __str__(self) -> str:
        if isinstance(self.value, float) and self.value.is_integer() and abs(self.value) < 1e6:
            return str(int(self.value))
        return f"{self.value:.9g}" if isinstance(self.value, float) else str(self.value)


@dataclass(frozen=True, eq=False)
class Index(metaclass=_Interned):
    """The coordinate of an axis, an integer."""

    axis: str

    def __str__(self) -> str:
        return self.axis


@dataclass(frozen=True, eq=False)
class Size(metaclass=_Interned):
    """A length known only when called: a parameter of the program, an integer."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Ref(metaclass=_Interned):
    """A named value: a reduction's result in a body, a slot or gauge in a certificate, a block in a tile program."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Load(metaclass=_Interned):
    """An element of a tensor; ``kind`` is ``"real"``, ``"int"`` or ``"bool"``."""

    tensor: str
    index: tuple[Expr, ...]
    kind: str = "real"

    def __str__(self) -> str:
        return f"{self.tensor}[{', '.join(map(str, self.index))}]" if self.index else self.tensor


@dataclass(frozen=True, eq=False)
class Apply(metaclass=_Interned):
    """An operator of the table applied to arguments."""

    op: str
    args: tuple[Expr, ...]

    def __str__(self) -> str:
        return _text(self)[0]


COMBINE = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}
"""The operator of each monoid."""
IDENTITY = {"sum": 0.0, "prod": 1.0, "max": -INF, "min": INF}
"""What changes nothing, of each monoid."""
PLACED = ("argmax", "argmin")
"""The index of the first element that is largest or smallest (ordered pairs)."""


@dataclass(frozen=True, eq=False)
class Fold(metaclass=_Interned):
    """A reduction of a bounded axis inside an expression: ``monoid{axis < extent} body``.

    ``dtype``: what the user's program computes it in (a product of 16-bit operands feeds the tensor cores).
    """

    monoid: str
    axis: str
    extent: int
    body: Expr
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.monoid}{{{self.axis}<{self.extent}}}({self.body})"


Expr: TypeAlias = Const | Index | Size | Ref | Load | Apply | Fold

TRUE, FALSE = Const(True), Const(False)


@dataclass(frozen=True)
class Op:
    """What is known of an operator.

    ``kind``: of the result ("same" = the widest of its arguments).  ``monotone``: per argument +1 increasing,
    -1 decreasing, 0 unknown (on the whole domain).  ``range``: of the result.  ``ieee``: what exact algebra must not
    forget.  ``sign``: how it is written between its arguments or before its one, and how tightly it ``binds``; without
    one it is written as a function.
    """

    name: str
    arity: int
    evaluate: Callable[..., Any]
    kind: str = "real"
    monotone: tuple[int, ...] = ()
    range: tuple[float, float] = (-INF, INF)
    ieee: str = ""
    sign: str = ""
    binds: int = 9


def _div(a: float, b: float) -> float:
    if b == 0:
        return math.nan if a == 0 or a != a else math.copysign(INF, a) * math.copysign(1.0, b)
    return a / b


def _exp(a: float) -> float:
    return INF if a > 709 else math.exp(a)


def _log(a: float) -> float:
    return math.nan if a < 0 or a != a else (-INF if a == 0 else math.log(a))


def _minimum(a: float, b: float) -> float:
    return a if a != a or a < b else b


def _maximum(a: float, b: float) -> float:
    return a if a != a or a > b else b


def _trunc(a: float) -> float:
    return a if isinstance(a, float) and not math.isfinite(a) else math.trunc(a)


def _text(e: Expr) -> tuple[str, int]:
    """The text of an expression, with the brackets it needs and no others, and how tightly its outermost sign binds."""
    if isinstance(e, Const) and not isinstance(e.value, bool) and not e.value >= 0:
        return str(e), 7
    if not isinstance(e, Apply):
        return str(e), 9
    op = OPS.get(e.op)
    if op is None or not op.sign:
        return f"{_WRITTEN.get(e.op, e.op)}({', '.join(map(str, e.args))})", 9

    def within(a: Expr, least: int) -> str:
        text, binds = _text(a)
        return text if binds >= least else f"({text})"

    match e.args:
        case (a,):
            return f"{op.sign}{within(a, op.binds)}", op.binds
        case (a, b):
            return f"{within(a, op.binds)}{op.sign}{within(b, op.binds + 1)}", op.binds
        case (c, a, b):
            return f"{within(a, 1)} where {within(c, 1)} else {within(b, 0)}", 0
    return str(e.args), 9


_WRITTEN = {"maximum": "max", "minimum": "min"}


def _table() -> dict[str, Op]:
    rows = [
        Op("add", 2, lambda a, b: a + b, "same", (1, 1), sign=" + ", binds=5, ieee="inf - inf is NaN"),
        Op("sub", 2, lambda a, b: a - b, "same", (1, -1), sign=" - ", binds=5, ieee="inf - inf is NaN"),
        Op("mul", 2, lambda a, b: a * b, "same", sign="*", binds=6, ieee="0 * inf is NaN"),
        Op("div", 2, _div, "real", sign="/", binds=6, ieee="0 / 0 is NaN, x / 0 is inf"),
        Op("neg", 1, lambda a: -a, "same", (-1,), sign="-", binds=7),
        Op("abs", 1, abs, "same", range=(0, INF)),
        Op("maximum", 2, _maximum, "same", (1, 1), ieee="NaN propagates"),
        Op("minimum", 2, _minimum, "same", (1, 1), ieee="NaN propagates"),
        Op("floordiv", 2, lambda a, b: a // b, "same", sign=" // ", binds=6, ieee="rounds towards -inf"),
        Op("mod", 2, lambda a, b: a % b, "same", sign=" % ", binds=6, ieee="sign of the divisor"),
        Op("xor", 2, lambda a, b: int(a) ^ int(b), "int", ieee="of whole numbers, bit by bit"),
        Op("bitand", 2, lambda a, b: int(a) & int(b), "int", ieee="of whole numbers, bit by bit"),
        Op("lshift", 2, lambda a, b: int(a) << int(b), "int", ieee="by 0 to 63 bits"),
        Op("rshift", 2, lambda a, b: int(a) >> int(b), "int", ieee="by 0 to 63 bits; rounds towards -inf"),
        Op("fmod", 2, math.fmod, "same", ieee="sign of the dividend"),
        Op("pow", 2, lambda a, b: a**b, "same", sign="**", binds=8),
        Op("exp", 1, _exp, monotone=(1,), range=(0, INF), ieee="exp(-inf) is exactly 0"),
        Op("exp2", 1, lambda a: _exp(a * math.log(2)), monotone=(1,), range=(0, INF)),
        Op("expm1", 1, lambda a: INF if a > 709 else math.expm1(a), monotone=(1,), range=(-1, INF)),
        Op("log", 1, _log, monotone=(1,), ieee="log(0) is -inf, of less NaN"),
        Op("log2", 1, lambda a: _log(a) / math.log(2), monotone=(1,)),
        Op("log1p", 1, lambda a: _log(1 + a), monotone=(1,)),
        Op("sqrt", 1, lambda a: math.sqrt(a) if a >= 0 else math.nan, monotone=(1,), range=(0, INF)),
        Op("rsqrt", 1, lambda a: _div(1.0, math.sqrt(a)) if a >= 0 else math.nan, range=(0, INF)),
        Op("tanh", 1, math.tanh, monotone=(1,), range=(-1, 1)),
        Op("sigmoid", 1, lambda a: 1 / (1 + _exp(-a)), monotone=(1,), range=(0, 1)),
        Op("sin", 1, math.sin, range=(-1, 1)),
        Op("cos", 1, math.cos, range=(-1, 1)),
        Op("erf", 1, math.erf, monotone=(1,), range=(-1, 1)),
        Op("atan", 1, math.atan, monotone=(1,), range=(-math.pi / 2, math.pi / 2)),
        Op("floor", 1, lambda a: a if not math.isfinite(a) else math.floor(a), "same", (1,)),
        Op("ceil", 1, lambda a: a if not math.isfinite(a) else math.ceil(a), "same", (1,)),
        Op("round", 1, lambda a: a if not math.isfinite(a) else round(a), "same", (1,)),
        Op("trunc", 1, _trunc, "same", (1,)),
        Op("sign", 1, lambda a: (a > 0) - (a < 0), "same", (1,), (-1, 1)),
        Op("lt", 2, lambda a, b: a < b, "bool", sign=" < ", binds=4),
        Op("le", 2, lambda a, b: a <= b, "bool", sign=" <= ", binds=4),
        Op("gt", 2, lambda a, b: a > b, "bool", sign=" > ", binds=4),
        Op("ge", 2, lambda a, b: a >= b, "bool", sign=" >= ", binds=4),
        Op("eq", 2, lambda a, b: a == b, "bool", sign=" == ", binds=4),
        Op("ne", 2, lambda a, b: a != b, "bool", sign=" != ", binds=4),
        Op("and", 2, lambda a, b: bool(a and b), "bool", sign=" and ", binds=2),
        Op("or", 2, lambda a, b: bool(a or b), "bool", sign=" or ", binds=1),
        Op("not", 1, lambda a: not a, "bool", sign="not ", binds=3),
        Op("isnan", 1, lambda a: a != a, "bool"),
        Op("select", 3, lambda c, a, b: a if c else b, "same", sign="where", binds=0),
        Op("real", 1, float, "real", (1,)),
        Op("int", 1, int, "int", (1,)),
        Op("bool", 1, bool, "bool"),
    ]
    return {op.name: op for op in rows}


OPS = _table()


def apply(op: str, *args: Expr) -> Expr:
    """Build a node, folding constants of kind int or bool only (real arithmetic is left as it was written)."""
    if all(isinstance(a, Const) and not isinstance(a.value, float) for a in args) and op not in ("div", "exp", "real"):
        values = [a.value for a in args if isinstance(a, Const)]
        if OPS[op].kind in ("same", "bool", "int") and not (op in ("floordiv", "mod", "pow") and values[1] <= 0):
            return Const(OPS[op].evaluate(*values))
    match op, args:
        case "and", (Const(True), x) | (x, Const(True)):
            return x
        case "or", (Const(False), x) | (x, Const(False)):
            return x
        case "and", (Const(False), _) | (_, Const(False)):
            return FALSE
        case "or", (Const(True), _) | (_, Const(True)):
            return TRUE
        case "not", (Apply("not", (x,)),):
            return x
        case "select", (Const(bool(c)), a, b):
            return a if c else b
        case "select", (_, a, b) if a is b:
            return a
        case "add", (x, Const(int(z))) | (Const(int(z)), x) if z == 0 and kind(x) == "int":
            return x
        case "sub", (x, Const(int(z))) if z == 0 and kind(x) == "int":
            return x
        case "mul", (x, Const(int(z))) | (Const(int(z)), x) if z == 1 and kind(x) == "int":
            return x
        case "mul", (x, Const(int(z))) | (Const(int(z)), x) if z == 0 and kind(x) == "int":
            return Const(0)
        case "floordiv", (x, Const(int(z))) if z == 1 and kind(x) == "int":
            return x
        case (("real" | "int" | "bool"), (x,)) if kind(x) == op:
            return x
    return Apply(op, args)


@cache
def kind(e: Expr) -> str:
    """``"real"``, ``"int"`` or ``"bool"``."""
    match e:
        case Const(value):
            return {bool: "bool", int: "int", float: "real"}[type(value)]
        case Index() | Size():
            return "int"
        case Ref():
            return "real"
        case Load():
            return e.kind
        case Fold():
            return kind(e.body)
        case Apply(op, args):
            known = OPS[op].kind if op in OPS else "real"
            if known != "same":
                return known
            kinds = {kind(a) for a in (args[1:] if op == "select" else args)}
            return "real" if "real" in kinds else "int" if "int" in kinds or op != "select" else "bool"


def children(e: Expr) -> tuple[Expr, ...]:
    match e:
        case Load():
            return e.index
        case Apply():
            return e.args
        case Fold():
            return (e.body,)
    return ()


def rebuild(e: Expr, parts: tuple[Expr, ...]) -> Expr:
    match e:
        case Load(tensor, _, k):
            return Load(tensor, parts, k)
        case Apply(op, _):
            return apply(op, *parts)
        case Fold(monoid, axis, extent, _, dtype):
            return Fold(monoid, axis, extent, parts[0], dtype)
    return e


def rewrite(e: Expr, rule: Callable[[Expr], Expr | None]) -> Expr:
    """Top-down: where ``rule`` answers, its answer stands (unvisited); elsewhere children are rewritten.  Shared
    nodes are visited once."""
    memo: dict[Expr, Expr] = {}

    def go(e: Expr) -> Expr:
        if e in memo:
            return memo[e]
        out = rule(e)
        if out is None:
            parts = children(e)
            new = tuple(map(go, parts))
            out = e if all(a is b for a, b in zip(new, parts, strict=True)) else rebuild(e, new)
        memo[e] = out
        return out

    return go(e)


def substitute(e: Expr, table: Mapping[Expr, Expr]) -> Expr:
    """Replace whole subtrees, simultaneously; what stands for a fold's own axis stays inside it."""
    if not table:
        return e

    def rule(n: Expr) -> Expr | None:
        if isinstance(n, Fold) and n not in table and Index(n.axis) in table:
            inner = {k: v for k, v in table.items() if k is not Index(n.axis)}
            return rebuild(n, (substitute(n.body, inner),))
        return table.get(n)

    return rewrite(e, rule)


def walk(e: Expr) -> Iterator[Expr]:
    """Every distinct node once, parents first, in a deterministic order."""
    seen: set[Expr] = set()
    stack = [e]
    while stack:
        e = stack.pop()
        if e not in seen:
            seen.add(e)
            yield e
            stack.extend(reversed(children(e)))


@cache
def axes(e: Expr) -> frozenset[str]:
    """The free axes of an expression."""
    match e:
        case Index(axis):
            return frozenset((axis,))
        case Fold(_, axis, _, body):
            return axes(body) - {axis}
    return frozenset().union(*map(axes, children(e)))


@cache
def refs(e: Expr) -> frozenset[str]:
    """The names an expression refers to by :class:`Ref`."""
    return frozenset((e.name,)) if isinstance(e, Ref) else frozenset().union(*map(refs, children(e)))


@cache
def loads(e: Expr) -> tuple[Load, ...]:
    """Every distinct load, in a deterministic order."""
    return tuple(n for n in walk(e) if isinstance(n, Load))


def conjuncts(e: Expr) -> list[Expr]:
    """The conditions that all have to hold for ``e``."""
    match e:
        case Apply("and", (a, b)):
            return [*conjuncts(a), *conjuncts(b)]
    return [e]


def evaluate(e: Expr, env: Callable[[Expr], Any]) -> Any:
    """The value of an expression; ``env`` gives the leaves (Index, Size, Ref, Load).

    Works for any number type the operator table's functions accept (Python numbers); folds are expanded by the
    caller, through ``env`` on the Fold node.
    """
    match e:
        case Const(value):
            return value
        case Apply(op, args):
            return OPS[op].evaluate(*(evaluate(a, env) for a in args))
    return env(e)
