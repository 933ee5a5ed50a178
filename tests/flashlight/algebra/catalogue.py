"""Cascades as programs write them: what must be proved, and what must be refused.

``j`` is streamed.  Elements: ``s, v, w, ...`` are loads at j, ``qk`` and ``dp`` are folds (matrix products).  Loads
without j belong to the row.
"""

from __future__ import annotations

import math
from functools import partial

from flashlight.algebra import Cascade, Stage
from flashlight.expr import Const, Expr, Fold, Index, Load, Ref, Size, apply

J, R, D = Index("j"), Index("i"), Index("d")
N = Size("n")
LENGTH = apply("real", N)


class E:
    """An expression with the operators of Python, for writing tests."""

    def __init__(self, e: Expr | float):
        self.e: Expr = Const(float(e)) if isinstance(e, int | float) else e

    def __repr__(self):
        return str(self.e)

    def __add__(self, o):
        return op("add", self, o)

    def __radd__(self, o):
        return op("add", o, self)

    def __sub__(self, o):
        return op("sub", self, o)

    def __rsub__(self, o):
        return op("sub", o, self)

    def __mul__(self, o):
        return op("mul", self, o)

    def __rmul__(self, o):
        return op("mul", o, self)

    def __truediv__(self, o):
        return op("div", self, o)

    def __rtruediv__(self, o):
        return op("div", o, self)

    def __neg__(self):
        return op("neg", self)


def wrap(a) -> Expr:
    return a.e if isinstance(a, E) else Const(float(a)) if isinstance(a, int | float) else a


def op(name: str, *args) -> E:
    return E(apply(name, *map(wrap, args)))


exp, exp2, log, sqrt, tanh, absolute = (partial(op, n) for n in ("exp", "exp2", "log", "sqrt", "tanh", "abs"))
maximum, where = partial(op, "maximum"), partial(op, "select")


def r(name):
    return E(Ref(name))


def at(tensor, *index, kind="real"):
    return E(Load(tensor, index or (R, J), kind))


s, s1, s2, w, x, y, z, b, dp, k = (at(t) for t in ("s", "s1", "s2", "w", "x", "y", "z", "b", "dp", "k"))
v = at("v", J, Index("e"))
hit = apply("eq", J, Load("label", (R,), "int"))
keep = Load("keep", (R, J), "bool")
causal = apply("le", J, R)
qk = E(Fold("sum", "d", 64, apply("mul", Load("q", (R, D)), Load("k", (J, D)))))
lam, sink, tau, c, eps = at("lam", R), at("sink", R), at("tau", R), at("c", R), 1e-5
INF = math.inf
m, L, M, S = r("m"), r("l"), r("M"), r("S")
mu = S / E(LENGTH)
LOG2E = math.log2(math.e)


def cascade(*stages, out=(), extent: Expr = N) -> Cascade:
    return Cascade(
        "j",
        extent,
        tuple(Stage(name, monoid, wrap(body)) for name, monoid, body in stages),
        tuple(wrap(o) for o in (out if isinstance(out, tuple) else (out,))),
    )


def soft(score, m=m, name="m", total="l"):
    return (name, "max", score), (total, "sum", exp(score - m))


def attention(score, v=v):
    return cascade(*soft(score), ("o", "sum", exp(score - m) / L * v), out=r("o"))


masked = where(causal, qk * 0.125, -INF)
capped = 30.0 * tanh(qk / 30.0)
guarded = where(op("eq", absolute(m), INF), 0.0, m)
safe = where(op("ne", r("A"), 0.0), 0.0, exp(masked - m) / L)
gate = op("sigmoid", s)

PROVED: dict[str, Cascade] = {
    # ---- softmax in many spellings
    "denominator": cascade(*soft(s), out=L),
    "divided after": cascade(*soft(s), ("o", "sum", exp(s - m) * v), out=r("o") / L),
    "divided inside": attention(s),
    "scaled product": attention(qk * 0.08838834764831845),
    "causal": attention(masked),
    "keep mask": attention(where(keep, qk * 0.125, -INF)),
    "finite fill": attention(where(causal, qk * 0.125, -1e9)),
    "soft cap": attention(capped),
    "bias": attention(qk * 0.125 + b),
    "exp2": cascade(
        ("m", "max", qk * 0.125),
        ("l", "sum", exp2((qk * 0.125 - m) * LOG2E)),
        ("o", "sum", exp2((qk * 0.125 - m) * LOG2E) / L * v),
        out=r("o"),
    ),
    "base change, unfused scale": cascade(
        ("m", "max", qk),
        ("l", "sum", exp2(qk * 0.18 - m * 0.18)),
        ("o", "sum", exp2(qk * 0.18 - m * 0.18) * v),
        out=r("o") / L,
    ),
    "constants that are no doubles": cascade(
        ("m", "max", s * 3.0),
        ("l", "sum", exp((s - m / 3.0) * 0.1)),
        ("o", "sum", exp2(s * 0.3 - m * 0.1) * (x * m * 0.1 + y * 3.0 * m + z * m)),
        out=r("o") / L,
    ),
    "scale after the maximum": cascade(
        ("m", "max", qk), ("l", "sum", exp((qk - m) * 0.125)), ("o", "sum", exp((qk - m) * 0.125) * v), out=r("o") / L
    ),
    "temperature, base 2": cascade(
        ("m", "max", s),
        ("l", "sum", op("pow", 2.0, (s - m) / tau)),
        ("o", "sum", op("pow", 2.0, (s - m) / tau) / L * v),
        out=r("o"),
    ),
    "temperature of the row": cascade(
        ("m", "max", s), ("l", "sum", exp((s - m) / tau)), ("o", "sum", exp((s - m) / tau) * v), out=r("o") / L
    ),
    "through logsumexp": cascade(*soft(s), ("o", "sum", exp(s - (m + log(L))) * v), out=(r("o"), m + log(L))),
    "through guarded logsumexp": cascade(
        ("m", "max", masked),
        ("l", "sum", exp(masked - guarded)),
        ("o", "sum", exp(masked - (log(L) + guarded)) * v),
        out=(r("o"), log(L) + guarded),
    ),
    "lse as a definition": cascade(
        *soft(s), ("lse", None, m + log(L)), ("o", "sum", exp(s - r("lse")) * v), out=(r("o"), r("lse"))
    ),
    "log-softmax, exponentiated": cascade(*soft(s), ("o", "sum", exp((s - m) - log(L)) * v), out=r("o")),
    "no maximum": cascade(("l", "sum", exp(s)), ("o", "sum", exp(s) / L * v), out=r("o")),
    "mask after exp": cascade(
        ("m", "max", s),
        ("l", "sum", exp(s - m) * op("real", keep)),
        ("o", "sum", exp(s - m) * op("real", keep) / L * v),
        out=r("o"),
    ),
    "where after exp": cascade(
        ("m", "max", s),
        ("l", "sum", where(keep, exp(s - m), 0.0)),
        ("o", "sum", where(keep, exp(s - m) / L, 0.0) * v),
        out=r("o"),
    ),
    "masked before and after": cascade(
        *soft(where(keep, s, -INF)), ("o", "sum", where(keep, exp(where(keep, s, -INF) - m) / L, 0.0) * v), out=r("o")
    ),
    "masked after, divided after": cascade(
        *soft(where(keep, s, -INF)), ("o", "sum", where(keep, exp(where(keep, s, -INF) - m), 0.0) * v), out=r("o")
    ),
    "mask inside exp": cascade(
        ("m", "max", s),
        ("l", "sum", exp(where(keep, s - m, -INF))),
        ("o", "sum", exp(where(keep, s - m, -INF)) / L * v),
        out=r("o"),
    ),
    "sink in the maximum": cascade(
        ("m", "max", s),
        ("l", "sum", exp(s - maximum(m, sink))),
        ("o", "sum", exp(s - maximum(m, sink)) / (L + exp(sink - maximum(m, sink))) * v),
        out=r("o"),
    ),
    "sink, as definitions": cascade(
        ("m", "max", s),
        ("M", None, maximum(m, sink)),
        ("l", "sum", exp(s - M)),
        ("d", None, L + exp(sink - M)),
        ("o", "sum", exp(s - M) / r("d") * v),
        out=r("o"),
    ),
    "off by one": cascade(*soft(s), ("o", "sum", exp(s - m) / (L + 1.0) * v), out=r("o")),
    "off by one, true": cascade(*soft(s), ("o", "sum", exp(s - m) / (L + exp(-m)) * v), out=r("o")),
    "clamped denominator": cascade(*soft(s), ("o", "sum", exp(s - m) / maximum(L, 1e-6) * v), out=r("o")),
    "all masked gives zero": cascade(
        *soft(masked), ("A", "min", op("real", op("eq", masked, -INF))), ("o", "sum", safe * v), out=r("o")
    ),
    "bias the max did not see": cascade(
        ("m", "max", s), ("l", "sum", exp(s + b - m)), ("o", "sum", exp(s + b - m) * v), out=r("o") / L
    ),
    "two maxima in a row": cascade(
        ("m", "max", s), ("m2", "max", s + 0.0 * b), ("l", "sum", exp(s - maximum(m, r("m2")))), out=L
    ),
    # ---- statistics of softmax
    "logsumexp": cascade(*soft(s), out=m + log(L)),
    "guarded logsumexp": cascade(("m", "max", s), ("l", "sum", exp(s - guarded)), out=log(L) + guarded),
    "entropy": cascade(*soft(s), ("h", "sum", -(exp(s - m) / L) * log(exp(s - m) / L)), out=r("h")),
    "entropy of log-softmax": cascade(
        *soft(s), ("h", "sum", exp((s - m) - log(L)) * ((s - m) - log(L))), out=op("neg", r("h"))
    ),
    "cross entropy, gathered": cascade(*soft(s), ("t", "sum", where(hit, -((s - m) - log(L)), 0.0)), out=r("t")),
    "weighted mean and variance": cascade(
        *soft(s),
        ("mean", "sum", exp(s - m) / L * y),
        ("V", "sum", exp(s - m) / L * op("pow", y - r("mean"), 2.0)),
        out=(r("mean"), r("V")),
    ),
    "dQ in the row sum D": cascade(
        *soft(s),
        ("D", "sum", exp(s - m) / L * dp),
        ("dq", "sum", exp(s - m) / L * (dp - r("D")) * k),
        out=r("dq"),
    ),
    "dQ with saved statistics": cascade(("dq", "sum", exp(s - at("lse", R)) * (dp - at("D", R)) * k), out=r("dq")),
    "max of probabilities": cascade(*soft(s), ("t", "max", exp(s - m) / L), out=r("t")),
    # ---- several softmaxes
    "differential, one product": cascade(
        *soft(s1, r("m1"), "m1", "l1"),
        *soft(s2, r("m2"), "m2", "l2"),
        ("o", "sum", (exp(s1 - r("m1")) / r("l1") - lam * (exp(s2 - r("m2")) / r("l2"))) * v),
        out=r("o"),
    ),
    "differential, two sums": cascade(
        *soft(s1, r("m1"), "m1", "l1"),
        *soft(s2, r("m2"), "m2", "l2"),
        ("o1", "sum", exp(s1 - r("m1")) / r("l1") * v),
        ("o2", "sum", exp(s2 - r("m2")) / r("l2") * v),
        out=r("o1") - lam * r("o2"),
    ),
    "product of two softmaxes": cascade(
        *soft(s1, r("m1"), "m1", "l1"),
        *soft(s2, r("m2"), "m2", "l2"),
        ("o", "sum", exp(s1 - r("m1")) / r("l1") * (exp(s2 - r("m2")) / r("l2")) * v),
        out=r("o"),
    ),
    "softpick-like": cascade(
        ("m", "max", s),
        ("l", "sum", absolute(exp(s - m) - exp(-m))),
        ("o", "sum", maximum(exp(s - m) - exp(-m), 0.0) / (L + 1e-6) * v),
        out=r("o"),
    ),
    "difference of exponentials": cascade(("m", "max", s), ("o", "sum", exp(s - m) - exp(-m)), out=r("o")),
    # ---- means and norms
    "variance": cascade(("S", "sum", x), ("V", "sum", op("pow", x - mu, 2.0)), out=r("V") / E(LENGTH)),
    "variance, literal length": cascade(
        ("S", "sum", x), ("V", "sum", (x - S / 96.0) * (x - S / 96.0)), out=r("V") / 96.0, extent=Const(96)
    ),
    "variance, reciprocal length": cascade(
        ("S", "sum", x), ("V", "sum", op("pow", x - S * (1 / 96), 2)), out=r("V") * (1 / 96), extent=Const(96)
    ),
    "variance of what is kept": cascade(
        ("n", "sum", op("real", keep)),
        ("S", "sum", where(keep, x, 0.0)),
        ("V", "sum", where(keep, op("pow", x - S / r("n"), 2.0), 0.0)),
        out=r("V") / r("n"),
    ),
    "variance by a length that is loaded": cascade(
        ("S", "sum", where(keep, x, 0.0)),
        ("V", "sum", where(keep, op("pow", x - S / at("len", R), 2.0), 0.0)),
        out=r("V") / at("len", R),
    ),
    "softmax-weighted deviation from a scaled mean": cascade(
        *soft(s),
        ("a", "sum", exp(s - m) / L * y),
        ("V", "sum", exp(s - m) / L * op("pow", y - r("a") * lam, 2.0)),
        out=r("V"),
    ),
    "weighted square deviation": cascade(("S", "sum", x), ("V", "sum", op("pow", x - mu, 2.0) * w), out=r("V")),
    "third central moment": cascade(("S", "sum", x), ("V", "sum", op("pow", x - mu, 3.0)), out=r("V")),
    "covariance": cascade(
        ("A", "sum", x),
        ("B", "sum", y),
        ("C", "sum", (x - r("A") / E(LENGTH)) * (y - r("B") / E(LENGTH))),
        out=r("C") / E(LENGTH),
    ),
    "layer norm, product": cascade(
        ("S", "sum", x),
        ("V", "sum", op("pow", x - mu, 2.0)),
        ("o", "sum", ((x - mu) * op("rsqrt", r("V") / E(LENGTH) + eps) * at("gain", J) + at("beta", J)) * w),
        out=r("o"),
    ),
    "layer norm, product, no bias": cascade(
        ("S", "sum", x),
        ("V", "sum", (x - mu) * (x - mu)),
        ("o", "sum", (x - mu) / sqrt(r("V") / E(LENGTH) + eps) * w),
        out=r("o"),
    ),
    "rms norm, product": cascade(
        ("Q", "sum", x * x), ("o", "sum", x * op("rsqrt", r("Q") / E(LENGTH) + eps) * w), out=r("o")
    ),
    "l2 norm, scaled": cascade(("m", "max", absolute(x)), ("Q", "sum", op("pow", x / m, 2.0)), out=m * sqrt(r("Q"))),
    "l2 norm, clamped scale": cascade(
        ("m", "max", absolute(x)),
        ("Q", "sum", op("pow", x / maximum(m, 1e-12), 2.0)),
        out=maximum(m, 1e-12) * sqrt(r("Q")),
    ),
    "power mean": cascade(
        ("m", "max", absolute(x)),
        ("Q", "sum", op("pow", x / m, 4.0)),
        out=m * op("pow", r("Q") / E(LENGTH), 0.25),
    ),
    "normalised even power": cascade(
        ("m", "max", absolute(x)),
        ("Q", "sum", op("pow", x / m, 4.0)),
        ("o", "sum", op("pow", x / m, 4.0) * v),
        out=r("o") / r("Q"),
    ),
    "absmax-scaled product": cascade(("m", "max", absolute(x)), ("o", "sum", x / m * w), out=r("o")),
    # ---- maxima
    "distance to the maximum": cascade(("m", "max", s), ("o", "sum", absolute(s - m)), out=r("o")),
    "max of scaled terms": cascade(*soft(s), ("t", "max", y / L), out=r("t")),
    "max of terms of unknown sign": cascade(("S", "sum", x), ("t", "max", y * S - S), out=r("t")),
    "min of terms of unknown sign": cascade(("S", "sum", x), ("t", "min", y * S), out=r("t")),
    "max of a decreasing function": cascade(("S", "sum", x), ("t", "max", tanh(S - y)), out=r("t")),
    "max of all but the row": cascade(("S", "sum", x), ("t", "max", maximum(y, S)), out=r("t")),
    # ---- no maximum at all
    "sigmoid attention": cascade(("o", "sum", gate * v), out=r("o")),
    "relu attention": cascade(
        ("l", "sum", maximum(s, 0.0) * maximum(s, 0.0)),
        ("o", "sum", maximum(s, 0.0) * maximum(s, 0.0) / (L + 1e-6) * v),
        out=r("o"),
    ),
    # ---- other algebra
    "geometric mean": cascade(("S", "sum", exp(s)), ("o", "prod", exp(w) / S), out=r("o")),
    "common factor": cascade(("S", "sum", x), ("o", "sum", (x * x - mu * mu) / (x + mu) * w), out=r("o")),
    "soft regression weights": cascade(*soft(s), ("o", "sum", exp(s - m) / L * op("pow", y - c, 2.0) * w), out=r("o")),
    "exp of a deviation": cascade(("S", "sum", x), ("o", "sum", exp(x - mu) * w), out=r("o")),
    "exp of exp of a result": cascade(("m", "max", s), ("o", "sum", exp(x + exp(m))), out=r("o")),
    "squared log-probability": cascade(
        *soft(s), ("h", "sum", exp(s - m) / L * op("pow", (s - m) - log(L), 2.0)), out=r("h")
    ),
    "sum of the row": cascade(("m", "max", s), ("o", "sum", m), out=r("o")),
    "minimum as reference": cascade(
        ("m", "min", s), ("l", "sum", exp(m - s)), ("o", "sum", exp(m - s) / L * v), out=r("o")
    ),
    "bounded by a product": cascade(
        ("K", "max", sqrt(y * y)),
        ("l", "sum", exp(s - absolute(c) * r("K"))),
        ("o", "sum", exp(s - absolute(c) * r("K")) / L * v),
        out=r("o"),
    ),
}

REFUTED: dict[str, Cascade] = {
    "distance to the mean": cascade(("S", "sum", x), ("o", "sum", absolute(x - mu)), out=r("o")),
    "relu of a threshold": cascade(("T", "sum", x), ("o", "sum", maximum(x - r("T"), 0.0)), out=r("o")),
    "tanh of a difference": cascade(("m", "max", s), ("o", "sum", tanh(s - m)), out=r("o")),
    "sigmoid of a difference": cascade(("m", "max", s), ("o", "sum", op("sigmoid", s - m)), out=r("o")),
    "temperature is a result": cascade(
        ("S", "sum", x),
        ("V", "sum", op("pow", x - mu, 2.0)),
        ("o", "sum", exp(x / sqrt(r("V") / E(LENGTH))) * v),
        out=r("o"),
    ),
    "reciprocal of a sum": cascade(("m", "max", absolute(x)), ("o", "sum", 1.0 / (absolute(x) + m + 1.0)), out=r("o")),
    "result in an exponent": cascade(*soft(s), ("o", "sum", op("pow", absolute(x) + 1.0, L)), out=r("o")),
    "max of a moving mix": cascade(("S", "sum", x), ("t", "max", y * S + z), out=r("t")),
}

UNKNOWN: dict[str, Cascade] = {
    "rank 2 without a form": cascade(("S", "sum", x), ("o", "sum", op("cos", x - S)), out=r("o")),
    "a maximum that is not of these": cascade(("m", "max", s), ("o", "sum", exp(y - m)), out=r("o")),
    "product of a sum": cascade(("S", "sum", x), ("o", "prod", x - S), out=r("o")),
}
