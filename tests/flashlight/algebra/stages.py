"""Cascades with running values, with places in an order, and with scores that are bounded: see ``catalogue``."""

from __future__ import annotations

from flashlight.algebra import Cascade, Stage
from flashlight.algebra.proof import Scan
from flashlight.expr import Const, Fold, Index, Load
from tests.flashlight.algebra.catalogue import (
    INF,
    LENGTH,
    D,
    E,
    J,
    L,
    N,
    absolute,
    at,
    attention,
    capped,
    cascade,
    causal,
    exp,
    gate,
    keep,
    log,
    m,
    maximum,
    op,
    qk,
    r,
    s,
    soft,
    tanh,
    v,
    where,
    wrap,
    x,
    y,
)


def program(*stages, out=()) -> Cascade:
    every = tuple(t if isinstance(t, Stage) else Stage(t[0], t[1], wrap(t[2])) for t in stages)
    return Cascade("j", N, every, tuple(wrap(o) for o in (out if isinstance(out, tuple) else (out,))))


def scan(name, body, monoid="sum", inclusive=True, reverse=False) -> Stage:
    return Stage(name, "scan", wrap(body), Scan(monoid, inclusive, reverse))


def place(name, monoid, body, payload=None, rank=0) -> Stage:
    return Stage(name, monoid, wrap(body), None, None if payload is None else wrap(payload), rank)


def running(name) -> E:
    return E(Load(name, (J,), "real"))


log_sigmoid = -op("log1p", exp(-qk))
decay = at("decay", J)
forgetting = where(causal, s + (r("F") - running("C")), -INF)
recency = where(causal, s + running("C"), -INF)
at_floor = qk + E(Load("z", (Index("i"), wrap(op("int", op("floor", running("C"))))), "real"))

SCANS: dict[str, Cascade] = {
    "running sum": program(scan("A", x), ("o", "sum", running("A") * running("A") * v), out=r("o")),
    "running sum is an output": program(scan("A", x), out=running("A") * running("y")),
    "running product": program(
        scan("A", op("sigmoid", x), "prod", inclusive=False), ("o", "sum", running("A") * v), out=(r("o"), r("A"))
    ),
    "stick breaking": program(
        scan("A", where(causal, log_sigmoid, 0.0), inclusive=False, reverse=True),
        ("o", "sum", where(causal, op("sigmoid", -qk) * exp(running("A")) * v, 0.0)),
        out=(r("o"), exp(r("A"))),
    ),
    "forgetting, from the start": program(
        scan("C", decay),
        ("F", "sum", where(causal, decay, 0.0)),
        *soft(forgetting),
        ("o", "sum", exp(forgetting - m) / L * v),
        out=r("o"),
    ),
    "forgetting, from the end": program(
        scan("C", decay, inclusive=False, reverse=True),
        *soft(recency),
        ("o", "sum", exp(recency - m) / L * v),
        out=r("o"),
    ),
    "decay to the end": program(scan("A", -absolute(x)), ("o", "sum", exp(r("A") - running("A")) * v), out=r("o")),
}
# Loops only: what they do with running values does not separate in what precedes a part.
LOOPS: dict[str, Cascade] = {
    "two scans": program(
        scan("A", x), scan("B", running("A"), "max", inclusive=False), ("o", "sum", running("A") * tanh(running("B")))
    ),
    "positions that are counted": program(
        scan("C", where(causal, gate, 0.0), reverse=True), *soft(at_floor), ("o", "sum", exp(at_floor - m) / L * v)
    ),
}
PLACES: dict[str, Cascade] = {
    "argmax": program(place("a", "argmax", s), out=r("a")),
    "argmin of what is kept": program(place("a", "argmin", where(keep, s, INF)), out=r("a")),
    "most likely value": program(*soft(s), place("b", "argmax", exp(s - m) / L, v), out=(r("b"), L)),
    "two largest": program(
        *(place(f"t{k}", "max", s, rank=k) for k in range(2)),
        *(place(f"i{k}", "argmax", s, rank=k) for k in range(2)),
        place("p", "argmax", s, v, rank=1),
        out=r("p"),
    ),
    "second smallest": program(place("i", "argmin", s, rank=1), out=r("i")),
}


def normalised(tensor, row) -> E:
    d2 = Index("d2")
    e = lambda d: Load(tensor, (row, d), "real")  # noqa: E731
    norm = op("sqrt", E(Fold("sum", "d2", 64, wrap(E(e(d2)) * E(e(d2))))))
    return E(e(D)) / maximum(norm, 1e-12)


cosine = E(Fold("sum", "d", 64, wrap(normalised("q", Index("i")) * normalised("k", J))))
kept = where(causal, capped, -INF)
# cascade -> the constant that may stand for the maximum, and how far exponents then reach
BOUNDED: dict[str, tuple[Cascade, float, float]] = {
    "soft cap": (attention(capped), 0.0, 30.0),
    "soft cap, masked": (attention(kept), 0.0, 30.0),
    "masked, then scaled": (attention(2.0 * kept), 0.0, 60.0),
    "cosine": (attention(10.0 * cosine), 0.0, 10.0),
    "sigmoid": (attention(gate), 0.5, 0.5),
    "with its logsumexp": (
        cascade(*soft(kept), ("o", "sum", exp(kept - m) / L * v), out=(r("o"), m + log(L))),
        0.0,
        30.0,
    ),
    "weighted variance": (
        cascade(
            *soft(kept),
            ("mean", "sum", exp(kept - m) / L * y),
            ("V", "sum", exp(kept - m) / L * op("pow", y - r("mean"), 2.0)),
            out=r("V"),
        ),
        0.0,
        30.0,
    ),
}
UNBOUNDED: dict[str, Cascade] = {
    "scores": attention(qk),
    "the maximum is an output": cascade(*soft(capped), out=(L, m)),
    "everything may be read": cascade(*soft(capped)),
    "out of reach": attention(1e4 * tanh(qk)),
}
# Several states at once: the product of monoids is one, and their gauges move apart.
PRODUCTS: dict[str, Cascade] = {
    "softmax, argmax and variance": program(
        *soft(s),
        place("b", "argmax", s),
        ("S", "sum", x),
        ("V", "sum", op("pow", x - r("S") / E(LENGTH), 2.0)),
        ("o", "sum", exp(s - m) / L * v),
        out=(r("o"), r("b"), r("V")),
    ),
    "running sum beside softmax": program(
        scan("A", x),
        *soft(s),
        ("o", "sum", exp(s - m) / L * running("A")),
        out=r("o"),
    ),
    "a product beside a maximum": program(
        ("P", "prod", op("sigmoid", x)), ("m", "max", s), ("o", "sum", exp(s - m) * r("P")), out=r("o")
    ),
}
# No one pass, and why.
REFUSED: dict[str, tuple[Cascade, str]] = {
    "both directions": (
        program(scan("A", x), scan("B", x, reverse=True), ("o", "sum", running("A") * running("B"))),
        "opposite directions",
    ),
    "at another element": (
        program(scan("A", x), ("o", "sum", E(Load("A", (Const(0),), "real")) * x)),
        "at another element",
    ),
    "a scan of results": (program(*soft(s), scan("A", exp(s - m) / L), ("o", "sum", running("A"))), "needs"),
    "a gathered result": (program(*soft(s), place("b", "argmax", s, exp(s - m) / L)), "gathered and reads results"),
    "places of a mix": (program(("S", "sum", x), place("b", "argmax", y * r("S") + x)), ""),
}
