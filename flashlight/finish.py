"""What is done to each element of a reduction wherever it is read becomes a statement: a bias added, a division.

Capture leaves such steps in the bodies that read a reduction, under whatever index they read it.  A planner that has to
write it writes it finished, once, in place of what went into it; where it is not written the step goes back into the
bodies, and nothing has changed.
"""

from __future__ import annotations

from dataclasses import replace

from flashlight.expr import Const, Expr, Index, Load, axes, kind, loads, substitute, walk
from flashlight.growth import is_thin
from flashlight.program import Program, Statement


def finished(program: Program) -> Program:
    """The program with a statement for what is done to a reduction at every read."""
    out = program
    for s in program.statements:
        if s.monoid is not None and s.name not in program.outputs and is_thin(program, s):
            out = _with_step(out, s)
    return out


def _with_step(program: Program, s: Statement) -> Program:
    readers = [r for r in program.statements if any(x.tensor == s.name for x in loads(r.body))]
    if all(r.monoid is None for r in readers):
        return program
    steps: set[Expr] = set()
    inside: dict[str, dict[Expr, Expr]] = {}  # reader -> what is computed there -> a load of the step
    name = _fresh(program, s.name)
    for r in readers:
        inside[r.name] = {}
        for x in (x for x in loads(r.body) if x.tensor == s.name):
            if (places := _places(s, x)) is None:
                return program
            for e, step in _largest(r.body, x, places):
                steps.add(step)
                inside[r.name][e] = Load(name, x.index)
    if len(steps) != 1 or isinstance(step := steps.pop(), Load):
        return program
    own: dict[Expr, Expr] = {Index(f"@{k}"): Index(a.name) for k, a in enumerate(s.axes)}
    made = Statement(name, s.axes, substitute(step, own), s.dtype, origin=s.origin)
    statements = [replace(r, body=substitute(r.body, inside.get(r.name, {}))) for r in program.statements]
    first = next(k for k, r in enumerate(program.statements) if r.name == readers[0].name)
    return replace(program, statements=(*statements[:first], made, *statements[first:]))


def _places(s: Statement, x: Load) -> dict[Expr, Expr] | None:
    """A placeholder for each index of a load; None where it reads a part only (a diagonal, a slice)."""
    moving = [(k, i) for k, (a, i) in enumerate(zip(s.axes, x.index, strict=True)) if a.extent is not Const(1)]
    if any(isinstance(i, Const) for _, i in moving) or len({i for _, i in moving}) < len(moving):
        return None
    return {i: Index(f"@{k}") for k, i in moving}


def _largest(body: Expr, x: Load, places: dict[Expr, Expr]) -> list[tuple[Expr, Expr]]:
    """The largest parts of a body that depend on nothing but an element of ``x``; each also over the placeholders."""
    out: list[tuple[Expr, Expr]] = []
    below: set[Expr] = set()
    for e in walk(body):  # parents first
        if e in below or kind(e) != "real" or x not in walk(e):
            continue
        step = substitute(e, places)
        if all(a.startswith("@") for a in axes(step)):
            out.append((e, step))
            below |= set(walk(e))
    return out


def _fresh(program: Program, stem: str) -> str:
    taken = {s.name for s in program.statements} | {t.name for t in program.inputs} | set(program.sizes)
    return next(n for k in range(1, 10000) if (n := f"{stem}_done{'' if k == 1 else k}") not in taken)
