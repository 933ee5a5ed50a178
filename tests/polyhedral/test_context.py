"""One isl context for all: the same texts whatever the hash seed, whichever the thread, and a limit to its patience."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashlight.expr import Index, apply
from flashlight.polyhedral import tiles
from flashlight.polyhedral.dependence import flow
from flashlight.polyhedral.space import LOCK, Space, TooHard, budget
from tests.polyhedral.masks import MASKS, axes_of
from tests.polyhedral.programs import attention

ROOT = Path(__file__).resolve().parents[2]

TEXTS = """
from flashlight.polyhedral import tiles
from flashlight.polyhedral.dependence import flow
from tests.polyhedral.masks import MASKS, axes_of
from tests.polyhedral.programs import attention
for name, mask in MASKS.items():
    stream, rows, batch = axes_of(mask, 16)
    classes = tiles.segments(mask.live, stream, 8, rows, batch)
    print(name, classes)
    wrong = tiles.TileClasses(classes.ranges[1:], stream, 8, rows, batch)
    print(tiles.check(wrong, mask.live, stream, 8, rows, batch))
print(*flow(attention(64).statements), sep="\\n")
"""


def run(seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TEXTS], cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_texts_are_the_same_in_every_process():
    assert run("0") == run("4711")


def classify(name: str) -> str:
    mask = MASKS[name]
    stream, rows, batch = axes_of(mask, 24)
    return str(tiles.segments.__wrapped__(mask.live, stream, 12, rows, batch))


def test_threads_do_not_disturb_each_other():
    names = list(MASKS)[:12]
    alone = [classify(n) for n in names]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(classify, names * 3)) == alone * 3


def test_a_budget_ends():
    space = Space((), (Index("i"), Index("j")))
    with pytest.raises(TooHard), budget(10):
        [space[Index("i")].le_set(space[Index("j")]) for _ in range(1000)]
    with budget(100_000):  # the last one's limit is gone, and what it counted
        assert space.universe().is_subset(space.universe())


def test_a_budget_is_held_alone():
    seen = []

    def other() -> None:
        with LOCK:
            seen.append(True)

    with budget(1000):
        t = threading.Thread(target=other)
        t.start()
        t.join(0.05)
        assert not seen
    t.join()
    assert seen


def test_nothing_of_isl_leaves():
    classes = tiles.segments(MASKS["causal"].live, *(x := axes_of(MASKS["causal"], 16))[:1], 8, *x[1:])
    for value in (classes, *flow(attention(64).statements)):
        assert "isl" not in repr(value)
        hash(value)
    assert apply("lt", Index("i"), Index("j")) is not None
