"""Printing a planned tile program as CUDA C++: the frame, definitions and loops.

One thread block a grid point; a block value is an array over the registers of a thread (place.py says which elements
they are).  Every statement is printed under a comment that says what it is in the tile program.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashlight.backend import Target
from flashlight.backends.arith import cheap, rough
from flashlight.backends.cupy import address
from flashlight.backends.cupy.body import Body, Element, constant, converted
from flashlight.backends.cupy.dots import dot
from flashlight.backends.cupy.dtypes import CTYPES, WIDE
from flashlight.backends.cupy.exchange import packed, placed
from flashlight.backends.cupy.loops import loop
from flashlight.backends.cupy.plan import Plan, plan
from flashlight.backends.cupy.reduce import Text, reduce, reduced_in, run
from flashlight.backends.cupy.state import Place, State, Value
from flashlight.backends.queries import kind_of
from flashlight.backends.scalar import bare
from flashlight.tile import (
    CastOp,
    DotOp,
    GridAxis,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Ref,
    ScanOp,
    Stmt,
    Store,
    walk,
)

LEAST_SHARED = 99 << 10  # bytes that a thread block may have on every GPU from sm_80 on
HEADERS = ("numbers", "memory", "dots", "reductions")
WIDTH = 118


@dataclass(frozen=True)
class Printed:
    """``text``: the kernel's file; ``shared``: bytes of shared memory that a thread block takes."""

    text: str
    shared: int


def printed(kernel: Kernel, target: Target) -> Printed:
    """The kernel as CUDA C++, with as many stages of its copies as the target has shared memory for.

    Raises InternalError: the kernel is malformed.
    """
    cheaper = cheap(kernel)
    for stages in range(max(1, kernel.stages), 0, -1):
        p = plan(cheaper, target, stages)
        out = Emitter(p, target).printed()
        together = max(1, 2 ** (8 - p.warps.bit_length()) // 8) if stages > 2 else 1  # what registers leave room for
        if out.shared * together <= (target.shared_bytes or LEAST_SHARED):
            break
    return out


def entry_of(kernel: Kernel) -> str:
    """The name of the kernel function."""
    return State(plan(kernel, Target()), Target()).names.fresh(kernel.name)


class Emitter:
    def __init__(self, plan_: Plan, target: Target) -> None:
        self.plan, self.kernel = plan_, plan_.kernel
        self.state = State(plan_, target)
        self.entry = self.state.names.fresh(self.kernel.name)

    # ---- the frame -----------------------------------------------------------------------------------------------
    def printed(self) -> Printed:
        st, k = self.state, self.kernel
        grid = self.place()
        self.shared = 0
        self.body(k.body)
        shared = self.shared + st.scratch
        buffers = (*k.inputs, *k.outputs)
        out = [f"// {k.name}, printed by flashlight's cupy backend.", "//"]
        out += [f"// One thread block for each of {self.count()} parts of the result."]
        out += [f"#define THREADS {32 * self.plan.warps}", f"#define SHARED {shared}  // bytes of shared memory"]
        out += ["#ifndef STRIDE  // long long where 32 bits do not hold every stride", "#define STRIDE int", "#endif"]
        if st.aligned:
            out += ["// Rows of a buffer (by number) begin at multiples of so many bytes, and neighbours in them lie"]
            out += ["// together; 0: nothing is known."]
        names = [b.name for b in buffers]
        for b in sorted(st.aligned, key=names.index):
            out += [f"#ifndef {st.alignment(b)}  // buffer {names.index(b)}", f"#define {st.alignment(b)} 16", "#endif"]
        out += [f'#include "{h}.cuh"' for h in HEADERS]
        parameters = [f"const {CTYPES[b.dtype]}* __restrict__ {st.names[b.name]}" for b in k.inputs]
        parameters += [f"{CTYPES[b.dtype]}* __restrict__ {st.names[b.name]}" for b in k.outputs]
        parameters += [f"int {st.names[n]}" for n in k.sizes]
        parameters += [f"STRIDE {st.names[b.name]}_s{d}" for b in buffers for d in range(len(b.shape))]
        head = f'extern "C" __global__ void __launch_bounds__(THREADS, 1) {self.entry}('
        out += ["", head, *_filled(parameters, ") {")]
        if shared:
            out.append("  extern __shared__ __align__(1024) unsigned char shared_memory[];")
        if self.shared:
            out.append("  const Shared shared = shared_at(shared_memory);")
        if st.scratch:
            out.append(f"  unsigned char* const scratch = shared_memory{f' + {self.shared}' if self.shared else ''};")
        out += ["  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;", *grid]
        out += [*st.page.lines(), "}"]
        return Printed("\n".join(out) + "\n", shared)

    def count(self) -> str:
        """How many thread blocks there are, over the sizes."""

        def blocks(g: GridAxis) -> str:
            n = self.state.integer(g.extent)
            n = n if n.isidentifier() or n.isdigit() else f"({n})"
            return n if g.block == 1 else f"(({n} + {g.block - 1}) / {g.block})"

        return " * ".join(map(blocks, self.kernel.grid)) or "1"

    def place(self) -> list[str]:
        """Which grid point this is: the slowest axis comes first in the kernel's order."""
        st, lines = self.state, []
        grid = self.kernel.grid
        if not grid:
            return []
        left = "blockIdx.x"
        for k in reversed(range(len(grid))):
            g, a = grid[k], st.axes[grid[k].axis]
            size = st.integer(g.extent)
            size = size if size.isidentifier() or size.isdigit() else f"({size})"
            if g.block > 1:
                lines.append(f"  const int {a.number}s = ({size} + {g.block - 1}) / {g.block};")
                size = f"{a.number}s"
            at = f"(int)({left} % {size})" if k > 0 else f"(int){left}"
            text = f"{size} - 1 - {at}" if g.reverse else at
            lines.append(f"  const int {a.number} = {text};")
            if k > 0:
                rest = st.names.fresh("rest")
                lines.append(f"  const unsigned {rest} = {left} / {size};")
                left = rest
            if a.role == "row":
                lines.append(f"  const int {a.start} = {a.number} * {a.block};")
        return lines

    # ---- statements ----------------------------------------------------------------------------------------------
    def body(self, body: tuple[Stmt, ...]) -> None:
        st = self.state
        for s in body:
            match s:
                case Let():
                    self.let(s)
                case Store(_, _, name):
                    st.page.note(str(s))
                    address.store(st, s, st.value(name))
                case Loop():
                    loop(self, s)

    def let(self, s: Let) -> None:
        """Print a definition: in registers, in shared memory, or both, as the plan says."""
        st = self.state
        st.defined[s.name] = s
        for key in [k for k in st.variants if k[0] == s.name]:
            del st.variants[key]
        st.tiles.pop(s.name, None)
        st.page.note(f"{s}")
        if id(s) in self.plan.inline:
            st.values[s.name] = st.new(st.names[s.name], s.dims, s.dtype, self.plan.places[id(s)])
            return
        if id(s) in self.plan.tiles:
            self.tile(s)
        if not isinstance(s.op, LoadOp) or id(s) in self.plan.registers:
            st.values[s.name] = define(st, s, self.plan.places[id(s)], st.names[s.name])

    def tile(self, s: Let) -> None:
        """A load into shared memory: it is in a ring already, or it is copied now."""
        st, t = self.state, self.plan.tiles[id(s)]
        assert isinstance(s.op, LoadOp)
        if s.name in st.ready:
            st.tiles[s.name] = st.ready[s.name], t
            return
        text = st.names.fresh(f"{st.names[s.name]}_shared")
        st.page.line(f"const {t.type} {text}{{shared + {self.room(t.once.bytes)}}};")
        if st.open:
            st.page.line("__syncthreads();")
        copy = address.copy(st, t, s.op, frozenset(s.op.guard))
        for line in (*copy.before, copy.into(text)):
            st.page.line(line)
        st.page.line("copies_commit();")
        st.page.line("copies_wait<0>();")
        st.page.line("__syncthreads();")
        st.tiles[s.name] = text, t

    def room(self, size: int) -> int:
        """The offset of so many bytes of shared memory that are kept until the end."""
        at, self.shared = self.shared, self.shared + -(-size // 1024) * 1024
        return at


def define(state: State, s: Let, place: Place, name: str) -> Value:
    """Print the definition of a block in registers at a place, under a C++ name."""
    page = state.page
    match s.op:
        case CastOp(source):
            return address.cast(state, placed(state, source, place), s.dtype, name)
        case ReduceOp(_, source, _):
            x = state.value(source)
            dtype = reduced_in(s.dtype)
            v = state.new(name if dtype == s.dtype else state.names.fresh(name), s.dims, dtype, x.place)
            page.line(v.declared)
            reduce(state, s, s.op, v, x, inlined(state, source, x))
            return v if dtype == s.dtype else address.cast(state, v, s.dtype, name)
        case ScanOp(source, _):
            x = placed(state, source, place)
            dtype = reduced_in(s.dtype)
            v = state.new(name if dtype == s.dtype else state.names.fresh(name), s.dims, dtype, x.place)
            page.line(v.declared)
            run(state, s, s.op, v, x)
            return v if dtype == s.dtype else address.cast(state, v, s.dtype, name)
        case LoadOp(buffer):
            dtype = state.plan.kernel.buffer(buffer).dtype
            zeros = frozenset(a for a in s.dims if s.op.other == 0)
            v = state.new(name if dtype == s.dtype else state.names.fresh(name), s.dims, dtype, place, zeros)
            page.line(v.declared)
            address.load(state, s, s.op, v)
            return v if dtype == s.dtype else address.cast(state, v, s.dtype, name)
        case MapOp():
            return _map(state, s, s.op, place, name)
        case DotOp():
            v = state.new(name, s.dims, s.dtype, place)
            page.line(v.declared)
            dot(state, s, s.op, v)
            return v
    raise state.error(f"{s} is no statement of the language")


def inlined(state: State, name: str, v: Value) -> Text | None:
    """The text of an element of a value that has no registers of its own; None for others."""
    s = state.defined[name]
    if id(s) not in state.plan.inline or not isinstance(s, Let) or not isinstance(s.op, MapOp):
        return None
    body = s.op.body
    for n in walk(body):
        if isinstance(n, Ref):
            placed(state, n.name, v.place)  # what that prints does not belong in the loops

    def text(at: Element) -> tuple[list[str], str]:
        spelt = Body(state, at, body, rough(state.plan.kernel))
        out = bare(converted(spelt.spell(body), v.dtype).text)
        return spelt.lines, out

    return text


def _map(state: State, s: Let, op: MapOp, place: Place, name: str) -> Value:
    """A body over elements; one that is rounded to 16 bits is computed in float32."""
    page = state.page
    v = state.new(name, s.dims, s.dtype, place)
    quick = rough(state.plan.kernel)
    if v.pairs:  # computed in float32 first
        wide = state.new(state.names.fresh(name), s.dims, "float32", place)
        page.line(wide.declared)
        _elements(state, wide, op, quick)
        return address.cast(state, wide, s.dtype, name)
    if not v.dims:
        body = Body(state, Element({}, {}), op.body, quick)
        text = bare(converted(body.spell(op.body), s.dtype).text)
        for line in body.lines:
            page.line(line)
        page.line(f"const {v.type} {name} = {text};")
        return v
    _elements(state, v, op, quick, declare=True)
    return v


def _elements(state: State, v: Value, op: MapOp, quick: bool, declare: bool = False) -> None:
    at = state.at(v)
    body = Body(state, at, op.body, quick)
    text = bare(converted(body.spell(op.body), v.dtype).text)  # may print where operands come from
    if declare:
        state.page.line(v.declared)
    state.page.loops(state.loops(v), [*body.lines, f"{state.read(v, at).text} = {text};"])


def initial(state: State, v: Value, init: float) -> None:
    """Print the first value of a state."""
    kind = kind_of(v.dtype)
    number = init if kind == "real" else bool(init) if kind == "bool" else int(init)
    text = constant(number, "float32" if v.dtype in WIDE else v.dtype)
    state.page.line(v.declared)
    if v.pairs:
        packed(state, v, lambda at: text)
        return
    text = f"narrow<{WIDE[v.dtype]}>({text})" if v.dtype in WIDE else text
    state.page.loops(state.loops(v), [f"{state.read(v, state.at(v)).text} = {text};"])


def _filled(parts: list[str], tail: str) -> list[str]:
    """Parameters over lines of a readable length."""
    lines, row = [], "   "
    for k, p in enumerate(parts):
        text = p + (", " if k < len(parts) - 1 else tail)
        if len(row) + len(text) > WIDTH and row.strip():
            lines.append(row.rstrip())
            row = "   "
        row += (" " if row.strip() == "" else "") + text
    return [*lines, row.rstrip()]
