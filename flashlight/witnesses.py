"""Two traces at made-up sizes become one graph whose numbers are expressions over the lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from flashlight.errors import DataDependent, FlashlightError, NeedsLiteral
from flashlight.expr import Apply, Const, Expr, apply, walk
from flashlight.lengths import Guard, Length, Real, Sizes, same, sizes_of
from flashlight.lifted import Traced
from flashlight.origins import origin_of
from flashlight.trace import Dims, Subject, TooLong, Trace, trace

FEW, MOST = 500, 20000
"""Operators of one trace.  A function that loops over a length calls thousands at a made-up one, so more than FEW are
traced only where the true lengths need as many."""

Agreed = tuple[Trace, Trace, tuple[Traced, ...], tuple[Any, ...]]
"""Both traces, the nodes and the outputs."""


class Untraceable(FlashlightError):
    """The two traces disagree: what the function does depends on its lengths in a way that cannot be followed."""


def agree(subject: Subject, dims: Dims, actual: dict[str, int]) -> Agreed:
    """The graph with all lengths of ``dims`` symbolic.

    Raises NeedsLiteral with those that cannot be, DataDependent, or, where there is no length, what the function does.
    """
    limit = FEW
    try:
        try:
            return _agreed(subject, dims, actual, limit)
        except TooLong:
            limit = max(FEW, 2 * trace(subject, dims, actual, MOST).count)
            return _agreed(subject, dims, actual, limit)
    except (NeedsLiteral, DataDependent):
        raise
    except Exception as failure:
        if not actual:
            raise
        fixed = frozenset(actual) - _free(subject, dims, actual, limit)
        raise NeedsLiteral(fixed or frozenset(actual), f"tracing with other lengths failed: {failure}") from failure


def _agreed(subject: Subject, dims: Dims, actual: dict[str, int], limit: int) -> Agreed:
    failure: Exception | None = None
    for choose in (larger, smaller):
        try:
            first = trace(subject, dims, choose(actual, 0), limit)
            second = trace(subject, dims, choose(actual, 1), limit) if actual else first
            return first, second, *pair(first, second)
        except (NeedsLiteral, DataDependent, TooLong):
            raise
        except Exception as error:  # it may be the made-up sizes that the function does not like
            failure = failure or error
        if not actual:
            break
    raise failure or Untraceable("")


def guards_of(first: Trace, second: Trace, actual: dict[str, int]) -> tuple[Guard, ...]:
    """What has to hold of lengths for the graph to be theirs.  Raises NeedsLiteral: it does not hold of the actual.

    A quotient that was the same in both traces is a number of the graph, so it has to be that.
    """
    guards = list(first.sizes.guards)
    wrong = [g for g in second.sizes.guards if g not in first.sizes.guards]
    for e in first.sizes.rounded:
        value = first.sizes.value(e)
        if e in second.sizes.rounded and same(value, second.sizes.value(e)):
            guards.append(Guard(apply("eq", e, Const(value)), True))
    wrong += [g for g in guards if bool(Sizes(actual).value(g.condition)) != g.outcome]
    if wrong:
        sizes = frozenset().union(*(sizes_of(g.condition) for g in wrong))
        raise NeedsLiteral(sizes, f"the program does something else depending on {wrong[0].condition}")
    return tuple(guards)


def _free(subject: Subject, dims: Dims, actual: dict[str, int], limit: int) -> frozenset[str]:
    """Lengths that can be symbolic together where not all can: the longest first, as many as go.

    Not those that the others divide or are divided by: a number of heads that has to be a multiple of another would
    come out rounded, with a guard that it is not.
    """
    free: frozenset[str] = frozenset()
    for name in sorted(actual, key=lambda n: -actual[n]):
        some = {n: actual[n] for n in (*sorted(free), name)}
        rows = tuple(row and tuple(n if n in some else None for n in row) for row in dims)
        try:
            first, second, nodes, _ = _agreed(subject, rows, some, limit)
            guards_of(first, second, some)
        except Exception:  # whatever it was: this length is not symbolic then
            continue
        if not any(name in _divided(x) for n in nodes for x in (n.args, n.kwargs, n.shapes)):
            free, limit = free | {name}, max(FEW, 2 * first.count)
    return free


def _divided(x: Any) -> frozenset[str]:
    parts = [e for e in tree_flatten(x)[0] if isinstance(e, Apply)]
    return frozenset().union(*(sizes_of(d) for e in parts for d in walk(e) if _divides(d)))


def _divides(e: Expr) -> bool:
    return isinstance(e, Apply) and e.op in ("floordiv", "mod")


# ---- two traces become one -------------------------------------------------------------------------------------------
def pair(a: Trace, b: Trace) -> tuple[tuple[Traced, ...], tuple[Any, ...]]:
    """Every number of the graph as a literal or as an expression over sizes.  Raises Untraceable."""
    mine, other = list(a.graph.graph.nodes), list(b.graph.graph.nodes)
    if [(n.op, str(n.target)) for n in mine] != [(n.op, str(n.target)) for n in other]:
        raise Untraceable("another length makes it call other operators")
    twin = dict(zip(mine, other, strict=True))

    def number(x: int | float, y: int | float) -> Any:
        if same(x, y):
            return x
        for e in a.sizes.candidates(x):
            if same(b.sizes.value(e), y):
                return e
        for e in b.sizes.candidates(y):
            if same(a.sizes.value(e), x):
                return e
        raise Untraceable(f"a number is {x} at one length and {y} at another")

    def match(x: Any, y: Any) -> Any:
        match x:
            case torch.fx.Node():
                if twin[x] is not y:
                    raise Untraceable("another length makes it use other values")
                return x
            case bool() | None | str():
                if x != y:
                    raise Untraceable(f"an argument is {x} at one length and {y} at another")
                return x
            case int() | float():
                return number(x, y)
            case list() | tuple():
                return tuple(match(p, q) for p, q in zip(x, y, strict=True))
            case dict():
                return {k: match(v, y[k]) for k, v in x.items()}
        return x

    def shape(x: torch.Tensor, y: torch.Tensor) -> tuple[Expr, ...]:
        return tuple(_constant(number(int(m), int(n))) for m, n in zip(x.shape, y.shape, strict=True))

    nodes = []
    for n, m in twin.items():
        if n.op == "output":
            continue
        vals, others = _tensors(n.meta.get("val")), _tensors(m.meta.get("val"))
        if n.op == "get_attr":
            vals = others = [_constant_tensor(n, a, b)]
        shapes = tuple(shape(x, y) for x, y in zip(vals, others, strict=True))
        dtypes = tuple(dtype_name(x.dtype) for x in vals)
        nodes.append(Traced(n, match(n.args, m.args), match(n.kwargs, m.kwargs), shapes, dtypes, origin_of(n)))
    outputs = []
    for x, y in zip(a.outputs, b.outputs, strict=True):
        outputs.append(x.expr if isinstance(x, Length | Real) else match(x, y) if not isinstance(x, Expr) else x)
    return tuple(nodes), tuple(outputs)


def _constant_tensor(n: torch.fx.Node, a: Trace, b: Trace) -> torch.Tensor:
    """A tensor of the graph's own: the function's, or made of numbers while it was traced."""
    x, y = (getattr(t.graph, str(n.target)) for t in (a, b))
    if x is not y and (x.shape != y.shape or x.dtype != y.dtype or not ((x == y) | ((x != x) & (y != y))).all()):
        raise Untraceable("a tensor is made of other numbers at another length")
    return x  # type: ignore[no-any-return]


def _constant(x: Any) -> Expr:
    return Const(x) if isinstance(x, int) else x


def _tensors(val: Any) -> list[torch.Tensor]:
    return [t for t in tree_flatten(val)[0] if isinstance(t, torch.Tensor)]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- sizes -----------------------------------------------------------------------------------------------------------
def larger(actual: dict[str, int], which: int) -> dict[str, int]:
    """Made-up sizes: multiples of the actual ones (so that what divides these divides those) by distinct primes."""
    primes = _primes()
    used: set[int] = set()
    out = {}
    for name, n in actual.items():
        for _ in range(which + 1):
            p = next(p for p in primes if p not in used and p * n >= 1000)
            used.add(p)
        out[name] = n * p
    return out


def smaller(actual: dict[str, int], which: int) -> dict[str, int]:
    """Made-up sizes for functions with a longest length (slices of a table, say): distinct primes below the actual
    sizes, but for those that are too small to have some."""
    out = larger(actual, which)
    used: set[int] = set()
    for name, n in actual.items():
        below = [p for p in _primes() if p < n and p not in used]
        if len(below) > 1 and n >= 16:
            out[name] = below[-1 - which]
            used |= {below[-1], below[-2]}
    return out


def _primes() -> list[int]:
    return [p for p in range(7, 2500) if all(p % q for q in range(2, int(p**0.5) + 1))]
