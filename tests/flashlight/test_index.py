"""Index arithmetic: quotients and remainders as far as ranges tell, checked at every point."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashlight import index
from flashlight.expr import Const, Expr, Index, Size, apply, evaluate
from flashlight.growth import is_fat, is_thin
from flashlight.program import Axis, Program, Statement, Tensor

h, d, i, N, B = Index("h"), Index("d"), Index("i"), Size("N"), Size("B")


def both(e: Expr, by: Expr, **extents: Expr | int) -> tuple[str, str]:
    known = {n: Const(x) if isinstance(x, int) else x for n, x in extents.items()}
    whole, rest = index.divmod_(e, by, known.get)
    return str(whole), str(rest)


def test_a_factor_of_the_divisor_is_taken_out_of_what_it_divides() -> None:
    packed = index.add(index.mul(Const(16), h), d)
    assert both(packed, Const(64), d=16, h=B) == ("h // 4", "d + h % 4*16")
    assert both(packed, Const(16), d=16) == ("h", "d")
    assert both(packed, Const(64), d=17) == ("(d + h*16) // 64", "(d + h*16) % 64")  # may carry


def test_lengths_in_the_divisor() -> None:
    """Heads of a batch in one axis: ``(i*B + b)*4 + w // 16`` in an axis of ``N`` times ``B*4``."""
    b, w = Index("b"), Index("w")
    place = index.add(index.mul(Const(4), B, i), index.mul(Const(4), b), apply("floordiv", w, Const(16)))
    assert both(place, index.mul(B, Const(4)), b=B, w=64, i=N) == ("i", "b*4 + w // 16")
    assert both(place, index.mul(B, Const(4)), b=B, w=65, i=N)[0] != "i"  # w // 16 may be 4


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-3, 40), min_size=2, max_size=3),
    st.integers(-5, 5),
    st.sampled_from((2, 3, 4, 6, 8, 12, 64)),
    st.lists(st.integers(1, 7), min_size=3, max_size=3),
)
def test_quotients_and_remainders_are_right(terms: list[int], plus: int, by: int, lengths: list[int]) -> None:
    names = [f"a{k}" for k in range(len(terms))]
    e = index.add(Const(plus), *(index.mul(Const(c), Index(n)) for c, n in zip(terms, names, strict=True)))
    extents = dict(zip(names, map(Const, lengths), strict=False))
    whole, rest = index.divmod_(e, Const(by), extents.get)
    for at in product(*(range(int(extents[n].value)) for n in names)):
        point = {Index(n): x for n, x in zip(names, at, strict=True)}
        n = evaluate(e, point.__getitem__)
        assert (evaluate(whole, point.__getitem__), evaluate(rest, point.__getitem__)) == divmod(n, by)


# ---- how large a tensor is -------------------------------------------------------------------------------------------
def sized(*extents: Expr | int) -> Statement:
    dims = tuple(Axis(f"x{k}", Const(n) if isinstance(n, int) else n) for k, n in enumerate(extents))
    return Statement("s", dims, Const(0.0), "float32")


@pytest.mark.parametrize(
    ("extents", "fat", "thin"),
    [
        ((B, N, 64), False, True),
        ((index.mul(B, Const(4)), N, 16), False, True),  # heads of a batch in one axis
        ((index.mul(B, N), 64), False, True),
        ((B, index.add(N, Const(1)), 64), False, True),
        ((B, N, 4096), True, False),
        ((B, N, N), True, False),
        ((index.mul(B, Const(4)), N, N), True, False),
        ((index.mul(N, N), B), True, False),
        ((B, N, apply("floordiv", index.add(N, Const(63)), Const(64))), True, False),
    ],
)
def test_sizes_beside_what_comes_in(extents: tuple[Expr | int, ...], fat: bool, thin: bool) -> None:
    program = Program((Tensor("q", "float32", (B, N, Const(64))),), (s := sized(*extents),), (), ("B", "N"))
    assert is_fat(program, s) is fat
    assert is_thin(program, s) is thin
