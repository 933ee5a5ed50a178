"""ATen graph -> programs: every operator with a row in the table becomes statements; one without ends the region."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

from flashlight.arrays import Array, Builder, Names, is_plain, kind_of, scalar
from flashlight.aten import TABLE, Node, complexes
from flashlight.errors import NeedsLiteral, Unplannable, UnsupportedOperator
from flashlight.expr import Const, Expr, Index, Load, Size, axes, loads, substitute, walk
from flashlight.lengths import sizes_of, value_at
from flashlight.lifted import Captured, Eager, Lifted, Region, Traced
from flashlight.program import Axis, Origin, Program, Statement, Tensor

LETTERS = "bhgf", "ij", "kl", "dceuvwxyz"  # leading, last two, further streamed, further bounded axes


def lift(captured: Captured, refused: Mapping[str, str] = MappingProxyType({})) -> Lifted:
    """Programs for what is supported, in regions between what is not, and the order in which both run.

    ``refused``: graph nodes that are to run as they would have, with the reason.
    """
    return _Lift(captured, refused).run()


class _Lift:
    def __init__(self, captured: Captured, refused: Mapping[str, str]):
        self.captured, self.refused, self.names = captured, refused, Names()
        self.regions: dict[int, Builder] = {}
        self.values: dict[str, Any] = {}  # node -> Array, or a list of them
        self.level: dict[str, int] = {}  # node -> the region that computes it
        self.eager: dict[str, tuple[int, Eager]] = {}
        self.stored: dict[int, dict[str, str]] = {}  # region -> output statement -> name in the environment
        self.given = {x.node: x for x in captured.inputs}
        self.names.taken |= set(captured.names)
        self.named = {x.node: self.names.fresh(x.name) for x in captured.inputs}  # node -> name in the environment
        self.parts: dict[str, str] = {}  # complex input -> name of its real view
        self.traced = {t.node.name: t for t in captured.nodes}
        fixed = {x.node: x.value for x in captured.inputs if x.value is not None and x.value.ndim == 0}
        self.fresh = {n: v.item() for n, v in fixed.items() if v.device.type == "cpu"}
        self.stems = _stems(captured.nodes)

    def run(self) -> Lifted:
        for t in self.captured.nodes:
            self._node(t)
        outputs = [self._output(o) for o in self.captured.outputs]
        mutated = [(position, self._output(node)) for position, node in self.captured.mutated]
        for _, e in self.eager.values():
            for name in _node_names(e.traced):
                self._output(name)
        steps: list[Region | Eager] = []
        for level in range(1 + max([*self.regions, *(k for k, _ in self.eager.values())], default=0)):
            if level in self.regions and self.stored.get(level):
                steps.append(self._region(level))
            steps += [e for k, e in self.eager.values() if k == level]
        inputs = tuple((self.named[x.node], x) for x in self.captured.inputs)
        inputs += tuple((name, replace(self.given[node], parts=True)) for node, name in self.parts.items())
        where = tuple(self.named.items())
        values = dict(zip(self.captured.names, self.captured.actual, strict=True))
        for guard in self.names.guards:
            if not value_at(guard, values):
                raise NeedsLiteral(sizes_of(guard), f"a shape is as it is only where {guard}")
        return Lifted(
            self.captured, inputs, tuple(steps), tuple(outputs), tuple(mutated), where, tuple(self.names.guards)
        )

    # ---- nodes -------------------------------------------------------------------------------------------------
    def _node(self, t: Traced) -> None:
        node = t.node
        if node.name in self.given:
            self.level[node.name] = 0
            return
        sources = _node_names(t)
        level = max((self.level[s] + (s in self.eager) for s in sources), default=0)
        self.level[node.name] = level
        builder = self.regions.setdefault(level, Builder(self.names))
        builder.origin, builder.stem = t.origin, self.stems[node.name]
        try:
            if node.name in self.refused:
                raise UnsupportedOperator(self.refused[node.name])
            value = self._apply(t, builder, level)
            if isinstance(value, Array) and len(node.users) > 1 and self._worth_a_statement(t, value):
                value = builder.define(value)
            self.values[node.name] = value
        except UnsupportedOperator as error:
            self.named[node.name] = self.names.fresh(node.name)
            if any(d in sources for d in self.eager) and node.target is _GETITEM:
                self.eager[node.name] = (level - 1, Eager(t, ""))  # part of what ran before, not a fallback of its own
                self.level[node.name] = level - 1
            else:
                self.eager[node.name] = (level, Eager(t, f"{_title(node)}: {error}"))

    def _apply(self, t: Traced, builder: Builder, level: int) -> Any:
        target = t.node.target

        def value(x: Any) -> Any:
            if isinstance(x, torch.fx.Node):
                return self._read(x.name, level)
            if isinstance(x, tuple):
                return tuple(map(value, x))
            return x

        if target is _GETITEM:
            source, which = t.args
            found = self.values.get(source.name)
            if not isinstance(found, list | tuple) or found[which] is None:
                raise UnsupportedOperator("this result of it")
            return found[which]
        if not isinstance(target, torch._ops.OpOverload):
            raise UnsupportedOperator("no meaning is known for it")
        name = target._schema.name.partition("::")[2]
        row = TABLE.get(name) if target.namespace == "aten" else None
        if row is None and name not in complexes.ROWS:
            raise UnsupportedOperator("no meaning is known for it")
        if not t.shapes:
            raise UnsupportedOperator("it gives no tensor")
        out = Node(t.shapes[0], t.dtypes[0])
        if out.dtype not in complexes.PARTS:
            kind_of(out.dtype)
        if name in ("lift_fresh", "lift_fresh_copy") and (number := self.fresh.get(str(t.args[0]))) is not None:
            return scalar(number, out.dtype)  # a number that PyTorch made a tensor of, as x[mask] = 0 does
        args = {k: value(x) for k, x in _named(target, t).items()}
        if name in ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy"):
            args["shapes"] = t.shapes
        try:
            if out.dtype in complexes.PARTS or complexes.is_complex(tuple(args.values())):
                made = complexes.apply(name, builder, out, args)
            elif row is not None:
                made = row(builder, out, **args)
            else:
                raise UnsupportedOperator("no meaning is known for it")
        except TypeError as error:
            raise UnsupportedOperator(f"arguments that are not understood ({error})") from error
        if isinstance(made, Array):
            if made.rank != len(out.shape):
                raise UnsupportedOperator(f"its result has {made.rank} dimensions here and {len(out.shape)} in PyTorch")
            if made.dtype != out.dtype:
                made = Array(made.shape, out.dtype, made.__getitem__, made.hints)
            at = tuple(Const(0) if n is Const(1) else Index(f"?{d}") for d, n in enumerate(made.shape))
            _ = made[at]  # an element is asked for once here, so that a refusal names this node
        return made

    def _worth_a_statement(self, t: Traced, value: Array) -> bool:
        """Values of several users are computed in one place, unless they are views, or made of indices only."""
        name = str(t.node.target)
        if kind_of(value.dtype) != "real" or is_plain(value) or any(v in name for v in _COPIES):
            return False
        at = tuple(Const(0) if n is Const(1) else Index(f"?{d}") for d, n in enumerate(value.shape))
        return not isinstance(value[at], Load)

    def _read(self, name: str, level: int) -> Any:
        """A value as an array of this region."""
        builder = self.regions.setdefault(level, Builder(self.names))
        t = self.traced[name]
        if name in self.eager and (len(t.shapes) != 1 or isinstance(t.node.meta.get("val"), list | tuple)):
            raise UnsupportedOperator("it reads one of several results")
        if name in self.given and t.dtypes[0] in complexes.PARTS:
            own = self.parts.setdefault(name, self.parts.get(name) or self.names.fresh(f"{self.named[name]}_parts"))
            pairs = builder.input(own, complexes.PARTS[t.dtypes[0]], (*t.shapes[0], Const(2)))
            return complexes.of_pairs(builder, Node(t.shapes[0], pairs.dtype), pairs)
        if name in self.given or name in self.eager:
            return builder.input(self.named[name], t.dtypes[0], t.shapes[0])
        value = self.values[name]
        if isinstance(value, complexes.Complex) and self.level[name] != level:
            raise UnsupportedOperator("it reads complex numbers that other kernels compute")
        if self.level[name] == level or not isinstance(value, Array) or is_plain(value):
            return value
        return builder.input(self._store(name), t.dtypes[0], t.shapes[0])

    # ---- results -----------------------------------------------------------------------------------------------
    def _output(self, o: Any) -> Any:
        """The name in the environment of what a node gives; literals and sizes stand for themselves."""
        if not isinstance(o, str):
            return o
        if o not in self.named:
            self.named[o] = self._store(o)
        return self.named[o]

    def _store(self, name: str) -> str:
        """Make a node's value an output of its region; returns the statement that is written."""
        level, value = self.level[name], self.values[name]
        if isinstance(value, complexes.Complex):
            raise Unplannable((name,), "its complex result is written or read unfused")
        builder, t = self.regions[level], self.traced[name]
        stored = self.stored.setdefault(level, {})
        whole = self._whole(builder, value, t)
        if whole is None:
            builder.origin, builder.stem = t.origin, self.stems[name]
            whole = self._define_output(builder, value)
        stored.setdefault(whole, name)
        return whole

    def _whole(self, builder: Builder, value: Array, t: Traced) -> str | None:
        """The statement that is exactly this array, if there is one."""
        at = tuple(Const(0) if n is Const(1) else Index(f"?{d}") for d, n in enumerate(value.shape))
        e = value[at]
        if isinstance(e, Load) and e.index == at and e.tensor in builder.statements:
            s = builder.statements[e.tensor]
            if s.dtype == value.dtype and len(s.axes) == len(at):
                return s.name
        return None

    def _define_output(self, builder: Builder, value: Array) -> str:
        """A statement with an axis for every dimension, those of length 1 included."""
        used: set[str] = set()
        out = [builder._axis(n, h, used) for n, h in zip(value.shape, value.hints, strict=True)]
        body = value[tuple(Const(0) if a.extent is Const(1) else Index(a.name) for a in out)]
        name = self.names.fresh(builder.stem)
        builder.statements[name] = Statement(name, tuple(out), body, value.dtype, origin=builder.origin)
        return name

    def _region(self, level: int) -> Region:
        builder, outputs = self.regions[level], tuple(self.stored[level])
        needed: dict[str, None] = {}
        stack = list(outputs)
        while stack:
            name = stack.pop()
            if name in builder.statements and name not in needed:
                needed[name] = None
                stack += [x.tensor for x in loads(builder.statements[name].body)]
        statements = [s for s in builder.statements.values() if s.name in needed]
        table = _letters(statements, set(outputs))
        statements = [_renamed(s, table) for s in statements]
        touched = {x.tensor for s in statements for x in loads(s.body)}
        inputs = tuple(x for x in builder.inputs.values() if x.name in touched)
        used = _sizes_used(statements, inputs)
        sizes = tuple(n for n in self.captured.names if n in used)
        program = Program(inputs, tuple(statements), outputs, sizes)
        nodes = tuple(dict.fromkeys(n for s in statements for n in s.origin.nodes))
        return Region(program, nodes)


_COPIES = (
    "view",
    "transpose",
    "permute",
    "expand",
    "clone",
    "slice",
    "select",
    "squeeze",
    "alias",
    "detach",
    "_to_copy",
)
_SHORT = {"scaled_dot_product_attention": "sdpa"}
_GETITEM = __import__("operator").getitem


def _named(target: torch._ops.OpOverload, t: Traced) -> dict[str, Any]:
    """The arguments by the names of the schema, without those that stand at their defaults."""
    schema = target._schema.arguments
    given = {a.name: x for a, x in zip(schema, t.args, strict=False)} | dict(t.kwargs)
    dropped = (
        "dtype",
        "layout",
        "device",
        "pin_memory",
        "memory_format",
        "non_blocking",
        "generator",
        "shape",
        "implicit",
        "requires_grad",
        "copy",
        "sizes",
        "repeats_shape",
    )
    return {k: x for k, x in given.items() if k not in dropped}


def _node_names(t: Traced) -> list[str]:
    return list(dict.fromkeys(n.name for n in t.node.all_input_nodes))


def _title(node: torch.fx.Node) -> str:
    return str(node.target).removeprefix("aten.").removesuffix(".default")


# ---- names that people read ------------------------------------------------------------------------------------------
def _stems(nodes: Iterable[Traced]) -> dict[str, str]:
    """The user's own name for the last value of an assignment; the operator's name for the others."""
    last: dict[tuple[str | None, int | None], tuple[str, str]] = {}
    for t in nodes:
        found = re.match(r"\s*([A-Za-z_]\w*)\s*=(?!=)", t.origin.text or "")
        if found:
            last[(t.origin.file, t.origin.line)] = (t.node.name, found[1])
    own = dict(last.values())
    titles = {t.node.name: _title(t.node).partition(".")[0].strip("_") for t in nodes}
    return {n: own.get(n, _SHORT.get(title, title)) for n, title in titles.items()}


def _letters(statements: list[Statement], outputs: set[str]) -> dict[str, str]:
    """Short names for axes, in the order in which the program meets them."""
    table: dict[str, str] = {}
    taken = {x.tensor for s in statements for x in loads(s.body)} | {s.name for s in statements}
    taken |= {n.name for s in statements for n in walk(s.body) if isinstance(n, Size)}

    def give(axis: str, pool: str) -> None:
        if axis in table:
            return
        for c in (*pool, *(f"{p}{k}" for k in range(1, 100) for p in pool)):
            if c not in taken:
                taken.add(c)
                table[axis] = c
                return

    lead, last, more, bounded = LETTERS
    for s in sorted(statements, key=lambda s: not s.monoid):
        own = [a.name for a in s.axes]
        for name in own[:-2]:
            give(name, lead)
        for a in s.axes[-2:]:
            fresh = last if not any(table.get(x) in tuple(last) for x in own) or len(own) > 1 else more
            give(a.name, fresh if not isinstance(a.extent, Const) or s.monoid is None else bounded)
        for a in s.reduced:
            give(a.name, bounded if isinstance(a.extent, Const) and a.extent.value <= 576 else "j" + more)
    return table


def _renamed(s: Statement, table: dict[str, str]) -> Statement:
    def axis(a: Axis) -> Axis:
        return Axis(table[a.name], a.extent)

    at: dict[Expr, Expr] = {Index(a): Index(table[a]) for a in axes(s.body) if a in table}
    return replace(s, axes=tuple(map(axis, s.axes)), reduced=tuple(map(axis, s.reduced)), body=substitute(s.body, at))


def _sizes_used(statements: list[Statement], inputs: tuple[Tensor, ...]) -> set[str]:
    exprs: list[Expr] = [s.body for s in statements]
    exprs += [a.extent for s in statements for a in (*s.axes, *s.reduced)]
    exprs += [n for t in inputs for n in t.shape]
    return set().union(*map(sizes_of, exprs)) if exprs else set()


__all__ = ["Callable", "Origin", "lift"]
