"""Programs in the form that the planner expects: reductions of one unbounded axis, and none across a seam.

A *seam* is where a body changes along a reduced axis: ``A(j) where j < n else B(j - n)``, which is what a concatenation
leaves behind, or ``A(max(j - 1, 0)) where 0 < j else 0``, which padding does.  A reduction is split there,
``sum{l<n+1} f = sum{j<n} f(j) + f(n)``, so that a sink column or a null key is no part of what streams.  Two parts of
any length (a cache, and the new keys behind it) stay one axis, which streams as it is: each would have its own passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flashlight import index
from flashlight.expr import (
    COMBINE,
    PLACED,
    Apply,
    Const,
    Expr,
    Index,
    Load,
    apply,
    axes,
    children,
    conjuncts,
    kind,
    loads,
    rebuild,
    rewrite,
    substitute,
    walk,
)
from flashlight.finish import finished
from flashlight.growth import STREAM_FROM, unbounded
from flashlight.program import Axis, Program, Statement


def normal(program: Program) -> Program:
    """The program in normal form; its outputs, and what they mean, stay."""
    return _pruned(finished(_split_wide(_Seams(program).run())))


# ---- seams -----------------------------------------------------------------------------------------------------------
class _Seams:
    """Splits the reductions of one program; ``table`` holds the statements as they are by now."""

    def __init__(self, program: Program):
        self.program = program
        self.table: dict[str, Statement] = {}
        self.taken = {s.name for s in program.statements} | {t.name for t in program.inputs} | set(program.sizes)
        self.taken |= {a.name for s in program.statements for a in (*s.axes, *s.reduced)}
        self.restricted: dict[tuple[str, int, Expr, Expr], str] = {}

    def run(self) -> Program:
        for s in self.program.statements:
            if self.choices(s):
                s = replace(s, body=decided(self.inlined(s.body), (*s.axes, *s.reduced)))
                for part in self.parts(s):
                    self.table[part.name] = part
            else:
                self.table[s.name] = s
        return replace(self.program, statements=tuple(self.table.values()))

    def fresh(self, stem: str) -> str:
        name = next(n for k in range(1, 10000) if (n := f"{stem}{k}") not in self.taken)
        self.taken.add(name)
        return name

    def inlined(self, e: Expr) -> Expr:
        """The body with every definition that is no reduction put in its place."""

        def rule(n: Expr) -> Expr | None:
            if not isinstance(n, Load) or (s := self.table.get(n.tensor)) is None or s.monoid is not None:
                return None
            at: dict[Expr, Expr] = {Index(a.name): self.inlined(i) for a, i in zip(s.axes, n.index, strict=True)}
            return self.inlined(substitute(s.body, at))

        return rewrite(e, rule)

    def choices(self, s: Statement) -> bool:
        """Whether the statement, or one that it reads, chooses what it reads by an index comparison."""
        seen: set[str] = set()
        stack = [s]
        while stack:
            for n in walk(stack.pop().body):
                if _ends(n):
                    return True
                if isinstance(n, Load) and n.tensor not in seen and n.tensor in self.table:
                    seen.add(n.tensor)
                    stack.append(self.table[n.tensor])
        return False

    def parts(self, s: Statement) -> Iterator[Statement]:
        """The statements that a reduction becomes when it is split at its seams; the last one has its name."""
        for a in () if s.monoid in PLACED or s.place else s.reduced:  # places in two parts are no places in the whole
            at = next((c for c in self.seams(s.body, a) if c not in (Const(0), a.extent)), None)
            if at is None:
                continue
            pieces: list[Expr] = []
            for start, length in ((Const(0), at), (at, index.sub(a.extent, at))):
                name, piece = self.fresh(f"{s.name}_"), Axis(self.fresh(a.name), length)
                here: Expr = start if length is Const(1) else index.add(Index(piece.name), start)
                rest = tuple(x for x in s.reduced if x is not a)
                reduced = rest if length is Const(1) else tuple(piece if x is a else x for x in s.reduced)
                body = decided(substitute(s.body, {Index(a.name): here}), (*s.axes, *reduced))
                body = self.within(body, here, start, piece)
                part = replace(s, name=name, body=body, reduced=reduced, monoid=s.monoid if reduced else None)
                yield from self.parts(part)
                pieces.append(Load(name, tuple(Index(x.name) for x in s.axes)))
            yield replace(s, body=apply(COMBINE[s.monoid or "sum"], *pieces), monoid=None, reduced=())
            return
        yield s

    def seams(self, body: Expr, axis: Axis) -> Iterator[Expr]:
        """Where along ``axis`` the body changes, in it or in a reduction that it reads along that axis: ``c`` for a
        choice by ``axis < c``, c being a small number, or that many before the end."""
        me = (Index(axis.name),)
        for n in walk(body):
            for test in _ends(n):
                low, high = test.args
                p = _minus(index.polynomial(low), index.polynomial(high), False)
                if test.op == "lt":
                    p[()] = p.get((), 0) + 1
                c = p.pop(me, 0)
                rest = index.expression({m: k for m, k in p.items() if k})
                if abs(c) == 1 and not axes(rest):
                    # a + rest <= 0 holds before 1 - rest; -a + rest <= 0 holds from rest on
                    at = index.sub(Const(1), rest) if c > 0 else rest
                    sides = (at, index.sub(axis.extent, at))
                    if any(isinstance(e, Const) and e.value <= STREAM_FROM for e in sides):
                        yield at
            if isinstance(n, Load) and (d := self.table.get(n.tensor)) is not None:
                for own, i in zip(d.axes, n.index, strict=True):
                    if i is Index(axis.name):
                        yield from self.seams(self.inlined(d.body), own)

    def within(self, body: Expr, here: Expr, start: Expr, piece: Axis) -> Expr:
        """The body reading, where it reads a reduction at ``here``, that reduction's own part of it."""

        def rule(n: Expr) -> Expr | None:
            if not isinstance(n, Load) or (d := self.table.get(n.tensor)) is None:
                return None
            for k, (own, i) in enumerate(zip(d.axes, n.index, strict=True)):
                if i is here and next(self.seams(self.inlined(d.body), own), None) is not None:
                    name = self.restriction(d, k, start, piece.extent)
                    at = Const(0) if piece.extent is Const(1) else Index(piece.name)
                    return Load(name, tuple(at if j == k else x for j, x in enumerate(n.index)), n.kind)
            return None

        return rewrite(body, rule)

    def restriction(self, d: Statement, k: int, start: Expr, length: Expr) -> str:
        """The statement ``d`` on ``start <= axis k < start + length`` only."""
        key = (d.name, k, start, length)
        if key not in self.restricted:
            own = Axis(self.fresh(d.axes[k].name), length)
            here = index.add(start, Const(0) if length is Const(1) else Index(own.name))
            body = substitute(self.inlined(d.body), {Index(d.axes[k].name): here})
            dims = tuple(own if j == k else a for j, a in enumerate(d.axes))
            body = self.within(decided(body, (*dims, *d.reduced)), here, start, own)
            self.restricted[key] = self.fresh(f"{d.name}_")
            for part in self.parts(replace(d, name=self.restricted[key], axes=dims, body=body)):
                self.table[part.name] = part
        return self.restricted[key]


def _ends(e: Expr) -> tuple[Apply, ...]:
    """The index comparisons by which a choice says what is read: one of two values, or one that ends there and is a
    number beyond (padding, whose loads are kept inside by a minimum or maximum along the axis; a mask has none)."""
    if not isinstance(e, Apply) or e.op != "select":
        return ()
    condition, *values = e.args
    tests = [condition]
    if any(isinstance(v, Const) for v in values):
        tests = conjuncts(condition) if any(_kept_inside(x) for v in values for x in loads(v)) else []
    return tuple(t for t in tests if isinstance(t, Apply) and t.op in ("lt", "le") and axes(t) and not loads(t))


def _kept_inside(x: Load) -> bool:
    """Is an index held between bounds along one axis?"""
    bounds = (n for i in x.index for n in walk(i) if isinstance(n, Apply) and n.op in ("minimum", "maximum"))
    return any(len(axes(n)) == 1 for n in bounds)


def decided(e: Expr, own: tuple[Axis, ...]) -> Expr:
    """The expression with every comparison, minimum and maximum of indices that their ranges decide, decided."""
    extents = {a.name: a.extent for a in own}
    memo: dict[Expr, Expr] = {}

    def positive(a: Expr, b: Expr, strict: bool) -> bool:
        return index.nonnegative(_minus(index.polynomial(a), index.polynomial(b), strict), extents.get)

    def answer(n: Expr) -> Expr:
        match n:
            case Apply("lt", (Index(a), b)) if extents.get(a) is b:
                return Const(True)
            case Apply("le", (b, Index(a))) if extents.get(a) is b:
                return Const(False)
            case Apply("lt" | "le" as op, (a, b)) if not loads(n):
                if positive(b, a, op == "lt"):
                    return Const(True)
                return Const(False) if positive(a, b, op == "le") else n
            case Apply("maximum" | "minimum" as op, (a, b)) if kind(n) == "int" and not loads(n):
                high, low = (a, b) if positive(a, b, False) else (b, a) if positive(b, a, False) else (n, n)
                chosen = high if op == "maximum" else low
                return chosen if chosen is n else index.expression(index.polynomial(chosen))
        return n

    def go(n: Expr) -> Expr:
        if n not in memo:
            parts = children(n)
            new = tuple(map(go, parts))
            memo[n] = answer(n if all(a is b for a, b in zip(new, parts, strict=True)) else rebuild(n, new))
        return memo[n]

    return go(e)


def _minus(a: index.Polynomial, b: index.Polynomial, strict: bool) -> index.Polynomial:
    out = dict(a)
    for m, c in b.items():
        out[m] = out.get(m, 0) - c
    if strict:
        out[()] = out.get((), 0) - 1
    return {m: c for m, c in out.items() if c}


# ---- wide reductions -------------------------------------------------------------------------------------------------
def _split_wide(program: Program) -> Program:
    """A reduction of several unbounded axes becomes a chain (Fubini): ``sum{i,j} f`` = ``sum{i} sum{j} f``."""
    out: list[Statement] = []
    for s in program.statements:
        wide = [a for a in s.reduced if unbounded(a)]
        while len(wide) > 1:
            last = wide.pop()
            rest = tuple(a for a in s.reduced if a is not last and unbounded(a))
            inner = tuple(a for a in s.reduced if a not in rest)
            part = replace(s, name=f"{s.name}_{last.name}", axes=(*s.axes, *rest), reduced=inner)
            out.append(part)
            s = replace(s, reduced=rest, body=Load(part.name, tuple(Index(a.name) for a in part.axes)))
        out.append(s)
    return replace(program, statements=tuple(out))


def _pruned(program: Program) -> Program:
    """Without statements that nothing reads any more."""
    table = {s.name: s for s in program.statements}
    needed: set[str] = set()
    stack = list(program.outputs)
    while stack:
        name = stack.pop()
        if name in table and name not in needed:
            needed.add(name)
            stack += [x.tensor for x in loads(table[name].body)]
    return replace(program, statements=tuple(s for s in program.statements if s.name in needed))
