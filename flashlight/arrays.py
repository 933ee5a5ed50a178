"""Arrays as functions of their indices, and the statements that are built from them.

An operator of the user's graph becomes an :class:`Array`: a shape, and the scalar expression of its element at any
index.  Views only change the index; what is computed once and read often (a reduction) becomes a statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashlight.errors import UnsupportedOperator
from flashlight.expr import PLACED, Apply, Const, Expr, Index, Load, axes, kind, loads
from flashlight.program import Axis, Origin, Statement, Tensor
from flashlight.scalars import cast, op

Element = Callable[[tuple[Expr, ...]], Expr]
Hint = str | None

REAL = ("float64", "float32", "bfloat16", "float16")
INTEGER = ("int64", "int32", "int16", "int8", "uint8")


def kind_of(dtype: str) -> str:
    """The kind of a dtype's values.  Raises UnsupportedOperator: complex, quantised and 8-bit reals have none."""
    if dtype in REAL:
        return "real"
    if dtype in INTEGER:
        return "int"
    if dtype == "bool":
        return "bool"
    raise UnsupportedOperator(f"values of dtype {dtype} are not fused")


class Array:
    """``shape``, ``dtype``, the element at an index, and the axis each dimension would like to be called."""

    def __init__(self, shape: Sequence[Expr], dtype: str, element: Element, hints: Sequence[Hint] | None = None):
        self.shape, self.dtype, self._element = tuple(shape), dtype, element
        self.hints: tuple[Hint, ...] = tuple(hints) if hints is not None else (None,) * len(self.shape)
        self._memo: dict[tuple[Expr, ...], Expr] = {}

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __getitem__(self, at: Sequence[Expr]) -> Expr:
        key = tuple(at)
        if key not in self._memo:
            self._memo[key] = self._element(key)
        return self._memo[key]

    def view(
        self, shape: Sequence[Expr], at: Callable[[tuple[Expr, ...]], Sequence[Expr]], hints: Sequence[Hint]
    ) -> Array:
        """The same elements at other indices: ``result[i] = self[at(i)]``."""
        return Array(shape, self.dtype, lambda i: self[tuple(at(i))], hints)


def scalar(value: Any, dtype: str) -> Array:
    """A number, or an expression over sizes, as an array without dimensions."""
    e = Const(value) if isinstance(value, bool | int | float) else value
    return Array((), dtype, lambda i: cast(e, kind_of(dtype)))


def broadcast(arrays: Sequence[Array]) -> tuple[tuple[Expr, ...], tuple[Hint, ...]]:
    """The common shape, and for each dimension the name that the array with the most of them suggests."""
    rank = max((a.rank for a in arrays), default=0)
    shape: list[Expr] = [Const(1)] * rank
    hints: list[Hint] = [None] * rank
    for a in sorted(arrays, key=lambda a: (not any(a.hints), -a.rank)):
        for d, (n, h) in enumerate(zip(a.shape, a.hints, strict=True), rank - a.rank):
            if n is not Const(1):
                shape[d], hints[d] = n, hints[d] or h
    return tuple(shape), tuple(hints)


def aligned(a: Array, at: tuple[Expr, ...]) -> Expr:
    """The element of a broadcast array."""
    own = at[len(at) - a.rank :]
    return a[tuple(Const(0) if n is Const(1) else i for n, i in zip(a.shape, own, strict=True))]


def pointwise(fn: Callable[..., Expr], dtype: str, *arrays: Array) -> Array:
    """``fn`` of the elements of arrays that broadcast."""
    shape, hints = broadcast(arrays)
    return Array(shape, dtype, lambda i: fn(*(aligned(a, i) for a in arrays)), hints)


@dataclass
class Names:
    """Names that are unique in a call: statements, inputs and axes."""

    taken: set[str] = field(default_factory=set)
    extents: dict[str, Expr] = field(default_factory=dict)
    guards: dict[Expr, None] = field(default_factory=dict)

    def fresh(self, stem: str) -> str:
        stem = "".join(c if c.isalnum() else "_" for c in stem).strip("_") or "t"
        stem = f"t_{stem}" if stem[0].isdigit() else stem
        name, k = stem, 1
        while name in self.taken:
            name, k = f"{stem}_{k}", k + 1
        self.taken.add(name)
        return name

    def axis(self, extent: Expr) -> str:
        name = f"${len(self.extents)}"
        self.extents[name] = extent
        return name

    def extent(self, axis: str) -> Expr | None:
        return self.extents.get(axis)


class Builder:
    """Collects the statements of one region."""

    def __init__(self, names: Names):
        self.names = names
        self.statements: dict[str, Statement] = {}
        self.inputs: dict[str, Tensor] = {}
        self._read: dict[str, Array] = {}
        self.origin = Origin()
        self.stem = "t"

    def require(self, condition: Expr) -> None:
        """A condition on sizes under which what follows is what PyTorch does; other calls are captured anew."""
        if condition is not Const(True):
            self.names.guards[condition] = None

    # ---- leaves ------------------------------------------------------------------------------------------------
    def input(self, name: str, dtype: str, shape: tuple[Expr, ...]) -> Array:
        if name not in self.inputs:
            kind = kind_of(dtype)
            self.inputs[name] = Tensor(name, dtype, shape)
            hints = [None if n is Const(1) else self.names.axis(n) for n in shape]
            self._read[name] = Array(shape, dtype, lambda i: Load(name, i, kind), hints)
        return self._read[name]

    # ---- statements --------------------------------------------------------------------------------------------
    def define(self, a: Array, stem: str | None = None) -> Array:
        """Give an array a statement of its own, so that its elements are computed in one place."""
        return self._statement(a.shape, a.hints, a.dtype, stem, lambda i: a[i])

    def reduce(
        self,
        monoid: str,
        a: Array,
        dims: Sequence[int],
        dtype: str | None = None,
        keep: bool = False,
        stem: str | None = None,
        place: int = 0,
    ) -> Array:
        """``monoid`` over some dimensions (all of them where ``dims`` is empty)."""
        over = {d % a.rank for d in dims} if dims else set(range(a.rank))
        kept = [d for d in range(a.rank) if d not in over]
        named = [d for d in sorted(over) if a.shape[d] is not Const(1)]
        wanted = kind_of(a.dtype if monoid in PLACED else dtype or a.dtype)

        def body(i: tuple[Expr, ...], r: tuple[Expr, ...] = ()) -> Expr:
            if monoid in PLACED and not named:
                return Const(0)
            at: list[Expr] = [Const(0)] * a.rank
            for d, e in (*zip(kept, i, strict=True), *zip(named, r, strict=True)):
                at[d] = e
            return cast(a[tuple(at)], wanted)

        out = self._statement(
            [a.shape[d] for d in kept],
            [a.hints[d] for d in kept],
            dtype or a.dtype,
            stem,
            body,
            monoid if named else None,
            [(a.shape[d], a.hints[d]) for d in named],
            place,
        )
        return keep_dims(out, sorted(over)) if keep else out

    def scan(self, monoid: str, a: Array, dim: int, dtype: str, body: Callable[..., Expr]) -> Array:
        """``monoid`` of ``body(i, r)`` over all r along ``dim``, at every point i of the array."""
        return self._statement(a.shape, a.hints, dtype, None, body, monoid, [(a.shape[dim], None)])

    def contract(
        self,
        factors: Sequence[Array],
        shape: Sequence[Expr],
        at: Callable[..., Sequence[Sequence[Expr]]],
        hints: Sequence[Hint],
        over: Sequence[tuple[Expr, Hint]],
        dtype: str,
        stem: str | None = None,
    ) -> Array:
        """``result[i] = sum{r} product of factor[at(i, r)]``.  What has no index (a scale) is taken out of the sum."""
        named = [(n, h) for n, h in over if n is not Const(1)]

        def positions(i: tuple[Expr, ...], r: tuple[Expr, ...]) -> Sequence[Sequence[Expr]]:
            given = iter(r)
            return at(i, tuple(Const(0) if n is Const(1) else next(given) for n, _ in over))

        def split(i: tuple[Expr, ...], r: tuple[Expr, ...]) -> tuple[list[Expr], list[tuple[str, Expr]]]:
            inside: list[Expr] = []
            outside: list[tuple[str, Expr]] = []
            for f, p in zip(factors, positions(i, r), strict=True):
                e = cast(aligned(f, tuple(p)), kind_of(dtype))
                if kind(e) == "real":
                    _peel(e, inside, outside)
                else:
                    inside.append(e)
            return inside, outside

        scales: list[tuple[str, Expr]] = []

        def body(i: tuple[Expr, ...], r: tuple[Expr, ...] = ()) -> Expr:
            inside, outside = split(i, r)
            scales[:] = outside
            total: Expr | None = None
            for f in inside:
                total = f if total is None else op("mul", total, f)
            return Const(1.0) if total is None else total

        out = self._statement(shape, hints, dtype, stem, body, "sum" if named else None, named)
        outside = tuple(scales)

        def scaled(e: Expr) -> Expr:
            factor = 1.0
            for o, s in outside:
                if isinstance(s, Const):
                    factor = factor * s.value if o == "mul" else factor / s.value
                else:
                    e = op(o, e, s)
            return op("mul", e, Const(factor))

        return pointwise(scaled, dtype, out) if outside else out

    def _statement(
        self,
        shape: Sequence[Expr],
        hints: Sequence[Hint],
        dtype: str,
        stem: str | None,
        body: Callable[..., Expr],
        monoid: str | None = None,
        over: Sequence[tuple[Expr, Hint]] = (),
        place: int = 0,
    ) -> Array:
        used: set[str] = set()
        dims = [
            (d, self._axis(n, h, used)) for d, (n, h) in enumerate(zip(shape, hints, strict=True)) if n is not Const(1)
        ]
        reduced = [self._axis(n, h, used) for n, h in over]
        at: list[Expr] = [Const(0)] * len(shape)
        for d, axis in dims:
            at[d] = Index(axis.name)
        e = body(tuple(at), tuple(Index(a.name) for a in reduced)) if monoid else body(tuple(at))
        name = self.names.fresh(stem or self.stem)
        self.statements[name] = Statement(
            name, tuple(a for _, a in dims), e, dtype, monoid, tuple(reduced), self.origin, place
        )
        kind = kind_of(dtype)
        own = dict(dims)
        new_hints = [own[d].name if d in own else None for d in range(len(shape))]
        return Array(shape, dtype, lambda i: Load(name, tuple(i[d] for d, _ in dims), kind), new_hints)

    def _axis(self, extent: Expr, hint: Hint, used: set[str]) -> Axis:
        if hint is None or hint in used or self.names.extents.get(hint) is not extent:
            hint = self.names.axis(extent)
        used.add(hint)
        return Axis(hint, extent)


def keep_dims(a: Array, dims: Sequence[int]) -> Array:
    """Put dimensions of length 1 back where these were reduced."""
    shape, hints = list(a.shape), list(a.hints)
    for d in dims:
        shape.insert(d, Const(1))
        hints.insert(d, None)
    kept = [d for d in range(len(shape)) if d not in dims]
    return a.view(shape, lambda i: [i[d] for d in kept], hints)


def _peel(e: Expr, inside: list[Expr], outside: list[tuple[str, Expr]]) -> None:
    """Take a product apart: factors that have an index stay in the sum, the others go out of it."""
    match e:
        case Apply("mul", (a, b)):
            _peel(a, inside, outside)
            _peel(b, inside, outside)
        case Apply("div", (a, b)) if not axes(b):
            _peel(a, inside, outside)
            outside.append(("div", b))
        case Apply("neg", (a,)):
            _peel(a, inside, outside)
            outside.append(("mul", Const(-1.0)))
        case _ if axes(e):
            inside.append(e)
        case _:
            outside.append(("mul", e))


def is_plain(a: Array) -> bool:
    """Whether an array holds nothing but arithmetic on indices (a mask, positions): it costs nothing to repeat."""
    at = tuple(Const(0) if n is Const(1) else Index(f"?{d}") for d, n in enumerate(a.shape))
    return not loads(a[at])
