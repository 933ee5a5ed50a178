"""Printing a tile program as torch operators.

A block value is a tensor with a dimension for every batch axis of the grid and one for each of its block dimensions,
in that order.  Batch instances run at once, rows and the streamed axis in loops whose steps are chosen when called
(:mod:`cpu_runtime`), so axes are clipped exactly and virtual points do not exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf, prod

from flashlight.backends.cpu_index import Place, View, load, store
from flashlight.backends.cpu_map import FALSE, TRUE, Speller
from flashlight.backends.cpu_values import HELPERS, State, Value, loops
from flashlight.backends.queries import NARROW, axes_in, kind_of, lets, names_in, reads
from flashlight.backends.scalar import bare, number
from flashlight.errors import InternalError
from flashlight.tile import (
    Apply,
    Carry,
    CastOp,
    Const,
    Dim,
    DotOp,
    Expr,
    Index,
    Kernel,
    Let,
    LoadOp,
    Loop,
    MapOp,
    ReduceOp,
    Ref,
    ScanOp,
    Segment,
    Stmt,
    Store,
    walk,
)

ENTRY = "run"


def text_of(kernel: Kernel) -> str:
    """The kernel as Python source defining ``run(inputs, outputs, sizes)``.

    Raises InternalError: the kernel is malformed.
    """
    first = _Emitter(kernel, frozenset())
    first.module()  # which index tensors are needed shows in a first pass
    second = _Emitter(kernel, frozenset(first.state.wanted))
    second.module()
    return second.state.writer.text()


class _Emitter:
    def __init__(self, kernel: Kernel, coordinates: frozenset[tuple[str, int]]):
        self.kernel = kernel
        self.state = State(kernel, coordinates)
        self.batch = self.state.batch
        self.hoists: dict[tuple[str, tuple[Expr | None, ...]], str] = {}
        self.steps: dict[str, str] = {}
        self.slots: dict[str, int] = {}
        self.streaming: list[str] = []  # the axes of the loops that are open
        self.bounds = {a for x in loops(kernel.body) for g in x.segments for e in g.places for a in axes_in(e)}

    # ---- the frame -----------------------------------------------------------------------------------------------
    def module(self) -> None:
        k, s, w = self.kernel, self.state, self.state.writer
        w.line(f'"""{k.name}, printed by flashlight\'s cpu backend."""')
        w.line("import torch")
        w.line("from math import inf, nan")
        w.line(f"from flashlight.backends.cpu_runtime import LONG, {', '.join(HELPERS)}")
        w.line()
        w.line()
        w.line("@torch.no_grad()")
        with w.block(f"def {ENTRY}(inputs, outputs, sizes):"):
            for names, source in (
                ([b.name for b in k.inputs], "inputs"),
                ([b.name for b in k.outputs], "outputs"),
                (list(k.sizes), "sizes"),
            ):
                if names:
                    w.line(f"{', '.join(s.names[n] for n in names)}{',' if len(names) == 1 else ''} = {source}")
            for d in k.dims:
                if d.role == "point":
                    s.define_coordinate(d.axis)
            rows = [g.axis for g in k.grid if g.axis not in self.batch]
            self.choose_steps(rows)
            self.nest(list(self.batch), rows, False)

    def choose_steps(self, rows: list[str]) -> None:
        """Batch axes are grouped first, the innermost first; then rows.  An axis that loop bounds speak of is not."""
        if not self.kernel.grid:
            return
        blocks = {g.axis: g.block for g in self.kernel.grid}
        order = [*reversed(self.batch), *reversed(rows)]
        self.steps = {a: self.state.names.fresh(f"{a}_step") for a in order}
        axes = ", ".join(
            f"({self.state.integer(self.state.extents[a])}, {blocks[a]}, {a not in self.bounds})" for a in order
        )
        names = ", ".join(self.steps.values()) + ("," if len(order) == 1 else "")
        computed = [x for x in lets(self.kernel.body) if not isinstance(x.op, LoadOp)]
        self.state.writer.line(f"{names} = fit({self.largest(computed)}, {axes})")

    def largest(self, values: list[Let], loop: str = "") -> str:
        """The elements of the largest of these blocks in one batch instance; within ``loop``, per position of it."""
        shapes = {frozenset(x.dims) - {loop} for x in values} or {frozenset[str]()}
        products = set()
        for shape in (a for a in shapes if not any(a < b for b in shapes)):
            factors = [self.block(d, bool(loop)) for d in self.kernel.dims if d.axis in shape]
            literal = prod(int(f) for f in factors if f.isdigit())
            symbols = [f for f in factors if not f.isdigit()]
            products.add(" * ".join([*symbols, *([str(literal)] if literal != 1 or not symbols else [])]))
        return next(iter(products)) if len(products) == 1 else f"max({', '.join(sorted(products))})"

    def block(self, d: Dim, stepped: bool) -> str:
        """The length of a block: of rows as chosen when called (``stepped``) or as scheduled, of a streamed axis as
        long as a few trips together."""
        match d.role:
            case "row":
                return self.steps[d.axis] if stepped else str(d.block)
            case "stream":
                return f"min({self.state.integer(d.extent)}, LONG)"
        return self.state.atom(d.extent)

    def nest(self, batch: list[str], rows: list[str], hoisted: bool) -> None:
        """The loops over the grid, batch axes outside; then the body."""
        if not batch and not hoisted:
            self.hoist()
        axis = (batch or rows or [""])[0]
        if not axis:
            self.body(self.kernel.body, frozenset())
            return
        lo, hi = self.state.span(axis)
        extent = self.state.integer(self.state.extents[axis])
        with self.state.writer.block(f"for {lo}, {hi} in spans({extent}, {self.steps[axis]}):"):
            self.state.define_coordinate(axis)
            self.nest(batch[1:], rows if batch else rows[1:], not batch)

    # ---- loads that every row block would repeat -----------------------------------------------------------------
    def hoist(self) -> None:
        """Batch indices of streamed loads applied once for all rows, with what would be repeated for each of them:
        widening, gathers along batch axes, and a copy where several batch axes do not lie as one."""
        inner = [x for p in loops(self.kernel.body) for g in p.segments for x in lets(g.body)]
        operands = {n for x in inner if isinstance(x.op, DotOp) for n in (x.op.left, x.op.right)}
        for x in inner:
            if isinstance(x.op, LoadOp) and (key := self.hoistable(x.op)) is not None and key not in self.hoists:
                narrow = self.kernel.buffer(x.op.buffer).dtype in NARROW
                selects = any(e is not None and not isinstance(e, Index) for e in key[1])
                several = len(self.batch) > 1 and x.name in operands
                if narrow or selects or several:
                    self.hoists[key] = self.hoisted(x.op, key[1], narrow, several)

    def hoistable(self, op: LoadOp) -> tuple[str, tuple[Expr | None, ...]] | None:
        """The buffer and its batch indices, if they are apart from the others and no row axis is among those."""
        key: list[Expr | None] = []
        seen: list[str] = []
        for e in op.index:
            own = dict.fromkeys(axes_in(e))
            of_batch = [a for a in own if a in self.batch]
            if names_in(e) or len(own) > 1:
                return None
            if any(self.state.roles.get(a) == "row" for a in own):
                return None
            seen += of_batch
            key.append(e if of_batch else None)
        if len(set(seen)) != len(seen) or None not in key:
            return None
        return op.buffer, tuple(key)

    def hoisted(self, op: LoadOp, key: tuple[Expr | None, ...], narrow: bool, several: bool) -> str:
        buffer = self.kernel.buffer(op.buffer)
        whole = [f"#{k}" for k, e in enumerate(key) if e is None]
        order = (*self.batch, *whole)
        places = [Place(n, e, f"#{k}") for k, (n, e) in enumerate(zip(buffer.shape, key, strict=True))]
        source = self.state.names[op.buffer]
        view = load(self.state, source, places, LoadOp(op.buffer, op.index), order)
        text = view.text
        if narrow:
            text = f"{text}.to(torch.float32, memory_format=torch.contiguous_format)"
        elif several:
            text = f"packed({text}, {len(self.batch)})"
        name = self.state.names.fresh(f"{source}_all")
        self.state.writer.line(f"{name} = {text}")
        return name

    # ---- statements ----------------------------------------------------------------------------------------------
    def body(self, body: tuple[Stmt, ...], live: frozenset[str]) -> None:
        """Statements in order; ``live``: names read after them."""
        later, users = [live], dict[str, list[Stmt]]()
        for s in reversed(body):
            read = frozenset(reads(s))
            later.append(later[-1] | read)
            for name in read:
                users.setdefault(name, []).append(s)
        for s, after in zip(body, reversed(later[:-1]), strict=True):
            self.state.later = after
            match s:
                case Let():
                    self.let(s, users.get(s.name, []), live)
                case Store(_, _, name):
                    v = self.state.value(name)
                    store(self.state, s, v.dims, v.text)
                case Loop():
                    self.loop(s, after)

    def let(self, s: Let, users: list[Stmt], live: frozenset[str]) -> None:
        match s.op:
            case LoadOp():
                value = self.load(s, s.op)
            case MapOp(e):
                value = self.map(s, e, users)
            case DotOp():
                value = self.dot(s, s.op, users, live)
            case ReduceOp(monoid, name, axis):
                value = self.reduce(s, monoid, self.state.value(name), axis)
            case ScanOp(name, axis):
                value = self.scan(s, self.state.value(name), axis)
            case CastOp(name):
                value = self.cast(s, self.state.value(name))
        self.state.values[s.name] = value

    def define(self, s: Let, text: str, axes: Iterable[str], dtype: str, source: Value | None = None) -> Value:
        """Print the assignment; ``source``: the value whose memory this is a view of."""
        name = self.state.names[s.name]
        self.state.writer.line(f"{name} = {bare(text)}", s.note)
        value = self.state.owned(name, s.dims, frozenset(axes), dtype)
        return value if source is None else replace(value, storage=source.storage, scope=source.scope)

    def load(self, s: Let, op: LoadOp) -> Value:
        buffer = self.kernel.buffer(op.buffer)
        order = (*self.batch, *s.dims)
        key = self.hoistable(op)
        if key is not None and (name := self.hoists.get(key)) is not None:
            rest = [(n, e) for n, e, b in zip(buffer.shape, op.index, key[1], strict=True) if b is None]
            batch = {a: any(b is not None and a in axes_in(b) for b in key[1]) for a in self.batch}
            places = [Place(Const(1), None, a) for a in self.batch] + [Place(n, e) for n, e in rest]
            view = load(self.state, name, places, op, order)
            view = View(view.text, view.axes - {a for a, there in batch.items() if not there}, False)
        else:
            places = [Place(n, e) for n, e in zip(buffer.shape, op.index, strict=True)]
            view = load(self.state, self.state.names[op.buffer], places, op, order)
            if buffer.dtype in NARROW:
                view = View(f"{view.text}.float()", view.axes, True)
        value = self.define(s, view.text, view.axes, held(buffer.dtype))
        return replace(value, scope=value.scope if view.copied else None, rounded=False)

    def map(self, s: Let, e: Expr, users: list[Stmt]) -> Value:
        order = (*self.batch, *s.dims)
        speller = Speller(self.state, order, e, self.state.dead)
        out = speller.spell(e)
        decided = out == TRUE if out in (TRUE, FALSE) else None
        if decided is not None and all(isinstance(x, Let) and isinstance(x.op, MapOp) for x in users):
            return Value("", s.dims, frozenset(), "bool", -1, None, decided=decided)  # its readers know it: no line
        if out.scalar:
            out = speller.tensor(out, None)
        if kind_of(held(s.dtype)) != "int" or out.kind != "int":
            out = speller.converted(out, held(s.dtype))
        text = out.text
        if out.rank < len(order):
            text += f"[{', '.join(['None'] * (len(order) - out.rank))}]"
        value = self.define(s, text, out.axes, out.dtype or held(s.dtype), None if out.fresh else out.source)
        value = replace(value, rounded=out.rounded, decided=decided)
        return value if out.fresh or out.source is not None else replace(value, scope=None)

    def cast(self, s: Let, v: Value) -> Value:
        if s.dtype in NARROW:
            text = f"{v.text}.to(torch.{s.dtype})"
            text = f"{v.text}.copy_({text})" if self.state.dead(v) and v.dtype == "float32" else f"{text}.float()"
            return self.define(s, text, v.axes, "float32")
        if v.dtype == s.dtype:
            return replace(self.define(s, v.text, v.axes, v.dtype, v), rounded=v.rounded)
        return self.define(s, f"{v.text}.to(torch.{s.dtype})", v.axes, s.dtype)

    def reduce(self, s: Let, monoid: str, v: Value, axis: str) -> Value:
        if axis not in v.dims:
            raise InternalError(f"kernel {self.kernel.name}: {s} reduces an axis that {v.text} does not have")
        text, at = v.text, v.dims.index(axis) - len(v.dims)
        if axis not in v.axes and monoid in ("sum", "prod"):
            text = self.expanded(v.text, at, axis)
        dtype = held(s.dtype)
        method = {"sum": "sum", "prod": "prod", "max": "amax", "min": "amin"}[monoid]
        extra = f", dtype=torch.{dtype}" if kind_of(dtype) != "real" and monoid in ("sum", "prod") else ""
        text = f"{text}.{method}({at}{extra})"
        if dtype != v.dtype and not extra:
            text += f".to(torch.{dtype})"
        if tuple(d for d in v.dims if d != axis) != s.dims:
            raise InternalError(f"kernel {self.kernel.name}: {s} has not the dimensions of {v.text} but {axis}")
        return self.define(s, text, v.axes - {axis}, dtype)

    def scan(self, s: Let, v: Value, axis: str) -> Value:
        at = v.dims.index(axis) - len(v.dims)
        text = v.text if axis in v.axes else self.expanded(v.text, at, axis)
        return self.define(s, f"{text}.cumsum({at})", v.axes | {axis}, v.dtype)

    def expanded(self, text: str, at: int, axis: str) -> str:
        """A tensor of length 1 along its dimension ``at`` (from the end), repeated to the axis's present length."""
        after = [self.state.length(axis), *["-1"] * (-at - 1)]
        return f"{text}.expand(*{text}.shape[:{at}], {', '.join(after)})"

    # ---- dots ----------------------------------------------------------------------------------------------------
    def dot(self, s: Let, op: DotOp, users: list[Stmt], live: frozenset[str]) -> Value:
        left, right = self.state.value(op.left), self.state.value(op.right)
        c = op.contract
        shared = [d for d in s.dims if d in left.dims and d in right.dims]
        ms = [d for d in s.dims if d in left.dims and d not in shared]
        ns = [d for d in s.dims if d in right.dims and d not in shared]
        if ms and ns and s.dims.index(ns[0]) < s.dims.index(ms[0]):
            left, right, ms, ns = right, left, ns, ms
        made = (*shared, *ms, *ns)
        dtype = held(s.dtype)
        a = self.operand(left, (*shared, *ms, c), c, dtype)
        b = self.operand(right, (*shared, c, *ns), c, dtype)
        shape = f", {len(ms)}, {len(ns)}" if (len(ms), len(ns)) != (1, 1) else ""
        axes = (left.axes | right.axes) - {c}
        if op.acc is not None:
            acc = self.state.value(op.acc)
            if made == s.dims == acc.dims and self.state.dead(acc) and axes <= acc.axes and acc.dtype == dtype:
                text = f"dot_into({acc.text}, {a}, {b}{shape})"
                return self.define(s, text, acc.axes, dtype)
            text = self.back(f"dot({a}, {b}{shape})", made, s.dims)
            return self.define(s, f"{self.state.arranged(acc, s.dims)} + {text}", axes | acc.axes, dtype)
        factor = self.factor(s, users, live) if kind_of(dtype) == "real" else None
        scale = f", alpha={number(factor.value)}" if factor is not None else ""
        if set(s.dims) & set(self.streaming):  # dead at the trip's end, since no state has that dimension
            scale += f", slot={self.slots.setdefault(s.name, len(self.slots))}"
        value = self.define(s, self.back(f"dot({a}, {b}{shape}{scale})", made, s.dims), axes, dtype)
        return replace(value, scaled=factor)

    def operand(self, v: Value, want: tuple[str, ...], c: str, dtype: str) -> str:
        text = self.state.arranged(v, want)
        if v.dtype != dtype:
            text += f".to(torch.{dtype})"
        return text if c in v.axes else self.expanded(text, want.index(c) - len(want), c)

    def back(self, text: str, made: tuple[str, ...], dims: tuple[str, ...]) -> str:
        if set(made) != set(dims):
            raise InternalError(f"kernel {self.kernel.name}: a dot makes {made}, not {dims}")
        if made == dims:
            return text
        nb = len(self.batch)
        return f"{text}.permute({', '.join(map(str, [*range(nb), *(nb + made.index(d) for d in dims)]))})"

    def factor(self, s: Let, users: list[Stmt], live: frozenset[str]) -> Const | None:
        """A constant that the only use of a dot multiplies it by: the matrix product takes it along."""
        if s.name in live or len(users) != 1 or not isinstance(users[0], Let):
            return None
        user = users[0]
        if not isinstance(user.op, MapOp):
            return None
        ref = Ref(s.name)
        parents = [n for n in walk(user.op.body) if isinstance(n, Apply) and any(a is ref for a in n.args)]
        match parents:
            case [Apply("mul", (a, Const(float(f)) as c) | (Const(float(f)) as c, a))] if a is ref and abs(f) < inf:
                return c
        return None

    # ---- loops ---------------------------------------------------------------------------------------------------
    def loop(self, s: Loop, live: frozenset[str]) -> None:
        st, w = self.state, self.state.writer
        outer = st.scope
        dim = self.kernel.dim(s.axis)
        for c in s.carries:
            if s.axis in c.dims:
                raise InternalError(f"kernel {self.kernel.name}: state {c.name} varies along its own loop's axis")
            w.line(f"{st.names[c.name]} = {self.initial(c)}")
        inner = [x for g in s.segments for x in lets(g.body)]
        streamed = [x for x in inner if s.axis in x.dims and not isinstance(x.op, LoadOp)]
        unit = [*(self.steps[a] for a in self.batch), self.largest(streamed, s.axis), str(dim.block)]
        together = st.names.fresh("together")
        w.line(f"{together} = most({' * '.join(u for u in unit if u != '1')})")
        for g, lo, hi in self.trips_of(s.segments):
            self.segment(s, g, dim, together, lo, hi)
        st.scope, st.later = outer, live
        for c in s.carries:
            st.values[c.name] = self.state_value(c)

    def initial(self, c: Carry) -> str:
        shape = [bare(self.state.length(a)) for a in (*self.batch, *c.dims)]
        shape_text = f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"
        dtype = held(c.dtype)
        value = c.init if kind_of(dtype) == "real" else bool(c.init) if dtype == "bool" else int(c.init)
        return f"torch.full({shape_text}, {bare(number(value))}, dtype=torch.{dtype})"

    def state_value(self, c: Carry) -> Value:
        """A carried state as the present scope's own: it varies along everything."""
        axes = frozenset((*self.batch, *c.dims))
        return self.state.owned(self.state.names[c.name], c.dims, axes, held(c.dtype))

    def trips_of(self, segments: tuple[Segment, ...]) -> list[tuple[Segment, str, str]]:
        """Segments with their bounds.  A few full trips between partial ones are taken with those, in one long trip:
        the body of partial trips is right for full ones, too."""
        st = self.state
        match segments:
            case (Segment("partial", a, b, body), Segment("full", b2, c, _), Segment("partial", c2, d, body2)) if (
                b is b2 and c is c2 and body == body2
            ):
                full = st.names.fresh("full"), st.names.fresh("rest")
                st.writer.line(f"{', '.join(full)} = joined({', '.join(map(st.integer, (b, c, d)))})")
                texts = (st.integer(a), *full, st.integer(d))
                return list(zip(segments, texts, texts[1:], strict=False))
        return [(g, st.integer(g.lo), st.integer(g.hi)) for g in segments]

    def segment(self, s: Loop, g: Segment, dim: Dim, together: str, lo: str, hi: str) -> None:
        st, w = self.state, self.state.writer
        before, outer = dict(st.values), st.scope
        start, stop = st.span(s.axis)
        axis = f"{dim.block}, {st.integer(dim.extent)}, {together}"
        if g.tile is None:
            head = f"for {start}, {stop} in trips({lo}, {hi}, {axis}):"
        else:
            trip = st.names.fresh(f"{s.axis}_trip")
            at = f"[{st.integer(g.tile, {s.axis: trip})} for {trip} in range({lo}, {hi})]"
            head = f"for {start}, {stop} in listed({at}, {axis}):"
        self.streaming.append(s.axis)
        with w.block(head, g.kind):
            st.scope = next(st.fresh_scope)
            st.define_coordinate(s.axis)
            for c in s.carries:
                st.values[c.name] = self.state_value(c)
            self.body(g.body, frozenset(c.next for c in s.carries))
            self.carry(s.carries)
            big = [x for x in g.body if isinstance(x, Let) and s.axis in x.dims and not isinstance(x.op, LoadOp)]
            kept = {c.next for c in s.carries}
            if gone := [st.names[x.name] for x in big if x.name not in kept and st.value(x.name).text]:
                w.line(f"del {', '.join(dict.fromkeys(gone))}")
        self.streaming.pop()
        st.values, st.scope = before, outer

    def carry(self, carries: tuple[Carry, ...]) -> None:
        """The states after the trip take the names of those before it, each with memory of its own."""
        targets, sources, taken = [], [], set()
        for c in carries:
            v = self.state.value(c.next)
            text = self.state.arranged(v, c.dims)
            if held(c.dtype) != v.dtype:
                text += f".to(torch.{held(c.dtype)})"
            if v.axes != frozenset((*self.batch, *c.dims)):
                text += f".expand_as({self.state.names[c.name]}).clone()"
            elif v.scope != self.state.scope or v.storage in taken:
                text += ".clone()"
            taken.add(v.storage)
            if text != self.state.names[c.name]:
                targets.append(self.state.names[c.name])
                sources.append(text)
        if targets:
            self.state.writer.line(f"{', '.join(targets)} = {', '.join(sources)}")


def held(dtype: str) -> str:
    """The dtype in which values of ``dtype`` are kept: 16-bit reals in float32."""
    return "float32" if dtype in NARROW else dtype
