"""Few rows, several sweeps: each pass becomes a nest, and what it finds out is written for those after it.

    nest: pass 1 finds m[i]; pass 2 reads it   ->   nest_pass1 writes m[i]; nest_pass2 loads it

In one nest a block of rows does all passes one after the other, in blocks that suit the one with the product.  Apart,
each has blocks of its own, and may be run in parts where its rows are still too few (:mod:`flashlight.split`).  What is
written along the streamed axis is a program of its own then, in which that axis is parallel like any other.
"""

from __future__ import annotations

from dataclasses import replace

from flashlight.expr import Expr, Index, Load, Ref, refs, substitute
from flashlight.fuse import fuse
from flashlight.nests import Nest, Output, Plan, State, free_axes
from flashlight.passes import Frame, passes
from flashlight.program import Axis, Program, Tensor, fresh
from flashlight.split import as_statement, spread

MOST = 4  # sweeps: each is up to two launches, and as many kernels to compile


def apart(nest: Nest, program: Program) -> Plan | None:
    """A nest for each sweep, every pass asked of the algebra again; None where there is one only, or too many, or where
    something runs along the streamed axis (it would be as long as what is read)."""
    scans = any(s.monoid == "scan" for s in nest.states)
    if not 2 <= nest.sweeps <= MOST or nest.stream is None or scans:
        return None
    points = spread(nest)
    return None if points is None else _Apart(replace(nest, points=points), program, nest.stream).plan()


class _Apart:
    def __init__(self, nest: Nest, program: Program, stream: Axis):
        self.nest, self.program, self.stream = nest, program, stream
        self.found: dict[Expr, Expr] = {}  # results of earlier passes -> what later ones load
        self.written: list[Tensor] = []
        self.taken = {t.name for t in program.inputs} | {s.name for s in program.statements} | set(program.sizes)
        self.real = nest.real(program)  # what results are in one nest

    def plan(self) -> Plan | None:
        nests: list[Nest] = []
        for k in range(len(self.nest.passes)):
            made = self.one(k)
            if made is None:
                return None
            nests.append(made)
        program = replace(self.program, inputs=(*self.program.inputs, *self.written))
        if maps := self.nest.maps:
            statements = tuple(as_statement(o, self.found) for o in maps)
            rest = fuse(Program(program.inputs, statements, tuple(o.name for o in maps), program.sizes))
            if rest.temporaries:
                return None
            nests += [replace(n, name=f"{self.nest.name}_map{k or ''}") for k, n in enumerate(rest.nests)]
        return Plan(program, tuple(nests), tuple(self.written), ())

    def one(self, k: int) -> Nest | None:
        """The nest of one pass; None if alone it does not take one."""
        nest, stream = self.nest, self.stream
        states = tuple(self.loaded(nest.state(n)) for n in nest.passes[k].stages)
        outputs = self.results(k, states)
        if k == len(nest.passes) - 1:
            outputs += self.last()
        own = {a.name for o in outputs for a in o.axes}
        grid, points = (tuple(a for a in axes if a.name in own) for axes in (nest.grid, nest.points))
        blocked = tuple(n for n in nest.blocked if n in own)
        made = passes(Frame(stream, tuple(a for a in grid if a.name in blocked), points), states, outputs)
        if len(made.passes) != 1:
            return None
        self.found |= {Ref(o.body.name): Load(o.name, o.index) for o in outputs if isinstance(o.body, Ref)}
        name = f"{nest.name}_pass{k + 1}"
        return Nest(name, grid, blocked, stream, points, made.states, made.passes, made.outputs, made.verdicts)

    def loaded(self, s: State) -> State:
        return replace(s, body=substitute(s.body, self.found))

    def results(self, k: int, states: tuple[State, ...]) -> tuple[Output, ...]:
        """What a pass writes: its stages that something after it reads, as precise as they are in one nest."""
        nest = self.nest
        later = {n for p in nest.passes[k + 1 :] for n in p.stages}
        after = nest.outputs if later else nest.maps
        bodies = [*(s.body for s in nest.states if s.name in later), *(o.body for o in after)]
        read = frozenset[str]().union(*map(refs, bodies))
        table = {s.name: s for s in states}
        return tuple(self.result(s, table) for s in states if s.name in read)

    def result(self, s: State, table: dict[str, State]) -> Output:
        varies = free_axes(s.body, table)
        over = tuple(a for a in (*self.nest.grid, *self.nest.points) if a.name in varies)
        tensor = Tensor(fresh(f"{self.nest.name}_{s.name}", self.taken), self.real, tuple(a.extent for a in over))
        self.taken.add(tensor.name)
        self.written.append(tensor)
        return Output(tensor, over, tuple(Index(a.name) for a in over), Ref(s.name), s.origin)

    def last(self) -> tuple[Output, ...]:
        """What the last pass writes besides: all results but those along the streamed axis."""
        maps = {o.name for o in self.nest.maps}
        kept = (o for o in self.nest.outputs if o.name not in maps)
        return tuple(replace(o, body=substitute(o.body, self.found)) for o in kept)
