"""Schedule trees: their text, their times, isl's view of them, and what they break."""

from __future__ import annotations

import re
from dataclasses import replace

import islpy as isl

from flashlight.expr import Const, Index, Size, apply
from flashlight.polyhedral.dependence import Pairs, depend, flow
from flashlight.polyhedral.domain import IterationDomain, iteration_domain
from flashlight.polyhedral.isl_schedule import isl_schedule, schedule_map
from flashlight.polyhedral.schedule_tree import Band, Domain, Filter, Leaf, Mark, Sequence, Tree, tile, times, violation
from flashlight.polyhedral.space import LOCK
from flashlight.program import Axis
from tests.polyhedral.programs import load, statement

N = Size("N")
I, J = Index("i"), Index("j")  # noqa: E741
ROWS = IterationDomain("m", (Axis("i", N),))
PAIRS = IterationDomain("s", (Axis("i", N), Axis("j", N)))


def tree(first: str = "s", second: str = "m", note: str = "one pass") -> Domain:
    """For each row, the points of s, block by block, then m (or the other way round)."""
    loops: dict[str, Tree] = {"s": Mark(note, tile(Band((J,)), (4,))), "m": Leaf()}
    inner = Sequence((Filter((first,), loops[first]), Filter((second,), loops[second])))
    return Domain((PAIRS, ROWS), tile(Band((I,), inner, parallel=True), (2,)))


def test_text():
    assert str(tree()) == (
        "domain s[i, j], m[i]\n"
        "└─ band i // 2, parallel\n"
        "   └─ band i % 2, parallel\n"
        "      └─ sequence\n"
        "         ├─ filter s\n"
        "         │  └─ mark one pass\n"
        "         │     └─ band j // 4\n"
        "         │        └─ band j % 4\n"
        "         └─ filter m"
    )
    assert str(Domain((ROWS,))) == "domain m[i]"


def test_tiling():
    band = tile(Band((I, J), Leaf(), parallel=True), (8, 1))
    assert [str(m) for m in band.members] == ["i // 8", "j"]
    assert isinstance(band.child, Band)
    assert [str(m) for m in band.child.members] == ["i % 8"]
    assert tile(Band((I,)), (1,)) == Band((I,))


def test_times():
    when = times(tree())
    assert [str(m.at) for m in when["s"]] == ["i // 2", "i % 2", "0", "j // 4", "j % 4"]
    assert [str(m.at) for m in when["m"]] == ["i // 2", "i % 2", "1", "0", "0"]
    assert [m.parallel for m in when["s"]] == [True, True, False, False, False]


def needs_all() -> tuple[object, ...]:
    """m[i] needs s[i, j] for all j"""
    return (depend("completion", Pairs(PAIRS, ROWS, (I, None))),)


def point(text: str) -> dict[str, dict[str, int]]:
    return {
        name: {k: int(v) for k, v in re.findall(r"(\w+) = (-?\d+)", inner)}
        for name, inner in re.findall(r"(\w+)\[([^]]*)\]", text)
    }


def test_a_legal_schedule():
    assert violation(tree(), needs_all()) is None


def test_an_illegal_one_has_a_point():
    witness = violation(tree("m", "s"), needs_all())
    assert witness is not None
    assert "is needed by" in witness
    assert "runs before it" in witness
    at = point(witness)
    assert at["s"]["i"] == at["m"]["i"]
    size = int(re.findall(r"N = (\d+)", witness)[0])
    assert 0 <= at["s"]["i"] < size
    assert 0 <= at["s"]["j"] < size


def test_same_time_is_no_order():
    both = Domain((PAIRS, ROWS), Band((I,)))
    witness = violation(both, needs_all())
    assert witness is not None
    assert "at the same time" in witness


def test_parallel_loops_carry_nothing():
    """y[i] reads x[i - 1]: legal in sequence, not between parallel blocks."""
    x, y = statement("x", "i", load("a", "i")), statement("y", "i", load("x", "i"))
    y = replace(y, body=apply("add", load("x", "i"), load("x", "i")))
    shifted = depend("element", Pairs(iteration_domain(x), iteration_domain(y), (apply("sub", I, Const(1)),)))
    inner = Sequence((Filter(("x",)), Filter(("y",))))
    domains = (iteration_domain(x), iteration_domain(y))
    assert violation(Domain(domains, Band((I,), inner)), (shifted,)) is None
    witness = violation(Domain(domains, Band((I,), inner, parallel=True)), (shifted,))
    assert witness is not None
    assert "beside it" in witness
    at = point(witness)
    assert at["x"]["i"] == at["y"]["i"] - 1
    assert violation(Domain(domains, Band((I,), inner, parallel=True)), flow((x, y))) is None


def test_blocks_so_far():
    """A reader of the blocks up to its own is served in the block, after the writer, and not before it."""
    a, b = (IterationDomain(n, (Axis("j", N),)) for n in "ab")
    running = depend("running", Pairs(a, b, (None,), ("j", 4)))
    assert str(running).startswith("a[j' in blocks up to j's] -> b[j]")

    def blocks(*order: str) -> Domain:
        inner = Sequence(tuple(Filter((n,), Band((apply("mod", J, Const(4)),))) for n in order))
        return Domain((a, b), Band((apply("floordiv", J, Const(4)),), inner))

    assert violation(blocks("a", "b"), (running,)) is None
    witness = violation(blocks("b", "a"), (running,))
    assert witness is not None
    at = point(witness)
    assert at["a"]["j"] // 4 == at["b"]["j"] // 4
    whole = depend("completion", Pairs(a, b, (None,)))
    assert violation(blocks("a", "b"), (whole,)) is not None


def test_isl_sees_the_same_schedule():
    """isl's schedule tree orders instances as our times do."""
    with LOCK:
        ours, theirs = schedule_map(tree()), isl_schedule(tree())
        assert isinstance(theirs, isl.Schedule)
        at = isl.UnionSet("[N] -> { s[i, j] : N = 9; m[i] : N = 9 }", context=ours.get_ctx())
        ours, mapped = ours.intersect_domain(at), theirs.get_map().intersect_domain(at)
        before = {k: ranks(m) for k, m in (("ours", ours), ("isl", mapped))}
    assert before["ours"] == before["isl"]
    assert len(before["ours"]) == 81 + 9


def ranks(m: isl.UnionMap) -> list[str]:
    """Instances sorted by time."""
    rows: list[tuple[tuple[int, ...], str]] = []
    maps: list[isl.Map] = []
    m.foreach_map(maps.append)
    for one in maps:
        pairs: list[isl.Point] = []
        one.wrap().project_out_all_params().foreach_point(pairs.append)
        width, name = one.dim(isl.dim_type.in_), one.get_tuple_name(isl.dim_type.in_)
        for p in pairs:
            at = [
                int(p.get_coordinate_val(isl.dim_type.set, k).to_python())
                for k in range(width + one.dim(isl.dim_type.out))
            ]
            rows.append((tuple(at[width:]), f"{name}{at[:width]}"))
    length = max(len(t) for t, _ in rows)
    return [n for _, n in sorted((t + (0,) * (length - len(t)), n) for t, n in rows)]


def test_isl_prints_the_tree():
    with LOCK:
        text = str(isl_schedule(tree()))
    for part in ("domain", "sequence", "filter", "mark", "one pass", "coincident: [ 1 ]"):
        assert part in text, text
