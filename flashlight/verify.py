"""What is legal at each level, as code; run between the stages of every compilation."""

from __future__ import annotations

from dataclasses import dataclass

from flashlight.classes import Claim
from flashlight.errors import IllegalFusion, InternalError, NotAffine
from flashlight.expr import Expr, axes, loads, refs
from flashlight.lower import Lowered
from flashlight.polyhedral import tiles
from flashlight.polyhedral.predicates import solution
from flashlight.program import MONOIDS, Program
from flashlight.tile import Carry, CastOp, DotOp, Kernel, Let, LoadOp, Loop, MapOp, ReduceOp, ScanOp, Stmt, Store


@dataclass(frozen=True)
class Obligation:
    """Something that was demanded of the outcome, and holds (a failure raises); ``tree``: the schedule it is about."""

    claim: str
    evidence: str
    tree: str = ""

    def __str__(self) -> str:
        return f"Proved ({self.evidence})"


def verify_program(program: Program) -> Program:
    """Names are unique and defined before use, indices have the tensor's rank, bodies use their own axes only.

    Raises InternalError naming the statement.
    """
    ranks = {t.name: len(t.shape) for t in program.inputs}
    for s in program.statements:
        own = [a.name for a in (*s.axes, *s.reduced)]
        if s.name in ranks:
            raise InternalError(f"statement {s.name} is defined twice")
        if len(set(own)) != len(own):
            raise InternalError(f"statement {s.name} names an axis twice: {own}")
        if (s.monoid is None) != (not s.reduced) or s.monoid not in (None, *MONOIDS):
            raise InternalError(f"statement {s.name}: monoid {s.monoid} with reduced axes {s.reduced}")
        if extra := axes(s.body) - set(own):
            raise InternalError(f"statement {s.name} uses axes that are not its own: {sorted(extra)}")
        for x in loads(s.body):
            if x.tensor not in ranks:
                raise InternalError(f"statement {s.name} reads {x.tensor}, which is not defined before it")
            if len(x.index) != ranks[x.tensor]:
                raise InternalError(f"statement {s.name}: {x} does not have the rank of {x.tensor}, {ranks[x.tensor]}")
        ranks[s.name] = len(s.axes)
    for name in program.outputs:
        if name not in ranks:
            raise InternalError(f"output {name} is not defined")
    return program


def verify_lowered(lowered: Lowered) -> tuple[Obligation, ...]:
    """The kernel is well formed, and every sweep visits the points asked for: all live ones, and in full tiles no dead
    one.  Raises InternalError or IllegalFusion with a witness point."""
    nest, kernel = lowered.nest, lowered.kernel
    verify_kernel(kernel)
    if nest.stream is None:
        return ()
    rows = tuple((a, kernel.dim(a.name).block) for a in nest.grid if a.name in nest.blocked)
    batch = tuple(a for a in nest.grid if a.name not in nest.blocked)
    block = kernel.dim(nest.stream.name).block
    out: list[Obligation] = []
    for sweep in lowered.sweeps:
        about = f"{nest.name}, {sweep.label}"
        if sweep.found is not None:
            out += [_never(about, c) for c in sweep.found.claims]
            continue
        witness = tiles.check(sweep.classes, sweep.live, nest.stream, block, rows, batch)
        if witness is not None:
            raise IllegalFusion(f"{about}: the loop does not visit the domain asked for", witness)
        claim = f"{nest.name} {sweep.label}: the tiles visited are the live ones of {nest.stream}"
        out.append(Obligation(claim, f"isl, live where {sweep.live}"))
    return tuple(out)


def _never(about: str, claim: Claim) -> Obligation:
    """A condition on loaded values between their ends has no solution."""
    try:
        witness = solution(claim.never)
    except NotAffine as why:
        return Obligation(f"{about}: {claim.text}", f"interval arithmetic alone: {why}")
    if witness is not None:
        raise IllegalFusion(f"{about}: it is not true that {claim.text}", witness)
    return Obligation(f"{about}: {claim.text}", "isl, whatever is loaded")


def verify_kernel(kernel: Kernel) -> None:
    """Every name is defined before use with the dims its users need.  Raises InternalError."""
    known: dict[str, tuple[str, ...]] = {}
    names = {b.name for b in (*kernel.inputs, *kernel.outputs)}
    dims = {d.axis for d in kernel.dims}

    def fail(what: str) -> None:
        raise InternalError(f"kernel {kernel.name}: {what}")

    def used(e: Expr) -> set[str]:
        out = {n for n in axes(e) if n in dims}
        for r in refs(e):
            if r not in known:
                fail(f"{r} is used before it is defined")
            out |= set(known[r])
        return out

    def block(body: tuple[Stmt, ...]) -> None:
        for s in body:
            match s:
                case Let(name, own, _, op):
                    if name in known:
                        fail(f"{name} is defined twice")
                    match op:
                        case MapOp(e):
                            if not used(e) <= set(own):
                                fail(f"{name}[{own}] = {e} varies along {sorted(used(e))}")
                        case LoadOp(buffer, index):
                            if buffer not in names or set().union(*map(used, index)) != set(own):
                                fail(f"{s} does not match its dims")
                        case DotOp(left, right, contract, acc):
                            a, b = (set(known[n]) if n in known else set() for n in (left, right))
                            if contract not in a & b or (a | b) - {contract} != set(own):
                                fail(f"{s} is no dot of {a} and {b}")
                            if acc is not None and known.get(acc) != own:
                                fail(f"{s}: accumulator {acc} has dims {known.get(acc)}")
                        case ReduceOp(_, value, axis):
                            if (
                                value not in known
                                or tuple(d for d in known[value] if d != axis) != own
                                or axis not in known[value]
                            ):
                                fail(f"{s} does not reduce {known.get(value)}")
                        case ScanOp(value, axis):
                            if known.get(value) != own or axis not in own:
                                fail(f"{s} does not run along {known.get(value)}")
                        case CastOp(value):
                            if known.get(value) != own:
                                fail(f"{s} changes dims {known.get(value)}")
                    known[name] = own
                case Store(buffer, index, value):
                    if value not in known or buffer not in names:
                        fail(f"{s} stores what is not defined")
                    if not set(known[value]) <= set().union(*map(used, index)):
                        fail(f"{s}: {value} varies along {known[value]}, the index does not")
                case Loop(_, carries, segments):
                    for c in carries:
                        known[c.name] = c.dims
                    before = dict(known)
                    for g in segments:
                        for x in (x for e in g.places for x in loads(e)):
                            if x.tensor not in names:
                                fail(f"{x} says which blocks a loop takes, and is no buffer")
                        block(g.body)
                        carried(carries)
                        known.clear()
                        known.update(before)

    def carried(carries: tuple[Carry, ...]) -> None:
        for c in carries:
            if known.get(c.next) != c.dims:
                fail(f"state {c.name}[{c.dims}] is given {c.next}[{known.get(c.next)}]")

    block(kernel.body)
