"""Softmax, layer norm and their like, written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flashlight.arrays import Array, Builder, pointwise
from flashlight.aten.pointwise import is_inf
from flashlight.aten.reductions import drop_dims, mean, moments, squared
from flashlight.aten.table import Node, dims_of, row, wide
from flashlight.aten.views import ONE, reshape
from flashlight.errors import NeedsLiteral, UnsupportedOperator
from flashlight.expr import Const, Expr, apply
from flashlight.lengths import sizes_of
from flashlight.scalars import cast, op


@row("softmax", "_softmax", "special_softmax", "_safe_softmax")
def _softmax(b: Builder, n: Node, self: Array, dim: int, **_: Any) -> Array:
    _top, e, total = exponentials(b, self, dim, wide(n.dtype))
    return pointwise(lambda p, s: op("div", p, s), n.dtype, e, total)


@row("log_softmax", "_log_softmax", "special_log_softmax")
def log_softmax(b: Builder, n: Node, self: Array, dim: int, **_: Any) -> Array:
    top, _e, total = exponentials(b, self, dim, wide(n.dtype))
    return pointwise(lambda x, m, s: op("sub", op("sub", cast(x, "real"), m), op("log", s)), n.dtype, self, top, total)


def exponentials(b: Builder, a: Array, dim: int, dtype: str) -> tuple[Array, Array, Array]:
    """The maximum along a dimension, exp of the distance to it, and the sum of these."""
    if not a.rank:
        zero = pointwise(lambda x: cast(x, "real"), dtype, a)
        one = pointwise(lambda x, y: op("exp", op("sub", x, y)), dtype, zero, zero)
        return zero, one, one
    top = b.reduce("max", a, (dim,), dtype, True, f"{b.stem}_max")
    e = pointwise(lambda x, m: op("exp", op("sub", cast(x, "real"), m)), dtype, a, top)
    e = b.define(e, f"{b.stem}_exp")
    return top, e, b.reduce("sum", e, (dim,), dtype, True, f"{b.stem}_sum")


@row("logsumexp", "special_logsumexp")
def _logsumexp(b: Builder, n: Node, self: Array, dim: Any, keepdim: bool = False) -> Array:
    """As PyTorch defines it: a row of -inf gives -inf."""
    dims, dtype = dims_of(dim, self.rank), wide(n.dtype)
    top = b.reduce("max", self, dims, dtype, True, f"{b.stem}_max")
    safe = pointwise(lambda m: apply("select", is_inf(m), Const(0.0), m), dtype, top)
    e = pointwise(lambda x, m: op("exp", op("sub", cast(x, "real"), m)), dtype, self, safe)
    total = b.reduce("sum", e, dims, dtype, True, f"{b.stem}_sum")
    out = pointwise(lambda s, m: op("add", op("log", s), m), n.dtype, total, safe)
    return out if keepdim else drop_dims(out, dims)


@row("layer_norm", "native_layer_norm")
def _layer_norm(
    b: Builder,
    n: Node,
    input: Array,
    normalized_shape: Sequence[Any],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Array:
    dims = tuple(range(input.rank - len(normalized_shape), input.rank))
    middle, spread = moments(b, input, dims, wide(n.dtype))
    return affine(n, input, middle, spread, eps, weight, bias)


def affine(
    n: Node, x: Array, middle: Array, spread: Array, eps: float, weight: Array | None, bias: Array | None
) -> Array:
    """``(x - mean) * rsqrt(variance + eps) * weight + bias``."""

    def fn(x: Expr, m: Expr, v: Expr) -> Expr:
        return op("mul", op("sub", cast(x, "real"), m), op("rsqrt", op("add", v, Const(float(eps)))))

    out = pointwise(fn, n.dtype, x, middle, spread)
    if weight is not None:
        out = pointwise(lambda y, w: op("mul", y, w), n.dtype, out, weight)
    return out if bias is None else pointwise(lambda y, c: op("add", y, c), n.dtype, out, bias)


@row("rms_norm", "_fused_rms_norm")
def _rms_norm(
    b: Builder,
    n: Node,
    input: Array,
    normalized_shape: Sequence[Any],
    weight: Array | None = None,
    eps: float | None = None,
) -> Array:
    dims, dtype = tuple(range(input.rank - len(normalized_shape), input.rank)), wide(n.dtype)
    small = torch.finfo(getattr(torch, dtype)).eps if eps is None else float(eps)
    square = mean(b, pointwise(lambda x: squared(cast(x, "real")), dtype, input), dims, dtype, True)
    out = pointwise(lambda x, s: op("mul", x, op("rsqrt", op("add", s, Const(small)))), n.dtype, input, square)
    return out if weight is None else pointwise(lambda y, w: op("mul", y, w), n.dtype, out, weight)


# ---- of channels, which are dimension 1 ------------------------------------------------------------------------------
def of_channels(a: Array | None, rank: int) -> Array | None:
    """A number for each channel, beside an array of ``rank`` dimensions."""
    if a is None:
        return None
    shape = [a.shape[0] if d == 1 else ONE for d in range(rank)]
    return a.view(shape, lambda i: (i[1],), [a.hints[0] if d == 1 else None for d in range(rank)])


def of_groups(b: Builder, n: Node, x: Array, groups: int, eps: float) -> Array:
    channels = x.shape[1]
    if not isinstance(channels, Const):
        raise NeedsLiteral(sizes_of(channels), "channels are normalised in groups")
    each = Const(int(channels.value) // groups)
    apart = reshape(b, x, (x.shape[0], Const(groups), each, *x.shape[2:]))
    middle, spread = moments(b, apart, tuple(range(2, apart.rank)), wide(n.dtype))
    return reshape(b, affine(n, apart, middle, spread, eps, None, None), x.shape)


def scaled(n: Node, x: Array, weight: Array | None, bias: Array | None) -> Array:
    for name, a in (("mul", of_channels(weight, x.rank)), ("add", of_channels(bias, x.rank))):
        if a is not None:
            x = pointwise(lambda y, w, name=name: op(name, y, w), n.dtype, x, a)
    return x


@row("group_norm")
def _group_norm(
    b: Builder,
    n: Node,
    input: Array,
    num_groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Array:
    return scaled(n, of_groups(b, n, input, num_groups, eps), weight, bias)


@row("instance_norm")
def _instance_norm(
    b: Builder,
    n: Node,
    input: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    **_: Any,
) -> Array:
    if not use_input_stats or running_mean is not None or running_var is not None:
        raise UnsupportedOperator("instance normalisation with running statistics")
    middle, spread = moments(b, input, tuple(range(2, input.rank)), wide(n.dtype))
    return scaled(n, affine(n, input, middle, spread, eps, None, None), weight, bias)


@row("_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
def _batch_norm(
    b: Builder,
    n: Node,
    input: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[Array | None]:
    """Of its three results the first."""
    middle, spread = of_channels(running_mean, input.rank), of_channels(running_var, input.rank)
    if middle is None or spread is None:
        others = tuple(d for d in range(input.rank) if d != 1)
        middle, spread = moments(b, input, others, wide(n.dtype))
    elif training:
        raise UnsupportedOperator("batch normalisation that updates its running statistics")
    return [scaled(n, affine(n, input, middle, spread, eps, None, None), weight, bias), None, None]
