"""Level 1: single-assignment statements over named axes.

A statement defines the tensor of its own name: ``S[b,h,i,j] = sum{d} (Q[b,h,i,d] * K[b,h,j,d])``.  Its domain is the
box of its axes; its body is a scalar expression whose loads index inputs or earlier statements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flashlight.expr import PLACED, Expr

MONOIDS = ("sum", "max", "min", "prod", *PLACED)
"""NaN counts as largest and as smallest, as in PyTorch."""


@dataclass(frozen=True)
class Origin:
    """Where a statement comes from: graph nodes, and the user's file, line and text when they are known."""

    nodes: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file else "/".join(self.nodes)
        return f"{where}  {self.text}" if self.text else where


@dataclass(frozen=True)
class Axis:
    """A named dimension; ``extent`` is a Const(int), a Size or integer arithmetic on them."""

    name: str
    extent: Expr

    def __str__(self) -> str:
        return f"{self.name}<{self.extent}"


@dataclass(frozen=True)
class Tensor:
    """A tensor in memory: ``shape`` as in :class:`Axis`, ``dtype`` a torch dtype's name ("bfloat16")."""

    name: str
    dtype: str
    shape: tuple[Expr, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Statement:
    """``name[axes] = monoid{reduced} body``; ``dtype`` is the user's, remembered because algebra may not cross
    every rounding (bodies are real-valued).  ``place``: of max, min, argmax and argmin, the place in their order that
    is asked for, 0 the first."""

    name: str
    axes: tuple[Axis, ...]
    body: Expr
    dtype: str
    monoid: str | None = None
    reduced: tuple[Axis, ...] = ()
    origin: Origin = field(default=Origin(), compare=False)
    place: int = 0

    @property
    def tensor(self) -> Tensor:
        return Tensor(self.name, self.dtype, tuple(a.extent for a in self.axes))

    def __str__(self) -> str:
        head = f"{self.name}[{','.join(a.name for a in self.axes)}]" if self.axes else self.name
        place = f"[{self.place}]" if self.place else ""
        fold = f"{self.monoid}{place}{{{','.join(a.name for a in self.reduced)}}} " if self.monoid else ""
        return f"{head} = {fold}{self.body}"


@dataclass(frozen=True)
class Program:
    """Statements in an order of definition, the tensors they read, and which of them are results.

    ``sizes``: the symbolic lengths, in the order in which calls pass them.
    """

    inputs: tuple[Tensor, ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    sizes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Statement:
        return next(s for s in self.statements if s.name == name)

    def tensor(self, name: str) -> Tensor:
        for t in self.inputs:
            if t.name == name:
                return t
        return self[name].tensor

    def __str__(self) -> str:
        lines = [f"inputs   {'; '.join(map(str, self.inputs))}"]
        if self.sizes:
            lines.append(f"sizes    {', '.join(self.sizes)}")
        width = max((len(str(s).split(" = ", 1)[0]) for s in self.statements), default=0)
        for s in self.statements:
            head, body = str(s).split(" = ", 1)
            lines.append(f"  {head:{width}} = {body}")
        return "\n".join([*lines, f"outputs  {', '.join(self.outputs)}"])


def fresh(name: str, taken: Iterable[str]) -> str:
    """The name, or one like it that is not taken."""
    known = set(taken)
    while name in known:
        name += "_"
    return name
