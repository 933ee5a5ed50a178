"""Folds with results inside, written out: a stage, slot or gauge for every point of the folded axis.

``sum{h<2} exp(s[h, j] - m) / l`` reads the results m and l at every h.  In the unrolled cascade they are the results
m@0, m@1, l@0 and l@1, and what was a fold is a sum of two terms.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flashlight.algebra.bounds import ROW
from flashlight.algebra.proof import Cascade, Certificate, Fact
from flashlight.expr import COMBINE, Const, Expr, Fold, Index, Load, Ref, apply, axes, children, rebuild, rewrite, walk

Point = Mapping[str, int | None]  # None: the row's own, where a result is also read outside of folds


def folded(cascade: Cascade) -> dict[str, int]:
    """The axes of folds with results inside, and their lengths."""
    names = frozenset(s.name for s in cascade.stages)
    bodies = [*(b for s in cascade.stages for b in (s.body, s.payload) if b is not None), *cascade.outputs]
    return {e.axis: e.extent for b in bodies for e in walk(b) if isinstance(e, Fold) and _reads(e.body, names)}


def unrolled(cascade: Cascade, points: Mapping[str, int] | None = None) -> Cascade:
    """The cascade without folds that hold results.  ``points``: how many points such an axis has, if not its length."""
    return _Unroller(cascade, points).cascade()


def unrolled_certificate(cert: Certificate, points: Mapping[str, int] | None = None) -> Certificate:
    """The certificate of the unrolled cascade that an exchanged one stands for."""
    return _Unroller(cert.cascade, points, cert).certificate()


def _reads(e: Expr, names: frozenset[str]) -> bool:
    return any((isinstance(n, Ref) and n.name in names) or (isinstance(n, Load) and n.tensor in names) for n in walk(e))


@dataclass(frozen=True)
class _Named:
    """What varies along folded axes: a stage or slot by its name, a gauge by "g:NAME" (and "h:NAME")."""

    along: tuple[str, ...]

    def at(self, name: str, point: Point) -> str:
        return name + "".join(f"@{a if point.get(a) is None else point[a]}" for a in self.along)


class _Unroller:
    def __init__(self, cascade: Cascade, points: Mapping[str, int] | None, cert: Certificate | None = None):
        self.source, self.cert = cascade, cert
        self.points = {**folded(cascade), **{a: n for a, n in (points or {}).items() if a in folded(cascade)}}
        self.named: dict[str, _Named] = {}
        for s in cascade.stages:
            self.know(s.name, s.body, *((s.payload,) if s.payload is not None else ()))
        for g in cert.gauges if cert else ():
            self.know(f"g:{g.name}", g.final)
        for slot in cert.slots if cert else ():
            self.know(slot.name, slot.body, *(Ref(f"g:{g}") for g in slot.gauges))
        for g in cert.gauges if cert else ():
            self.know(f"g:{g.name}", g.final, g.value)
        self.own = frozenset[str]().union(*map(self.along, cascade.outputs))

    def know(self, name: str, *bodies: Expr) -> None:
        found = frozenset().union(*map(self.along, bodies))
        self.named[name] = _Named(tuple(a for a in self.points if a in found))

    def along(self, e: Expr) -> frozenset[str]:
        """The folded axes along which an expression varies, through what it refers to."""
        match e:
            case Ref(name):
                known = self.named.get(f"g:{name[2:]}" if name[:2] in ("g:", "h:") else name)
                return frozenset(known.along) if known else frozenset()
            case Fold(_, axis, _, body):
                return self.along(body) - {axis}
            case Load(tensor) if tensor in self.named:
                return frozenset(self.named[tensor].along).union(*map(self.along, e.index))
        own = axes(e) & self.points.keys() if not children(e) else frozenset()
        return frozenset(own).union(*map(self.along, children(e)))

    def of(self, names: Iterable[str]) -> Iterator[Point]:
        along = list(dict.fromkeys(names))
        each = [[*range(self.points[a]), *([None] if a in self.own else [])] for a in along]
        for at in itertools.product(*each):
            yield dict(zip(along, at, strict=True))

    # ---- expressions -------------------------------------------------------------------------------------------
    def name(self, name: str, point: Point) -> str:
        key = f"g:{name[2:]}" if name[:2] == "h:" else name
        return self.named[key].at(name, point) if key in self.named else name

    def put(self, e: Expr, point: Point) -> Expr:
        """The expression at a point of the folded axes."""

        def rule(n: Expr) -> Expr | None:
            match n:
                case Index(axis) if (at := point.get(axis)) is not None:
                    return Const(at)
                case Ref(name):
                    return Ref(self.name(name, point))
                case Load(tensor, index, kind) if tensor in self.named:
                    return Load(self.name(tensor, point), tuple(self.put(i, point) for i in index), kind)
                case Fold(monoid, axis, _, body) if axis in self.points and self.holds(body):
                    each = [self.put(body, {**point, axis: k}) for k in range(self.points[axis])]
                    return functools.reduce(functools.partial(apply, COMBINE[monoid]), each)
                case Fold(_, axis, _, body):
                    return rebuild(n, (self.put(body, {a: k for a, k in point.items() if a != axis}),))
            return None

        return rewrite(e, rule)

    def holds(self, body: Expr) -> bool:
        return _reads(body, frozenset(n for n in self.named if n[:2] != "g:"))

    def facts(self, facts: tuple[Fact, ...], point: Point) -> tuple[Fact, ...]:
        return tuple(self.fact(f, point) for f in facts)

    def fact(self, f: Fact, point: Point) -> Fact:
        source = self.name(f.source, point)
        for e in (f.low, f.high):
            if f.source == f"{ROW} {e}":
                source = f"{ROW} {self.put(e, point)}"
        return Fact(self.put(f.low, point), self.put(f.high, point), source)

    # ---- the whole ---------------------------------------------------------------------------------------------
    def cascade(self) -> Cascade:
        c = self.source
        stages = tuple(
            replace(
                s,
                name=self.name(s.name, p),
                body=self.put(s.body, p),
                payload=None if s.payload is None else self.put(s.payload, p),
            )
            for s in c.stages
            for p in self.of(self.named[s.name].along)
        )
        return Cascade(c.axis, c.extent, stages, tuple(self.put(o, {}) for o in c.outputs))

    def certificate(self) -> Certificate:
        cert = self.cert
        assert cert is not None
        slots = tuple(
            replace(
                s,
                name=self.name(s.name, p),
                body=self.put(s.body, p),
                gauges=tuple(self.name(f"g:{g}", p)[2:] for g in s.gauges),
                row=tuple((self.name(k, p), self.put(c, p)) for k, c in s.row),
                action=tuple((self.name(k, p), self.put(c, p)) for k, c in s.action),
                bound=tuple(tuple((self.put(k, p), self.fact(f, p)) for k, f in proof) for proof in s.bound),
            )
            for s in cert.slots
            for p in self.of(self.named[s.name].along)
        )
        gauges = tuple(
            replace(g, name=self.name(f"g:{g.name}", p)[2:], final=self.put(g.final, p), value=self.put(g.value, p))
            for g in cert.gauges
            for p in self.of(self.named[f"g:{g.name}"].along)
        )
        links = tuple(
            replace(
                k,
                stage=self.name(k.stage, p),
                value=self.put(k.value, p),
                given=self.facts(k.given, p),
                restore=tuple(self.name(f"g:{g}", q)[2:] for g in k.restore for q in self.filled(f"g:{g}", p)),
            )
            for k in cert.links
            for p in self.of(self.named[k.stage].along)
        )
        return Certificate(self.cascade(), slots, gauges, links, cert.order)

    def filled(self, name: str, point: Point) -> Iterator[Point]:
        """The point, with every value of the axes that it does not fix."""
        missing = [a for a in self.named[name].along if a not in point]
        for rest in self.of(missing):
            yield {**point, **rest}
