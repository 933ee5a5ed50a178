"""Reading a certificate from its text, strictly: a table of nodes, and records; and values of nodes, in exact
rationals, 50 decimal digits or float64.  Shares no code with the compiler (nor do its neighbours ``verifier*``)."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from types import SimpleNamespace as Record
from typing import Any

LIMIT = 20_000  # nodes
UNARY = """neg abs exp exp2 expm1 log log2 log1p sqrt rsqrt tanh sigmoid sin cos erf atan floor ceil round trunc sign
not isnan real int bool"""
BINARY = "add sub mul div lt le gt ge eq ne and or fmod pow mod floordiv xor bitand lshift rshift maximum minimum"
ARITY = dict.fromkeys(UNARY.split(), 1) | dict.fromkeys(BINARY.split(), 2) | {"select": 3}
IDENTITY = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}
JOIN = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}
PLACED = ("argmax", "argmin")
FOLDED: dict[Any, Callable[[int, int], int]] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


class Malformed(Exception):
    """The text is no certificate; the message says why."""


@dataclass(frozen=True)
class Node:
    """``kind``: bool, int, real (constants), index, size, ref, load, apply, fold; ``label``: value, name, operator,
    (tensor, kind) or (monoid, axis, extent)."""

    kind: str
    label: Any
    args: tuple[int, ...] = ()


class Table:
    """Nodes by number, equal ones once."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.known: dict[Any, int] = {}
        self.axes: list[frozenset[str]] = []
        self.refs: list[frozenset[str]] = []

    def add(self, kind: str, label: Any, args: Iterable[int] = ()) -> int:
        node = Node(kind, label, tuple(args))
        key = (kind, repr(label), node.args)
        if key not in self.known:
            if len(self.nodes) >= LIMIT:
                raise Malformed(f"more than {LIMIT} nodes")
            axes = frozenset((label,) if kind == "index" else ()).union(*(self.axes[a] for a in node.args))
            refs = frozenset((label,) if kind == "ref" else ()).union(*(self.refs[a] for a in node.args))
            self.known[key] = len(self.nodes)
            self.nodes.append(node)
            self.axes.append(axes - {label[1]} if kind == "fold" else axes)
            self.refs.append(refs)
        return self.known[key]

    def below(self, *roots: int) -> Iterator[int]:
        """Every node that is computed for these, once; what is inside loads and folds is not."""
        seen, stack = set[int](), list(roots)
        while stack:
            if (i := stack.pop()) not in seen:
                seen.add(i)
                yield i
                stack += self.nodes[i].args if self.nodes[i].kind == "apply" else ()

    def rewrite(self, i: int, rule: Callable[[int], int | None], memo: dict[int, int] | None = None) -> int:
        """The node with others in the place of some; whole-number arithmetic on constants is done."""
        memo = {} if memo is None else memo
        if i not in memo:
            new, node = rule(i), self.nodes[i]
            args = [self.rewrite(a, rule, memo) for a in node.args] if new is None else []
            plain = [self.nodes[a].label for a in args if self.nodes[a].kind == "int"]
            if new is None and node.label in FOLDED and len(plain) == 2:
                new = self.add("int", FOLDED[node.label](*plain))
            memo[i] = self.add(node.kind, node.label, args) if new is None else new
        return memo[i]

    def put(self, i: int, table: Mapping[int, int]) -> int:
        return self.rewrite(i, table.get)


ROW = [(str, "node")]
FACT = {"low": "node", "high": "node", "source": str}
FIELDS: dict[str, Any] = {
    "axis": str, "extent": "node", "order": str, "outputs": ["node"],
    "stages": [{"name": str, "monoid": {None, str}, "body": "node", "rank": int, "payload": {None, "node"},
                "scan": {None, (str, bool, bool)}}],
    "slots": [{"name": str, "monoid": str, "body": "node", "identity": float, "gauges": [str], "row": ROW,
               "action": ROW, "bound": [("node", [("node", FACT)])]}],
    "gauges": [{"name": str, "final": "node", "value": "node", "empty": float, "safe": float, "same": bool,
                "exact": bool, "constant": {None, float}, "reach": float}],
    "links": [{"stage": str, "value": "node", "rank": int, "form": str, "given": [FACT], "restore": [str]}],
}  # fmt: skip


def _take(ids: list[int], v: Any, wanted: Any) -> Any:
    """A value of JSON as what is wanted of it: a type, a node, a list, a tuple, a record, or nothing ({None, ...})."""
    if isinstance(wanted, set):
        (other,) = wanted - {None}
        return None if v is None else _take(ids, v, other)
    if wanted is float and (v in ("inf", "-inf", "nan") or type(v) is int):
        return float(v)
    if wanted == "node" and type(v) is int and 0 <= v < len(ids):
        return ids[v]
    if isinstance(wanted, type) and type(v) is wanted:
        return v
    if isinstance(wanted, dict) and type(v) is dict and v.keys() == wanted.keys():
        return Record(**{k: _take(ids, v[k], w) for k, w in wanted.items()})
    if isinstance(wanted, list) and type(v) is list:
        return tuple(_take(ids, x, wanted[0]) for x in v)
    if isinstance(wanted, tuple) and type(v) is list and len(v) == len(wanted):
        return tuple(_take(ids, x, w) for x, w in zip(v, wanted, strict=True))
    raise Malformed(f"{v!r:.80} is not what should be here")


def read(text: str) -> tuple[Table, Record]:
    """The table of nodes and the certificate.  Raises Malformed."""
    raw = json.loads(text)
    if type(raw) is not dict or (raw.pop("format", ""), raw.pop("version", 0)) != ("flashlight certificate", 1):
        raise Malformed("no certificate of version 1")
    table, ids = Table(), list[int]()
    for row in _take([], raw.pop("nodes", None), list):
        ids.append(_node(table, ids, row))
    return table, _take(ids, raw, FIELDS)


def _node(table: Table, ids: list[int], row: Any) -> int:
    match row:
        case ["bool", bool(v)] | ["int", int(v)]:
            return table.add(row[0], v)
        case ["real", v]:
            return table.add("real", _take(ids, v, float))
        case ["index" | "size" | "ref" as kind, str(name)]:
            return table.add(kind, name)
        case ["running", str(name)]:
            return table.add("ref", f"s:{name}")
        case ["load", str(tensor), index, "real" | "int" | "bool" as kind]:
            return table.add("load", (tensor, kind), _take(ids, index, ["node"]))
        case ["apply", str(op), list(args)] if ARITY.get(op) == len(args):
            return table.add("apply", op, _take(ids, args, ["node"]))
        case ["fold", str(monoid), str(axis), int(n), body, str()] if monoid in IDENTITY and n > 0:
            return table.add("fold", (monoid, axis, n), [_take(ids, body, "node")])
    raise Malformed(f"{row!r:.80} is no node")


# ---- values ----------------------------------------------------------------------------------------------------------
CONTEXT = Context(prec=50, Emax=10**9, Emin=-(10**9), traps=[])
Names = Mapping[str, Any]
Operators = dict[str, Callable[..., Any]]
RATIONAL = {"add", "sub", "mul", "div", "neg", "abs", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne", "and",
            "or", "not", "select", "real", "int", "bool"}  # fmt: skip
SHARED: Operators = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg, "abs": abs,
    "maximum": lambda a, b: a if a != a or a > b else b, "minimum": lambda a, b: a if a != a or a < b else b,
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "and": lambda a, b: a and b, "or": lambda a, b: a or b, "not": operator.not_, "isnan": lambda a: a != a,
    "select": lambda c, a, b: a if c else b, "bool": bool,
}  # fmt: skip


def _ieee(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Python with infinities and NaN where Python raises."""

    def call(*args: Any) -> Any:
        try:
            out = f(*args)
        except OverflowError:
            return math.inf
        except (ValueError, ZeroDivisionError):
            return math.nan
        return math.nan if isinstance(out, complex) else out

    return call


def _divide(a: Any, b: Any) -> Any:
    if b:
        return a / b
    return math.nan if not a or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _whole(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda a: f(a) if abs(a) < math.inf else a


def _log(f: Callable[[float], float], at: float = 0.0) -> Callable[[float], float]:
    return _ieee(lambda a: f(a) if a != at else -math.inf)


FLOAT: Operators = SHARED | {
    "div": _divide, "pow": _ieee(lambda a, n: math.inf if a == 0 and n < 0 else a**n), "exp": _ieee(math.exp),
    "exp2": _ieee(lambda a: math.exp(a * math.log(2))), "expm1": _ieee(math.expm1), "log": _log(math.log),
    "log2": _log(math.log2), "log1p": _log(math.log1p, -1.0), "sqrt": _ieee(math.sqrt), "erf": math.erf,
    "atan": math.atan,
    "rsqrt": _ieee(lambda a: _divide(1.0, math.sqrt(a))), "sin": _ieee(math.sin), "cos": _ieee(math.cos),
    "tanh": math.tanh, "sigmoid": lambda a: 1 / (1 + FLOAT["exp"](-a)), "real": float, "int": _ieee(int),
    "floor": _whole(math.floor), "ceil": _whole(math.ceil), "round": _whole(round), "trunc": _whole(math.trunc),
    "sign": lambda a: (a > 0) - (a < 0), "fmod": _ieee(math.fmod), "mod": _ieee(operator.mod),
    "floordiv": _ieee(operator.floordiv), "xor": _ieee(lambda a, b: int(a) ^ int(b)),
    "bitand": _ieee(lambda a, b: int(a) & int(b)), "lshift": _ieee(lambda a, b: int(a) << int(b)),
    "rshift": _ieee(lambda a, b: int(a) >> int(b)),
}  # fmt: skip
FRACTION: Operators = SHARED | {
    "div": _divide,
    "int": math.trunc,
    "real": lambda a: a if type(a) is float else Fraction(a),
}
OPAQUE = (
    "sin", "cos", "erf", "atan", "floor", "ceil", "round", "trunc", "sign", "int", "fmod", "floordiv", "mod", "xor",
    "bitand", "lshift", "rshift",
)  # fmt: skip
with localcontext(CONTEXT):
    LN2 = Decimal(2).ln()
DECIMAL: Operators = SHARED | {
    name: (lambda f: lambda *a: Decimal(f(*map(float, a))))(FLOAT[name]) for name in OPAQUE
} | {
    "div": operator.truediv, "pow": lambda a, n: a**n if n else Decimal(1), "exp": lambda a: a.exp(),
    "exp2": lambda a: (a * LN2).exp(), "expm1": lambda a: a.exp() - 1, "log": lambda a: a.ln(),
    "log2": lambda a: a.ln() / LN2, "log1p": lambda a: (1 + a).ln(), "sqrt": lambda a: a.sqrt(),
    "rsqrt": lambda a: 1 / a.sqrt(), "tanh": lambda a: 1 - 2 / ((2 * a).exp() + 1), "real": Decimal,
    "sigmoid": lambda a: 1 / (1 + (-a).exp()),
}  # fmt: skip
MODES: dict[str, tuple[Operators, Callable[[Any], Any]]] = {
    "float": (FLOAT, float),
    "decimal": (DECIMAL, lambda a: Decimal(a.numerator) / a.denominator if type(a) is Fraction else Decimal(a)),
    "fraction": (FRACTION, lambda a: Fraction(a) if math.isfinite(a) else float(a)),
}


class Data:
    """Numbers for the leaves of a certificate, and the values of nodes over them."""

    def __init__(self, table: Table, leaves: Mapping[int, Any], mode: str):
        self.table, self.leaves, self.mode = table, leaves, mode
        self.operators, self.number = MODES[mode]
        self.fixed: dict[int, Any] = dict(leaves)

    def part(self, start: int, stop: int) -> Data:
        """The same row with some of the elements."""
        cut = {i: v[start:stop] if type(v) is list else v for i, v in self.leaves.items()}
        return Data(self.table, cut, self.mode)

    def value(self, i: int, names: Names, memo: dict[int, Any] | None = None) -> Any:
        """The value of a node where references are ``names``; ``memo`` goes with them."""
        memo = {} if memo is None else memo
        if i in self.fixed:
            return self.fixed[i]
        if i in memo:
            return memo[i]
        n = self.table.nodes[i]
        out: Any
        if n.kind == "apply":
            out = self.apply(n.label, *[self.value(a, names, memo) for a in n.args])
        elif n.kind in ("bool", "int", "real"):
            out = n.label if n.kind == "bool" else self.number(n.label)
        elif n.kind == "ref":
            out = names[n.label]
        else:
            raise KeyError(f"{n.kind} {n.label} has no value")
        (memo if self.table.refs[i] else self.fixed)[i] = out
        return out

    def apply(self, op: str, *args: Any) -> Any:
        f = self.operators[op]
        for a in args:
            if type(a) is list:
                return [f(*each) for each in zip(*(b if type(b) is list else [b] * len(a) for b in args), strict=True)]
        return f(*args)

    def join(self, monoid: str, *values: Any) -> Any:
        return functools.reduce(lambda a, b: self.apply(JOIN[monoid], a, b), values)

    def fold(self, monoid: str, v: Any, n: int) -> Any:
        return self.operators["real"](functools.reduce(self.operators[JOIN[monoid]], listed(v, n)))


def listed(v: Any, n: int) -> list[Any]:
    return v if type(v) is list else [v] * n
