"""Losses: of classes, and of elements against targets."""

from __future__ import annotations

from collections.abc import Callable

from flashlight import index
from flashlight.arrays import Array, Builder, kind_of, pointwise
from flashlight.aten.activations import log_sigmoid, softplus
from flashlight.aten.normalisations import log_softmax
from flashlight.aten.pointwise import xlogy
from flashlight.aten.reductions import mean, squared
from flashlight.aten.table import Node, dims_of, elementwise, row, wide
from flashlight.aten.views import At
from flashlight.expr import Const, Expr, apply
from flashlight.scalars import cast, op

NONE, MEAN, SUM = range(3)  # PyTorch's numbers for ``reduction``


def total(b: Builder, a: Array, dtype: str) -> Array:
    return b.reduce("sum", a, (), dtype) if a.rank else a


def reduced(b: Builder, n: Node, losses: Array, reduction: int, share: Array | None = None) -> Array:
    """``share``: what each loss counts in the mean, where that is not 1."""
    if reduction == NONE:
        return losses
    if reduction == MEAN and share is None:
        return mean(b, losses, dims_of(None, losses.rank), n.dtype, False)
    out = total(b, losses, n.dtype)
    if reduction == SUM or share is None:
        return out
    return pointwise(lambda x, c: op("div", x, c), n.dtype, out, total(b, share, share.dtype))


# ---- of classes ------------------------------------------------------------------------------------------------------
@row("nll_loss", "nll_loss_nd", "nll_loss2d")
def _nll_loss(
    b: Builder,
    n: Node,
    self: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
) -> Array:
    return of_chosen(b, n, self, target, weight, reduction, ignore_index)


def class_dim(a: Array) -> int:
    return min(a.rank - 1, 1)


def of_chosen(
    b: Builder,
    n: Node,
    logp: Array,
    target: Array,
    weight: Array | None,
    reduction: int,
    ignore_index: int,
    others: Array | None = None,
    smoothing: float = 0.0,
) -> Array:
    """``-logp`` of the target's class.  ``others``: the sum of what every class loses, a part of it with smoothing."""
    d, classes = class_dim(logp), logp.shape[class_dim(logp)]

    def chosen(i: At) -> Expr:
        return index.clamp(target[i], classes)

    def live(i: At, value: Expr) -> Expr:
        return op("select", op("ne", target[i], Const(int(ignore_index))), value, Const(0.0))

    def share(i: At) -> Expr:
        return live(i, Const(1.0) if weight is None else weight[(chosen(i),)])

    def loss(i: At) -> Expr:
        at = (*i[:d], chosen(i), *i[d:])
        out = op("neg", logp[at])
        if weight is not None:
            out = op("mul", out, weight[(chosen(i),)])
        if others is not None:
            even = op("mul", op("div", others[i], cast(classes, "real")), Const(smoothing))
            out = op("add", op("mul", out, Const(1 - smoothing)), even)
        return live(i, out)

    losses = Array(target.shape, n.dtype, loss, target.hints)
    return reduced(b, n, losses, reduction, Array(target.shape, wide(n.dtype), share, target.hints))


@row("cross_entropy_loss")
def _cross_entropy(
    b: Builder,
    n: Node,
    self: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Array:
    d, smoothing = class_dim(self), float(label_smoothing)
    classes = cast(self.shape[d], "real")
    logp = log_softmax(b, Node(self.shape, n.dtype), self, d)
    loss = pointwise(lambda x: op("neg", x), n.dtype, logp)
    if weight is not None:
        loss = Array(self.shape, n.dtype, lambda i: op("neg", op("mul", logp[i], weight[(i[d],)])), self.hints)
    if kind_of(target.dtype) == "int":
        others = b.reduce("sum", loss, (d,), n.dtype) if smoothing else None
        return of_chosen(b, n, logp, target, weight, reduction, ignore_index, others, smoothing)
    if smoothing:
        even = op("div", Const(smoothing), classes)
        target = pointwise(lambda t: op("add", op("mul", t, Const(1 - smoothing)), even), n.dtype, target)
    losses = b.reduce("sum", pointwise(lambda x, t: op("mul", x, t), n.dtype, loss, target), (d,), n.dtype)
    return reduced(b, n, losses, reduction)


# ---- of elements -----------------------------------------------------------------------------------------------------
@row("kl_div")
def _kl_div(b: Builder, n: Node, self: Array, target: Array, reduction: int = MEAN, log_target: bool = False) -> Array:
    def fn(x: Expr, t: Expr) -> Expr:
        return op("mul", op("exp", t), op("sub", t, x)) if log_target else op("sub", xlogy(t, t), op("mul", t, x))

    return reduced(b, n, elementwise(fn, n, self, target), reduction)


def _of_distance(fn: Callable[..., Expr], name: str) -> None:
    """Losses of ``|self - target|``, some of which have a parameter."""

    def loss(b: Builder, n: Node, self: Array, target: Array, reduction: int = MEAN, **given: float) -> Array:
        def of(x: Expr, y: Expr) -> Expr:
            return fn(op("abs", op("sub", x, y)), **given)

        return reduced(b, n, elementwise(of, n, self, target), reduction)

    row(name)(loss)


def _huber(x: Expr, delta: float = 1.0) -> Expr:
    near, far = op("mul", squared(x), Const(0.5)), op("mul", op("sub", x, Const(delta / 2)), Const(delta))
    return apply("select", op("le", x, Const(delta)), near, far)


def _smooth_l1(x: Expr, beta: float = 1.0) -> Expr:
    """Huber's loss divided by beta; with a beta of 0 there is nothing that is near."""
    if not beta:
        return x
    near, far = op("mul", squared(x), Const(0.5 / beta)), op("sub", x, Const(beta / 2))
    return apply("select", op("lt", x, Const(beta)), near, far)


_of_distance(lambda x: x, "l1_loss")
_of_distance(squared, "mse_loss")
_of_distance(_huber, "huber_loss")
_of_distance(_smooth_l1, "smooth_l1_loss")


@row("soft_margin_loss")
def _soft_margin_loss(b: Builder, n: Node, self: Array, target: Array, reduction: int = MEAN) -> Array:
    return reduced(b, n, elementwise(lambda x, t: softplus(op("neg", op("mul", t, x))), n, self, target), reduction)


@row("binary_cross_entropy")
def _binary_cross_entropy(
    b: Builder, n: Node, self: Array, target: Array, weight: Array | None = None, reduction: int = MEAN
) -> Array:
    """Logarithms are at least -100, as PyTorch has it."""

    def fn(x: Expr, t: Expr, w: Expr) -> Expr:
        hit, miss = (op("maximum", e, Const(-100.0)) for e in (op("log", x), op("log1p", op("neg", x))))
        return op("mul", op("sub", op("mul", op("sub", t, Const(1.0)), miss), op("mul", t, hit)), w)

    return reduced(b, n, elementwise(fn, n, self, target, 1.0 if weight is None else weight), reduction)


@row("binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(
    b: Builder,
    n: Node,
    self: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: int = MEAN,
) -> Array:
    def fn(x: Expr, t: Expr, w: Expr, p: Expr | None = None) -> Expr:
        hit = log_sigmoid(x)
        if p is not None:
            hit = op("mul", hit, op("add", op("mul", op("sub", p, Const(1.0)), t), Const(1.0)))
        return op("mul", op("sub", op("mul", op("sub", Const(1.0), t), x), hit), w)

    given = [self, target, 1.0 if weight is None else weight, *(() if pos_weight is None else (pos_weight,))]
    return reduced(b, n, elementwise(fn, n, *given), reduction)
