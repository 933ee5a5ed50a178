"""What PyTorch's products mean: sums of products over named letters, one row an operator."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from flashlight import index
from flashlight.arrays import Array, Builder, Hint, kind_of, pointwise
from flashlight.aten.normalisations import exponentials
from flashlight.aten.reductions import squared
from flashlight.aten.table import Node, elementwise, row, wide
from flashlight.aten.views import At, permute
from flashlight.errors import NeedsLiteral, UnsupportedOperator
from flashlight.expr import Const, Expr, apply
from flashlight.lengths import sizes_of
from flashlight.scalars import cast, op

ONE, ZERO = Const(1), Const(0)


def contract(b: Builder, operands: Sequence[Array], letters: Sequence[str], out: str, dtype: str) -> Array:
    """einsum: operands two at a time from the left, each letter summed as soon as nobody else has it."""
    parts = [(a, text) for a, text in zip(operands, letters, strict=True)]
    first, own = parts.pop(0)
    if not parts:
        return _pair(b, [(first, own)], out, dtype)
    while parts:
        second, other = parts.pop(0)
        needed = set(out).union(*(text for _, text in parts))
        kept = out if not parts else "".join(dict.fromkeys(c for c in own + other if c in needed))
        first, own = _pair(b, [(first, own), (second, other)], kept, dtype), kept
    return first


def _pair(b: Builder, parts: Sequence[tuple[Array, str]], out: str, dtype: str) -> Array:
    size: dict[str, Expr] = {}
    hint: dict[str, Hint] = {}
    for a, text in parts:
        for c, n, h in zip(text, a.shape, a.hints, strict=True):
            if n is not ONE:
                size.setdefault(c, n)
                hint[c] = hint.get(c) or h
            else:
                hint.setdefault(c, None)
    shape = [size.get(c, ONE) for c in out]
    over = [c for c in dict.fromkeys("".join(text for _, text in parts)) if c not in out]

    def at(i: tuple[Expr, ...], r: tuple[Expr, ...]) -> list[list[Expr]]:
        where = dict(zip(out, i, strict=True)) | dict(zip(over, r, strict=True))
        return [[where[c] for c in text] for _, text in parts]

    hints = [hint.get(c) for c in out]
    sums = [(size.get(c, ONE), hint.get(c)) for c in over]
    return b.contract([a for a, _ in parts], shape, at, hints, sums, dtype)


def product(b: Builder, left: Array, right: Array, dtype: str) -> Array:
    """``matmul``: batch dimensions broadcast, vectors are rows or columns."""
    if left.rank == 0 or right.rank == 0:
        raise UnsupportedOperator("a matrix product of a number")
    batch = max(left.rank, right.rank, 2) - 2
    names = string.ascii_lowercase[:batch]
    row_letters = names[batch - (left.rank - 2) :] + "YZ" if left.rank > 1 else "Z"
    column_letters = names[batch - (right.rank - 2) :] + "ZW" if right.rank > 1 else "Z"
    used = names[batch - max(left.rank - 2, right.rank - 2, 0) :]
    out = used + ("Y" if left.rank > 1 else "") + ("W" if right.rank > 1 else "")
    return contract(b, (left, right), (row_letters, column_letters), out, dtype)


@row("matmul", "mm", "bmm", "mv", "dot", "vdot")
def _matmul(
    b: Builder,
    n: Node,
    self: Array,
    *,
    other: Array | None = None,
    mat2: Array | None = None,
    vec: Array | None = None,
    tensor: Array | None = None,
    **_: Any,
) -> Array:
    right = next(x for x in (other, mat2, vec, tensor) if x is not None)
    return product(b, self, right, n.dtype)


@row("inner")
def _inner(b: Builder, n: Node, self: Array, other: Array) -> Array:
    left, right = string.ascii_lowercase[: self.rank - 1], string.ascii_uppercase[: other.rank - 1]
    return contract(b, (self, other), (left + "Z", right + "Z"), left + right, n.dtype)


@row("linear")
def _linear(b: Builder, n: Node, input: Array, weight: Array, bias: Array | None = None) -> Array:
    right = permute(weight, (1, 0)) if weight.rank == 2 else weight
    return _plus(product(b, input, right, n.dtype), bias, n.dtype)


def _plus(x: Array, bias: Array | None, dtype: str) -> Array:
    return x if bias is None else pointwise(lambda y, c: op("add", y, c), dtype, x, bias)


@row("addmm", "baddbmm", "addmv", "addbmm")
def _addmm(b: Builder, n: Node, self: Array, beta: Any = 1, alpha: Any = 1, **matrices: Any) -> Array:
    left, right = matrices.values()
    out = product(b, left, right, n.dtype)
    if out.rank > len(n.shape):
        out = b.reduce("sum", out, (0,), n.dtype)
    return _added(n, self, out, beta, alpha)


def _added(n: Node, self: Array, out: Array, beta: Any, alpha: Any) -> Array:
    scaled = elementwise(lambda x, a: op("mul", x, a), n, out, alpha)
    own = elementwise(lambda x, a: op("mul", x, a), n, self, beta)
    return scaled if beta == 0 else elementwise(lambda x, y: op("add", y, x), n, own, scaled)


@row("outer", "ger")
def _outer(b: Builder, n: Node, self: Array, vec2: Array) -> Array:
    return Array(n.shape, n.dtype, lambda i: op("mul", self[(i[0],)], vec2[(i[1],)]), (*self.hints, *vec2.hints))


@row("kron")
def _kron(b: Builder, n: Node, self: Array, other: Array) -> Array:
    """Each element of one times all of the other."""

    def element(i: At) -> Expr:
        left, right = [], []
        for d, e in enumerate(i):
            own, inner = d - len(i) + self.rank, d - len(i) + other.rank
            whole, rest = index.divmod_(e, other.shape[inner], b.names.extent) if inner >= 0 else (e, Const(0))
            if own >= 0:
                left.append(whole)
            if inner >= 0:
                right.append(rest if own >= 0 else e)
        return op("mul", self[left], other[right])

    return Array(n.shape, n.dtype, element)


@row("addr")
def _addr(b: Builder, n: Node, self: Array, vec1: Array, vec2: Array, beta: Any = 1, alpha: Any = 1) -> Array:
    return _added(n, self, _outer(b, n, vec1, vec2), beta, alpha)


@row("tensordot")
def _tensordot(
    b: Builder, n: Node, self: Array, other: Array, dims_self: Sequence[int], dims_other: Sequence[int]
) -> Array:
    names = iter(string.ascii_letters)
    left = [next(names) for _ in range(self.rank)]
    right = [next(names) for _ in range(other.rank)]
    for p, q in zip(dims_self, dims_other, strict=True):
        right[q % other.rank] = left[p % self.rank]
    shared = {left[p % self.rank] for p in dims_self}
    out = "".join(c for c in (*left, *right) if c not in shared)
    return contract(b, (self, other), ("".join(left), "".join(right)), out, n.dtype)


@row("linalg_vecdot")
def _vecdot(b: Builder, n: Node, x: Array, y: Array, dim: int = -1) -> Array:
    return b.reduce("sum", pointwise(lambda p, q: op("mul", p, q), n.dtype, x, y), (dim,), n.dtype)


@row("einsum")
def _einsum(b: Builder, n: Node, equation: str, tensors: Sequence[Array], **_: Any) -> Array:
    text = equation.replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    spare = [c for c in string.ascii_letters if c not in text]
    dots = max(
        (a.rank - len(t.replace("...", "")) for a, t in zip(tensors, terms, strict=True) if "..." in t), default=0
    )
    filling = "".join(spare[:dots])
    named = []
    for a, t in zip(tensors, terms, strict=True):
        missing = a.rank - len(t.replace("...", ""))
        named.append(t.replace("...", filling[dots - missing :] if missing else ""))
    if not arrow:
        letters = "".join(named)
        out = "..." * bool(dots) + "".join(
            sorted(c for c in set(letters) if letters.count(c) == 1 and c not in filling)
        )
    out = out.replace("...", filling)
    return contract(b, tensors, named, out, n.dtype)


@row("cdist", "_cdist_forward")
def _cdist(b: Builder, n: Node, x1: Array, x2: Array, p: float = 2, **_: Any) -> Array:
    if p != 2:
        raise UnsupportedOperator(f"cdist with p = {p}")
    left = x1.view(
        [*x1.shape[:-1], ONE, x1.shape[-1]], lambda i: [*i[:-2], i[-1]], [*x1.hints[:-1], None, x1.hints[-1]]
    )
    right = x2.view(
        [*x2.shape[:-2], ONE, *x2.shape[-2:]], lambda i: [*i[:-3], *i[-2:]], [*x2.hints[:-2], None, *x2.hints[-2:]]
    )
    square = pointwise(lambda a, c: squared(op("sub", a, c)), n.dtype, left, right)
    return pointwise(lambda s: op("sqrt", s), n.dtype, b.reduce("sum", square, (-1,), n.dtype))


@row("scaled_dot_product_attention")
def _sdpa(
    b: Builder,
    n: Node,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Array:
    """As PyTorch documents it; a row whose keys are all masked gives zeros."""
    if dropout_p:
        raise UnsupportedOperator(f"dropout with p = {dropout_p} draws random numbers")
    if enable_gqa:
        key, value = (_repeated(b, a, query.shape[-3]) for a in (key, value))
    width = query.shape[-1]
    factor: Expr = (
        Const(float(scale))
        if isinstance(scale, int | float)
        else scale
        if scale is not None
        else Const(int(width.value) ** -0.5)
        if isinstance(width, Const)
        else apply("rsqrt", apply("real", width))
    )
    stem, b.stem = b.stem, f"{b.stem}_scores"
    turned = permute(key, [*range(key.rank - 2), key.rank - 1, key.rank - 2])
    scores = product(b, query, turned, n.dtype)
    scores = pointwise(lambda s: op("mul", s, factor), wide(n.dtype), scores)
    b.stem = stem
    if is_causal:
        masked = scores
        scores = Array(
            masked.shape,
            masked.dtype,
            lambda i: op("select", op("le", i[-1], i[-2]), masked[i], Const(-float("inf"))),
            masked.hints,
        )
    if attn_mask is not None:
        if kind_of(attn_mask.dtype) == "bool":
            scores = pointwise(lambda s, c: op("select", c, s, Const(-float("inf"))), scores.dtype, scores, attn_mask)
        else:
            scores = pointwise(lambda s, c: op("add", s, cast(c, "real")), scores.dtype, scores, attn_mask)
    top, e, total = exponentials(b, scores, -1, scores.dtype)
    weighted = product(b, Array(e.shape, n.dtype, e.__getitem__, e.hints), value, n.dtype)

    def finish(o: Expr, s: Expr, m: Expr) -> Expr:
        return op("select", apply("eq", m, Const(-float("inf"))), Const(0.0), op("div", o, s))

    return pointwise(finish, n.dtype, weighted, total, top)


def _repeated(b: Builder, a: Array, heads: Expr) -> Array:
    """Each key head serves ``heads / own heads`` query heads that follow one another."""
    times, rest = index.divmod_(heads, a.shape[-3], b.names.extent)
    if rest is not ZERO:  # how many groups there are has to be known to be whole
        raise NeedsLiteral(sizes_of(rest), f"{heads} heads are a multiple of {a.shape[-3]} only at some lengths")

    def at(i: tuple[Expr, ...]) -> list[Expr]:
        own, _ = index.divmod_(i[-3], times, b.names.extent)
        return [*i[:-3], own, *i[-2:]]

    shape, hints = list(a.shape), list(a.hints)
    shape[-3], hints[-3] = heads, None
    return a.view(shape, at, hints)
