"""Questions about tile programs."""

from __future__ import annotations

import pytest

from flashlight.backends.queries import between, fetched, gathers
from flashlight.expr import Const, Expr, Index, Ref, apply, evaluate
from flashlight.tile import BlockOp, DotOp, Let, LoadOp, Loop, MapOp, ReduceOp, Segment, Stmt

i, j, e = Index("i"), Index("j"), Index("e")


def let(name: str, dims: str, op: BlockOp | Expr) -> Let:
    made = op if isinstance(op, DotOp | LoadOp | ReduceOp) else MapOp(op)  # type: ignore[arg-type]
    return Let(name, tuple(dims), "float32", made)


KEYS = let("keys", "je", LoadOp("k", (j, e)))
VALUES = let("values", "je", LoadOp("v", (j, e)))
SCORES = let("scores", "ij", DotOp("queries", "keys", "e"))
PLACE = let("place", "ij", apply("int", Ref("scores")))
BIAS = let("bias", "ij", LoadOp("table", (Ref("place"),)))
BIASED = let("biased", "ij", apply("add", Ref("scores"), Ref("bias")))
BEST = let("best", "j", ReduceOp("max", "scores", "i"))


def out(left: str, acc: str | None = None) -> Let:
    return let("out", "ie", DotOp(left, "values", "j", acc))


def names(body: list[Stmt]) -> list[str]:
    return [s.name for s in gathers(body)]


def test_a_load_between_two_dots() -> None:
    assert names([KEYS, SCORES, PLACE, BIAS, BIASED, VALUES, out("biased")]) == ["bias"]


def test_an_operand_loaded_where_a_dot_tells() -> None:
    values = let("values", "je", LoadOp("v", (apply("int", Ref("best")), e)))
    assert names([KEYS, SCORES, BEST, values, out("scores")]) == ["values"]


def test_loads_by_loads() -> None:
    further = let("bias", "ij", LoadOp("table", (Ref("page"),)))
    page = let("page", "ij", LoadOp("pages", (Ref("place"),)))
    assert names([KEYS, SCORES, PLACE, page, further, BIASED, VALUES, out("biased")]) == ["page", "bias"]
    page = let("page", "ij", LoadOp("pages", (i, j)))
    assert names([KEYS, SCORES, page, further, BIASED, VALUES, out("biased")]) == []


@pytest.mark.parametrize(
    "body",
    [
        [KEYS, SCORES, VALUES, out("scores")],
        [KEYS, SCORES, PLACE, BIAS, VALUES, out("scores")],  # no dot reads it
        [KEYS, SCORES, PLACE, BIAS, VALUES, out("scores", "bias")],  # added to a dot's result
        [KEYS, let("bias", "ij", LoadOp("table", (Ref("carried"),))), SCORES, BIASED, VALUES, out("biased")],
        [KEYS, SCORES, PLACE, BIAS, BIASED],
    ],
    ids=["plain", "unread", "added", "carried", "last"],
)
def test_other_loads(body: list[Stmt]) -> None:
    assert names(body) == []


def test_what_dots_take_is_fetched() -> None:
    page = let("page", "j", LoadOp("pages", (j,)))
    paged = let("keys", "je", LoadOp("k", (Ref("page"), e)))
    body = [page, paged, SCORES, let("scale", "e", LoadOp("scales", (e,))), VALUES, out("scores", "moved")]
    moved = let("moved", "ie", apply("mul", Ref("carried"), Ref("scale")))
    assert [s.name for s in fetched([*body[:-1], moved, body[-1]])] == ["page", "keys", "values"]


def test_loops_within_have_trips_of_their_own() -> None:
    inner = Loop("j", (), (Segment("full", Const(0), Const(1), (PLACE, BIAS, BIASED, VALUES, out("biased"))),))
    assert names([KEYS, SCORES, inner]) == []


# ---- two bounds of one number ----------------------------------------------------------------------------------------
def both(*parts: Expr) -> Expr:
    out = parts[0]
    for p in parts[1:]:
        out = apply("and", out, p)
    return out


AFTER, NEAR = apply("le", j, i), apply("lt", apply("sub", i, j), Const(7))


@pytest.mark.parametrize(
    ("condition", "most", "others"),
    [
        (both(AFTER, apply("le", i, apply("add", j, Const(6)))), 6, 0),
        (both(AFTER, NEAR), 6, 0),
        (both(NEAR, AFTER), 6, 0),
        (both(apply("gt", i, j), apply("ge", apply("add", j, Const(6)), i)), 5, 0),
        (both(AFTER, apply("lt", j, e), NEAR), 6, 1),
        (both(apply("lt", apply("sub", j, i), Const(3)), apply("lt", apply("sub", i, j), Const(3))), 4, 0),
    ],
    ids=str,
)
def test_two_bounds_are_one_range(condition: Expr, most: int, others: int) -> None:
    found = between(condition)
    assert found is not None
    f, n, rest = found
    assert (n, len(rest)) == (most, others)
    for a in range(12):
        for b in range(12):
            at = {i: a, j: b, e: 9}.__getitem__
            assert (0 <= evaluate(f, at) <= n and all(evaluate(c, at) for c in rest)) == evaluate(condition, at)


@pytest.mark.parametrize(
    "e",
    [
        AFTER,
        both(AFTER, apply("le", j, e)),
        both(AFTER, apply("lt", i, j)),  # never
        both(apply("le", j, i), apply("le", apply("sub", i, apply("mul", j, Const(2))), Const(3))),
        both(apply("le", Ref("x"), i), apply("le", i, apply("add", Ref("x"), Const(6)))),  # a real number may be there
        apply("or", AFTER, NEAR),
    ],
    ids=str,
)
def test_other_conditions_are_none(e: Expr) -> None:
    assert between(e) is None
