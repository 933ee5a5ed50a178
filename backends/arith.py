"""Cheaper arithmetic for GPUs: a pass from tile programs to tile programs.

Exponentials become powers of two whose argument is one fused multiply-add an element: where an element's value is
``scale * base + shift`` with a literal scale and a shift that is the same for a whole row, log2(e) is folded into the
scale and what is the same for a row is computed once a row.  A maximum of such values is taken of ``base`` and then
scaled and shifted, which gives the same number: rounding is monotone.  What nothing reads any more is dropped.

Nothing here changes what was proved; values change by no more than rounding.  A large shift makes the rounding of
``base`` matter (by 2**-24 of the shift), and compilers choose anew at every place which of a product and a sum they
round.  So only kernels that have a 16-bit result are treated so.  In others exponentials are of the differences as the
program has them, times log2(e).

The coordinate of a streamed axis is split where that saves work: ``Index("j.start")`` is the first coordinate of the
trip, a scalar, and ``Index("j.lane")`` the distance from it, so ``j == j.start + j.lane``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flashlight.backends.queries import COMPARE, NARROW, reads, signed
from flashlight.tile import (
    Apply,
    CastOp,
    Const,
    DotOp,
    Expr,
    Index,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Ref,
    Size,
    Stmt,
    Store,
    kind,
    walk,
)

LOG2E = 1.4426950408889634
LARGEST = (2 - 2**-23) * 2.0**127  # of float32
HUGE = 1e37  # what lies beyond it may overflow when it is scaled
FAR = 1024.0  # a literal shift beyond it would cost an exponent more than 2**-14, which shows in 16 bits
START, LANE = ".start", ".lane"
FLIP = {"max": "min", "min": "max"}


def cheap(kernel: Kernel) -> Kernel:
    """The kernel with its float32 exponentials as powers of two; tanh and sigmoid too if it is :func:`rough`."""
    return replace(kernel, body=_kept(_Pass(kernel).body(kernel.body)))


def rough(kernel: Kernel) -> bool:
    """Are all real inputs, or all real results, 16-bit?  (Then errors of 1e-7 are far below those of rounding.)"""
    reals = ("float64", "float32", *NARROW)
    groups = [[b.dtype for b in g if b.dtype in reals] for g in (kernel.inputs, kernel.outputs)]
    wide = any(d == "float64" for g in groups for d in g)
    return not wide and any(g and all(d in NARROW for d in g) for g in groups)


def narrow(kernel: Kernel) -> bool:
    """Is some real result 16-bit, and nothing float64?"""
    dtypes = [b.dtype for b in (*kernel.inputs, *kernel.outputs)]
    return "float64" not in dtypes and any(b.dtype in NARROW for b in kernel.outputs)


@dataclass(frozen=True)
class Form:
    """``scale * base + shift``, where ``shift`` does not vary along the axes asked for (None: 0)."""

    scale: float
    base: Expr
    shift: Expr | None = None

    @property
    def plain(self) -> bool:
        return self.scale == 1 and self.shift is None

    @property
    def scaled(self) -> Expr:
        return _times(self.base, self.scale)


class _Pass:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.rough, self.narrow = rough(kernel), narrow(kernel)
        self.dims = {d.axis: d for d in kernel.dims}
        self.lets: dict[str, Let] = {}
        self.states: dict[str, tuple[str, ...]] = {}
        self.taken = _defined(kernel.body)
        self.made: list[dict[tuple[Expr, tuple[str, ...]], str]] = [{}]  # what has a name, by scope
        self.given: dict[tuple[Expr, tuple[str, ...]], str] = {}  # the same names in every scope
        self.out: list[Stmt] = []

    # ---- statements ----------------------------------------------------------------------------------------------
    def body(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        outside, self.out = self.out, []
        for s in body:
            match s:
                case Let():
                    s = self.lets[s.name] = self.let(s)
                case Loop(_, carries, segments):
                    self.states |= {c.name: c.dims for c in carries}
                    bodies = {g.body: self.segment(g.body) for g in segments}  # the same one stays the same
                    s = replace(s, segments=tuple(replace(g, body=bodies[g.body]) for g in segments))
            self.out.append(s)
        done, self.out = self.out, outside
        return tuple(done)

    def segment(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        before = dict(self.lets)
        self.made.append({})
        done = self.body(body)
        self.made.pop()
        self.lets = before
        return done

    def let(self, s: Let) -> Let:
        match s.op:
            case ReduceOp("max" | "min" as monoid, name, axis) if (
                self.narrow and s.dtype == "float32" and name in self.lets
            ):
                form = self.form(Ref(name), frozenset((axis,)))
                if form.plain or axis not in self.varies(form.base):
                    return s
                base = self.named(form.base, self.lets[name].dims, f"{name}_base")
                raw = self.fresh(f"{s.name}_raw")
                op = ReduceOp(monoid if form.scale > 0 else FLIP[monoid], base, axis)
                self.out.append(Let(raw, s.dims, s.dtype, op, s.note))
                return replace(s, op=MapOp(_plus(_times(Ref(raw), form.scale), form.shift)), note="")
            case MapOp(e) if s.dtype in ("float32", "bool"):
                return replace(s, op=MapOp(self.rewritten(e, {})))
        return s

    # ---- bodies --------------------------------------------------------------------------------------------------
    def rewritten(self, e: Expr, memo: dict[Expr, Expr]) -> Expr:
        """A body with its exponentials as powers of two."""
        if not isinstance(e, Apply):
            return e
        if e not in memo:
            match e:
                case Apply("exp", (x,)):
                    memo[e] = self.power(x, 1.0)
                case Apply("sigmoid", (x,)) if self.rough:
                    memo[e] = _reciprocal(self.power(x, -1.0))
                case Apply("tanh", (x,)) if self.rough:
                    memo[e] = Apply("sub", (Const(1.0), _times(_reciprocal(self.power(x, 2.0)), 2.0)))
                case Apply(op, args) if op in COMPARE:
                    memo[e] = Apply(op, tuple(self.rewritten(self.summed(a), memo) for a in args))
                case Apply(op, args):
                    memo[e] = Apply(op, tuple(self.rewritten(a, memo) for a in args))
        return memo[e]

    def summed(self, e: Expr) -> Expr:
        """A side of a comparison with sums of coordinates in it, not by name: what they have in common shows
        (queries.between)."""
        if isinstance(e, Ref) and e.name in self.lets and isinstance(op := self.lets[e.name].op, MapOp):
            terms = [t for t, _ in signed(op.body)]
            if kind(op.body) == "int" and all(isinstance(t, Index | Const | Size) for t in terms):
                return op.body
        return e

    def power(self, e: Expr, factor: float) -> Expr:
        """``exp(factor * e)`` as a power of two."""
        if not self.narrow:
            return Apply("exp2", (_times(self.rewritten(e, {}), factor * LOG2E),))
        form = self.form(e, self.across(e))
        base, scale = self.rewritten(form.base, {}), form.scale * factor
        if form.shift is None:
            return Apply("exp2", (_times(base, scale * LOG2E),))
        row = tuple(a for a in self.dims if a in self.varies(form.shift))
        low = _times(self.rewritten(form.shift, {}), -factor)
        if abs(scale) * LOG2E <= 1 or not self.unbounded(form.base):
            low = self.row(_times(low, LOG2E), row, "low")
            return Apply("exp2", (Apply("sub", (_times(base, scale * LOG2E), low)),))
        # In a row of fills like -3e38 the product would overflow.  There, exp only says which elements equal the
        # shift, and so does a power of two.
        low = self.row(low, row, "low_e")
        far = Apply("gt", (Apply("abs", (low,)), Const(HUGE)))
        unit = self.row(Apply("select", (far, Const(1.0), Const(LOG2E))), row, "unit")
        steep = self.row(_times(unit, scale), row, "steep")
        low = self.row(Apply("mul", (low, unit)), row, "low")
        return Apply("exp2", (Apply("sub", (Apply("mul", (base, steep)), low)),))

    def across(self, e: Expr) -> frozenset[str]:
        """The axes that tell elements from rows: those that the smallest term of a sum lacks."""
        own = self.varies(e)
        terms = [t for t in map(self.varies, _terms(e)) if t < own]
        return own - min(terms, key=len) if terms else own

    def row(self, e: Expr, dims: tuple[str, ...], stem: str) -> Expr:
        return e if isinstance(e, Const) else Ref(self.named(e, dims, stem))

    def named(self, e: Expr, dims: tuple[str, ...], stem: str) -> str:
        """The name of a block that holds an expression's value, defined here if it is not yet."""
        if isinstance(e, Ref):
            return e.name
        for known in reversed(self.made):
            if (e, dims) in known:
                return known[e, dims]
        name = self.given.get((e, dims)) or self.fresh(stem)
        self.given[e, dims] = self.made[-1][e, dims] = name
        self.lets[name] = Let(name, dims, "float32", MapOp(e))
        self.out.append(self.lets[name])
        return name

    def fresh(self, stem: str) -> str:
        name, k = stem, 1
        while name in self.taken:
            name, k = f"{stem}_{k}", k + 1
        self.taken.add(name)
        return name

    # ---- what is known of values ---------------------------------------------------------------------------------
    def varies(self, e: Expr) -> frozenset[str]:
        """The block dimensions an expression varies along."""
        out: set[str] = set()
        for n in walk(e):
            match n:
                case Ref(name):
                    out.update(self.lets[name].dims if name in self.lets else self.states.get(name, ()))
                case Index(axis) if not axis.endswith(START):
                    out.add(axis.removesuffix(LANE))
        return frozenset(a for a in self.dims if a in out)

    def unbounded(self, e: Expr) -> bool:
        """May elements be finite and near float32's largest number?  (Products of a dot are not.)"""
        for n in walk(e):
            match n:
                case Const(float(value)) if HUGE < abs(value) < math.inf:
                    return True
                case Ref(name) if name in self.states:
                    return True
                case Ref(name) if name in self.lets:
                    match self.lets[name].op:
                        case MapOp(body) if self.unbounded(body):
                            return True
                        case CastOp(source) | ReduceOp(_, source, _) if self.unbounded(Ref(source)):
                            return True
                        case LoadOp(buffer) if self.kernel.buffer(buffer).dtype in ("float32", "bfloat16"):
                            return True
                        case DotOp(_, _, _, acc) if acc is not None and self.unbounded(Ref(acc)):
                            return True
        return False

    def form(self, e: Expr, axes: frozenset[str]) -> Form:
        """An expression as a scaled and shifted one; the shift does not vary along ``axes``.

        A large literal stays where it is: in ``(keep - 1) * 1e9 + score`` it cancels before the score is added.
        """
        form = self.apart(e, axes)
        far = isinstance(form.shift, Const) and abs(form.shift.value) > FAR
        return Form(1.0, e) if far else form

    def apart(self, e: Expr, axes: frozenset[str]) -> Form:
        """:meth:`form`, however large the shift."""
        match e:
            case Ref(name) if name in self.lets:
                s = self.lets[name]
                if isinstance(s.op, MapOp) and s.dtype == "float32" and self.varies(e) & axes:
                    form = self.form(s.op.body, axes)
                    if not form.plain:
                        return replace(form, base=Ref(self.named(form.base, s.dims, f"{name}_base")))
            case Apply("mul", (x, Const(float(c))) | (Const(float(c)), x)) if _usable(c):
                return _multiplied(self.form(x, axes), c)
            case Apply("div", (x, Const(float(c)))) if _usable(c) and _usable(1 / c):
                return _multiplied(self.form(x, axes), 1 / c)
            case Apply("neg", (x,)):
                return _multiplied(self.form(x, axes), -1.0)
            case Apply("add" | "sub" as op, (x, y)):
                return self.sum(e, x, y, 1.0 if op == "add" else -1.0, axes)
            case Apply("mul", (x, y)) if not (self.varies(x) & axes and self.varies(y) & axes):
                x, y = (x, y) if self.varies(y) & axes else (y, x)
                form = self.form(y, axes)
                if form.shift is not None and self.varies(form.base) < self.varies(e):
                    return Form(1.0, Apply("mul", (x, form.scaled)), Apply("mul", (x, form.shift)))
            case Apply("select", (c, x, Const(k)) | (c, Const(k), x) as args):
                form = self.form(x, axes)
                fill = _filled(float(k), form)
                if fill is not None and not form.plain:
                    yes, no = (form.base, Const(fill)) if args[1] is x else (Const(fill), form.base)
                    return replace(form, base=Apply("select", (c, yes, no)))
            case Apply("real", (x,)) if kind(x) == "int":
                return self.distance(e, x, axes)
        return Form(1.0, e)

    def sum(self, e: Expr, x: Expr, y: Expr, sign: float, axes: frozenset[str]) -> Form:
        """``x + sign * y``."""
        if not self.varies(y) & axes:
            form = self.form(x, axes)
            return replace(form, shift=_plus(form.shift, _times(y, sign)))
        right = _multiplied(self.form(y, axes), sign)
        if not self.varies(x) & axes:
            return replace(right, shift=_plus(x, right.shift))
        left = self.form(x, axes)
        if left.shift is None and right.shift is None:
            return Form(1.0, e)
        shift = right.shift if left.shift is None else _plus(left.shift, right.shift)
        return Form(1.0, _plus(left.scaled, right.scaled), shift)

    def distance(self, e: Expr, x: Expr, axes: frozenset[str]) -> Form:
        """A sum of coordinates made real: those along ``axes`` (from the trip's start on) apart from the rest."""
        near: Expr | None = None
        far: Expr | None = None
        for term, sign in signed(x):
            match term:
                case Index(axis) if axis in axes and self.dims[axis].role == "stream":
                    near = _integral(near, Index(axis + LANE), sign)
                    far = _integral(far, Index(axis + START), sign)
                case _ if self.varies(term) & axes:
                    near = _integral(near, term, sign)
                case _:
                    far = _integral(far, term, sign)
        if near is None or far is None:
            return Form(1.0, e)
        return Form(1.0, Apply("real", (near,)), Apply("real", (far,)))


# ---- small expressions -----------------------------------------------------------------------------------------------
def _usable(c: float) -> bool:
    return c != 0 and math.isfinite(c)


def _times(e: Expr, c: float) -> Expr:
    match e:
        case Const(value):
            return Const(float(value * c))
        case _ if c == 1:
            return e
        case Apply("neg", (x,)):
            return _times(x, -c)
        case _ if c == -1:
            return Apply("neg", (e,))
        case Apply("mul", (x, Const(float(k)))):
            return _times(x, k * c)
    return Apply("mul", (e, Const(c)))


def _plus(a: Expr | None, b: Expr | None) -> Expr:
    match a, b:
        case (None, x) | (x, None) if x is not None:
            return x
        case Const(x), Const(y):
            return Const(float(x + y))
        case x, Apply("neg", (y,)) if x is not None:
            return Apply("sub", (x, y))
        case x, y if x is not None and y is not None:
            return Apply("add", (x, y))
    raise AssertionError("a sum of nothing")


def _multiplied(f: Form, c: float) -> Form:
    return Form(f.scale * c, f.base, None if f.shift is None else _times(f.shift, c))


def _filled(k: float, f: Form) -> float | None:
    """What ``base`` must be so that ``scale * base + shift`` is exactly ``k``; None if no float32 is that."""
    if math.isinf(k):
        return math.copysign(math.inf, k * f.scale)
    fill = k / f.scale
    return fill if f.shift is None and abs(fill) <= LARGEST and math.frexp(f.scale)[0] in (0.5, -0.5) else None


def _reciprocal(power: Expr) -> Expr:
    return Apply("div", (Const(1.0), Apply("add", (Const(1.0), power))))


def _integral(a: Expr | None, term: Expr, sign: int) -> Expr:
    if a is None:
        return term if sign > 0 else Apply("neg", (term,))
    return Apply("add" if sign > 0 else "sub", (a, term))


def _terms(e: Expr) -> list[Expr]:
    match e:
        case Apply("mul", (x, Const())) | Apply("mul", (Const(), x)) | Apply("div", (x, Const())):
            return _terms(x)
    return [t for t, _ in signed(e)]


# ---- what is read ----------------------------------------------------------------------------------------------------
def _defined(body: Iterable[Stmt]) -> set[str]:
    """Every name that is defined, in loops too."""
    out: set[str] = set()
    for s in body:
        match s:
            case Let(name):
                out.add(name)
            case Loop(_, carries, segments):
                out |= {n for c in carries for n in (c.name, c.next)}.union(*(_defined(g.body) for g in segments))
    return out


def _kept(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    """The body without definitions that no store depends on.  States of a loop are kept."""
    return _alive(body, frozenset())[0]


def _alive(body: tuple[Stmt, ...], after: frozenset[str]) -> tuple[tuple[Stmt, ...], frozenset[str]]:
    kept: list[Stmt] = []
    live = set(after)
    for s in reversed(body):
        match s:
            case Loop(_, carries, segments):
                live -= {c.name for c in carries}
                done = [_alive(g.body, frozenset(c.next for c in carries)) for g in segments]
                live |= set().union(*(before for _, before in done)) - {c.name for c in carries}
                s = replace(s, segments=tuple(replace(g, body=b) for g, (b, _) in zip(segments, done, strict=True)))
            case Let(name) if name not in live:
                continue
            case Let() | Store():
                live -= {s.name} if isinstance(s, Let) else set()
                live.update(reads(s))
        kept.append(s)
    return tuple(reversed(kept)), frozenset(live)
