"""Where one of two tensors is read, by a condition on the place: a cache before the new keys, say.

Both could be loaded and one chosen; the blocks of both would wait in shared memory, and what is chosen would go through
registers to the tensor cores.  So the address is chosen: one load, which runs ahead of its trip like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashlight.backends.queries import NARROW, names_in
from flashlight.backends.uses import Definition, Uses
from flashlight.tile import Apply, CastOp, Expr, Index, Kernel, Let, LoadOp, MapOp, Ref


@dataclass(frozen=True)
class Either:
    """``first`` where ``condition`` holds, else ``second``: loads of blocks of the same dimensions, and ``dtype``."""

    condition: Expr
    first: LoadOp
    second: LoadOp
    dtype: str

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
                if first and second and (one := _either(kernel, condition, first[-1].op, second[-1].op)):
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


def _either(kernel: Kernel, condition: Expr, a: object, b: object) -> Either | None:
    """Two loads that give the same dtype, and reach beyond their buffers at the same places."""
    if not (isinstance(a, LoadOp) and isinstance(b, LoadOp)):
        return None

    def ends(op: LoadOp) -> set[object]:
        at = zip(op.index, kernel.buffer(op.buffer).shape, strict=True)
        return {(e.axis, n) for e, n in at if isinstance(e, Index) and e.axis in op.guard}

    dtype = kernel.buffer(a.buffer).dtype
    same = dtype == kernel.buffer(b.buffer).dtype
    alike = same and (a.guard, a.other, ends(a)) == (b.guard, b.other, ends(b))
    return Either(condition, a, b, dtype) if alike else None


def _of_places(uses: Uses, x: Let, e: Expr) -> bool:
    """Is a condition made of coordinates?  (One that a dot makes would hold its load back.)"""
    for name in names_in(e):
        d = uses.operand(x, name)
        if not (isinstance(d, Let) and isinstance(d.op, MapOp) and _of_places(uses, d, d.op.body)):
            return False
    return True
