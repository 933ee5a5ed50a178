"""A complete backend of a third party: tile programs as Python loops around torch operators.

It is slow and short.  A block of the tile program is a tensor with the block's dimensions, one instance of the grid is
one turn of the innermost loop, and every number is a tensor, so that torch's operators take it.
"""

from __future__ import annotations

from flashlight.backend import Run, Source, Target, Unsupported
from flashlight.backends.scalar import TORCH, fill, number
from flashlight.backends.source import Names, Writer
from flashlight.tile import (
    Apply,
    CastOp,
    Const,
    DotOp,
    Expr,
    Index,
    Kernel,
    Let,
    Load,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Ref,
    ScanOp,
    Size,
    Stmt,
    Store,
)  # fmt: skip

REDUCE = {"sum": "sum({})", "prod": "prod({})", "max": "amax({})", "min": "amin({})"}
HELPERS = """\
import math
import torch
from math import inf, nan

def constant(x):
    return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None)

def load(buffer, inside, other, *index):
    index = [torch.as_tensor(x).clamp(0, max(n - 1, 0)) for x, n in zip(index, buffer.shape)]
    return torch.where(inside, buffer[tuple(index)], torch.tensor(other, dtype=buffer.dtype))

def store(buffer, inside, value, *index):
    inside, value, *index = torch.broadcast_tensors(inside, value, *map(torch.as_tensor, index))
    buffer[tuple(x[inside] for x in index)] = value[inside].to(buffer.dtype)
"""


class LoopsBackend:
    """The four members: ``name``, ``supports``, ``emit``, ``build``."""

    name = "loops"

    def supports(self, target: Target, kernel: Kernel | None = None) -> Unsupported | None:
        if target.device != "cpu":
            return Unsupported(f"the loops backend runs on CPU tensors, not on {target.device}")
        return None

    def emit(self, kernel: Kernel, target: Target) -> Source:
        return Source("python", "run", Emitter(kernel).text(), kernel, target)

    def build(self, source: Source) -> Run:
        scope: dict[str, Run] = {}
        exec(source.text, scope)
        return scope[source.entry]


class Emitter:
    """Prints one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.out, self.dtypes = kernel, Writer(), dict[str, str]()
        self.dims: dict[str, tuple[str, ...]] = {}
        self.names = Names(("run", "inputs", "outputs", "sizes", "load", "store", "constant", "torch", "math"))
        double = any(b.dtype == "float64" for b in (*kernel.inputs, *kernel.outputs))
        self.real = "torch.float64" if double else "torch.float32"

    def text(self) -> str:
        k, out = self.kernel, self.out
        out.line(HELPERS)
        with out.block("def run(inputs, outputs, sizes):"):
            for what, these in (("inputs", k.inputs), ("outputs", k.outputs)):
                out.line("".join(f"{self.buffer(b.name)}, " for b in these) + f"= {what}")
            for n, name in enumerate(k.sizes):
                out.line(f"{self.names[name]} = torch.tensor(sizes[{n}])")
            for d in k.dims:
                if d.role == "point":
                    out.line(f"{self.names[d.axis]} = torch.arange({d.block})")
            self.grid(0)
        return out.text()

    def grid(self, level: int) -> None:
        """The loop over one axis of the grid and all that is inside."""
        if level == len(self.kernel.grid):
            self.body(self.kernel.body)
            return
        g = self.kernel.grid[level]
        count = f"math.ceil({self.spell(g.extent, ())} / {g.block})"
        with self.out.block(f"for {self.number(g.axis)} in map(torch.tensor, range({count})):"):
            self.coordinates(g.axis)
            self.grid(level + 1)

    def coordinates(self, axis: str) -> None:
        """The coordinates of a block, from its number; those of a batch axis are its number."""
        blocks = {d.axis: d.block for d in self.kernel.dims}
        first = f"{self.number(axis)} * {blocks.get(axis, 1)}"
        lanes = f" + torch.arange({blocks[axis]})" if axis in blocks else ""
        self.out.line(f"{self.names[axis]} = {first}{lanes}")

    def body(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            match s:
                case Let(name, dims, dtype, _):
                    text = self.operation(s)
                    self.dims[name], self.dtypes[name] = dims, dtype
                    self.out.line(f"{self.value(name)} = ({text}).to(torch.{dtype})", str(s))
                case Store(buffer, index, value, guard):
                    dims = self.dims[value]
                    where = ", ".join(self.spell(e, dims) for e in index)
                    inside = self.inside(guard, dims)
                    self.out.line(f"store({self.buffer(buffer)}, {inside}, {self.value(value)}, {where})", str(s))
                case Loop(axis, carries, segments):
                    for c in carries:
                        self.dims[c.name], self.dtypes[c.name] = c.dims, c.dtype
                        shape = [self.kernel.dim(a).block for a in c.dims]
                        first = f"torch.full({shape}, {number(c.init)}, dtype=torch.{c.dtype})"
                        self.out.line(f"{self.value(c.name)} = {first}", str(c))
                    for g in segments:
                        trips = ", ".join(self.spell(e, (), bounds=True) for e in (g.lo, g.hi))
                        with self.out.block(f"for {self.number(axis)} in map(torch.tensor, range({trips})):", g.kind):
                            if g.tile is not None:  # the trip's number is a place in a list of blocks
                                self.out.line(f"{self.number(axis)} = {self.spell(g.tile, (), bounds=True)}")
                            self.coordinates(axis)
                            self.body(g.body)
                            states = [(self.value(c.name), self.value(c.next)) for c in carries]
                            if states:
                                self.out.line(" = ".join(", ".join(x) for x in zip(*states, strict=True)))

    def operation(self, s: Let) -> str:
        match s.op:
            case MapOp(body):  # what does not vary along a dimension is the same all along it
                return f"{self.spell(body, s.dims)}.expand({[self.kernel.dim(a).block for a in s.dims]})"
            case CastOp(value):
                return self.value(value)
            case ScanOp(value, axis):
                return f"{self.value(value)}.cumsum({self.dims[value].index(axis)})"
            case ReduceOp(monoid, value, axis):
                position = self.dims[value].index(axis)
                return f"{self.value(value)}.to(torch.{s.dtype}).{REDUCE[monoid].format(position)}"
            case LoadOp(buffer, index, guard, other):
                where = ", ".join(self.spell(e, s.dims) for e in index)
                # rows beyond the end may hold anything; beyond a streamed axis' end there is ``other``
                streamed = tuple(a for a in guard if self.kernel.dim(a).role == "stream")
                return f"load({self.buffer(buffer)}, {self.inside(streamed, s.dims)}, {number(other)}, {where})"
            case DotOp(left, right, _, acc):
                letters = {a: chr(97 + n) for n, a in enumerate(dict.fromkeys((*self.dims[left], *self.dims[right])))}
                spec = ["".join(letters[a] for a in dims) for dims in (self.dims[left], self.dims[right], s.dims)]
                both = ", ".join(f"{self.value(x)}.to(torch.{s.dtype})" for x in (left, right))
                plus = f" + {self.value(acc)}" if acc else ""
                return f'torch.einsum("{spec[0]},{spec[1]}->{spec[2]}", {both}){plus}'
        raise AssertionError(s)

    def inside(self, guard: tuple[str, ...], dims: tuple[str, ...]) -> str:
        """The condition that the coordinates of some axes are below their extents."""
        tests = [f"({self.spell(Index(a), dims)} < {self.spell(self.kernel.dim(a).extent, ())})" for a in guard]
        return " & ".join(tests) or "torch.tensor(True)"

    def spell(self, e: Expr, dims: tuple[str, ...], bounds: bool = False) -> str:
        """An expression as a tensor that broadcasts to ``dims``; in bounds, indices are numbers of blocks."""

        match e:
            case Const(value):
                return f"constant({number(value)})"
            case Size(name):
                return self.names[name]
            case Index(axis):
                return self.number(axis) if bounds else self.spread(self.names[axis], (axis,), dims)
            case Ref(name):
                text = self.spread(self.value(name), self.dims[name], dims)
                return f"{text}.to({self.real})" if self.dtypes[name] in ("float16", "bfloat16") else text
            case Load(name, index):
                return f"{self.buffer(name)}[{', '.join(self.spell(i, (), bounds) for i in index)}]"
            case Apply(op, args):
                table = {**TORCH, "real": f"{{0}}.to({self.real})", "int": "{0}.long()"}
                return fill(table, op, *(self.spell(x, dims, bounds) for x in args))
        raise AssertionError(e)

    def spread(self, text: str, own: tuple[str, ...], dims: tuple[str, ...]) -> str:
        """A value with dimensions ``own`` as one that broadcasts to ``dims``."""
        kept = tuple(a for a in dims if a in own)
        if not kept:
            return text
        text = text if kept == own else f"{text}.permute({[own.index(a) for a in kept]})"
        return text if kept == dims else f"{text}[{', '.join(':' if a in own else 'None' for a in dims)}]"

    # Buffers, values and numbers of blocks may have the same names in the kernel, and must not in the text.
    def buffer(self, name: str) -> str:
        return self.names[f"{name} buffer"]

    def value(self, name: str) -> str:
        return self.names[f"{name} value"]

    def number(self, axis: str) -> str:
        return self.names[f"{axis} block"]
