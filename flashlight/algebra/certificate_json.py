"""Certificates as JSON: everything that a claim rests on, for a checker that shares no code with the compiler.

    {"format": "flashlight certificate", "version": 1, "nodes": [...], "axis": "j", "extent": 0, "order": "any",
     "stages": [...], "outputs": [...], "slots": [...], "gauges": [...], "links": [...]}

``nodes`` is the table of all expressions, arguments before what they are arguments of; elsewhere an expression is its
number in the table.  The running value of a scan is a node "running".  Numbers are JSON's (doubles come back to the
last bit), infinities and NaN are the texts "inf", "-inf" and "nan".  The fields are those of ``proof``, under the same
names, but for a slot's ``bound`` (pairs of an exponential and its proof) and the source of a row's own maximum or
minimum, which is "row".
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

from flashlight.algebra.proof import Certificate, Fact, Scan, Slot, element
from flashlight.algebra.unroll import folded, unrolled_certificate
from flashlight.expr import Apply, Const, Expr, Fold, Index, Load, Ref, Size, children, refs, walk

EXPONENTIALS = ("exp", "exp2")


def to_json(cert: Certificate) -> str:
    """The certificate as a text; equal certificates give equal texts.

    Folds that hold results are written out, at two points (what holds for sums of two independent terms holds for those
    of more)."""
    if over := folded(cert.cascade):
        cert = unrolled_certificate(cert, {axis: min(n, 2) for axis, n in over.items()})
    writer = _Writer({element(cert.cascade, s.name) for s in cert.cascade.stages if s.scan})
    head = {"format": "flashlight certificate", "version": 1}
    body = {**writer.value(cert.cascade), **writer.value(cert)}
    del body["cascade"]
    return json.dumps({**head, **body, "nodes": writer.nodes}, separators=(",", ":"), allow_nan=False)


def exponentials(body: Expr) -> list[Apply]:
    """The exponentials of a body that depend on gauges, in the order in which ``Slot.bound`` speaks of them."""
    found = (e for e in walk(body) if isinstance(e, Apply) and e.op in EXPONENTIALS)
    return [e for e in found if any(n.startswith("g:") for n in refs(e))]


class _Writer:
    def __init__(self, running: set[Load]):
        self.running = running
        self.nodes: list[list[Any]] = []
        self.known: dict[Expr, int] = {}

    def value(self, x: Any) -> Any:
        match x:
            case Const() | Index() | Size() | Ref() | Load() | Apply() | Fold():
                return self.node(x)
            case None | bool() | int() | str():
                return x
            case float():
                return x if math.isfinite(x) else "nan" if math.isnan(x) else "inf" if x > 0 else "-inf"
            case tuple():
                return [self.value(v) for v in x]
            case Scan():
                return [x.monoid, x.inclusive, x.reverse]
        out = {f.name: self.value(getattr(x, f.name)) for f in fields(x)}
        if isinstance(x, Slot):
            out["bound"] = [[self.node(e), p] for e, p in zip(exponentials(x.body), out["bound"], strict=True)]
        if isinstance(x, Fact) and x.source.startswith("row definition"):
            out["source"] = "row"
        return out

    def node(self, e: Expr) -> int:
        if e not in self.known:
            parts = [self.node(c) for c in children(e)]
            self.known[e] = len(self.nodes)
            self.nodes.append(self.row(e, parts))
        return self.known[e]

    def row(self, e: Expr, parts: list[int]) -> list[Any]:
        match e:
            case Const(v):
                return ["bool" if isinstance(v, bool) else "int" if isinstance(v, int) else "real", self.value(v)]
            case Index(name) | Size(name) | Ref(name):
                return [type(e).__name__.lower(), name]
            case Load(tensor, _, kind):
                return ["running", tensor] if e in self.running else ["load", tensor, parts, kind]
            case Apply(op, _):
                return ["apply", op, parts]
            case Fold(monoid, axis, extent, _, dtype):
                return ["fold", monoid, axis, extent, parts[0], dtype]
