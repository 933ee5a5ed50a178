"""Expressions turn into blocks of a tile program, at the outermost place they can.

What does not vary along the streamed axis is computed before the loop, what varies is computed a trip.  A product
summed over an axis that splits into two sides becomes a dot; every other reduction is one of a block's dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flashlight.errors import InternalError
from flashlight.expr import (
    COMBINE,
    OPS,
    Apply,
    Const,
    Expr,
    Fold,
    Index,
    Load,
    Ref,
    Size,
    apply,
    axes,
    children,
    kind,
    refs,
    substitute,
    walk,
)
from flashlight.tile import BlockOp, Buffer, CastOp, Dim, DotOp, Let, LoadOp, MapOp, ReduceOp, Stmt

NARROW = ("bfloat16", "float16")
UNROLL = 64  # an element-wise fold over a tile is unrolled up to this many terms


@dataclass(frozen=True)
class Value:
    dims: tuple[str, ...]
    dtype: str
    local: bool  # defined inside the loop that is open


@dataclass
class Blocks:
    """The blocks of one kernel while it is built.

    ``outer`` holds statements before and after the loops, ``inner`` those of the loop body that is open (None: no loop
    is).  ``real`` is the dtype of arithmetic; ``tail``: the open body may run beyond the streamed axis's end.
    """

    stream: str
    dims: dict[str, Dim]
    inputs: dict[str, Buffer]
    real: str
    taken: set[str]
    values: dict[str, Value] = field(default_factory=dict)
    outer: list[Stmt] = field(default_factory=list)
    inner: list[Stmt] | None = None
    tail: bool = False
    _once_local: set[str] = field(default_factory=set)  # names of loop bodies that are closed
    _memo: dict[Expr, str] = field(default_factory=dict)
    _inner_memo: dict[Expr, str] = field(default_factory=dict)
    _uses: dict[Expr, int] = field(default_factory=dict)
    _free: dict[Expr, frozenset[str]] = field(default_factory=dict)

    # ---- loop bodies -------------------------------------------------------------------------------------------
    def open(self, tail: bool) -> None:
        self.inner, self._inner_memo, self.tail = [], {}, tail

    def close(self, keep: Iterable[str] = ()) -> tuple[Stmt, ...]:
        """The statements of the body; its names are free again (segments use the same names for the same things)
        but for those to ``keep``."""
        body, self.inner = tuple(self.inner or ()), None
        kept = set(keep)
        for name in [n for n, v in self.values.items() if v.local and n not in kept]:
            del self.values[name]
            self.taken.discard(name)
            self._once_local.add(name)
        self._free.clear()  # names may come to mean other blocks
        return body

    # ---- values ------------------------------------------------------------------------------------------------
    def order(self, names: set[str]) -> tuple[str, ...]:
        return tuple(d for d in self.dims if d in names)

    def free(self, e: Expr) -> frozenset[str]:
        """The block dimensions an expression varies along (those of the blocks it refers to included)."""
        if (known := self._free.get(e)) is not None:
            return known
        match e:
            case Ref(name):
                out = frozenset(self.values[name].dims) if name in self.values else frozenset[str]()
            case Index(axis):
                out = frozenset((axis,)) & self.dims.keys()
            case Fold():
                out = self.free(e.body) - {e.axis}
            case _:
                out = frozenset[str]().union(*map(self.free, children(e)))
        if refs(e) <= self.values.keys():
            self._free[e] = out
        return out

    def varies(self, e: Expr) -> bool:
        return self.stream in axes(e) or any(self.values[r].local for r in refs(e) if r in self.values)

    def guard(self, dims: tuple[str, ...]) -> tuple[str, ...]:
        out = []
        for d in dims:
            dim = self.dims[d]
            exact = isinstance(dim.extent, Const) and dim.extent.value % dim.block == 0
            if not exact and (dim.role == "row" or (dim.role == "stream" and self.tail)):
                out.append(d)
        return tuple(out)

    def fresh(self, stem: str, hoisted: bool = False) -> str:
        """A free name; what is put before the loops while one is open may not take a name of an earlier body."""
        stem = stem.replace(":", "_").replace("'", "").replace(".", "_")
        name, k = stem, 1
        while name in self.taken or (hoisted and name in self._once_local):
            name, k = f"{stem}_{k}", k + 1
        self.taken.add(name)
        return name

    def emit(
        self, name: str, dims: tuple[str, ...], dtype: str, op: BlockOp, note: str = "", local: bool | None = None
    ) -> None:
        local = self.inner is not None if local is None else local
        self.values[name] = Value(dims, dtype, local)
        (self.inner if local and self.inner is not None else self.outer).append(Let(name, dims, dtype, op, note))

    def let(self, op: BlockOp, dims: tuple[str, ...], dtype: str, stem: str = "t", local: bool | None = None) -> str:
        name = self.fresh(stem, hoisted=self.inner is not None and local is False)
        self.emit(name, dims, dtype, op, "", local)
        return name

    def let_as(self, name: str, e: Expr, note: str, dims: tuple[str, ...] | None = None) -> None:
        tree = self.tree(e, top=True)
        self.emit(name, self.order(set(self.free(tree))) if dims is None else dims, self.dtype(tree), MapOp(tree), note)

    def ref(self, e: Expr) -> Expr:
        """A reference to (or constant of) an expression."""
        return e if isinstance(e, Const | Size) else Ref(self.name_of(e))

    def name_of(self, e: Expr, stem: str = "t") -> str:
        """The block that holds an expression's value; computed once, at the outermost place possible."""
        if isinstance(e, Ref):
            return e.name
        local = self.inner is not None and self.varies(e)
        memo = self._inner_memo if local else self._memo
        if e not in memo:
            match e:
                case Load():
                    memo[e] = self.load(e, local)
                case Fold():
                    memo[e] = self.fold(e)
                case _:
                    tree = self.tree(e, top=True)
                    memo[e] = self.let(MapOp(tree), self.order(set(self.free(tree))), self.dtype(tree), stem, local)
            if not local and self.values[memo[e]].local:
                raise InternalError(f"{memo[e]} is remembered beyond the loop body that it is defined in")
        return memo[e]

    def count(self, roots: list[Expr]) -> None:
        """How many places use each node: what is used twice gets a name."""
        self._uses, seen = {}, set()
        stack = list(roots)
        for r in roots:
            self._uses[r] = self._uses.get(r, 0) + 1
        while stack:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            for c in children(e):
                self._uses[c] = self._uses.get(c, 0) + 1
                stack.append(c)

    def tree(self, e: Expr, top: bool = False) -> Expr:
        """A scalar body over references: nodes used once, of the same shape and at the same place, stay together."""
        match e:
            case Const() | Index() | Size() | Ref():
                return e
            case Load() | Fold():
                return Ref(self.real_of(e))
            case Apply(op, args):
                here, local = self.free(e), self.varies(e)
                parts = []
                for a in args:
                    same = self.free(a) == here and self.varies(a) == local
                    plain = not isinstance(a, Apply) or (
                        same and self._uses.get(a, 1) < 2 and a not in self._inner_memo
                    )
                    trivial = isinstance(a, Apply) and not self.free(a) and kind(a) != "real" and not _reads(a)
                    parts.append(self.tree(a) if plain or trivial else Ref(self.name_of(a)))
                return Apply(op, tuple(parts))

    def real_of(self, e: Expr) -> str:
        """A load or fold as an operand of arithmetic: 16-bit values are widened."""
        name = self.name_of(e)
        value = self.values[name]
        if value.dtype in NARROW or (value.dtype == "float32" and self.real == "float64"):
            return self.cast(name, self.real)
        return name

    def cast(self, name: str, dtype: str) -> str:
        value = self.values[name]
        if value.dtype == dtype:
            return name
        memo = self._inner_memo if value.local else self._memo
        key = Apply("cast_" + dtype, (Ref(name),))
        if key not in memo:
            memo[key] = self.let(CastOp(name), value.dims, dtype, name, value.local)
        return memo[key]

    def dtype(self, tree: Expr) -> str:
        match kind_in(tree, self.values):
            case "bool":
                return "bool"
            case "int":
                names = [r for r in refs(tree) if r in self.values]
                return "int64" if any(self.values[r].dtype == "int64" for r in names) or _far(tree) else "int32"
        return self.real

    def load(self, e: Load, local: bool) -> str:
        index = tuple(self.integer(i) for i in e.index)
        dims = self.order(set().union(*[set(self.free(i)) for i in index]) if index else set())
        buffer = self.inputs[e.tensor]
        return self.let(LoadOp(e.tensor, index, self.guard(dims)), dims, buffer.dtype, f"{e.tensor}_tile", local)

    def integer(self, e: Expr) -> Expr:
        """An index expression: arithmetic of integers stays; what is loaded, summed or made of reals becomes a
        reference."""
        parts = children(e)
        made = isinstance(e, Apply) and any(kind_in(p, self.values) == "real" for p in parts)
        if made or isinstance(e, Load | Fold):
            return Ref(self.name_of(e))
        return Apply(e.op, tuple(map(self.integer, parts))) if isinstance(e, Apply) else e

    # ---- reductions --------------------------------------------------------------------------------------------
    def fold(self, e: Fold) -> str:
        """A bounded reduction: a dot, an unrolled sum, or one block dimension reduced."""
        self.dims.setdefault(e.axis, Dim(e.axis, e.extent, Const(e.extent), "point"))
        local = self.inner is not None and self.varies(e)
        if e.monoid == "sum" and (sides := self.sides(e.body, e.axis)) is not None:
            left, right, rest = sides
            pair = self.operands(left, right, e.dtype)
            dims = self.order((set(self.values[pair[0]].dims) | set(self.values[pair[1]].dims)) - {e.axis})
            dot = self.let(DotOp(*pair, e.axis), dims, self.real, "t", local)
            return dot if rest is None else self.name_of(times(rest, Ref(dot)))
        tile = [d for d in self.free(e) if self.dims[d].role != "point"]
        whole = any(e.axis in self.values[r].dims for r in refs(e.body) if r in self.values)  # a block, not its points
        if len(tile) > 1 and e.extent <= UNROLL and not whole:
            op = COMBINE[e.monoid]
            total = substitute(e.body, {Index(e.axis): Const(0)})
            for k in range(1, e.extent):
                total = apply(op, total, substitute(e.body, {Index(e.axis): Const(k)}))
            return self.name_of(total)
        return self.name_of(self.reduce(e.monoid, e.body, e.axis))

    def reduce(self, monoid: str, body: Expr, axis: str) -> Expr:
        if axis not in self.free(body):
            if monoid in ("max", "min"):
                return body
            dims = self.order({*self.free(body), axis})  # every point counts, however many a trip holds
            tree = self.tree(body, top=True)
            local = self.inner is not None and (axis == self.stream or self.varies(body))  # as name_of remembers it
            spread = self.let(MapOp(tree), dims, self.dtype(tree), "t", local)
            rest = tuple(d for d in dims if d != axis)
            return Ref(self.let(ReduceOp(monoid, spread, axis), rest, self.real, "t", local))
        name = self.cast(self.name_of(body), self.real) if kind(body) == "real" else self.name_of(body)
        value = self.values[name]
        dims = tuple(d for d in value.dims if d != axis)
        return Ref(self.let(ReduceOp(monoid, name, axis), dims, value.dtype, "t", value.local))

    def sides(self, body: Expr, axis: str) -> tuple[Expr, Expr, Expr | None] | None:
        """Split a product into two sides that share only ``axis``, and the factors without it; None if there are not
        two sides (then it is no dot)."""
        factors = factors_of(body)
        rest = [f for f in factors if axis not in self.free(f)]
        groups: list[tuple[set[str], list[Expr]]] = []
        bare: list[Expr] = []
        for f in (f for f in factors if axis in self.free(f)):
            own = set(self.free(f)) - {axis}
            if not own:
                bare.append(f)
                continue
            touching = [g for g in groups if g[0] & own]
            merged = (own.union(*[g[0] for g in touching]), [*[x for g in touching for x in g[1]], f])
            groups = [g for g in groups if g not in touching] + [merged]
        if len(groups) != 2:
            return None
        first, second = sorted(groups, key=lambda g: min(list(self.dims).index(d) for d in g[0]))
        left, right = product_of([*first[1], *bare]), product_of(second[1])
        return left, right, product_of(rest) if rest else None

    def operands(self, left: Expr, right: Expr, dtype: str) -> tuple[str, str]:
        """Dot operands: both in the statement's 16-bit dtype, or both wide; loads of one narrow dtype are exact as
        they are."""
        names = [self.name_of(e) for e in (left, right)]
        dtypes = [self.values[n].dtype for n in names]
        if dtype in NARROW:
            return self.cast(names[0], dtype), self.cast(names[1], dtype)
        if dtypes[0] == dtypes[1] and dtypes[0] in NARROW:
            return names[0], names[1]
        return self.cast(names[0], self.real), self.cast(names[1], self.real)


def times(a: Expr, b: Expr) -> Expr:
    return b if isinstance(a, Const) and a.value == 1 else apply("mul", b, a)


def factors_of(e: Expr) -> list[Expr]:
    return [*factors_of(e.args[0]), *factors_of(e.args[1])] if isinstance(e, Apply) and e.op == "mul" else [e]


def product_of(factors: list[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = apply("mul", out, f)
    return out


def _far(e: Expr) -> bool:
    """May an integer be beyond 32 bits, as a product of two lengths or a hash is?"""
    for n in walk(e):
        match n:
            case Const(int(v)) if not -(2**31) <= v < 2**31:
                return True
            case Apply("mul", args) if kind(n) == "int" and not any(isinstance(a, Const) for a in args):
                return True
            case Apply("pow" | "lshift" | "rshift", _) if kind(n) == "int":
                return True
    return False


def _reads(e: Expr) -> bool:
    return any(isinstance(n, Load | Fold) for n in walk(e))


def kind_in(e: Expr, values: dict[str, Value]) -> str:
    """Like ``kind``, with references typed by their blocks."""
    match e:
        case Ref(name) if name in values:
            dtype = values[name].dtype
            return "bool" if dtype == "bool" else "int" if dtype.startswith(("int", "uint")) else "real"
        case Apply(op, args):
            known = OPS[op].kind
            if known != "same":
                return known
            kinds = {kind_in(a, values) for a in (args[1:] if op == "select" else args)}
            return "real" if "real" in kinds else "int" if "int" in kinds or op != "select" else "bool"
    return kind(e)
