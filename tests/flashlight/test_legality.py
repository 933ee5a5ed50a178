"""Legality of nests: fused programs pass, and exchanged statements are caught with a point."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from flashlight.algebra import Proved
from flashlight.algebra.derive import decide
from flashlight.algebra.proof import Cascade, Stage
from flashlight.errors import IllegalFusion, InternalError
from flashlight.expr import Const, Index, Load, Ref, Size, apply, substitute
from flashlight.fuse import fuse
from flashlight.legality import _Schedule, verify_legality
from flashlight.lower import Lowered, Tiling, lower
from flashlight.nests import Nest, Output, Pass
from flashlight.program import Program, Statement, Tensor
from flashlight.tile import Loop, Store
from flashlight.verify import Obligation, verify_lowered
from tests.polyhedral.programs import attention, axis, load, statement, variance

TILING = Tiling((128,), 64)


def nest_of(program: Program) -> tuple[Nest, Program, Lowered]:
    plan = fuse(program)
    (nest,) = plan.nests
    return nest, plan.program, lower(nest, plan.program, tiling(nest))


def legal(nest: Nest, program: Program, lowered: Lowered) -> tuple[Obligation, ...]:
    return verify_legality(replace(lowered, nest=nest, program=program))


def tiling(nest: Nest) -> Tiling:
    return Tiling((128,) * len(nest.blocked), 64)


def separate(program: Program) -> Nest:
    """The nest with a pass for each state, as if the algebra had proved nothing."""
    nest = nest_of(program)[0]
    passes = []
    for s in nest.states:
        assert nest.stream is not None
        answer = decide(
            Cascade(nest.stream.name, nest.stream.extent, (Stage(s.name, s.monoid, s.body),), (Ref(s.name),))
        )
        assert isinstance(answer, Proved)
        passes.append(Pass(answer.certificate, (s.name,)))
    return replace(nest, passes=tuple(passes))


def points(witness: str) -> list[tuple[str, dict[str, int]]]:
    return [
        (name, {k: int(v) for k, v in re.findall(r"(\w+) = (-?\d+)", inner)})
        for name, inner in re.findall(r"([\w'@. ]+)\[([^]]*)\]", witness)
    ]


def test_attention_is_legal():
    obligations = legal(*nest_of(attention()))
    first, *relaxed = obligations
    assert first.claim == "nest0: every dependence that no certificate relaxes runs forward"
    assert "3 completions relaxed" in first.evidence
    assert {o.claim for o in relaxed} == {
        "nest0 pass 1: L need not wait until M is finished",
        "nest0 pass 1: O need not wait until M is finished",
        "nest0 pass 1: O need not wait until L is finished",
    }
    assert all(o.evidence.startswith("certificate, ") for o in relaxed)


def test_the_tree_shows_the_nest():
    tree = legal(*nest_of(attention()))[0].tree
    assert tree.splitlines()[:8] == [
        "domain M'[b, h, i, j], L'[b, h, i, j], O'[b, h, i, e, j], M[b, h, i], L[b, h, i], O[b, h, i, e], "
        "store O[b, h, i, e]",
        "└─ band b, h, i // 128, parallel",
        "   └─ sequence",
        "      ├─ filter M', L', O'",
        "      │  └─ mark pass 1 along j",
        "      │     └─ band j // 64",
        "      │        └─ sequence",
        "      │           ├─ filter M'",
    ]
    assert "      └─ filter store O" in tree.splitlines()


def test_both_checks_hold_of_what_was_lowered():
    nest, program, lowered = nest_of(attention())
    obligations = (*legal(nest, program, lowered), *verify_lowered(lowered))
    assert [str(o).startswith("Proved (") for o in obligations] == [True] * len(obligations)


def test_other_programs_are_legal():
    nest, program, lowered = nest_of(variance())
    assert nest.maps
    assert "map along j" in legal(nest, program, lowered)[0].tree
    plain = Program(
        attention().inputs[:1], (statement("Y", "bhid", apply("exp", load("Q", "bhid"))),), ("Y",), ("B", "H", "N")
    )
    nest, program, lowered = nest_of(plain)
    (only,) = legal(nest, program, lowered)
    assert only.evidence == "isl, 0 dependences"


def prefix() -> Program:
    """The running sums of rows, and their exponentials."""
    body = apply("select", apply("le", Index("j"), Index("i")), load("X", "bj"), Const(0.0))
    statements = (statement("C", "bi", body, "sum", "j"), statement("Y", "bi", apply("exp", load("C", "bi"))))
    return Program((Tensor("X", "float32", (Size("B"), Size("N"))),), statements, ("C", "Y"), ("B", "N"))


def test_what_is_written_as_it_runs_follows_its_block(monkeypatch):
    nest, program, lowered = nest_of(prefix())
    assert [o.name for o in nest.swept] == ["C", "Y"]
    assert not nest.maps
    assert "filter C_so_far', store C, store Y" in legal(nest, program, lowered)[0].tree
    along = _Schedule.along
    monkeypatch.setattr(_Schedule, "along", lambda self, what, note: along(self, what[::-1], note))
    with pytest.raises(IllegalFusion) as caught:
        legal(nest, program, lowered)
    (source, at), (sink, where) = points(caught.value.witness)
    assert source.strip().endswith("C_so_far'")
    assert sink.strip().split()[-1] in ("C", "Y")
    assert at["b"] == where["b"]
    assert at["i"] // 64 <= where["i"] // 64


def test_a_loop_must_write_what_its_pass_does():
    nest, program, lowered = nest_of(prefix())
    (loop,) = (s for s in lowered.kernel.body if isinstance(s, Loop))
    bare = tuple(replace(g, body=tuple(x for x in g.body if not isinstance(x, Store))) for g in loop.segments)
    body = tuple(replace(s, segments=bare) if s is loop else s for s in lowered.kernel.body)
    with pytest.raises(InternalError, match="a loop does not write"):
        legal(nest, program, replace(lowered, kernel=replace(lowered.kernel, body=body)))


def test_separate_passes_are_legal():
    nest = separate(attention())
    lowered = lower(nest, attention(), TILING)
    obligations = legal(nest, attention(), lowered)
    assert len(obligations) == 1
    assert "mark pass 3 along j" in obligations[0].tree


def test_exchanged_passes_are_caught():
    """L before M: L's sum needs a maximum that a later pass computes."""
    nest = separate(attention())
    first, second, third = nest.passes
    wrong = replace(nest, passes=(second, first, third))
    lowered = lowered_as(wrong, nest)
    with pytest.raises(IllegalFusion, match="nest0: the schedule breaks a dependence") as caught:
        legal(wrong, attention(), lowered)
    (source, at), (sink, where) = points(caught.value.witness)
    assert source.strip().endswith("M")
    assert sink.strip().endswith("L'")
    assert "which runs before it" in caught.value.witness
    (size,) = (int(n) for n in re.findall(r"N = (\d+)", caught.value.witness))
    assert (at["b"], at["h"], at["i"]) == (where["b"], where["h"], where["i"])
    assert 0 <= at["i"] < size
    assert 0 <= where["j"] < size


def lowered_as(wrong: Nest, right: Nest) -> Lowered:
    """The right kernel with its loops in the other nest's order of passes."""
    low = lower(right, attention(), TILING)
    loops = [s for s in low.kernel.body if isinstance(s, Loop)]
    moved = iter([loops[right.passes.index(p)] for p in wrong.passes])
    body = tuple(next(moved) if isinstance(s, Loop) else s for s in low.kernel.body)
    return replace(low, kernel=replace(low.kernel, body=body))


def test_states_in_the_wrong_order_are_caught():
    """A certificate relaxes what a stage reads of earlier stages, not of later ones."""
    nest, program, lowered = nest_of(attention())
    (p,) = nest.passes
    wrong = replace(nest, passes=(replace(p, stages=("L", "M", "O")),))
    with pytest.raises(IllegalFusion) as caught:
        legal(wrong, program, lowered)
    (source, _), (sink, _) = points(caught.value.witness)
    assert source.strip().endswith("M")
    assert sink.strip().endswith("L'")


def test_slots_in_the_wrong_order_are_caught():
    """A block is added at the gauge that this block has moved: the maximum's slot comes first."""
    nest, program, lowered = nest_of(attention())
    (p,) = nest.passes
    m, *others = p.certificate.slots
    wrong = replace(nest, passes=(replace(p, certificate=replace(p.certificate, slots=(*others, m))),))
    with pytest.raises(IllegalFusion) as caught:
        legal(wrong, program, lowered)
    (source, at), (sink, where) = points(caught.value.witness)
    assert source.strip().endswith("M'")
    assert sink.strip().endswith(("L'", "O'"))
    assert at["j"] // 64 <= where["j"] // 64
    assert at["i"] == where["i"]


def test_results_in_the_wrong_order_are_caught():
    """O is read off its slot and L."""
    nest, program, lowered = nest_of(attention())
    (p,) = nest.passes
    assert "L" in str(p.certificate.link("O").value)
    wrong = replace(nest, passes=(replace(p, certificate=replace(p.certificate, links=p.certificate.links[::-1])),))
    with pytest.raises(IllegalFusion) as caught:
        legal(wrong, program, lowered)
    assert [name.strip().split()[-1] for name, _ in points(caught.value.witness)] == ["L", "O"]


def test_a_certificate_of_another_program_is_no_licence():
    nest, program, lowered = nest_of(attention())
    states = tuple(
        replace(s, body=substitute(s.body, {Const(0.125): Const(0.25)})) if s.name == "L" else s for s in nest.states
    )
    with pytest.raises(IllegalFusion, match="no certificate speaks of the state"):
        legal(replace(nest, states=states), program, lowered)
    with pytest.raises(IllegalFusion, match="no certificate speaks of the state"):
        legal(replace(nest, states=(*nest.states, replace(nest.states[0], name="more"))), program, lowered)


def test_the_kernel_must_be_the_nests():
    nest, program, lowered = nest_of(attention())
    body = tuple(s for s in lowered.kernel.body if not isinstance(s, Loop))
    with pytest.raises(InternalError, match="loops are not the passes"):
        legal(nest, program, replace(lowered, kernel=replace(lowered.kernel, body=body)))


def test_a_nest_does_not_read_what_its_other_blocks_write():
    """Y reads X at the row before: not in one launch, where blocks of rows run side by side."""
    x = statement("X", "i", apply("exp", load("A", "i")))
    y = Statement(
        "Y", (axis("i"),), apply("add", Load("X", (apply("sub", Index("i"), Const(1)),)), Const(1.0)), "float32"
    )
    program = Program((statement("A", "i", Const(0.0)).tensor,), (x, y), ("X", "Y"), ("N",))
    nest = Nest(
        **{
            **{f: getattr(nest_of(replace(program, statements=(x,), outputs=("X",)))[0], f) for f in FIELDS},
            "outputs": tuple(Output(s.tensor, s.axes, tuple(Index(a.name) for a in s.axes), s.body) for s in (x, y)),
        }
    )
    lowered = lower(nest, program, tiling(nest))
    with pytest.raises(IllegalFusion) as caught:
        legal(nest, program, lowered)
    (_, at), (_, where) = points(caught.value.witness)
    assert at["i"] == where["i"] - 1
    assert "runs beside it" in caught.value.witness
    same = replace(nest, outputs=(nest.outputs[0], replace(nest.outputs[1], body=load("X", "i"))))
    assert legal(same, program, lowered)
    late = replace(same, outputs=same.outputs[::-1])
    with pytest.raises(IllegalFusion, match="runs before it"):
        legal(late, program, lowered)


FIELDS = tuple(Nest.__dataclass_fields__)


def test_it_is_quick():
    case = nest_of(attention())
    legal(*case)
    start = time.perf_counter()
    legal(*case)
    assert time.perf_counter() - start < 0.5
    assert Size("N") in {a.extent for a in case[0].grid}
