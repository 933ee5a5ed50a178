"""Scalar expressions in one form, however they were spelt.

What is the identity is left out, signs and choices are moved outwards, scales are gathered.  ``x + (0 where c else
-inf)`` is ``x where c else -inf``, and ``x * real(c)`` is ``x where c else 0``: the same number for every finite x.
"""

from __future__ import annotations

import math

from flashlight import index
from flashlight.expr import OPS, Apply, Const, Expr, Number, apply, kind, loads, walk

_OPPOSITE = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
_ARITHMETIC = ("add", "sub", "mul", "div", "maximum", "minimum")
_OF_ONE = ("neg", "abs", "exp", "exp2", "log", "log2", "sqrt", "sign", "int", "real", "bool", "isnan", "floor", "ceil")


def op(name: str, *args: Expr) -> Expr:
    """The operator on its arguments, by the first law that applies."""
    for law in (_unit, _integral, _sign, _scale, _comparison, _constant_choices, _choice, _lifted):
        if (out := law(name, args)) is not None:
            return out
    return apply(name, *args)


def cast(e: Expr, to: str) -> Expr:
    """The value as another kind; numbers to integers are truncated, to bool compared with 0."""
    own = kind(e)
    if own == to:
        return e
    if isinstance(e, Const):
        v = e.value
        if to == "real":
            return Const(float(v))
        if to == "bool":
            return Const(bool(v))
        if math.isfinite(v):
            return Const(int(v))
    if to == "bool":
        return op("ne", e, Const(0.0 if own == "real" else 0))
    if to == "int" and own == "bool":
        return apply("select", e, Const(1), Const(0))
    return op(to, e)


def negated(c: Expr) -> Expr:
    """``not c`` with the negation at the leaves (De Morgan); a comparison of reals keeps it, for the sake of NaN."""
    match c:
        case Const(v):
            return Const(not v)
        case Apply("not", (x,)):
            return x
        case Apply("and" | "or" as o, (a, b)):
            return apply("or" if o == "and" else "and", negated(a), negated(b))
        case Apply(o, (a, b)) if o in _OPPOSITE and "real" not in (kind(a), kind(b)):
            return op(_OPPOSITE[o], a, b)
    return apply("not", c)


# ---- numbers ---------------------------------------------------------------------------------------------------------
def _unit(name: str, args: tuple[Expr, ...]) -> Expr | None:
    match name, args:
        case (("mul" | "div"), (x, Const(v))) if v == 1 and kind(x) == "real":
            return x
        case "mul", (Const(v), x) if v == 1 and kind(x) == "real":
            return x
        case (("add" | "sub"), (x, Const(v))) if v == 0 and kind(x) == "real":
            return x
        case "add", (Const(v), x) if v == 0 and kind(x) == "real":
            return x
        case "real", (Const(v),):
            return Const(float(v))
    return None


def _integral(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """Sums and comparisons of whole numbers stay among integers (float32 holds them exactly up to 2^24)."""
    if name not in ("add", "sub", *_OPPOSITE) or not any(isinstance(a, Apply) and a.op == "real" for a in args):
        return None
    whole = []
    for a in args:
        match a:
            case Apply("real", (x,)) if kind(x) == "int":
                whole.append(x)
            case Const(float(v)) if v.is_integer() and abs(v) < 2**24:
                whole.append(Const(int(v)))
            case _:
                return None
    return op("real", op(name, *whole)) if name in ("add", "sub") else op(name, *whole)


def _sign(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """Signs move outwards, to where a sum or a constant takes them."""
    match name, args:
        case "neg", (Apply("neg", (x,)),):
            return x
        case "neg", (Const(float(v)),):
            return Const(-v)
        case "neg", (Apply("mul" | "div" as o, (x, Const(float(v)))),):
            return op(o, x, Const(-v))
        case "neg", (Apply("sub", (a, b)),) if kind(a) == kind(b) == "real":
            return op("sub", b, a)
        case "add", (a, Apply("neg", (b,))) if kind(b) == "real":
            return op("sub", a, b)
        case "add", (Apply("neg", (a,)), b) if kind(a) == "real":
            return op("sub", b, a)
        case "sub", (a, Apply("neg", (b,))) if kind(b) == "real":
            return op("add", a, b)
        case "mul", (Const(float(v)), Apply("neg", (x,))) | (Apply("neg", (x,)), Const(float(v))):
            return op("mul", x, Const(-v))
        case (("mul" | "div"), (Apply("neg", (a,)), b)) if kind(a) == "real":
            return op("neg", op(name, a, b))
        case (("mul" | "div"), (a, Apply("neg", (b,)))) if kind(b) == "real":
            return op("neg", op(name, a, b))
    return None


def _scale(name: str, args: tuple[Expr, ...]) -> Expr | None:
    match name, args:
        case "div", (x, Const(float(v))) if (
            v and math.isfinite(v) and (not v.is_integer() or math.frexp(abs(v))[0] == 0.5)
        ):
            return op("mul", x, Const(1.0 / v))  # a scale; division by a count stays one
        case "mul", (Apply("mul", (x, Const(float(u)))), Const(float(v))) if math.isfinite(u * v) and u * v:
            return op("mul", x, Const(u * v))
        case "mul", (Const(float(v)), Apply("mul", (x, Const(float(u))))) if math.isfinite(u * v) and u * v:
            return op("mul", x, Const(u * v))
        case "mul", (x, Apply("div", (Const(float(v)), y))) | (Apply("div", (Const(float(v)), y)), x) if v == 1:
            return op("div", x, y)
    return None


# ---- truth values ----------------------------------------------------------------------------------------------------
def _comparison(name: str, args: tuple[Expr, ...]) -> Expr | None:
    match name, args:
        case "not", (c,):
            out = negated(c)
            return None if out is apply("not", c) else out
        case (("eq" | "ne"), (x, Const(bool(v)))) | (("eq" | "ne"), (Const(bool(v)), x)) if kind(x) == "bool":
            return x if v == (name == "eq") else negated(x)
        case (("lt" | "le" | "gt" | "ge" | "eq" | "ne"), (a, b)) if kind(a) == kind(b) == "int":
            return _of_choices(name, args) or index.compare(name, a, b)
    return None


def _constant_choices(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """What is computed of a choice between constants is a choice between constants; of a truth value, one."""
    if name in _ARITHMETIC or name in _OPPOSITE or name in _OF_ONE:
        return _of_choices(name, args)
    return None


def _of_choices(name: str, args: tuple[Expr, ...]) -> Expr | None:
    chosen = [c for a in args if (c := _between(a)) is not None]
    rest = [a for a in args if _between(a) is None]
    if len(chosen) != 1 or not all(isinstance(a, Const) for a in rest):
        return None
    if kind(args[0]) == "bool" and len(args) == 1:  # real(c) is itself how a choice of 1 and 0 is written
        return None
    condition = chosen[0][0]
    ends = []
    for k in (1, 2):
        values = [b[k] if (b := _between(a)) is not None else a.value for a in args]  # type: ignore[union-attr]
        try:
            value = OPS[name].evaluate(*values)
            ends.append(Const(value if value or isinstance(value, bool) else abs(value)))  # no -0.0
        except (ArithmeticError, ValueError):
            return None
    return op("select", condition, *ends)


def _between(e: Expr) -> tuple[Expr, Number, Number] | None:
    match e:
        case Apply("select", (c, Const(a), Const(b))):
            return c, a, b
        case Apply("real", (c,)) if kind(c) == "bool":
            return c, 1.0, 0.0
    return None


# ---- choices ---------------------------------------------------------------------------------------------------------
def _choice(name: str, args: tuple[Expr, ...]) -> Expr | None:
    if name != "select":
        return None
    c, a, b = args
    if kind(a) == kind(b) == "bool":
        match a, b:
            case Const(True), _:
                return apply("or", c, b)
            case Const(False), _:
                return apply("and", negated(c), b)
            case _, Const(True):
                return apply("or", negated(c), a)
            case _, Const(False):
                return apply("and", c, a)
    for condition, one, other in ((c, a, b), (negated(c), b, a)):  # two choices of one constant are one
        match one:
            case Apply("select", (d, p, q)) if isinstance(other, Const) and (q is other or p is other):
                inner, value = (d, p) if q is other else (negated(d), q)
                return op("select", apply("and", condition, inner), value, other)
    opposite = negated(c)
    if _plainness(opposite, b, a) < _plainness(c, a, b):
        return op("select", opposite, b, a)
    return None


def _plainness(c: Expr, a: Expr, b: Expr) -> tuple[object, ...]:
    """Of ``a where c else b`` and ``b where not c else a`` the one with the fewer negations, then that which falls
    back on a constant, then on an infinite one."""
    negations = sum(isinstance(n, Apply) and n.op == "not" for n in walk(c))
    last = isinstance(a, Const) and not isinstance(b, Const)
    return negations, last, _infinite(a) and not _infinite(b)


def _infinite(e: Expr) -> bool:
    return isinstance(e, Const) and isinstance(e.value, float) and math.isinf(e.value)


def _lifted(name: str, args: tuple[Expr, ...]) -> Expr | None:
    """A choice of 0 or an infinity moves out of sums, one of 0 or 1 out of products; what is infinite stays so."""
    match name, args:
        case (("add" | "sub"), (x, Apply("select", (c, Const(a), Const(b))))) if _mask(a, b):
            s = 1 if name == "add" else -1
            return op("select", c, _shifted(x, s * a), _shifted(x, s * b))
        case "add", (Apply("select", (c, Const(a), Const(b))), x) if _mask(a, b):
            return op("select", c, _shifted(x, a), _shifted(x, b))
        case "mul", (x, Apply("real", (c,))) | (Apply("real", (c,)), x) if kind(c) == "bool":
            return op("select", c, x, Const(0.0))
        case "mul", (x, Apply("select", (c, Const(a), Const(b)))) | (Apply("select", (c, Const(a), Const(b))), x) if {
            a,
            b,
        } == {0.0, 1.0} and not isinstance(x, Const):
            return op("select", c, x, Const(0.0)) if a else op("select", c, Const(0.0), x)
        case (("mul" | "div"), (Apply("select", (c, a, b)), Const(float(v)) as y)) if _one_infinite(a, b) and v > 0:
            if math.isfinite(v):
                return op("select", c, *(x if _infinite(x) else op(name, x, y) for x in (a, b)))
        case "mul", (Const(float(v)) as y, Apply("select", (_, a, b)) as x) if _one_infinite(a, b) and v > 0:
            return op("mul", x, y)
        case "add", (Apply("select", (c, a, b)), y) | (y, Apply("select", (c, a, b))) if _one_infinite(a, b):
            if not _subtracts(y):
                return op("select", c, *(x if _infinite(x) else op("add", x, y) for x in (a, b)))
    return None


def _one_infinite(a: Expr, b: Expr) -> bool:
    return _infinite(a) != _infinite(b)


def _subtracts(e: Expr) -> bool:
    """May the value be infinite because a maximum of nothing was subtracted?"""
    return any(isinstance(n, Apply) and n.op in ("sub", "neg") and loads(n) for n in walk(e))


def _mask(a: Number, b: Number) -> bool:
    return isinstance(a, float) and all(v == 0 or math.isinf(v) for v in (a, b))


def _shifted(x: Expr, v: float) -> Expr:
    return Const(v) if math.isinf(v) else x
