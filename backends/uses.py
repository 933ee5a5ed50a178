"""Who defines and who reads the values of a tile program.

Segments of a loop use the same names for the same things, so a name says little: definitions are told apart as
objects, and :func:`distinct` makes every one an object of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias

from flashlight.backends.queries import reads
from flashlight.errors import InternalError
from flashlight.tile import (
    Carry,
    DotOp,
    Expr,
    Index,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    Segment,
    Stmt,
    Store,
    walk,
)

Definition: TypeAlias = "Let | Carry"


def distinct(kernel: Kernel) -> Kernel:
    """The same kernel with every definition an object of its own, and loads that wait for nothing first in loops.

    Loads of blocks take long to arrive; what multiplies in the meantime is printed after them.
    """
    return replace(kernel, body=_fresh(kernel.body, False))


def _fresh(body: tuple[Stmt, ...], inside: bool) -> tuple[Stmt, ...]:
    out: list[Stmt] = []
    own: set[str] = set()
    first = 0
    for s in body:
        match s:
            case Let(name, _, _, op):
                own.add(name)
                made = replace(s)
                if inside and isinstance(op, LoadOp) and not own & set(reads(s)):
                    out.insert(first, made)
                    first += 1
                else:
                    out.append(made)
            case Loop(_, _, segments):
                made_ = tuple(replace(g, body=_fresh(g.body, True)) for g in segments)
                out.append(replace(s, carries=tuple(replace(c) for c in s.carries), segments=made_))
            case Store():
                out.append(replace(s))
    return tuple(out)


@dataclass(frozen=True)
class Use:
    """``by`` reads a definition, ``how``: "left", "right" or "acc" of a dot, "next" state, "store", or "value"."""

    how: str
    by: Stmt | Carry


@dataclass
class Uses:
    """Uses and operands of every definition, by ``id``; ``depth``: how many loops it is in."""

    kernel: Kernel
    of: dict[int, list[Use]] = field(default_factory=dict)
    operands: dict[int, dict[str, Definition]] = field(default_factory=dict)
    depth: dict[int, int] = field(default_factory=dict)
    lets: list[Let] = field(default_factory=list)
    carries: list[Carry] = field(default_factory=list)
    last: dict[int, list[Definition]] = field(default_factory=dict)  # of a state: what it becomes, in each segment

    def __post_init__(self) -> None:
        self._scan(self.kernel.body, {}, 0)

    def _scan(self, body: tuple[Stmt, ...], env: dict[str, Definition], depth: int) -> None:
        for s in body:
            match s:
                case Let():
                    self._read(s, env)
                    self.lets.append(s)
                    self.depth[id(s)] = depth
                    env[s.name] = s
                case Store():
                    self._read(s, env)
                case Loop(_, carries, segments):
                    self._loop(carries, segments, env, depth)

    def _loop(
        self, carries: tuple[Carry, ...], segments: tuple[Segment, ...], env: dict[str, Definition], depth: int
    ) -> None:
        for c in carries:
            self.carries.append(c)
            self.depth[id(c)] = depth
            self.last[id(c)] = []
        env |= {c.name: c for c in carries}
        for g in segments:
            inner = dict(env)
            self._scan(g.body, inner, depth + 1)
            for c in carries:
                found = self._find(c.next, inner)
                self.last[id(c)].append(found)
                self.of.setdefault(id(found), []).append(Use("next", c))

    def _read(self, s: Let | Store, env: dict[str, Definition]) -> None:
        found = self.operands[id(s)] = {n: self._find(n, env) for n in sorted(reads(s))}
        for name, d in found.items():
            hows = ["store"] if isinstance(s, Store) and name == s.value else ["value"]
            if isinstance(s, Let) and isinstance(s.op, DotOp):
                roles = {"left": s.op.left, "right": s.op.right, "acc": s.op.acc}
                hows = [how for how, read in roles.items() if read == name]
            self.of.setdefault(id(d), []).extend(Use(how, s) for how in hows)

    def _find(self, name: str, env: dict[str, Definition]) -> Definition:
        if name not in env:
            raise InternalError(f"kernel {self.kernel.name}: {name} is used before it is defined")
        return env[name]

    @property
    def definitions(self) -> list[Definition]:
        return [*self.lets, *self.carries]

    def uses(self, d: Definition) -> list[Use]:
        return self.of.get(id(d), [])

    def operand(self, s: Let | Store, name: str) -> Definition:
        return self.operands[id(s)][name]


def expressions(s: Let | Store) -> tuple[Expr, ...]:
    """The expressions over coordinates in a statement."""
    match s:
        case Let(_, _, _, LoadOp(_, index)) | Store(_, index):
            return index
        case Let(_, _, _, MapOp(body)):
            return (body,)
    return ()


def axes_in(*es: Expr) -> list[str]:
    """The axes whose coordinates occur, those of a trip's start or lane aside as the axis itself."""
    return [n.axis.partition(".")[0] for e in es for n in walk(e) if isinstance(n, Index)]
