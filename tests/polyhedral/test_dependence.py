"""Dependences, accesses and domains of small programs, against trying all pairs of instances."""

from __future__ import annotations

import time
from itertools import product

import pytest

from flashlight.expr import Const, Expr, Index, Load, Size, apply, axes, children, evaluate
from flashlight.polyhedral.access import footprint, reads, write
from flashlight.polyhedral.affine import Translator
from flashlight.polyhedral.dependence import Dependence, flow
from flashlight.polyhedral.domain import iteration_domain
from flashlight.polyhedral.space import LOCK
from flashlight.program import Axis, Statement
from tests.polyhedral.programs import attention, axis, load, statement

N = Size("N")
SIZES = {"N": 4, "B": 2, "H": 1}


def shifted(by: int) -> tuple[Statement, ...]:
    """y[i] = x[i] + x[i - by]"""
    i = Index("i")
    first = statement("x", "i", load("a", "i"))
    second = statement("y", "i", apply("add", load("x", "i"), Load("x", (apply("sub", i, Const(by)),))))
    return first, second


PROGRAMS = {
    "attention": attention(4).statements,
    "shifted": shifted(2),
    "never": (statement("x", "i", load("a", "i")), statement("y", "i", Load("x", (apply("add", Index("i"), N),)))),
    "halves": (
        statement("x", "i", load("a", "i"), "max", "j"),
        statement("y", "ij", apply("mul", Load("x", (apply("floordiv", Index("j"), Const(2)),)), load("b", "ij"))),
    ),
    "transposed": (statement("x", "ij", load("a", "ij")), statement("y", "i", load("x", "ji"), "sum", "j")),
    "reversed": (
        statement("x", "i", load("a", "i")),
        statement("y", "i", Load("x", (apply("sub", apply("sub", N, Const(1)), Index("i")),))),
    ),
    "gathered": (
        statement("x", "ij", load("a", "ij")),
        statement("y", "i", Load("x", (Load("which", (Index("i"),), "int"), Index("i")))),
    ),
}


def brute(statements: tuple[Statement, ...]) -> set[tuple[object, ...]]:
    """Every pair (source instance, sink instance) by looking at each load of each instance."""
    out: set[tuple[object, ...]] = set()
    by_name = {s.name: s for s in statements}
    for s in statements:
        for at in iteration_domain(s).instances(SIZES):
            for x in every_load(s.body):
                if x.tensor not in by_name:
                    continue
                source = by_name[x.tensor]
                index = [None if any(map(is_load, walk(e))) else value(e, at) for e in x.index]
                for other in iteration_domain(source).instances(SIZES):
                    element = [other[a.name] for a in source.axes]
                    if all(k is None or k == n for k, n in zip(index, element, strict=True)):
                        out.add((source.name, tuple(other.values()), s.name, tuple(at.values())))
    return out


def walk(e: Expr):
    yield e
    for c in children(e):
        yield from walk(c)


def is_load(e: Expr) -> bool:
    return isinstance(e, Load)


def every_load(e: Expr) -> list[Load]:
    return [x for x in walk(e) if isinstance(x, Load)]


def value(e: Expr, at: dict[str, int]) -> int:
    return int(evaluate(e, lambda x: at[x.axis] if isinstance(x, Index) else SIZES[str(x)]))


@pytest.mark.parametrize("name", PROGRAMS)
def test_flow_is_exact(name: str):
    statements = PROGRAMS[name]
    found = set()
    for d in flow(statements):
        for source, sink in d.pairs.instances(SIZES):
            found.add((d.source, tuple(source.values()), d.sink, tuple(sink.values())))
    assert found == brute(statements)


@pytest.mark.parametrize("name", PROGRAMS)
def test_isl_has_the_same_pairs(name: str):
    """The relation that legality is asked of holds just the pairs that the texts say."""
    for d in flow(PROGRAMS[name]):
        with LOCK:
            space = d.pairs.space()
            relation, t = d.pairs.relation(space), Translator(space)
            for key in space.params:
                relation = relation.intersect(t.truth(apply("eq", key, Const(SIZES[str(key)]))))
            assert relation.count_val().to_python() == len(list(d.pairs.instances(SIZES)))


def test_kinds_and_texts():
    texts = [str(d) for d in flow(attention(64).statements)]
    assert texts == [
        "S[b, h, i, j, *] -> W[b, h, i, j]  completion",
        "W[b, h, i, j] -> M[b, h, i, j]  element",
        "W[b, h, i, j] -> E[b, h, i, j]  element",
        "M[b, h, i, *] -> E[b, h, i, j]  completion",
        "E[b, h, i, j] -> L[b, h, i, j]  element",
        "E[b, h, i, j] -> P[b, h, i, j]  element",
        "L[b, h, i, *] -> P[b, h, i, j]  completion",
        "P[b, h, i, j] -> O[b, h, i, e, j]  element",
    ]
    assert [str(d) for d in flow(shifted(2))] == ["x[i] -> y[i]  element", "x[i - 2] -> y[i]  element"]
    assert flow(PROGRAMS["never"]) == ()
    (gathered,) = flow(PROGRAMS["gathered"])
    assert str(gathered) == "x[*, i] -> y[i]  element, at most"
    assert not gathered.exact


def test_values_are_plain():
    first, second = flow(attention(64).statements), flow(attention(64).statements)
    assert first == second
    assert hash(first) == hash(second)
    assert isinstance(first[0], Dependence)
    assert "isl" not in repr(first)


def test_accesses():
    s, w = attention(64).statements[:2]
    assert [str(a) for a in reads(s)] == [
        "S[b, h, i, j, d] -> Q[b, h, i, d]",
        "S[b, h, i, j, d] -> K[b, h, j, d]",
    ]
    assert str(write(s)) == "S[b, h, i, j, d] -> S[b, h, i, j]"
    assert str(iteration_domain(w)) == "W[b, h, i, j]"
    gathered = PROGRAMS["gathered"][1]
    assert [str(a) for a in reads(gathered)] == ["y[i] -> x[*, i]", "y[i] -> which[i]"]


def test_footprints():
    """The box of elements that is read while some axes stand still."""
    shifted_read = reads(shifted(2)[1])[1]
    assert [f"{x.lo} {x.hi}" for x in footprint(shifted_read, (N,))] == ["-2 N - 2"]
    assert [f"{x.lo} {x.hi}" for x in footprint(shifted_read, (N,), ("i",))] == ["i - 2 i - 1"]
    k = reads(attention(64).statements[0])[1]
    shape = (Size("B"), Size("H"), N, Const(64))
    assert [f"{x.lo} {x.hi}" for x in footprint(k, shape, ("b", "i"))] == ["b b + 1", "0 H", "0 N", "0 64"]
    gathered = reads(PROGRAMS["gathered"][1])[0]
    assert [f"{x.lo} {x.hi}" for x in footprint(gathered, (N, N), ("i",))] == ["0 N", "i i + 1"]


def test_footprints_hold_what_is_read():
    at = apply("floordiv", apply("add", apply("mul", Const(2), Index("i")), Index("k")), Const(3))
    windowed = Statement("y", (axis("i"), Axis("k", Const(3))), Load("x", (at,)), "float32")
    (access,) = reads(windowed)
    (box,) = footprint(access, (N,), ("i",))
    (index,) = access.index
    assert index is not None
    assert axes(index) == {"i", "k"}
    for i, k in product(range(9), range(3)):
        lo, hi = (value(e, {"i": i}) for e in (box.lo, box.hi))
        assert lo <= value(index, {"i": i, "k": k}) < hi


def test_a_chain_is_quick():
    flow(attention(64).statements)
    start = time.perf_counter()
    flow(attention(64).statements)
    assert time.perf_counter() - start < 0.25
