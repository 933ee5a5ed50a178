"""Printing a tile program as Triton: the frame, statements and loops.

One program instance a grid point; a block value is a Triton tensor with a dimension for each of its block dimensions.
What does not change in a loop (places of blocks, offsets within them) is computed before it.
"""

from __future__ import annotations

import json
import math

from flashlight.backend import Target
from flashlight.backends.arith import cheap, rough
from flashlight.backends.queries import INTS, kind_of
from flashlight.backends.scalar import PYTHON, bare, spell
from flashlight.backends.source import INDENT
from flashlight.backends.triton.address import load, load_either, real_points, store
from flashlight.backends.triton.ahead import held, stages
from flashlight.backends.triton.body import HELPERS, Body, constant, converted, placed
from flashlight.backends.triton.dots import arranged, dot
from flashlight.backends.triton.either import eithers
from flashlight.backends.triton.pads import pads_of
from flashlight.backends.triton.page import tidy
from flashlight.backends.triton.state import State, Value
from flashlight.backends.uses import Use, Uses
from flashlight.tile import (
    Carry,
    CastOp,
    Const,
    DotOp,
    Expr,
    GridAxis,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    ScanOp,
    Segment,
    Stmt,
    Store,
)

COMBINE = {"prod": "_product", "max": "_max", "min": "_min"}


def text_of(kernel: Kernel, target: Target) -> str:
    """The kernel as a Python module: the Triton function of its name, ``programs`` (how many instances), ``STRIDES``
    and ``OPTIONS`` (what the launch passes).

    Raises InternalError: the kernel is malformed.
    """
    return _Emitter(cheap(kernel), target).module()


def entry_of(kernel: Kernel) -> str:
    """The name of the Triton function."""
    return State(kernel, Target()).names.fresh(kernel.name)


class _Emitter:
    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.kernel = kernel
        self.state = State(kernel, target)
        self.entry = self.state.names.fresh(kernel.name)
        self.turned = _turned(kernel)
        self.quick = rough(kernel)
        self.eithers = eithers(kernel)
        self.stages = stages(self.state, self.eithers.doubled)

    # ---- the frame -----------------------------------------------------------------------------------------------
    def module(self) -> str:
        k, st = self.kernel, self.state
        self.place()
        self.body(k.body)
        body = st.page.lines()
        out = [f'"""{k.name}, printed by flashlight\'s triton backend."""', ""]
        out += ["import triton", "import triton.language as tl"]
        used = "\n".join(body + [HELPERS[h] for h in sorted(st.helpers)])
        borrowed = [n for n in ("libdevice", "whole") if f"{n}." in used or f"{n}(" in used]
        if borrowed and st.target.interpret:
            out += ["", f"from flashlight.backends.triton.interpreter import {', '.join(borrowed)}"]
        elif borrowed:
            out.append("from triton.language.extra import libdevice")
        for name in sorted(st.helpers):
            arguments = "a" if name == "_bfloat16" else "a, b"
            out += ["", "", "@triton.jit", f"def {name}({arguments}):"]
            out += [INDENT + line for line in HELPERS[name].split("\n")]
        pointers = [st.names[b.name] for b in (*k.inputs, *k.outputs)]
        sizes = [st.names[n] for n in k.sizes]
        strides = [name for _, (name, _) in sorted(st.strides.items())]
        out += ["", "", f"@triton.jit(do_not_specialize={json.dumps(sizes)})" if sizes else "@triton.jit"]
        flat = ["FLAT: tl.constexpr = False"] if len(k.grid) > 1 else []
        out += _folded(f"def {self.entry}(", [*pointers, *sizes, *strides, *flat], "):")
        out += [INDENT + line if line else "" for line in body]
        out += ["", "", *_folded("def programs(", sizes, "):"), f"{INDENT}return {tidy(self.count())}", "", ""]
        places = [f"({b}, {d}, {reach})" for (b, d), (_, reach) in sorted(st.strides.items())]
        out.append(
            "# The stride arguments: buffer (inputs, then outputs), dimension, and up to what it is multiplied by in"
        )
        out.append("# 32 bits (0: by any index of that dimension).  A longer reach than 2**31 takes a 64-bit argument.")
        out += _folded("STRIDES = [", places, "]")
        out.append(f'OPTIONS = {{"num_warps": {k.warps}, "num_stages": {self.stages}}}')
        return "\n".join(out) + "\n"

    def count(self) -> str:
        """How many programs there are along the dimensions of the launch, over the sizes."""

        def blocks(g: GridAxis) -> str:
            n = spell(g.extent, PYTHON, lambda e: self.state.names[str(e)])
            return n if g.block == 1 else f"(({n} + {g.block - 1}) // {g.block})"

        return f"({', '.join(' * '.join(map(blocks, axes)) or '1' for axes in self.dimensions())})"

    def dimensions(self) -> tuple[list[GridAxis], ...]:
        """The axes along each dimension of the launch, fastest first: one each, and what is left along the last.

        Taking a number apart costs divisions, which nothing can be loaded before.
        """
        axes = list(reversed(self.kernel.grid))
        return axes[:1], axes[1:2], axes[2:]

    def place(self) -> None:
        """Which grid point this is.  FLAT: all axes lie along the first dimension, which alone may be long."""
        if len(self.kernel.grid) <= 1:
            return self.places(0, list(self.kernel.grid))
        with self.state.page.block("if FLAT:"):
            self.places(0, list(reversed(self.kernel.grid)))
        with self.state.page.block("else:"):
            for k, axes in enumerate(self.dimensions()):
                self.places(k, axes)
        return None

    def places(self, dimension: int, axes: list[GridAxis]) -> None:
        """The places along one dimension of the launch."""
        st, page = self.state, self.state.page
        pid = f"tl.program_id({dimension})"
        if len(axes) > 1:
            page.assign("pid", pid)
            pid = "pid"
        for k, g in enumerate(axes, 1):
            size = st.integer(g.extent)
            if g.block > 1:
                size = f"tl.cdiv({bare(size)}, {g.block})"
            if (k < len(axes) or g.reverse) and g.block > 1:
                size = page.hoist(size, f"{g.axis}_blocks", 0)
            at = f"{pid} % {size}" if k < len(axes) else pid
            page.assign(st.axis(g.axis).number, f"{size} - 1 - {at}" if g.reverse else at)
            if k < len(axes):
                page.assign("pid", f"pid // {size}")

    # ---- statements ----------------------------------------------------------------------------------------------
    def body(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            match s:
                case Let():
                    self.let(s)
                case Store(buffer, _, name):
                    dtype = self.kernel.buffer(buffer).dtype
                    v = self.state.value(name)
                    store(self.state, s, converted(self.state, v.text, v.dtype, dtype), v.dims)
                case Loop():
                    self.loop(s)

    def let(self, s: Let) -> None:
        st = self.state
        if id(s) in self.eithers.gone:
            return
        if one := self.eithers.found.get(id(s)):
            name, dtype, text = st.names[s.name], one.dtype, load_either(st, one, s.dims)
            if not one.widened(s.dtype):
                dtype, text = s.dtype, converted(st, text, one.dtype, s.dtype)
            st.page.assign(name, text, s.note)
            st.values[s.name] = Value(name, s.dims, dtype, (), st.page.level)
            return
        dims, dtype, pads = s.dims, s.dtype, pads_of(st, s)
        match s.op:
            case LoadOp(buffer):
                dims = self.turned.get(id(s), s.dims)
                dtype = self.kernel.buffer(buffer).dtype
                text = load(st, s.op, dims)
            case MapOp(e):
                spelt = Body(st, s.dims, e, quick=self.quick)
                text = spelt.whole(spelt.spell(e), s.dtype)
            case DotOp():
                text, dims, dtype = dot(st, s, s.op)
            case ReduceOp(monoid, name, axis):
                text, dims, dtype = self.reduce(s, monoid, st.value(name), axis)
            case ScanOp(name, axis):
                v = st.value(name)
                text, dims, dtype = f"tl.cumsum({v.text}, axis={v.dims.index(axis)})", v.dims, v.dtype
            case CastOp(name):
                v = st.value(name)
                text, dims, dtype = v.text, v.dims, v.dtype
        name = st.names[s.name]
        st.page.assign(name, converted(st, text, dtype, s.dtype), s.note)
        st.values[s.name] = Value(name, dims, s.dtype, pads, st.page.level)

    def reduce(self, s: Let, monoid: str, v: Value, axis: str) -> tuple[str, tuple[str, ...], str]:
        """The text of a reduction with the dimensions it has and its dtype."""
        st = self.state
        if axis not in v.dims or set(v.dims) - {axis} != set(s.dims):
            raise st.error(f"{s} does not reduce {v.text}[{','.join(v.dims)}]")
        dtype = "int32" if s.dtype == "bool" else s.dtype
        text = converted(st, v.text, v.dtype, dtype)
        identity = identity_of(monoid, dtype)
        if st.axis(axis).padded and (axis, identity) not in v.pads:
            inside = placed(st, real_points(st, axis), (axis,), v.dims)
            text = f"tl.where({inside}, {bare(text)}, {constant(identity, dtype)})"
        k = v.dims.index(axis)
        dims = tuple(d for d in v.dims if d != axis)
        if monoid == "sum":
            return f"tl.sum({bare(text)}, axis={k})", dims, dtype
        st.helpers.add(COMBINE[monoid])
        return f"tl.reduce({bare(text)}, {k}, {COMBINE[monoid]})", dims, dtype

    # ---- loops ---------------------------------------------------------------------------------------------------
    def loop(self, s: Loop) -> None:
        st, page = self.state, self.state.page
        for c in s.carries:
            if s.axis in c.dims:
                raise st.error(f"state {c.name} varies along its own loop's axis")
            page.assign(st.names[c.name], self.initial(c))
            st.values[c.name] = Value(st.names[c.name], c.dims, c.dtype, (), page.level)
        numbers = {g.axis: st.axis(g.axis).number for g in self.kernel.grid}
        numbers |= {a: st.axis(a).number for a in st.levels}
        for group in _grouped(s):
            self.segment(s, group, numbers)
        for c in s.carries:
            st.values[c.name] = Value(st.names[c.name], c.dims, c.dtype, (), page.level)

    def initial(self, c: Carry) -> str:
        kind = kind_of(c.dtype)
        value = constant(c.init if kind == "real" else bool(c.init) if kind == "bool" else int(c.init), "float32")
        return f"tl.full({self.state.shape(c.dims)}, {value}, tl.{'int1' if kind == 'bool' else c.dtype})"

    def segment(self, s: Loop, group: tuple[Segment, ...], numbers: dict[str, str]) -> None:
        """One loop for segments of the same body: each start of a loop costs the latency of its first loads."""
        st, page, number = self.state, self.state.page, self.state.axis(s.axis).number
        before = dict(st.values)
        ranges = [[self.bound(e, numbers, f"{s.axis}_{w}") for e, w in ((g.lo, "from"), (g.hi, "to"))] for g in group]
        if st.target.interpret:
            ranges = [[f"whole({text})" for text in pair] for pair in ranges]
        trip, (lo, hi), moves = number, ranges[0], list[str]()
        if len(group) > 1:
            trip, (lo, hi), moves = self.gaps(s.axis, ranges)
        elif (tile := group[0].tile) is not None:
            trip, moves = self.listed(s.axis, tile, numbers, lo)
        st.levels[s.axis] = page.level + 1
        options = ", num_stages=1" if self.stages > 1 and held(st, group[0].body) else ""
        if not st.target.interpret and _flat(group[0].body):
            options += ", flatten=True"  # the loop within and this one as one: loads run ahead over its ends
        with page.block(f"for {trip} in tl.range({lo}, {hi}{options}):", group[0].kind):
            for text in moves:
                page.line(text)
            for c in s.carries:
                st.values[c.name] = Value(st.names[c.name], c.dims, c.dtype, (), page.level)
            self.body(group[0].body)
            self.carry(s.carries)
        del st.levels[s.axis]
        st.values = before

    def gaps(self, axis: str, ranges: list[list[str]]) -> tuple[str, list[str], list[str]]:
        """Ranges one after the other: the trip's variable, its range, and lines that make a block's number of it."""
        st, page, number = self.state, self.state.page, self.state.axis(axis).number
        trip = st.names.fresh(f"{axis}_trip")
        end, moves = "0", []
        for k, (lo, hi) in enumerate(ranges):
            low = page.hoist(f"{lo} - {end}" if k else lo, f"{axis}_shift", page.level)
            at = f"{low} + {trip}"
            choice = f"tl.where({trip} < {end}, {number}, {at})"
            if st.target.interpret:
                choice = f"{number} if {trip} < {end} else {at}"
            moves.append(f"{number} = {choice}" if k else f"{number} = {at}")
            length = f"max({hi} - {lo}, 0)" if st.target.interpret else f"tl.maximum({hi} - {lo}, 0)"
            end = page.hoist(f"{end} + {length}" if k else length, f"{axis}_end", page.level)
        return trip, ["0", end], moves

    def listed(self, axis: str, tile: Expr, numbers: dict[str, str], lo: str) -> tuple[str, list[str]]:
        """Blocks from a list: the trip's variable, and lines that look up a block's number, each a trip before it is
        needed.  (Looked up in its own trip, Triton copies it to shared memory, and has one trip less to copy tiles.)"""
        st, page = self.state, self.state.page
        trip, ahead = st.names.fresh(f"{axis}_trip"), st.names.fresh(f"{axis}_next")

        def at(place: str) -> str:
            text = st.integer(tile, numbers | {axis: place})
            return f"whole({text})" if st.target.interpret else text

        page.assign(ahead, at(lo))
        return trip, [f"{st.axis(axis).number} = {ahead}", f"{ahead} = {at(f'({trip} + 1)')}"]

    def bound(self, e: Expr, numbers: dict[str, str], stem: str) -> str:
        text = self.state.integer(e, numbers)
        plain = text.isidentifier() or isinstance(e, Const)
        return text if plain else self.state.page.hoist(text, stem, self.state.page.level)

    def carry(self, carries: tuple[Carry, ...]) -> None:
        """The states after the trip take the names of those before it."""
        st = self.state
        pairs = []
        for c in carries:
            v = st.value(c.next)
            text = converted(st, arranged(st, v, c.dims), v.dtype, c.dtype)
            if text != st.names[c.name]:
                pairs.append((st.names[c.name], text))
        names = {n for n, _ in pairs}
        if any(c.next in {x.name for x in carries} for c in carries):
            st.page.line(f"{', '.join(n for n, _ in pairs)} = {', '.join(t for _, t in pairs)}")
        elif names:
            for name, text in pairs:
                st.page.assign(name, text)


def identity_of(monoid: str, dtype: str) -> float:
    """What changes nothing: the number that padding is filled with."""
    low, high = -math.inf, math.inf
    if dtype in INTS:
        bits = int(dtype.lstrip("uint"))
        low, high = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    number = {"sum": 0, "prod": 1, "max": low, "min": high}[monoid]
    return number if dtype in INTS else float(number)


def _grouped(s: Loop) -> list[tuple[Segment, ...]]:
    """Segments that share a loop: those of the same body, where trips may be taken in any order; of lists, each has its
    own.

    Loops stand in the order of their first segments.  With a window's full tiles first, ptxas makes the products of
    both loops wait for each other (its C7515; docs/decisions/0012).
    """
    if not s.free:
        return [(g,) for g in s.segments]
    groups: dict[object, list[Segment]] = {}
    for g in s.segments:
        groups.setdefault(g.body if g.tile is None else (g.body, g.tile), []).append(g)
    return [tuple(g) for g in groups.values()]


def _flat(body: tuple[Stmt, ...]) -> bool:
    """Is a loop within all that multiplies?  (A product after it would belong to some trips only.)"""
    own = any(isinstance(x, Let) and isinstance(x.op, DotOp) for x in body)
    return not own and any(isinstance(x, Loop) for x in body)


def _turned(kernel: Kernel) -> dict[int, tuple[str, ...]]:
    """Loads (by ``id``) that only dots read, all in one orientation, with the dimensions in that order: they are loaded
    so."""
    uses = Uses(kernel)
    found: dict[int, tuple[str, ...]] = {}
    for x in uses.lets:
        if isinstance(x.op, LoadOp):
            wanted = {_orientation(uses, x, use) for use in uses.uses(x)}
            if len(wanted) == 1 and () not in wanted:
                found[id(x)] = wanted.pop()
    return found


def _orientation(uses: Uses, x: Let, use: Use) -> tuple[str, ...]:
    """The dimensions of a dot's operand in the order in which tl.dot takes them; () if that is not known."""
    if use.how not in ("left", "right") or not isinstance(use.by, Let) or not isinstance(use.by.op, DotOp):
        return ()
    dot, op = use.by, use.by.op
    sides = [uses.operand(dot, n) for n in (op.left, op.right)]
    own = [d for d in x.dims if d != op.contract]
    if any(len(d.dims) != 2 for d in sides) or len(own) != 1 or own[0] not in dot.dims:
        return ()
    return (own[0], op.contract) if dot.dims.index(own[0]) == 0 else (op.contract, own[0])


def _folded(head: str, parts: list[str], tail: str) -> list[str]:
    """A call or list on one line where it fits, else filled over several."""
    one = f"{head}{', '.join(parts)}{tail}"
    if len(one) <= 110:
        return [one]
    lines, row = [head], INDENT
    for p in parts:
        if len(row) + len(p) > 108 and row.strip():
            lines.append(row.rstrip())
            row = INDENT
        row += f"{p}, "
    return [*lines, row.rstrip(), tail]
