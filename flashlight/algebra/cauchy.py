"""Products of normalised vectors are short: |sum u v| <= |u| |v|, where the program divides by the norms.

For q.k / (|q| |k|) the bound is 1 (cosine similarity), for two RMS-normalised vectors of n components it is n.  A
factor W of the denominator stands for a norm when W >= a * |u|, which is read off how it is made: the norm itself, its
maximum with anything, the root of a mean of squares plus what is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from flashlight.expr import INF, Apply, Const, Expr, Fold, Index, apply, axes, substitute

Interval = Callable[[Expr], tuple[float, float]]


def bound(e: Expr, interval: Interval) -> float:
    """The largest size of a product with a sum of products in it; infinite where nothing is known."""
    above, below = _factors(e)
    sums = [f for f in above if isinstance(f, Fold) and f.monoid == "sum"]
    if len(sums) != 1:
        return INF
    (fold,) = sums
    own, under = _factors(fold.body)
    sides = [f for f in own if fold.axis in axes(f)]
    if len(sides) != 2 or any(fold.axis in axes(f) for f in under):
        return INF
    u, v = (_Norm(side, fold, interval) for side in sides)
    out, left = 1.0, [u, v]
    for w in (*below, *under):
        if left == [u, v] and (both := _both(w, u, v)):
            out, left = out / both, []
            continue
        norm, least = max(((n, n.root(w)) for n in left), key=lambda pair: pair[1], default=(u, 0.0))
        if least > 0:
            out, left = out / least, [n for n in left if n is not norm]
        else:
            out *= _largest(interval(apply("div", Const(1.0), w)))
    for f in (*above, *own):
        if f is not fold and f not in sides:
            out *= _largest(interval(f))
    return INF if left or math.isnan(out) else out


def _factors(e: Expr) -> tuple[list[Expr], list[Expr]]:
    """Numerators and denominators of a product."""
    match e:
        case Apply("mul", (a, b)):
            (p, q), (r, s) = _factors(a), _factors(b)
            return [*p, *r], [*q, *s]
        case Apply("div", (a, b)):
            (p, q), (r, s) = _factors(a), _factors(b)
            return [*p, *s], [*q, *r]
        case Apply("neg" | "real", (a,)):
            return _factors(a)
        case Apply("rsqrt", (a,)):
            return [], [apply("sqrt", a)]
    return [e], []


def _largest(ends: tuple[float, float]) -> float:
    return max(map(abs, ends))


class _Norm:
    """The Euclidean norm of a vector whose components are ``u`` along the fold's axis."""

    def __init__(self, u: Expr, fold: Fold, interval: Interval):
        self.u, self.fold, self.interval = u, fold, interval
        size = apply("abs", u)
        two = Const(2.0)
        self.squares = {apply("mul", u, u), apply("mul", size, size), apply("pow", u, two), apply("pow", size, two)}

    def root(self, w: Expr) -> float:
        """A number a with w >= a * norm, 0 where none is known."""
        match w:
            case Apply("maximum", (a, b)):
                return max(self.root(a), self.root(b))
            case Apply("add", (a, b)):
                return self._more(a, b, self.root)
            case Apply("mul", (a, b)):
                return max(self.root(a) * max(self.interval(b)[0], 0), self.root(b) * max(self.interval(a)[0], 0))
            case Apply("sqrt", (a,)) | Apply("pow", (a, Const(0.5))):
                return math.sqrt(self.square(a))
            case Apply("real", (a,)):
                return self.root(a)
        return 0.0

    def square(self, x: Expr) -> float:
        """A number a with x >= a * norm^2, 0 where none is known."""
        match x:
            case Fold("sum", axis, extent, body) if extent == self.fold.extent:
                return float(substitute(body, {Index(axis): Index(self.fold.axis)}) in self.squares)
            case Apply("maximum", (a, b)):
                return max(self.square(a), self.square(b))
            case Apply("add", (a, b)):
                return self._more(a, b, self.square)
            case Apply("mul", (a, b)):
                return max(self.square(a) * max(self.interval(b)[0], 0), self.square(b) * max(self.interval(a)[0], 0))
            case Apply("div", (a, b)) if self.interval(b)[0] > 0:
                return self.square(a) / self.interval(b)[1]
            case Apply("real", (a,)):
                return self.square(a)
        return 0.0

    def _more(self, a: Expr, b: Expr, of: Callable[[Expr], float]) -> float:
        return max(of(a) if self.interval(b)[0] >= 0 else 0.0, of(b) if self.interval(a)[0] >= 0 else 0.0)


def _both(w: Expr, u: _Norm, v: _Norm) -> float:
    """A number a with w >= a * |u| * |v|, 0 where none is known."""
    match w:
        case Apply("maximum", (a, b)):
            return max(_both(a, u, v), _both(b, u, v))
        case Apply("mul", (a, b)):
            return max(u.root(a) * v.root(b), v.root(a) * u.root(b))
        case Apply("sqrt", (Apply("mul", (a, b)),)):
            return math.sqrt(max(u.square(a) * v.square(b), v.square(a) * u.square(b)))
        case Apply("sqrt", (Apply("maximum", (Apply("mul", (a, b)), _)),)):
            return math.sqrt(max(u.square(a) * v.square(b), v.square(a) * u.square(b)))
    return 0.0
