"""Numbers for a cascade's leaves, and its certificate run in several ways."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator

from flashlight.algebra import Cascade, Certificate
from flashlight.algebra.arithmetic import FLOATS, Numbers
from flashlight.algebra.stream import Block, Machine, State, direct
from flashlight.expr import Apply, Const, Expr, Fold, Index, Load, Ref, Size, axes, children, kind, substitute, walk

Values = dict[Expr, object]  # an element leaf -> a list, a row leaf -> a number


def leaves(cascade: Cascade) -> list[Expr]:
    own = {s.name for s in cascade.stages}

    def go(e: Expr) -> Iterator[Expr]:
        if isinstance(e, Load) and e.tensor in own:
            return  # a running value
        if isinstance(e, Load | Fold | Index | Size):
            yield e
        elif isinstance(e, Ref):
            if e.name not in own:
                yield e
        else:
            for c in children(e):
                yield from go(c)

    bodies = [b for s in cascade.stages for b in (s.body, s.payload) if b is not None]
    found = [e for b in (*bodies, *cascade.outputs) for e in go(b)]
    if any(s.monoid in ("argmax", "argmin") or s.rank for s in cascade.stages):
        found.append(Index(cascade.axis))
    return list(dict.fromkeys(found))


def values(cascade: Cascade, n: int, seed: int = 0, scale: float = 2.0) -> Values:
    """Random numbers: elements of both signs, booleans mostly true, indices what they are."""
    rng = random.Random(seed)
    out: Values = {}
    for e in leaves(cascade):
        if isinstance(e, Size):
            out[e] = n
        elif isinstance(e, Index):
            out[e] = list(range(n)) if e.axis == cascade.axis else n // 2
        elif cascade.axis in axes(e):
            if kind(e) == "bool":
                out[e] = [rng.random() < 0.7 for _ in range(n)]
            elif kind(e) == "int":
                out[e] = [rng.randrange(n) for _ in range(n)]
            else:
                out[e] = [rng.gauss(0.3, scale) for _ in range(n)]
        else:
            out[e] = rng.random() < 0.5 if kind(e) == "bool" else n // 3 if kind(e) == "int" else 0.5 + rng.random()
    return out


def reader(v: Values, part: slice = slice(None)) -> Callable[[Expr], object]:
    first = {substitute(e, {Index("j"): Const(0)}): x[0] for e, x in v.items() if isinstance(x, list)}
    return lambda e: first[e] if e not in v else v[e][part] if isinstance(v[e], list) else v[e]


def block(v: Values, start: int, stop: int) -> Block:
    return Block(stop - start, reader(v, slice(start, stop)))


def length(v: Values) -> int:
    return next(len(x) for x in v.values() if isinstance(x, list))


def program(cascade: Cascade, v: Values, numbers: Numbers = FLOATS) -> dict[str, object]:
    return direct(cascade, block(v, 0, length(v)), reader(v), numbers)


BOUNDED = ("abs", "tanh", "sqrt", "real")
WAYS = ("loop", "split", "tree", "shuffled")


def streamed(
    certificate: Certificate, v: Values, cuts: list[int], how: str, numbers: Numbers = FLOATS, seed: int = 0
) -> dict[str, object]:
    """loop: one block after the other; split: blocks apart, merged in order; tree: merged in pairs; shuffled: merged
    two at a time in random order (neighbours, where the order matters)."""
    machine = Machine(certificate, reader(v), numbers)
    n = length(v)
    edges = [0, *sorted(c for c in set(cuts) if 0 < c < n), n]
    blocks = [block(v, a, b) for a, b in itertools.pairwise(edges)][:: -1 if certificate.order == "backward" else 1]
    if how == "loop":
        return machine.finish(functools.reduce(machine.roll, blocks, machine.identity()))
    states: list[State] = [machine.lift(b) for b in blocks]
    rng = random.Random(seed)
    while how == "shuffled" and certificate.order != "any" and len(states) > 1:
        k = rng.randrange(len(states) - 1)
        states[k : k + 2] = [machine.merge(states[k], states[k + 1])]
    while how == "shuffled" and len(states) > 1:
        a, b = (states.pop(rng.randrange(len(states))) for _ in range(2))
        states.append(machine.merge(a, b))
    while how == "tree" and len(states) > 1:
        pairs = [states[k : k + 2] for k in range(0, len(states), 2)]
        states = [machine.merge(*p) if len(p) == 2 else p[0] for p in pairs]
    return machine.finish(functools.reduce(machine.merge, states))


def same(a: object, b: object, tolerance: float = 1e-9) -> bool:
    """Equal up to rounding, NaN equal to NaN, infinities to themselves."""
    x, y = float(a), float(b)  # type: ignore[arg-type]
    if math.isnan(x) or math.isnan(y):
        return math.isnan(x) and math.isnan(y)
    return x == y or abs(x - y) <= tolerance * max(1.0, abs(x), abs(y))


def with_length(cascade: Cascade, n: int) -> int:
    return int(cascade.extent.value) if isinstance(cascade.extent, Const) else n


def masked(cascade: Cascade, v: Values, hidden: Callable[[int], bool]) -> Values | None:
    """The same numbers with some elements masked: -inf where a maximum reads them (by the program's own mask, where
    it has one).  None: nothing here can be masked."""
    out, n = dict(v), length(v)
    for s in cascade.stages:
        nodes = list(walk(s.body))
        plain = not any(isinstance(x, Ref) or (isinstance(x, Apply) and x.op in BOUNDED) for x in nodes)
        if s.monoid not in ("max", "min") or not plain:
            continue
        inside = [e for e in leaves(cascade) if e in nodes]
        marks = [e for e in inside if kind(e) == "bool"]
        for e in (marks or [e for e in inside if isinstance(out[e], list) and kind(e) == "real"])[:1]:
            fill = False if marks else -math.inf if s.monoid == "max" else math.inf
            out[e] = [fill if hidden(j) else x for j, x in enumerate(out[e])]  # type: ignore[arg-type]
        if Index("i") in inside:  # a causal mask: row -1 sees nothing
            out[Index("i")] = -1 if all(map(hidden, range(n))) else n // 2
    return out if out != v else None
