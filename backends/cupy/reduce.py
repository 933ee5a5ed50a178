"""Reductions and running sums: over registers of a thread, over lanes by shuffles, over warps through shared memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import prod

from flashlight.backends.cupy.body import Element, constant, converted
from flashlight.backends.cupy.dtypes import CTYPES, SIZES, WIDE
from flashlight.backends.cupy.exchange import reserve
from flashlight.backends.cupy.state import State, Value
from flashlight.backends.queries import INTS
from flashlight.backends.scalar import bare
from flashlight.tile import Let, ReduceOp, ScanOp

Text = Callable[[Element], tuple[list[str], str]]
OPERATORS = {"sum": "Sum", "prod": "Prod", "max": "Max", "min": "Min"}
INFIX = {
    "sum": "{0} += {1};",
    "prod": "{0} *= {1};",
    "max": "{0} = larger({0}, {1});",
    "min": "{0} = lesser({0}, {1});",
}


def reduced_in(dtype: str) -> str:
    """The dtype in which a reduction is computed."""
    return "int32" if dtype in ("bool", "int16", "int8", "uint8") else "float32" if dtype in WIDE else dtype


def identity_of(monoid: str, dtype: str) -> str:
    """What changes nothing."""
    if monoid in ("sum", "prod"):
        n = 0 if monoid == "sum" else 1
        return constant(n if dtype in INTS else float(n), dtype)
    if dtype in INTS:
        top = 2 ** (8 * SIZES[dtype] - 1) - 1
        return constant(-top if monoid == "max" else top, dtype)
    return constant(-math.inf if monoid == "max" else math.inf, dtype)


def reduce(state: State, s: Let, op: ReduceOp, v: Value, source: Value, inline: Text | None) -> None:
    """Print a reduction of ``source``, which lies as ``v`` does; ``v`` is declared, in the dtype of :func:`reduced_in`.

    ``inline``: the text of an element and lines before it, where the source has no registers of its own.
    """
    page, axis = state.page, op.axis
    if axis not in source.dims or set(source.dims) - {axis} != set(s.dims):
        raise state.error(f"{s} does not reduce {source.text}[{','.join(source.dims)}]")
    p, index = source.place[axis], state.axes[axis].index
    result = state.read(v, state.at(v)).text
    identity = identity_of(op.monoid, v.dtype)

    def element(register: str) -> tuple[list[str], str]:
        here = state.at(source, {axis: register})
        lines, text = inline(here) if inline else ([], bare(converted(state.read(source, here), v.dtype).text))
        if state.padded(axis, p):
            text = f"{state.inside(axis, here)} < {state.axes[axis].block} ? {text} : {identity}"
        return lines, text

    before, text = element("0")
    lines = [*before, f"{result} = {text};"]
    if p.local > 1:
        more, text = element(index)
        step = INFIX[op.monoid].format(result, f"({text})" if "?" in text else text)
        if more:
            step = f"{{ {' '.join(more)} {step} }}"
        lines.append(f"each_after_first({index}, {p.local}) {step}")
    for low, high in p.over("lane"):
        lines.append(f"{result} = across_lanes<{OPERATORS[op.monoid]}, {low}, {high}>({result});")
    page.loops(state.loops(v), lines)
    for low, high in p.over("warp"):
        reserve(state, v.count * SIZES[v.dtype] * 32 * state.plan.warps)
        page.line(f"across_warps<{OPERATORS[op.monoid]}, {low}, {high}, {v.count}>({v.start}, scratch);")


def run(state: State, s: Let, op: ScanOp, v: Value, source: Value) -> None:
    """Print the running sums of ``source``, which lies as ``v`` does; ``v`` is declared, in the dtype of
    :func:`reduced_in`.  A digit of the coordinate at a time, the least significant one first."""
    page, axis = state.page, op.axis
    if axis not in s.dims or source.dims != s.dims:
        raise state.error(f"{s} does not run along {source.text}[{','.join(source.dims)}]")
    p, at = source.place[axis], state.at(v)
    page.loops(state.loops(v), [f"{state.read(v, at).text} = {bare(converted(state.read(source, at), v.dtype).text)};"])
    k = v.dims.index(axis)
    first = f"&{v.text}" + "".join("[0]" if a == axis else f"[{state.axes[a].index}]" for a in v.dims)
    sums = state.names.fresh(f"{v.text}_sums")
    index = state.axes[axis].index
    lines = [f"{CTYPES[v.dtype]} {sums}[{p.local}];"]
    lines.append(f"each({index}, {p.local}) {sums}[{index}] = {state.read(v, at).text};")
    group = 1
    for d in p.digits:
        if d.radix == 1:
            continue
        sizes = f"{p.local}, {prod(v.shape()[k + 1 :])}, {group}"
        if d.where == "register":
            lines.append(f"run_over_registers<{sizes}, {d.radix}>({first}, {sums});")
            group *= d.radix
            continue
        scratch = ", scratch" if d.where == "warp" else ""
        if scratch:
            reserve(state, p.local // group * SIZES[v.dtype] * 32 * state.plan.warps)
        lines.append(f"run_over_{d.where}s<{sizes}, {1 << d.shift}, {d.radix << d.shift}>({first}, {sums}{scratch});")
    page.loops(state.loops(v, tuple(a for a in v.dims if a != axis)), lines)
