"""Scalar bodies over blocks as torch expressions, written over memory nobody reads again where that is possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from flashlight.backends.cpu_values import State, Value
from flashlight.backends.queries import COMPARE, INTS, LOGIC, NARROW, kind_of
from flashlight.backends.scalar import PYTHON, TORCH, TORCH_INPLACE, TORCH_OUT, bare, fill, number
from flashlight.errors import InternalError
from flashlight.tile import Apply, Const, Expr, Index, Ref, Size, children, walk

FLIP = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}
REAL = ("div", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "erf",
        "atan")  # fmt: skip
SCALARS_ONLY_AS_TENSORS = (*REAL, "pow", "fmod", "isnan", "real", "floor", "ceil", "round", "trunc")
EXACT = ("neg", "abs", "maximum", "minimum", "floor", "ceil", "round", "trunc", "sign")
LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Spelled:
    """The text of a node.  ``dtype`` None: a Python number of ``kind``.  ``fresh``: nobody else reads this memory.
    ``rounded``: a real that is the outcome of a rounding, and not exactly what the user passed."""

    text: str
    kind: str
    dtype: str | None
    axes: frozenset[str] = frozenset()
    rank: int = 0
    fresh: bool = False
    source: Value | None = None
    rounded: bool = False

    @property
    def scalar(self) -> bool:
        return self.dtype is None


TRUE, FALSE = Spelled("True", "bool", None), Spelled("False", "bool", None)


class Speller:
    """Spells one body for a tensor with dimensions ``order``; ``reusable`` says whose memory may be written over."""

    def __init__(self, state: State, order: tuple[str, ...], body: Expr, reusable: Callable[[Value], bool]):
        self.state, self.order, self.reusable = state, order, reusable
        self.dims = tuple(a for a in order if a not in state.batch)
        self.rank = len(order)
        self.done: dict[Expr, Spelled] = {}
        self.uses: Counter[Expr] = Counter({body: 1})
        for n in walk(body):
            self.uses.update(children(n))
        self.storages: Counter[int] = Counter()
        for n, times in self.uses.items():
            if isinstance(n, Ref):
                self.storages[state.value(n.name).storage] += times

    def spell(self, e: Expr) -> Spelled:
        if e not in self.done:
            out = self.node(e)
            if isinstance(e, Apply) and self.uses[e] > 1 and not out.scalar:
                name = self.state.names.fresh("shared")
                self.state.writer.line(f"{name} = {bare(out.text)}")
                out = replace(out, text=name, fresh=False, source=None)
            self.done[e] = out
        return self.done[e]

    def node(self, e: Expr) -> Spelled:
        match e:
            case Const(value):
                kind = {bool: "bool", int: "int", float: "real"}[type(value)]
                return Spelled(number(value), kind, None)
            case Size():
                return Spelled(self.state.integer(e), "int", None)
            case Index(axis):
                return self.index(axis)
            case Ref(name):
                v = self.state.value(name)
                if v.decided is not None:
                    return TRUE if v.decided else FALSE
                fresh = self.storages[v.storage] == 1 and self.reusable(v)
                dtype = "float32" if v.dtype in NARROW else v.dtype
                text = self.state.arranged(v, self.dims)
                return Spelled(text, kind_of(dtype), dtype, v.axes, self.rank, fresh, v, v.rounded)
            case Apply("mul", (Ref(name), Const() as c) | (Const() as c, Ref(name))) if (
                self.state.value(name).scaled is c
            ):
                return self.spell(Ref(name))  # the dot was printed with this factor
            case Apply(op, args):
                return self.apply(op, args)
        raise InternalError(f"kernel {self.state.kernel.name}: {e} does not belong in a tile program")

    def index(self, axis: str) -> Spelled:
        order = self.order
        if axis not in order:
            raise InternalError(f"kernel {self.state.kernel.name}: a value without dimension {axis} reads its index")
        after = len(order) - 1 - order.index(axis)
        text = self.state.coordinate(axis) + (f"[:{', None' * after}]" if after else "")
        return Spelled(text, "int", "int64", frozenset((axis,)), after + 1)

    def apply(self, op: str, args: tuple[Expr, ...]) -> Spelled:
        if (known := self.inside(op, args)) is not None:
            return known
        if op == "not":
            return self.negated(args[0])
        if op == "select":
            return self.select(*args)
        parts = [self.spell(a) for a in args]
        match op, parts:
            case ("and", [Spelled("True", _, None), x]) | ("and", [x, Spelled("True", _, None)]):
                return x
            case ("or", [Spelled("False", _, None), x]) | ("or", [x, Spelled("False", _, None)]):
                return x
            case ("and", [Spelled("False", _, None), _]) | ("and", [_, Spelled("False", _, None)]):
                return FALSE
            case ("or", [Spelled("True", _, None), _]) | ("or", [_, Spelled("True", _, None)]):
                return TRUE
        kind = self.result_kind(op, parts)
        if all(p.scalar for p in parts):
            if op in PYTHON and op not in SCALARS_ONLY_AS_TENSORS and not (op == "floordiv" and kind == "real"):
                return Spelled(fill(PYTHON, op, *(p.text for p in parts)), kind, None)
            parts[0] = self.tensor(parts[0], self.state.real if kind == "real" else None)
        if op == "fmod" and parts[0].scalar:  # torch.fmod takes no number there
            parts[0] = self.tensor(parts[0], self.real(parts) if kind == "real" else None)
        if op in ("real", "int"):
            return self.converted(parts[0], self.real(parts) if op == "real" else "int64")
        if op == "bool":
            return parts[0] if parts[0].dtype == "bool" else self.make(op, parts, "bool")
        if op in LOGIC:
            parts = [p if p.scalar or p.dtype == "bool" else self.make("bool", [p], "bool") for p in parts]
            return self.make(op, parts, "bool")
        if op in COMPARE or op == "isnan":
            if any(p.kind == "real" for p in parts):
                parts = [self.wide(p, self.real(parts)) for p in parts]
            return self.make(op, parts, "bool")
        dtype = self.real(parts) if kind == "real" else "int64" if kind == "int" else "bool"
        if kind == "int" and len(ints := {p.dtype for p in parts if p.dtype in INTS}) == 1:
            dtype = str(ints.pop())
        parts = [self.wide(p, dtype) for p in parts]
        if op == "exp" and dtype == "float32" and parts[0].rounded and len(self.dims) > 1:
            # exp2 does not slow down, up to thirtyfold, where results are subnormal.  The product with log2(e) rounds
            # by no more than what made the argument did, so it may at most double the error.
            parts, op = [self.make("mul", [parts[0], Spelled(number(LOG2E), "real", None)], dtype)], "exp2"
        return self.make(op, parts, dtype)

    # ---- operators with forms of their own -----------------------------------------------------------------------
    def inside(self, op: str, args: tuple[Expr, ...]) -> Spelled | None:
        """Comparisons that clipping decides: every coordinate lies in ``[0, extent)``."""
        match op, args:
            case ("lt", (Index(a), e)) | ("gt", (e, Index(a))) if e is self.state.extents.get(a):
                return TRUE
            case ("ge", (Index(a), e)) | ("le", (e, Index(a))) if e is self.state.extents.get(a):
                return FALSE
            case ("ge", (Index(), Const(0))) | ("le", (Const(0), Index())):
                return TRUE
        return None

    def negated(self, e: Expr) -> Spelled:
        match e:
            case Apply(op, (a, b)) if op in FLIP and "real" not in (self.spell(a).kind, self.spell(b).kind):
                return self.apply(FLIP[op], (a, b))  # exact for integers, which know no NaN
            case Apply("not", (a,)):
                return self.spell(a)
            case Apply("and", (a, b)) if self.spell(a) == TRUE or self.spell(b) == TRUE:
                return self.negated(b if self.spell(a) == TRUE else a)
        p = self.spell(e)
        if p.scalar:
            return {"True": FALSE, "False": TRUE}.get(p.text) or Spelled(f"(not {p.text})", "bool", None)
        return self.make("not", [p if p.dtype == "bool" else self.make("bool", [p], "bool")], "bool")

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Spelled:
        c = self.spell(condition)
        if c.scalar and c.text in ("True", "False"):
            return self.spell(yes if c.text == "True" else no)
        if (opposite := self.negated(condition)) in (TRUE, FALSE):  # decided that way round only
            return self.spell(no if opposite == TRUE else yes)
        a, b = self.spell(yes), self.spell(no)
        kinds = {a.kind, b.kind}
        kind = "real" if "real" in kinds else "int" if "int" in kinds else "bool"
        if c.scalar and a.scalar and b.scalar:
            return Spelled(fill(PYTHON, "select", c.text, a.text, b.text), kind, None)
        dtype = self.real([a, b]) if kind == "real" else "int64" if kind == "int" else "bool"
        if a.scalar and b.scalar:
            a = self.tensor(a, dtype)
        a, b = self.wide(a, dtype), self.wide(b, dtype)
        if c.scalar:
            c = self.tensor(c, "bool")
            text = f"torch.where({c.text}, {bare(a.text)}, {bare(b.text)})"
            return Spelled(text, kind, dtype, a.axes | b.axes, max(a.rank, b.rank), True, None, a.rounded or b.rounded)
        if c.dtype != "bool":
            c = self.make("bool", [c], "bool")
        axes, rank, rounded = c.axes | a.axes | b.axes, max(c.rank, a.rank, b.rank), a.rounded or b.rounded
        if b.scalar and a.fresh and (a.axes, a.rank) == (axes, rank):
            return replace(a, text=f"filled({bare(a.text)}, {bare(self.negated(condition).text)}, {bare(b.text)})")
        if a.scalar and b.fresh and (b.axes, b.rank) == (axes, rank):
            return replace(b, text=f"filled({bare(b.text)}, {bare(c.text)}, {bare(a.text)})")
        text = f"torch.where({bare(c.text)}, {bare(a.text)}, {bare(b.text)})"
        return Spelled(text, kind, dtype, axes, rank, True, None, rounded)

    # ---- printing ------------------------------------------------------------------------------------------------
    def make(self, op: str, parts: list[Spelled], dtype: str) -> Spelled:
        """An operator over tensors (one at least) of the right dtypes; in place where some argument is ours."""
        axes = frozenset().union(*(p.axes for p in parts))
        rank = max(p.rank for p in parts)
        ours = [p.fresh and (p.axes, p.rank, p.dtype) == (axes, rank, dtype) for p in parts]
        texts = [p.text for p in parts]
        inner = [bare(t) for t in texts]
        if op in ("maximum", "minimum") and any(p.scalar for p in parts):
            k = 0 if parts[1].scalar else 1
            bound = ("min" if op == "maximum" else "max") + f"={texts[1 - k]}"
            text = f"{texts[k]}.clamp_({bound})" if ours[k] else f"{texts[k]}.clamp({bound})"
        elif ours[0] and op in TORCH_INPLACE:
            text = TORCH_INPLACE[op].format(texts[0], *inner[1:])
        elif len(parts) == 2 and ours[1] and op in ("add", "mul"):
            text = TORCH_INPLACE[op].format(texts[1], inner[0])
        elif len(parts) == 2 and any(ours) and op in TORCH_OUT and not any(p.scalar for p in parts):
            target = parts[ours.index(True)]
            if target.source is not None and target.text == target.source.text:
                text = TORCH_OUT[op].format(*inner, target=target.text)
            else:
                text = fill(TORCH, op, *texts)
        else:
            text = fill(TORCH, op, *(texts if len(texts) > 1 or op in ("neg", "not", "bool", "real", "int") else inner))
        rounded = op not in EXACT or any(p.rounded for p in parts)
        return Spelled(text, kind_of(dtype), dtype, axes, rank, True, rounded=rounded)

    def result_kind(self, op: str, parts: list[Spelled]) -> str:
        if op in REAL or op == "real":
            return "real"
        if op in COMPARE or op in LOGIC or op in ("isnan", "bool"):
            return "bool"
        if op == "int":
            return "int"
        return "real" if any(p.kind == "real" for p in parts) else "int"

    def real(self, parts: list[Spelled]) -> str:
        """The dtype in which these are computed with: the widest real one among them."""
        found = [p.dtype for p in parts if p.kind == "real" and p.dtype is not None]
        return "float64" if "float64" in found else "float32" if found else self.state.real

    def wide(self, p: Spelled, dtype: str) -> Spelled:
        """Integers among reals become real first (torch would choose its default dtype); booleans become integers."""
        return p if p.scalar or p.dtype == dtype else self.converted(p, dtype)

    def converted(self, p: Spelled, dtype: str) -> Spelled:
        if p.scalar:
            return self.tensor(p, dtype)
        if p.dtype == dtype:
            return p
        return replace(p, text=f"{p.text}.to(torch.{dtype})", kind=kind_of(dtype), dtype=dtype, fresh=True)

    def tensor(self, p: Spelled, dtype: str | None) -> Spelled:
        dtype = dtype or {"bool": "bool", "int": "int64", "real": self.state.real}[p.kind]
        return Spelled(f"torch.tensor({bare(p.text)}, dtype=torch.{dtype})", kind_of(dtype), dtype, fresh=True)
