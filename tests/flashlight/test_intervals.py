"""Interval arithmetic never calls a live tile dead nor a tile with a dead point full, whatever is loaded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flashlight.expr import Apply, Const, Expr, Index, Load, Ref, Size, apply, evaluate, kind, substitute
from flashlight.intervals import ONE, ROWS, STREAM, Intervals
from flashlight.program import Axis

N, BLOCK, ROWS_BLOCK = 23, 4, 8
STREAMED, ROW, BATCH = Axis("j", Size("N")), Axis("i", Size("N")), Axis("b", Const(2))
AT, J, B = Index("i"), Index("j"), Index("b")

INTEGERS = st.sampled_from(
    [AT, J, B, Size("N"), Load("doc", (B, AT), "int"), Load("doc", (B, J), "int"), Load("n", (B,), "int")]
    + [Load("both", (AT, J), "int"), Load("coarse", (apply("floordiv", J, Const(8)),), "int")]
    + [Const(k) for k in (-3, 0, 2, 5)]
)


def _numbers(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    def two(op: str) -> st.SearchStrategy[Expr]:
        return st.tuples(inner, inner).map(lambda p: apply(op, *p))

    def by_literal(op: str) -> st.SearchStrategy[Expr]:
        return st.tuples(inner, st.sampled_from([2, 3, 8])).map(lambda p: apply(op, p[0], Const(p[1])))

    one = st.tuples(st.sampled_from(["neg", "abs"]), inner).map(lambda p: apply(*p))
    pairs = [two(op) for op in ("add", "sub", "mul", "minimum", "maximum")]
    return st.one_of(*pairs, one, by_literal("floordiv"), by_literal("mod"))


NUMBERS = st.recursive(INTEGERS, _numbers, max_leaves=4)
_OPS = ["lt", "le", "gt", "ge", "eq", "ne"]
COMPARISONS = st.tuples(st.sampled_from(_OPS), NUMBERS, NUMBERS).map(lambda p: apply(*p))
TABLES = st.sampled_from(
    [Load("keep", (J,), "bool"), Load("table", tuple(apply("floordiv", x, Const(4)) for x in (AT, J)), "bool")]
)


def _predicates(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    both = st.tuples(st.sampled_from(["and", "or"]), inner, inner).map(lambda p: apply(*p))
    chosen = st.tuples(inner, inner, inner).map(lambda p: apply("select", *p))
    counted = st.tuples(inner, inner).map(lambda p: apply("lt", apply("int", p[0]), apply("int", p[1])))
    return st.one_of(both, chosen, counted, inner.map(lambda p: apply("not", p)))


PREDICATES = st.recursive(st.one_of(COMPARISONS, TABLES), _predicates, max_leaves=4)


def element(x: Load, at: tuple[int, ...]) -> int | bool:
    """Some memory: the same element each time it is asked for."""
    value = sum((k + 2) * (5 * a + 1) * (a % 3 + 1) for k, a in enumerate(at)) + len(x.tensor) * 7
    return value % 3 > 0 if x.kind == "bool" else value % 11 - 4


def value_at(e: Expr, where: dict[str, int]) -> int | bool:
    def leaf(n: Expr) -> int | bool:
        match n:
            case Index(axis):
                return where[axis]
            case Size():
                return N
            case Load(_, index):
                return element(n, tuple(int(value_at(i, where)) for i in index))
        raise AssertionError(n)

    return evaluate(e, leaf)


@settings(max_examples=300, deadline=None)
@given(PREDICATES, st.integers(0, 1))
def test_ends_hold_what_they_must(predicate, batch):
    intervals = Intervals(STREAMED, BLOCK, ((ROW, ROWS_BLOCK),), (BATCH,))
    truth = intervals.truth(predicate)
    for row in range(-(-N // ROWS_BLOCK)):
        for tile in range(-(-N // BLOCK)):
            points = [
                {"i": i, "j": j, "b": batch}
                for i in range(row * ROWS_BLOCK, min(N, row * ROWS_BLOCK + ROWS_BLOCK))
                for j in range(tile * BLOCK, min(N, tile * BLOCK + BLOCK))
            ]
            known: dict[Expr, Expr] = {}
            for found in intervals.leaves.values():
                assert found.side in (ONE, ROWS, STREAM)
                values = [int(value_at(found.expr, p)) for p in points]
                known |= dict(zip(found.placeholders, (Const(min(values)), Const(max(values))), strict=True))
            here = {"i": row, "j": tile, "b": batch}
            live = [bool(value_at(predicate, p)) for p in points]
            must, may = (bool(value_at(substitute(e, known), here)) for e in (truth.lo, truth.hi))
            assert may or not any(live)
            assert all(live) or not must


def test_what_is_known_exactly():
    intervals = Intervals(STREAMED, BLOCK, ((ROW, ROWS_BLOCK),), (BATCH,))
    causal = intervals.truth(apply("le", J, AT))
    assert str(causal.hi) == "j*4 <= min(i*8 + 7, N - 1)"
    assert str(causal.lo) == "min(j*4 + 3, N - 1) <= i*8"
    assert not intervals.leaves
    document = intervals.truth(apply("eq", Load("doc", (AT,), "int"), Load("doc", (J,), "int")))
    assert str(document.lo) == "least0 == most1 and most0 == least1"
    assert [leaf.side for leaf in intervals.leaves.values()] == [ROWS, STREAM]
    shorter = intervals.truth(apply("lt", J, Load("n", (B,), "int")))
    assert str(shorter.hi) == "j*4 < value2"


def test_reals_that_are_no_numbers_are_visited():
    """A NaN end may be anything: live it may be, it need not be."""
    intervals = Intervals(STREAMED, BLOCK, ((ROW, ROWS_BLOCK),), (BATCH,))
    near = apply("lt", apply("abs", apply("sub", Load("x", (AT,)), Load("x", (J,)))), Const(2.0))
    truth = intervals.truth(near)
    nan = {p: Const(float("nan")) for leaf in intervals.leaves.values() for p in leaf.placeholders}
    assert all(kind(p) == "real" and isinstance(p, Ref) for p in nan)
    assert value_at(substitute(truth.hi, nan), {"i": 0, "j": 0}) is True
    assert value_at(substitute(truth.lo, nan), {"i": 0, "j": 0}) is False


def test_a_value_that_was_computed_says_nothing():
    intervals = Intervals(STREAMED, BLOCK, ((ROW, ROWS_BLOCK),), (BATCH,))
    truth = intervals.truth(Apply("lt", (Ref("score"), Const(0.0))))
    assert (str(truth.lo), str(truth.hi)) == ("False", "True")
