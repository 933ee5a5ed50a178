"""Where one of two tensors is read, by a condition on the place: a cache before the new keys, say.

Both could be loaded and one chosen; the blocks of both would wait in shared memory, and what is chosen would go through
registers to the tensor cores.  So the address is chosen: one load, which runs ahead of its trip like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from flashlight.backends.queries import NARROW, names_in
from flashlight.backends.uses import Definition, Uses
from flashlight.expr import apply
from flashlight.tile import Apply, CastOp, Const, Expr, Index, Kernel, Let, LoadOp, MapOp, Ref, Size

Form: TypeAlias = "dict[Index | Size | None, int]"


@dataclass(frozen=True)
class Either:
    """``first`` where ``condition`` holds, else ``second``: loads of blocks of the same dimensions, and ``dtype``.

    ``whole``: the indices of either lie inside, also where the other is chosen.
    """

    condition: Expr
    first: LoadOp
    second: LoadOp
    dtype: str
    whole: bool = True

    def widened(self, dtype: str) -> bool:
        """Does another dtype hold all that is loaded?  Then it stays narrow, as dots take it."""
        return self.dtype == dtype or (self.dtype in NARROW and dtype in ("float32", "float64"))


@dataclass(frozen=True)
class Eithers:
    """Those of a kernel by the ``id`` of the definition that chooses; ``gone``: the definitions printed with them;
    ``doubled``: the loads of which another one takes the place in memory."""

    found: dict[int, Either]
    gone: frozenset[int]
    doubled: frozenset[int]


def eithers(kernel: Kernel) -> Eithers:
    """Choices between two loads that nobody else reads, by coordinates alone."""
    uses = Uses(kernel)
    found: dict[int, Either] = {}
    gone: set[int] = set()
    doubled: set[int] = set()
    for x in uses.lets:
        match x.op:
            case MapOp(Apply("select", (condition, Ref(a), Ref(b)))) if a != b and _of_places(uses, x, condition):
                first, second = (_made_of(uses, x, uses.operand(x, n)) for n in (a, b))
                test = _test(uses, x, condition)
                if first and second and (one := _either(kernel, condition, test, first[-1].op, second[-1].op)):
                    found[id(x)] = one
                    gone |= {id(d) for d in (*first, *second)}
                    doubled.add(id(second[-1]))
    return Eithers(found, frozenset(gone), frozenset(doubled))


def _made_of(uses: Uses, x: Let, d: Definition) -> list[Let]:
    """A side of a choice and what it is made of, down to a load that is perhaps widened; [] for anything else."""
    out: list[Let] = []
    while isinstance(d, Let) and len(uses.uses(d)) == 1 and uses.depth[id(d)] == uses.depth[id(x)] and d.dims == x.dims:
        out.append(d)
        match d.op:
            case LoadOp():
                return out
            case CastOp(name) if d.dtype == x.dtype == "float32":
                d = uses.operand(d, name)
            case _:
                break
    return []


def _test(uses: Uses, x: Let, condition: Expr) -> Expr:
    """A condition that has a name, as it is computed."""
    if isinstance(condition, Ref) and isinstance(d := uses.operand(x, condition.name), Let) and isinstance(d.op, MapOp):
        return d.op.body
    return condition


def _either(kernel: Kernel, condition: Expr, test: Expr, a: object, b: object) -> Either | None:
    """Two loads that give the same dtype, and reach beyond their buffers at the same places.  ``test``: the condition,
    as it is computed."""
    if not (isinstance(a, LoadOp) and isinstance(b, LoadOp)):
        return None

    def ends(op: LoadOp) -> set[object]:
        at = zip(op.index, kernel.buffer(op.buffer).shape, strict=True)
        return {(e.axis, n) for e, n in at if isinstance(e, Index) and e.axis in op.guard}

    dtype = kernel.buffer(a.buffer).dtype
    same = dtype == kernel.buffer(b.buffer).dtype
    if not same or (a.guard, a.other, ends(a)) != (b.guard, b.other, ends(b)):
        return None
    if ends(a):
        return Either(condition, a, b, dtype)
    holds, fails = _facts(test)
    a, b = (replace(op, index=tuple(_unclamped(e, f) for e in op.index)) for op, f in ((a, holds), (b, fails)))
    return Either(condition, a, b, dtype, whole=False)


# ---- indices that are chosen only where they lie inside --------------------------------------------------------------
def _facts(test: Expr) -> tuple[Form | None, Form | None]:
    """What is at least 0 where a comparison holds, and where it fails."""
    match test:
        case Apply("lt" | "le" as op, (a, b)) if (gap := _form(apply("sub", b, a))) is not None:
            strict = int(op == "lt")
            return _plus(gap, {None: strict}, -1), _plus({None: strict - 1}, gap, -1)
    return None, None


def _unclamped(e: Expr, fact: Form | None) -> Expr:
    """An index without the bounds that a fact makes superfluous."""
    match e:
        case Apply("minimum", (x, bound)) if _holds(_form(apply("sub", bound, x)), fact):
            return x
        case Apply("maximum", (x, Const(0))) if _holds(_form(inner := _unclamped(x, fact)), fact):
            return inner
    return e


def _holds(form: Form | None, fact: Form | None) -> bool:
    """Is a form at least 0, coordinates and sizes being so?"""
    if form is None:
        return False
    known = [form] if fact is None else [form, _plus(form, fact, -1)]
    return any(all(c >= 0 for c in f.values()) for f in known)


def _form(e: Expr) -> Form | None:
    """An integer expression as coefficients of coordinates and sizes (None: the constant); None if it is not linear."""
    match e:
        case Const(int(value)):
            return {None: value}
        case Index() | Size():
            return {e: 1}
        case Apply("neg", (a,)):
            return None if (x := _form(a)) is None else _plus({}, x, -1)
        case Apply("add" | "sub" as op, (a, b)):
            x, y = _form(a), _form(b)
            return None if x is None or y is None else _plus(x, y, 1 if op == "add" else -1)
    return None


def _plus(x: Form, y: Form, sign: int) -> Form:
    return {n: x.get(n, 0) + sign * y.get(n, 0) for n in x.keys() | y.keys()}


def _of_places(uses: Uses, x: Let, e: Expr) -> bool:
    """Is a condition made of coordinates?  (One that a dot makes would hold its load back.)"""
    for name in names_in(e):
        d = uses.operand(x, name)
        if not (isinstance(d, Let) and isinstance(d.op, MapOp) and _of_places(uses, d, d.op.body)):
            return False
    return True
