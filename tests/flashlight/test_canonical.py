"""Canonical kernels: blind to names and to orders that mean nothing, to nothing else, and still the same kernels."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_flatten

import flashlight
from flashlight import backend
from flashlight.canonical import _Ordering, canonical
from flashlight.expr import Apply, Const, Expr, Index, Load, Ref, Size, apply
from flashlight.targets import detect
from flashlight.tile import DotOp, Kernel, Let, LoadOp, Loop, MapOp, ReduceOp, Store
from flashlight.verify import verify_kernel


def causal(q, k, v):
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill((j > i) | (i - j >= 200), float("-inf"))
    return torch.softmax(scores, -1) @ v


def biased(q, k, v, bias):
    scores = q @ k.mT * 0.3 + bias
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)


def rotated(q, k, v):
    q, k = (torch.cat([-x[..., 8:], x[..., :8]], -1) + x for x in (q, k))
    return torch.softmax(q @ k.mT, -1) @ v


QKV = tuple(torch.randn(2, 3, 300, 16) for _ in range(3))
PROGRAMS = {"causal": (causal, QKV), "biased": (biased, (*QKV, torch.randn(3, 300, 300))), "rotated": (rotated, QKV)}


def kernel_of(fn, args) -> Kernel:
    flat, spec = tree_flatten((args, {}))
    (generated,) = flashlight.optimize(fn)._compile(flat, spec, torch.device("cpu"), run=False).generated
    return generated.lowered[-1].kernel


@pytest.fixture(params=PROGRAMS)
def kernel(request):
    return kernel_of(*PROGRAMS[request.param])


# ---- what it does not see --------------------------------------------------------------------------------------------
class Shuffled:
    """Other names for everything, another order of what has none, operands that commute the other way round."""

    def __init__(self, kernel: Kernel, seed: int):
        self.k, self.random = kernel, random.Random(seed)
        self.names: dict[str, str] = {}

    def name(self, old: str) -> str:
        if old not in self.names:
            self.names[old] = f"x{self.random.randrange(10**9)}"
        return self.names[old]

    def expr(self, e: Expr) -> Expr:
        match e:
            case Index(n) | Size(n) | Ref(n):
                return type(e)(self.name(n))
            case Load(n, at, kind):
                return Load(self.name(n), tuple(map(self.expr, at)), kind)
            case Apply(op, args):
                args = tuple(map(self.expr, args))
                turn = op in ("add", "mul", "maximum", "and", "or", "eq") and self.random.random() < 0.5
                return apply(op, *(reversed(args) if turn else args))
        return e

    def kernel(self) -> Kernel:
        def buffers(bs):
            return tuple(replace(b, name=self.name(b.name), shape=tuple(map(self.expr, b.shape))) for b in bs)

        k = self.k
        sizes = list(map(self.name, k.sizes))
        self.random.shuffle(sizes)
        inputs, dims = list(buffers(k.inputs)), [self.renamed(d) for d in k.dims]
        self.random.shuffle(inputs)
        self.random.shuffle(dims)
        return replace(
            k,
            name="other",
            sizes=tuple(sizes),
            inputs=tuple(inputs),
            outputs=buffers(k.outputs),
            grid=tuple(map(self.renamed, k.grid)),
            dims=tuple(dims),
            body=self.body(k.body),
        )

    def renamed(self, x):
        return replace(x, axis=self.name(x.axis), extent=self.expr(x.extent))

    def body(self, body):
        """Any order in which everything is defined before it is read."""
        todo, done, out = list(body), set(), []
        defined = {n for s in body for n in written(s)}
        while todo:
            ready = [s for s in todo if not (reads(s) & defined) - done]
            s = self.random.choice(ready)
            todo.remove(s)
            done |= written(s)
            out.append(self.statement(s))
        return tuple(out)

    def statement(self, s):
        axes = lambda names: tuple(map(self.name, names))  # noqa: E731
        match s:
            case Store():
                index = tuple(map(self.expr, s.index))
                return Store(self.name(s.buffer), index, self.name(s.value), axes(s.guard))
            case Loop():
                carries = [
                    replace(c, name=self.name(c.name), dims=axes(c.dims), next=self.name(c.next)) for c in s.carries
                ]
                self.random.shuffle(carries)
                segments = [
                    replace(g, lo=self.expr(g.lo), hi=self.expr(g.hi), body=self.body(g.body)) for g in s.segments
                ]
                return Loop(self.name(s.axis), tuple(carries), tuple(segments))
        match s.op:
            case LoadOp(buffer, at, guard, other):
                op = LoadOp(self.name(buffer), tuple(map(self.expr, at)), axes(guard), other)
            case MapOp(e):
                op = MapOp(self.expr(e))
            case DotOp(left, right, contract, acc):
                op = DotOp(self.name(left), self.name(right), self.name(contract), acc and self.name(acc))
            case ReduceOp(monoid, value, axis):
                op = ReduceOp(monoid, self.name(value), self.name(axis))
            case op:
                op = replace(op, value=self.name(op.value))
        return Let(self.name(s.name), axes(s.dims), s.dtype, op, "a note")


def written(s):
    return {c.name for c in s.carries} if isinstance(s, Loop) else {s.name} if isinstance(s, Let) else set()


def reads(s) -> set[str]:
    def of(e):
        return {e.name} if isinstance(e, Ref) else set().union(*map(of, e.args)) if isinstance(e, Apply) else set()

    match s:
        case Store():
            return {s.value}
        case Loop():
            own = written(s) | {n for g in s.segments for x in g.body for n in written(x)}
            return {n for g in s.segments for x in g.body for n in reads(x)} - own
    match s.op:
        case LoadOp():
            return set().union(*map(of, s.op.index))
        case MapOp():
            return of(s.op.body)
        case DotOp():
            return {n for n in (s.op.left, s.op.right, s.op.acc) if n}
    return {s.op.value}


@pytest.mark.parametrize("seed", range(5))
def test_names_and_free_orders_are_not_seen(kernel, seed):
    other = Shuffled(kernel, seed).kernel()
    assert str(other) != str(kernel)
    assert str(canonical(other)) == str(canonical(kernel))


def test_the_order_of_a_buffers_dimensions_is_not_seen():
    q, k, v = QKV
    turned = kernel_of(lambda q, kt, v: torch.softmax(q @ kt * q.shape[-1] ** -0.5, -1) @ v, (q, k.mT, v))
    plain = kernel_of(lambda a, b, c: torch.softmax(a @ b.mT * a.shape[-1] ** -0.5, -1) @ c, (q, k, v))
    assert str(canonical(turned)) == str(canonical(plain))


def test_twice_is_once(kernel):
    once = canonical(kernel)
    assert str(canonical(once)) == str(once)


# ---- what it sees ----------------------------------------------------------------------------------------------------
def changed(body, change):
    """The body with ``change`` applied to the first statement, at any depth, that it changes."""
    for k, s in enumerate(body):
        if (new := change(s)) is not None:
            return (*body[:k], new, *body[k + 1 :])
        if isinstance(s, Loop):
            for n, g in enumerate(s.segments):
                if (inner := changed(g.body, change)) is not None:
                    segments = (*s.segments[:n], replace(g, body=inner), *s.segments[n + 1 :])
                    return (*body[:k], replace(s, segments=segments), *body[k + 1 :])
    return None


def on(op_type, new):
    return lambda s: replace(s, op=new(s.op)) if isinstance(s, Let) and isinstance(s.op, op_type) else None


def scaled(s):
    if isinstance(s, Let) and isinstance(s.op, MapOp) and isinstance(s.op.body, Apply) and s.op.body.op == "mul":
        return replace(s, op=MapOp(apply("mul", s.op.body, Const(2.0))))
    return None


CHANGES = {
    "a scale": scaled,
    "a monoid": on(ReduceOp, lambda op: replace(op, monoid="min")),
    "a guard": on(LoadOp, lambda op: replace(op, guard=())),
    "what lies outside": on(LoadOp, lambda op: replace(op, other=1.0)),
    "operands of a dot": on(DotOp, lambda op: replace(op, left=op.right, right=op.left)),
    "a dtype": lambda s: replace(s, dtype="bfloat16") if isinstance(s, Let) else None,
    "a first state": lambda s: (
        replace(s, carries=(replace(s.carries[0], init=1.0), *s.carries[1:])) if isinstance(s, Loop) else None
    ),
    "a segment's end": lambda s: (
        replace(s, segments=(replace(s.segments[0], hi=Const(1)), *s.segments[1:])) if isinstance(s, Loop) else None
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changes_are_seen(kernel, what):
    body = changed(kernel.body, CHANGES[what])
    assert body is not None
    assert canonical(replace(kernel, body=body)) != canonical(kernel)


def test_dead_statements_and_launch_options_are_seen(kernel):
    text = str(canonical(kernel))
    dead = Let("dead", (), "float32", MapOp(Const(1.0)))
    assert str(canonical(replace(kernel, body=(dead, *kernel.body)))) != text
    assert canonical(replace(kernel, warps=8)) != canonical(kernel)
    rows = [replace(d, block=2 * d.block) if d.role == "row" else d for d in kernel.dims]
    assert str(canonical(replace(kernel, dims=tuple(rows)))) != text


# ---- it is a kernel --------------------------------------------------------------------------------------------------
def test_a_canonical_kernel_computes_the_same(kernel, request):
    fn, args = PROGRAMS[request.node.callspec.params["kernel"]]
    cpu, target = backend.get("cpu"), detect(torch.device("cpu"), "cpu")
    same = canonical(kernel)
    verify_kernel(same)
    wanted = fn(*args) if isinstance(fn(*args), tuple) else (fn(*args),)
    outs = [torch.empty_like(t) for t in wanted]
    given = inputs_of(kernel, same, dict(zip("qkv", args, strict=False)) | {"bias": args[-1]})
    cpu.build(cpu.emit(same, target))(given, outs, [{"n0": 2, "n1": 3, "n2": 300}[n] for n in same.sizes])
    for out, want in zip(outs, wanted, strict=True):
        torch.testing.assert_close(out, want)


def inputs_of(kernel: Kernel, same: Kernel, named: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The arguments in the order of the canonical kernel: both load their inputs in one order."""

    def order(k: Kernel, body) -> list[str]:
        lists = [
            [x.op.buffer]
            if isinstance(x, Let) and isinstance(x.op, LoadOp)
            else [n for g in x.segments[:1] for n in order(k, g.body)]
            if isinstance(x, Loop)
            else []
            for x in body
        ]
        return list(dict.fromkeys(n for names in lists for n in names))

    pairs = zip(order(same, same.body), order(kernel, _Ordering(kernel).kernel().body), strict=True)
    table = {new: named[old] for new, old in pairs}
    return [table[b.name] for b in same.inputs]
