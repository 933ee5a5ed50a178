"""Predicates for the tests: each as an expression of ours and as a function on numpy arrays of coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import product

import numpy as np

from flashlight.expr import FALSE, OPS, TRUE, Apply, Const, Expr, Index, Size, apply, evaluate
from flashlight.polyhedral.tiles import TileClasses
from flashlight.program import Axis

I = Index("i")  # noqa: E741
J, H, N, S, W, P = Index("j"), Index("h"), Size("N"), Size("S"), Size("W"), Size("P")


def number(e: Expr | int) -> Expr:
    return Const(e) if isinstance(e, int) else e


def op(name: str) -> Callable[..., Expr]:
    return lambda *args: apply(name, *map(number, args))


add, sub, mul, neg, absolute = op("add"), op("sub"), op("mul"), op("neg"), op("abs")
lt, le, ge, eq, negation = op("lt"), op("le"), op("ge"), op("eq"), op("not")
div, mod = op("floordiv"), op("mod")


def both(*es: Expr) -> Expr:
    return reduce(lambda a, b: apply("and", a, b), es, TRUE)


def either(*es: Expr) -> Expr:
    return reduce(lambda a, b: apply("or", a, b), es, FALSE)


def near(f: Callable[[Expr], Expr], radius: int) -> Expr:
    return le(absolute(sub(f(I), f(J))), radius)


def neighbourhood(width: int, radius: int) -> Expr:
    return both(near(lambda x: div(x, width), radius), near(lambda x: mod(x, width), radius))


def neighbourhood3(width: int, radius: int, height: int | None = None) -> Expr:
    height = height or width
    parts = (
        lambda x: div(x, width * height),
        lambda x: mod(div(x, width), height),
        lambda x: mod(x, width),
    )
    return both(*(near(f, radius) for f in parts))


def clipped(width: int, radius: int) -> Expr:
    """Windows in a plane that are moved inside at its edges."""

    def within(f: Callable[[Expr], Expr], length: Expr | int) -> Expr:
        last = sub(length, 2 * radius + 1)
        first = apply("minimum", apply("maximum", sub(f(I), radius), Const(0)), last)
        return both(le(first, f(J)), le(f(J), add(first, 2 * radius)))

    return both(within(lambda x: div(x, width), div(N, width)), within(lambda x: mod(x, width), width))


def halves(block: int, half: Expr) -> Expr:
    """Block diffusion (arXiv:2503.09573, section 4.2): noisy tokens, then clean ones."""
    clean_i, clean_j = ge(I, half), ge(J, half)
    at_i, at_j = (apply("select", ge(x, half), div(sub(x, half), block), div(x, block)) for x in (I, J))
    diagonal = both(eq(at_i, at_j), eq(clean_i, clean_j))
    offset = both(lt(at_j, at_i), clean_j, negation(clean_i))
    return either(diagonal, offset, both(le(at_j, at_i), clean_j, clean_i))


@dataclass(frozen=True)
class Mask:
    """``rows``: extent of i; ``keys``: extent of j; ``heads``: extent of h, if it occurs; ``sizes``: other
    sizes, with the values to try."""

    live: Expr
    rows: Expr = N
    keys: Expr = N
    heads: int = 0
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


D = sub(I, J)
CAUSAL = le(J, I)
MASKS = {
    "everything": Mask(TRUE),
    "fixed": Mask(both(CAUSAL, apply("or", eq(div(I, 32), div(J, 32)), le(Const(24), mod(J, 32))))),
    "checkerboard": Mask(eq(mod(add(div(I, 32), div(J, 32)), 2), Const(0))),
    "a stripe of each 48": Mask(lt(mod(J, 48), Const(6))),
    "far dilation": Mask(both(CAUSAL, eq(mod(D, 40), Const(0)))),
    "nothing": Mask(FALSE),
    "causal": Mask(CAUSAL),
    "causal, two sizes": Mask(CAUSAL, N, S, sizes={"S": (1, 40, 100)}),
    "causal, bottom right": Mask(le(J, add(I, sub(S, N))), N, S, sizes={"S": (1, 40, 100)}),
    "anti-causal": Mask(negation(CAUSAL)),
    "window": Mask(both(CAUSAL, lt(D, 24))),
    "window of a size": Mask(both(CAUSAL, lt(D, W)), sizes={"W": (1, 7, 40, 500)}),
    "window both ways": Mask(lt(absolute(D), 20)),
    "window, bottom right": Mask(
        both(le(J, add(I, sub(S, N))), lt(sub(add(I, sub(S, N)), J), W)), N, S, sizes={"S": (33, 90), "W": (8, 30)}
    ),
    "outside a window": Mask(ge(absolute(D), 20)),
    "prefix": Mask(either(CAUSAL, lt(J, 13))),
    "prefix of a size": Mask(either(CAUSAL, lt(J, P)), sizes={"P": (1, 16, 30, 200)}),
    "prefix or window": Mask(either(lt(J, P), both(CAUSAL, lt(D, 24))), sizes={"P": (1, 16, 30, 200)}),
    "sinks and window": Mask(both(CAUSAL, either(lt(J, 4), lt(D, 24)))),
    "two windows": Mask(either(lt(absolute(D), 6), lt(absolute(sub(D, 40)), 6))),
    "global rows and columns": Mask(either(lt(I, 4), lt(J, 4), lt(absolute(D), 12))),
    "rows of a prefix": Mask(either(lt(I, P), CAUSAL), sizes={"P": (1, 16, 30, 200)}),
    "padded": Mask(both(CAUSAL, lt(J, P)), sizes={"P": (1, 16, 30, 200)}),
    "dilated": Mask(both(CAUSAL, eq(mod(D, 4), 0))),
    "widely dilated": Mask(both(CAUSAL, eq(mod(D, 50), 0))),
    "chunks": Mask(both(CAUSAL, eq(div(I, 32), div(J, 32)))),
    "odd chunks": Mask(both(CAUSAL, eq(div(I, 25), div(J, 25)))),
    "neighbourhood": Mask(neighbourhood(8, 2)),
    "odd neighbourhood": Mask(neighbourhood(7, 1)),
    "neighbourhood in space": Mask(neighbourhood3(4, 1)),
    "neighbourhood in a video": Mask(neighbourhood3(4, 1, 16)),
    "clipped neighbourhood": Mask(clipped(8, 2)),
    "halves of blocks": Mask(halves(4, div(N, 2))),
    "halves of odd blocks": Mask(halves(7, div(N, 2))),
    "halves at a number": Mask(halves(8, Const(64))),
    "frames": Mask(le(div(J, 32), div(I, 32))),
    "odd frames": Mask(le(div(J, 20), div(I, 20))),
    "frames and the first": Mask(
        both(le(div(J, 32), div(I, 32)), either(lt(sub(div(I, 32), div(J, 32)), 2), lt(J, 32)))
    ),
    "global tokens": Mask(either(lt(absolute(D), 20), lt(I, 8), lt(J, 8))),
    "global tokens at the end": Mask(both(CAUSAL, either(lt(D, 24), ge(I, sub(N, 16))))),
    "two windows of rows": Mask(both(CAUSAL, apply("select", lt(I, div(N, 2)), lt(D, 20), lt(D, 50)))),
    "window of a head": Mask(both(CAUSAL, lt(D, mul(add(H, 1), 8))), heads=3),
    "even heads only": Mask(both(CAUSAL, either(eq(mod(H, 2), 0), lt(D, 8))), heads=3),
    "half the keys": Mask(lt(J, div(N, 2))),
    "product of sizes": Mask(lt(J, mul(W, P)), sizes={"W": (1, 5), "P": (1, 9)}),
    "a constant length": Mask(CAUSAL, Const(70), Const(100)),
    "selected": Mask(le(J, apply("select", lt(I, Const(20)), Const(50), I))),
    "as reals": Mask(le(apply("real", D), Const(12.5))),
}


def holds(e: Expr, where: dict[Expr, np.ndarray | int]) -> np.ndarray | int:
    """An expression on arrays, by the operator table where numpy has no say of its own."""
    if e in where:
        return where[e]
    match e:
        case Const(value):
            return np.asarray(value)
        case Apply(name, args):
            a = [np.asarray(holds(x, where)) for x in args]
            table = {"and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "select": np.where,
                     "minimum": np.minimum, "maximum": np.maximum, "real": np.asarray, "bool": lambda x: x != 0,
                     "floor": np.floor, "ceil": np.ceil, "int": lambda x: np.trunc(x).astype(int),
                     "div": np.divide}  # fmt: skip
            return table.get(name, OPS[name].evaluate)(*a)
    raise KeyError(str(e))


def instances(classes: TileClasses, live: Expr, sizes: dict[str, int]) -> Iterator[np.ndarray]:
    """The predicate at all rows and keys, for each point of the batch."""
    env = {Size(n): v for n, v in sizes.items()}
    rows, keys = (int(evaluate(a.extent, env.__getitem__)) for a in (classes.rows[0][0], classes.stream))
    for place in product(*(range(int(evaluate(a.extent, env.__getitem__))) for a in classes.batch)):
        batch = {Index(a.name): k for a, k in zip(classes.batch, place, strict=True)}
        full = holds(live, {I: np.arange(rows)[:, None], J: np.arange(keys)[None, :], **env, **batch})
        yield np.broadcast_to(np.asarray(full, dtype=bool), (rows, keys))


def fault(classes: TileClasses, live: Expr, sizes: dict[str, int]) -> str | None:
    """What a run of the ranges does wrong for these sizes, point by point; None if it is right."""
    env: dict[Expr, int] = {Size(n): v for n, v in sizes.items()}
    bm, bn = classes.rows[0][1], classes.block
    places = product(*(range(int(evaluate(a.extent, env.__getitem__))) for a in classes.batch))
    for place, alive in zip(places, instances(classes, live, sizes), strict=True):
        batch = {Index(a.name): k for a, k in zip(classes.batch, place, strict=True)}
        keys = alive.shape[1]
        for block in range(-(-alive.shape[0] // bm)):
            at = env | batch | {Index(classes.rows[0][0].name): block}
            here, last = alive[block * bm : (block + 1) * bm], -1
            seen = np.zeros(keys, dtype=bool)
            for r in classes.ranges:
                lo, hi = (int(evaluate(e, at.__getitem__)) for e in (r.lo, r.hi))
                for t in range(lo, hi):
                    where = f"{r} at block {block}, tile {t}, {sizes}, {batch}"
                    if t <= last:
                        return f"not ascending: {where}"
                    last = t
                    if t < 0 or t * bn >= keys:
                        return f"outside: {where}"
                    if r.kind == "full" and ((t + 1) * bn > keys or not here[:, t * bn : (t + 1) * bn].all()):
                        return f"not full: {where}"
                    seen[t * bn : (t + 1) * bn] = True
            if (here & ~seen).any():
                return f"missed: block {block}, {sizes}, {batch}"
    return None


def axes_of(mask: Mask, bm: int) -> tuple[Axis, tuple[tuple[Axis, int], ...], tuple[Axis, ...]]:
    """Stream, rows and batch of a mask."""
    batch = (Axis("h", Const(mask.heads)),) if mask.heads else ()
    return Axis("j", mask.keys), ((Axis("i", mask.rows), bm),), batch


def sizes_of(mask: Mask, lengths: tuple[int, ...]) -> Iterator[dict[str, int]]:
    names = list(mask.sizes)
    for n in lengths:
        for values in product(*mask.sizes.values()):
            yield {"N": n, **dict(zip(names, values, strict=True))}
