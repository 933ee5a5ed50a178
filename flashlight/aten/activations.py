"""Activations of neural networks."""

from __future__ import annotations

import math

from flashlight.arrays import Array, Builder
from flashlight.aten.pointwise import formula
from flashlight.aten.table import Node, elementwise, row
from flashlight.aten.views import ZERO, agree, part
from flashlight.expr import Const, Expr, apply, kind
from flashlight.index import add
from flashlight.scalars import op


def softplus(x: Expr) -> Expr:
    """max(x, 0) + log1p(exp(-|x|)), which neither overflows nor loses small terms."""
    return op("add", op("maximum", x, Const(0.0)), op("log1p", op("exp", op("neg", op("abs", x)))))


def log_sigmoid(x: Expr) -> Expr:
    return op("sub", op("minimum", x, Const(0.0)), op("log1p", op("exp", op("neg", op("abs", x)))))


def _hard_sigmoid(x: Expr) -> Expr:
    return op("minimum", op("maximum", op("add", op("mul", x, Const(1 / 6)), Const(0.5)), Const(0.0)), Const(1.0))


formula(lambda x: op("maximum", x, Const(0.0 if kind(x) == "real" else 0)), "relu")
formula(lambda x: op("mul", x, op("sigmoid", x)), "silu")
formula(log_sigmoid, "log_sigmoid")
formula(lambda x: op("mul", x, op("tanh", softplus(x))), "mish")
formula(lambda x: op("minimum", op("maximum", x, Const(0.0)), Const(6.0)), "relu6")
formula(_hard_sigmoid, "hardsigmoid")
formula(lambda x: op("mul", x, _hard_sigmoid(x)), "hardswish")


@row("logit", "special_logit")
def _logit(b: Builder, n: Node, self: Array, eps: float | None = None) -> Array:
    def fn(x: Expr) -> Expr:
        if eps is not None:
            x = op("minimum", op("maximum", x, Const(float(eps))), Const(1.0 - float(eps)))
        return op("log", op("div", x, op("sub", Const(1.0), x)))

    return elementwise(fn, n, self)


@row("gelu")
def _gelu(b: Builder, n: Node, self: Array, approximate: str = "none") -> Array:
    def exact(x: Expr) -> Expr:
        return op("mul", op("mul", x, Const(0.5)), op("add", Const(1.0), op("erf", op("mul", x, Const(2**-0.5)))))

    def tanh(x: Expr) -> Expr:
        cubic = op("add", x, op("mul", Const(0.044715), op("mul", x, op("mul", x, x))))
        inner = op("tanh", op("mul", Const(math.sqrt(2 / math.pi)), cubic))
        return op("mul", op("mul", x, Const(0.5)), op("add", Const(1.0), inner))

    return elementwise(tanh if approximate == "tanh" else exact, n, self)


@row("softplus")
def _softplus(b: Builder, n: Node, self: Array, beta: float = 1, threshold: float = 20) -> Array:
    def fn(x: Expr) -> Expr:
        z = op("mul", x, Const(float(beta)))
        return apply("select", apply("gt", z, Const(float(threshold))), x, op("div", softplus(z), Const(float(beta))))

    return elementwise(fn, n, self)


@row("elu")
def _elu(b: Builder, n: Node, self: Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Array:
    def fn(x: Expr) -> Expr:
        low = op("mul", op("expm1", op("mul", x, Const(float(input_scale)))), Const(float(alpha)))
        return op("mul", apply("select", apply("gt", x, Const(0.0)), x, low), Const(float(scale)))

    return elementwise(fn, n, self)


@row("selu")
def _selu(b: Builder, n: Node, self: Array) -> Array:
    return _elu(b, n, self, 1.6732632423543772, 1.0507009873554805)


@row("celu")
def _celu(b: Builder, n: Node, self: Array, alpha: float = 1) -> Array:
    return _elu(b, n, self, alpha, input_scale=1 / alpha)


@row("hardshrink")
def _hardshrink(b: Builder, n: Node, self: Array, lambd: float = 0.5) -> Array:
    low = Const(float(lambd))
    return elementwise(lambda x: apply("select", apply("le", op("abs", x), low), Const(0.0), x), n, self)


@row("softshrink")
def _softshrink(b: Builder, n: Node, self: Array, lambd: float = 0.5) -> Array:
    low, high = Const(-float(lambd)), Const(float(lambd))
    return elementwise(lambda x: op("sub", x, op("minimum", op("maximum", x, low), high)), n, self)


@row("leaky_relu")
def _leaky_relu(b: Builder, n: Node, self: Array, negative_slope: float = 0.01) -> Array:
    low = Const(float(negative_slope))
    return elementwise(lambda x: apply("select", apply("gt", x, Const(0.0)), x, op("mul", x, low)), n, self)


@row("threshold")
def _threshold(b: Builder, n: Node, self: Array, threshold: float, value: float) -> Array:
    return elementwise(lambda x, t, v: apply("select", apply("gt", x, t), x, v), n, self, threshold, value)


@row("glu")
def _glu(b: Builder, n: Node, self: Array, dim: int = -1) -> Array:
    d = dim % self.rank
    half = n.shape[d]
    agree(b, self.shape[d], add(half, half))
    values, gates = part(self, d, ZERO, half), part(self, d, half, half)
    return elementwise(lambda x, g: op("mul", x, op("sigmoid", g)), n, values, gates)
