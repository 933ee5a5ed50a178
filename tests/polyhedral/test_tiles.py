"""Tile classes against a count of every point, for many masks, lengths and blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashlight.errors import NotAffine
from flashlight.expr import FALSE, TRUE, Const, Expr, Index, Load, Size, apply, evaluate
from flashlight.polyhedral import tiles
from flashlight.polyhedral.tiles import Range, check, count, implies_inside, segments
from flashlight.program import Axis
from tests.polyhedral.masks import (
    CAUSAL,
    MASKS,
    D,
    I,
    J,
    Mask,
    N,
    P,
    S,
    W,
    absolute,
    add,
    axes_of,
    both,
    div,
    eq,
    fault,
    instances,
    le,
    lt,
    mod,
    mul,
    neighbourhood,
    sizes_of,
    sub,
)

LENGTHS = (1, 2, 15, 16, 17, 64, 97)
APART = ("fixed", "checkerboard", "a stripe of each 48", "far dilation")  # live tiles that are no few ranges
BLOCKS = ((16, 8), (8, 16), (1, 8), (12, 5))


@pytest.mark.parametrize("name", APART)
def test_tiles_that_are_every_kth_are_known_to_lie_apart(name: str):
    mask = MASKS[name]
    stream, rows, batch = axes_of(mask, 16)
    assert segments(mask.live, stream, 8, rows, batch).loose


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_conditions_are_exact(name: str, blocks: tuple[int, int]):
    """A tile may be live if it holds a live point, and is full if all its points are; of blocks of rows that reach
    beyond the axis, the one or the other is said at least where it is so."""
    mask = MASKS[name]
    stream, rows, batch = axes_of(mask, blocks[0])
    classes = segments(mask.live, stream, blocks[1], rows, batch)
    found = tiles.conditions(mask.live, stream, blocks[1], rows, batch)
    if found is None:
        pytest.skip("isl does not say it in its time")
    for sizes in sizes_of(mask, LENGTHS):
        env: dict[Expr, int] = {Size(n): v for n, v in sizes.items()}
        places = product(*(range(int(evaluate(a.extent, env.__getitem__))) for a in batch))
        for place, alive in zip(places, instances(classes, mask.live, sizes), strict=True):
            at = env | {Index(a.name): k for a, k in zip(batch, place, strict=True)}
            for row, tile in product(*(range(-(-n // b)) for n, b in zip(alive.shape, blocks, strict=True))):
                here = at | {Index(rows[0][0].name): row, Index(stream.name): tile}
                may, must = (bool(evaluate(e, here.__getitem__)) for e in found)
                (i, j), (bm, bn) = (row * blocks[0], tile * blocks[1]), blocks
                part = alive[i : i + bm, j : j + bn]
                whole = i + bm <= alive.shape[0]
                inside = part.shape[1] == bn
                assert may == part.any() if whole else may >= part.any(), (row, tile, sizes)
                assert must == (inside and part.all()) if whole else must <= (inside and part.all()), (row, tile, sizes)


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_ranges_visit_what_is_live(name: str, blocks: tuple[int, int]):
    """Every live point once, in order; no dead point in a full tile; nothing outside."""
    mask = MASKS[name]
    stream, rows, batch = axes_of(mask, blocks[0])
    classes = segments(mask.live, stream, blocks[1], rows, batch)
    assert check(classes, mask.live, stream, blocks[1], rows, batch) is None
    assert len(classes.ranges) <= tiles.RANGES
    for sizes in sizes_of(mask, LENGTHS):
        assert fault(classes, mask.live, sizes) is None, str(classes)


@pytest.mark.parametrize("name", MASKS)
def test_ranges_are_exact_or_close(name: str):
    """At most two tiles a block of rows are visited though they are dead, or called partial though they are full."""
    mask = MASKS[name]
    stream, rows, batch = axes_of(mask, 16)
    classes = segments(mask.live, stream, 8, rows, batch)
    for sizes in sizes_of(mask, (128, 130)):
        best, ours = optimum(classes, mask.live, sizes), count(classes, sizes)
        slack = 2 * sum(best.values()) // -(-sizes["N"] // 8)
        if name not in ("widely dilated", "prefix or window", *APART):
            assert best["full"] - ours["full"] <= slack
            assert best["empty"] - ours["empty"] <= slack
        if name in ("everything", "nothing", "causal", "window both ways", "dilated", "chunks", "anti-causal"):
            assert sizes["N"] % 16 or ours == best


def optimum(classes: tiles.TileClasses, live: Expr, sizes: dict[str, int]) -> dict[str, int]:
    """The tiles of each kind, counted one by one."""
    out = {"full": 0, "partial": 0, "empty": 0}
    every = replace(classes, ranges=(Range("full", Const(0), Const(0)),))
    for points in tiles_of(every, live, sizes):
        kind = "full" if points.all() and points.shape[1] == classes.block else "partial" if points.any() else "empty"
        out[kind] += 1
    return out


def tiles_of(classes: tiles.TileClasses, live: Expr, sizes: dict[str, int]) -> Iterator[np.ndarray]:
    bm, bn = classes.rows[0][1], classes.block
    for alive in instances(classes, live, sizes):
        for i in range(0, alive.shape[0], bm):
            for j in range(0, alive.shape[1], bn):
                yield alive[i : i + bm, j : j + bn]


def text(name: str, bm: int = 128, bn: int = 64) -> str:
    mask = MASKS[name]
    stream, rows, batch = axes_of(mask, bm)
    return str(segments(mask.live, stream, bn, rows, batch))


def test_texts_are_short():
    assert text("causal") == "full [0, 2*i); partial [2*i, min(2*i + 2, (N + 63) // 64))"
    assert text("everything") == "full [0, N // 64); partial [N // 64, (N + 63) // 64)"
    assert text("nothing") == "none"
    assert text("neighbourhood", 64, 64) == "partial [max(0, i - 1), min(i + 2, (N + 63) // 64))"
    assert text("prefix of a size", 64, 64) == (
        "full [0, max(i, min(N // 64, P // 64))); partial [max(i, min(N // 64, P // 64)), "
        "max(i + 1, min((N + 63) // 64, (P + 63) // 64)))"
    )
    assert text("window of a head", 128, 8) == ("partial [max(0, 16*i - h - 1), min(16*i + 16, (N + 7) // 8))")
    assert text("chunks", 16, 8) == "full [4*(i // 2), 2*i); partial [2*i, min(2*i + 2, (N + 7) // 8))"


def test_literal_lengths_fold():
    live, stream = le(J, I), Axis("j", Const(1024))
    classes = segments(TRUE, stream, 64, ((Axis("i", Const(1024)), 128),), ())
    assert classes.ranges == (Range("full", Const(0), Const(16)),)
    classes = segments(TRUE, Axis("j", Const(100)), 64, ((Axis("i", N), 128),), ())
    assert classes.ranges == (Range("full", Const(0), Const(1)), Range("partial", Const(1), Const(2)))
    assert count(segments(live, stream, 64, ((Axis("i", Const(1024)), 128),), ()), {}) == {
        "full": 56, "partial": 16, "empty": 56}  # fmt: skip


def test_no_rows_and_two_rows():
    assert str(segments(TRUE, Axis("j", N), 64, (), ())) == "full [0, N // 64); partial [N // 64, (N + 63) // 64)"
    live = both(le(J, I), le(J, Index("k")))
    rows = ((Axis("i", N), 32), (Axis("k", N), 16))
    classes = segments(live, Axis("j", N), 16, rows, ())
    assert str(classes).startswith("full [0, min(k, 2*i));")
    assert check(classes, live, Axis("j", N), 16, rows, ()) is None


def test_planes_are_told_apart():
    """Three planes of a video, and a strip of rows in each: not the whole of the planes."""
    mask = MASKS["neighbourhood in a video"]
    stream, rows, batch = axes_of(mask, 8)
    classes = segments(mask.live, stream, 8, rows, batch)
    assert len(classes.ranges) == 3
    best, ours = optimum(classes, mask.live, {"N": 512}), count(classes, {"N": 512})
    assert ours["partial"] - best["partial"] <= 2 * 64
    assert ours["empty"] > 0.75 * sum(best.values())


def test_an_axis_that_is_not_of_the_grid():
    """Live for some coordinate of it, full for all."""
    live = both(CAUSAL, lt(J, mul(8, Index("e"))))
    args = (Axis("j", N), 64, ((Axis("i", N), 128),), ())
    classes = segments(live, *args)
    assert str(classes) == "partial [0, min(2*i + 2, (N + 63) // 64))"
    assert check(classes, live, *args) is None
    witness = check(segments(CAUSAL, *args), live, *args)
    assert witness is not None
    assert point(witness)["j"] >= 8 * point(witness)["e"]


def test_too_much_for_isl_is_one_partial_range(monkeypatch):
    monkeypatch.setattr(tiles, "OPERATIONS", 200)
    monkeypatch.setattr(tiles, "SPLITTING", 200)
    args = (both(CAUSAL, lt(D, 77)), Axis("j", N), 64, ((Axis("i", N), 128),), ())
    assert segments.__wrapped__(*args).ranges == (Range("partial", Const(0), apply("floordiv", add(N, 63), Const(64))),)
    assert implies_inside.__wrapped__(CAUSAL, Axis("j", N), (Axis("i", N),)) is False
    assert "could not decide" in str(check(segments.__wrapped__(*args), *args))


def test_a_predicate_that_isl_cannot_hold():
    for live, part in (
        (lt(mul(I, J), 5), "i*j"),
        (lt(J, Load("length", (I,), "int")), "length[i]"),
        (lt(div(I, W), 3), "i // W"),
    ):
        with pytest.raises(NotAffine, match=re.escape(f"{part} is not affine")):
            segments(live, Axis("j", N), 64, ((Axis("i", N), 128),), ())


# ---- the check -------------------------------------------------------------------------------------------------------
ARGS = (CAUSAL, Axis("j", N), 64, ((Axis("i", N), 128),), ())
FULL, PARTIAL = segments(*ARGS).ranges


def point(witness: str) -> dict[str, int]:
    return {k: int(v) for k, v in re.findall(r"(\w+) = (-?\d+)", witness)}


@pytest.mark.parametrize(
    ("ranges", "what"),
    [
        ((FULL,), "is live and not visited"),
        ((PARTIAL,), "is live and not visited"),
        ((FULL, PARTIAL, PARTIAL), "is visited twice or out of order"),
        ((PARTIAL, FULL), "is visited twice or out of order"),
        ((replace(FULL, hi=PARTIAL.hi),), "is in a full tile, and dead"),
        ((FULL, replace(PARTIAL, hi=add(PARTIAL.lo, 2))), "lies in a tile outside j<N"),
        ((replace(FULL, lo=Const(-1)), PARTIAL), "lies in a tile outside j<N"),
        ((replace(FULL, lo=Const(1)), PARTIAL), "is live and not visited"),
    ],
)
def test_wrong_ranges_have_a_witness(ranges: tuple[Range, ...], what: str):
    """The point named is one of the rows that exist, and what is said of it is so."""
    witness = check(replace(segments(*ARGS), ranges=ranges), *ARGS)
    assert witness is not None
    assert what in witness
    at = point(witness.split(" is ")[0].split(" lies ")[0])
    i, j, n = at["i"], at["j"], at["N"]
    assert 0 <= i < n
    visits = [r for r in ranges if tile_in(r, i, j, n)]
    match what:
        case "is live and not visited":
            assert 0 <= j <= i
            assert not visits
        case "is visited twice or out of order":
            assert visits
        case "is in a full tile, and dead":
            assert i < j < n
            assert any(r.kind == "full" for r in visits)
        case _:
            assert visits
            assert j < 0 or j // 64 * 64 >= n


def tile_in(r: Range, i: int, j: int, n: int) -> bool:
    lo, hi = (evaluate(e, lambda leaf: i // 128 if leaf is Index("i") else n) for e in (r.lo, r.hi))
    return lo <= j // 64 < hi


def test_a_tail_tile_is_not_full():
    args = (TRUE, Axis("j", N), 64, (), ())
    wrong = replace(segments(*args), ranges=(Range("full", Const(0), apply("floordiv", add(N, 63), Const(64))),))
    witness = check(wrong, *args)
    assert witness is not None
    assert "is in a full tile, and outside j<N" in witness
    assert point(witness)["j"] >= point(witness)["N"]


# ---- inside ----------------------------------------------------------------------------------------------------------
def test_live_points_inside_the_axis():
    j, i = Axis("j", N), Axis("i", N)
    assert implies_inside(CAUSAL, j, (i,))
    assert implies_inside(both(CAUSAL, lt(D, W)), j, (i,))
    assert implies_inside(lt(J, N), j, ())
    assert not implies_inside(TRUE, j, (i,))
    assert not implies_inside(lt(absolute(D), 5), j, (i,))
    assert not implies_inside(CAUSAL, Axis("j", S), (i,))
    assert implies_inside(le(J, add(I, sub(S, N))), Axis("j", S), (i,))
    assert not implies_inside(lt(J, P), j, (i,))


# ---- random predicates -----------------------------------------------------------------------------------------------
def terms() -> st.SearchStrategy[Expr]:
    leaf = st.sampled_from([I, J, I, J, N, D, add(I, J)]) | st.integers(-9, 40).map(Const)
    scaled = st.builds(lambda e, k: mul(k, e), leaf, st.sampled_from([-2, -1, 1, 2, 3]))
    divided = st.builds(lambda e, k, f: f(e, k), leaf, st.sampled_from([2, 3, 8, 10]), st.sampled_from([div, mod]))
    return st.builds(add, scaled | divided, scaled | divided | leaf)


def predicates() -> st.SearchStrategy[Expr]:
    compare = st.builds(
        lambda op, a, b: apply(op, a, b), st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), terms(), terms()
    )
    return st.recursive(
        compare,
        lambda inner: (
            st.builds(lambda op, a, b: apply(op, a, b), st.sampled_from(["and", "or"]), inner, inner)
            | st.builds(lambda a: apply("not", a), inner)
        ),
        max_leaves=4,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(predicates(), st.sampled_from([(8, 8), (16, 4), (1, 8), (5, 7)]))
def test_random_predicates(live: Expr, blocks: tuple[int, int]):
    mask = Mask(live)
    stream, rows, batch = axes_of(mask, blocks[0])
    classes = segments(live, stream, blocks[1], rows, batch)
    for n in (1, 7, 23, 40):
        assert fault(classes, live, {"N": n}) is None, str(classes)
    assert check(classes, live, stream, blocks[1], rows, batch) is None


def test_constants():
    for live in (TRUE, FALSE, lt(Size("N"), 5), eq(mod(N, 2), 0), neighbourhood(4, 1)):
        mask = Mask(live)
        stream, rows, batch = axes_of(mask, 8)
        classes = segments(live, stream, 8, rows, batch)
        for n in (1, 4, 5, 16):
            assert fault(classes, live, {"N": n}) is None
