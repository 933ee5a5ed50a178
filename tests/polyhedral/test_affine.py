"""Expressions to isl and back, against their values."""

from __future__ import annotations

from itertools import product

import islpy as isl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashlight.errors import NotAffine
from flashlight.expr import Apply, Const, Expr, Fold, Index, Load, Ref, Size, apply, evaluate
from flashlight.polyhedral.affine import Translator, is_affine, literal, parameters
from flashlight.polyhedral.linear import Linear, as_linear
from flashlight.polyhedral.space import LOCK, Space, number, sample

I, J, N, M = Index("i"), Index("j"), Size("N"), Size("M")  # noqa: E741
SPACE = Space((N, M, apply("mul", N, M)), (I, J))


def e(op: str, *args: Expr | float) -> Expr:
    return apply(op, *(a if not isinstance(a, int | float) else Const(a) for a in args))


AFFINE = [
    e("add", I, e("mul", 3, J)),
    e("mul", e("neg", Const(2)), I),
    e("floordiv", e("add", I, 7), 32),
    e("mod", e("sub", I, J), 8),
    e("maximum", I, e("minimum", J, N)),
    e("abs", e("sub", I, J)),
    e("le", J, I),
    e("and", e("lt", I, N), e("not", e("eq", e("mod", I, 2), 0))),
    e("or", e("ne", I, J), e("ge", I, e("floordiv", N, 2))),
    e("select", e("lt", I, 3), J, e("sub", I, 1)),
    e("lt", e("real", e("sub", I, J)), 12.5),
    e("eq", e("le", I, J), e("gt", N, 3)),
    e("int", e("le", I, J)),
    e("floor", e("div", I, 3)),
    e("int", e("div", e("sub", I, 9), 4)),
    e("ceil", e("div", I, 5)),
    e("mul", N, M),
    e("lt", I, e("mul", N, M)),
    e("lt", I, e("floordiv", N, M)),
    e("lt", e("div", I, 2), 3.25),
    e("bool", I),
    e("ne", e("bool", I), e("lt", J, 2)),
    Const(True),
]
OTHER = [
    e("mul", I, J),
    e("mul", N, I),
    e("floordiv", I, N),
    e("mod", I, e("neg", Const(3))),
    Load("length", (I,), "int"),
    e("lt", I, Load("length", (), "int")),
    Ref("m"),
    e("exp", I),
    e("lt", e("mul", e("real", I), 0.1), 3.0),
    e("lt", e("div", I, 3), 1.0),
    e("pow", I, Const(2)),
    Fold("sum", "k", 3, I),
    e("lt", e("real", I), float("inf")),
]


@pytest.mark.parametrize("expr", AFFINE, ids=str)
def test_what_isl_holds(expr: Expr):
    assert is_affine(expr)


@pytest.mark.parametrize("expr", OTHER, ids=str)
def test_what_it_cannot(expr: Expr):
    assert not is_affine(expr)
    with LOCK, pytest.raises(NotAffine):
        Translator(SPACE).value(expr)


def test_the_error_names_the_part():
    with LOCK, pytest.raises(NotAffine, match=r"i\*j"):
        Translator(SPACE).truth(e("and", e("lt", I, 3), e("lt", e("mul", I, J), 5)))


def test_opaque_sizes():
    assert parameters(e("lt", e("add", I, e("mul", N, M)), N)) == (e("mul", N, M), N)
    assert parameters(e("floordiv", e("add", N, 1), 2)) == (N,)
    assert parameters(e("lt", J, e("floordiv", N, M))) == (e("floordiv", N, M),)


def test_literals():
    assert literal(e("neg", e("real", 3))) == -3
    assert literal(Const(0.25)) is not None
    assert literal(Const(0.1)) is None
    assert literal(N) is None


def agrees(expr: Expr, space: Space = SPACE) -> None:
    """isl's value at every point of a small box is the operator table's."""
    with LOCK:
        translate = Translator(space)
        value = translate.value(expr)
        if not isinstance(expr, Const) and space is SPACE:
            assert not value.is_empty()
        for i, j, n in product(range(-4, 14, 3), range(0, 12, 5), (1, 6)):
            at: dict[Expr, int] = {I: i, J: j, N: n, M: 2, e("mul", N, M): 2 * n}
            want = evaluate(expr, at.__getitem__)
            point = space.universe()
            for key, x in at.items():
                if key in space:
                    point = point.intersect(space[key].eq_set(space.constant(x)))
            for opaque in set(space.params) - at.keys():
                point = point.intersect(space[opaque].eq_set(space.constant(evaluate(opaque, at.__getitem__))))
            here = value.intersect_domain(point)
            assert here.eq_set(space.constant(int(want))).is_equal(point), (str(expr), at)


@pytest.mark.parametrize("expr", [x for x in AFFINE if x is not e("lt", I, e("floordiv", N, M))], ids=str)
def test_values(expr: Expr):
    agrees(expr)


def integers() -> st.SearchStrategy[Expr]:
    leaf = st.sampled_from([I, J, N]) | st.integers(-5, 20).map(Const)
    return st.recursive(
        leaf,
        lambda x: (
            st.builds(lambda op, a, b: e(op, a, b), st.sampled_from(["add", "sub", "maximum", "minimum"]), x, x)
            | st.builds(lambda op, a, k: e(op, a, k), st.sampled_from(["floordiv", "mod", "mul"]), x, st.integers(1, 6))
            | st.builds(lambda a: e("neg", a), x)
        ),
        max_leaves=4,
    )


@settings(max_examples=30, deadline=None)
@given(integers())
def test_random_values(expr: Expr):
    agrees(expr)


@settings(max_examples=60, deadline=None)
@given(integers())
def test_linear_forms_keep_the_value(expr: Expr):
    again = as_linear(expr).expr()
    for i, j, n in product(range(-7, 9, 4), range(0, 9, 4), (1, 5)):
        at = {I: i, J: j, N: n}
        assert evaluate(again, at.__getitem__) == evaluate(expr, at.__getitem__), (str(expr), str(again))


def test_linear_forms_are_short():
    def short(expr: Expr) -> str:
        return str(as_linear(expr).expr())

    assert short(e("floordiv", e("add", e("mul", 128, I), 191), 64)) == "2*i + 2"
    assert short(e("add", e("floordiv", e("sub", N, 1), 64), 1)) == "(N + 63) // 64"
    assert str(Linear(((N, 1),), -1).ceildiv(64).expr()) == "(N + 62) // 64"
    assert short(e("floordiv", e("mul", 6, I), 4)) == "3*i // 2"
    assert short(e("sub", 5, W := e("floordiv", N, 2))) == "5 - N // 2"
    assert short(e("floordiv", W, 3)) == "N // 6"
    assert short(e("floordiv", e("neg", N), 4)) == "-((N + 3) // 4)"


def test_points_are_found():
    with LOCK:
        inside = Translator(SPACE).truth(e("and", e("eq", I, 3), e("lt", J, I)))
        at = sample(inside, SPACE)
        assert at is not None
        assert at[I] == 3
        assert at[J] < 3
        assert sample(SPACE.empty(), SPACE) is None


def test_names_that_clash_are_told_apart():
    space = Space((Size("i"),), (Index("i"),))
    with LOCK:
        assert not space[Size("i")].eq_set(space[Index("i")]).is_equal(space.universe())
        assert isinstance(number(3), isl.Val)
    assert isinstance(I, Index)
    assert not isinstance(I, Apply)
