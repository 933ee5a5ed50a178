"""In float32, centred and rescaled states are as good as eager's two passes, where raw moments are not.

Offsets are in units of the spread.  Both errors are relative to the program in float64 on the same float32 inputs.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from flashlight.algebra import Cascade, Proved
from flashlight.algebra.derive import decide
from flashlight.algebra.stream import Block, Machine, direct
from flashlight.expr import OPS, Apply, Const, Expr, Size
from tests.flashlight.algebra.catalogue import PROVED, cascade, r, x
from tests.flashlight.algebra.data import leaves, values

FUNCTIONS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "eq": np.equal,
    "or": np.logical_or,
    "isnan": np.isnan,
    "select": np.where,
    "real": lambda a: a,
}
FOLDS = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


class Arrays:
    """numpy in one floating type; sums are numpy's own (pairwise), as eager's are."""

    def __init__(self, dtype):
        self.dtype = dtype

    def evaluate(self, e: Expr, leaf):
        match e:
            case Const(value):
                return self.dtype(value)
            case Apply(name, args):
                return self.apply(name, *(self.evaluate(a, leaf) for a in args))
        return leaf(e)

    def apply(self, name, *args):
        with np.errstate(all="ignore"):
            out = FUNCTIONS[name](*args)
        return out if OPS[name].kind == "bool" else np.asarray(out, self.dtype)[()]

    def fold(self, monoid, value, size):
        return FOLDS[monoid](np.broadcast_to(np.asarray(value, self.dtype), (size,))).astype(self.dtype)


def arrays(c: Cascade, n: int, seed: int, offsets: dict[str, float]) -> dict[Expr, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for e, v in values(c, n, seed, 1.0).items():
        if isinstance(v, list) and not isinstance(v[0], bool):
            name = str(e).split("[")[0]
            v = (rng.normal(size=n) + offsets.get(name, 0.0)).astype(np.float32)
        out[e] = n if isinstance(e, Size) else v
    return out


def part(data: dict[Expr, np.ndarray], start: int, stop: int) -> Block:
    return Block(stop - start, lambda e: np.asarray(data[e][start:stop], np.float32))


def errors(c: Cascade, offsets: dict[str, float], n: int = 2048, trials: int = 4) -> tuple[float, float]:
    """The largest relative errors of the last stage: streamed (a loop and a tree of 8 blocks), and eager's."""
    verdict = decide(c)
    assert isinstance(verdict, Proved), verdict
    last, ours, eager = c.stages[-1].name, 0.0, 0.0
    for seed in range(trials):
        data = arrays(c, n, seed, offsets)

        def whole(dtype, data=data):
            return lambda e: np.asarray(data[e], dtype)[()]

        want = float(direct(c, Block(n, whole(np.float64)), whole(np.float64), Arrays(np.float64))[last])
        plain = float(direct(c, Block(n, whole(np.float32)), whole(np.float32), Arrays(np.float32))[last])
        machine = Machine(verdict.certificate, whole(np.float32), Arrays(np.float32))
        blocks = [part(data, k, k + n // 8) for k in range(0, n, n // 8)]
        loop = functools.reduce(machine.roll, blocks, machine.identity())
        tree = [machine.lift(b) for b in blocks]
        while len(tree) > 1:
            tree = [machine.merge(*tree[k : k + 2]) for k in range(0, len(tree), 2)]
        for state in (loop, tree[0]):
            ours = max(ours, abs(float(machine.finish(state)[last]) - want) / abs(want))
        eager = max(eager, abs(plain - want) / abs(want))
    return ours, eager


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize(
    ("name", "shifted"),
    [
        ("variance", "x"),
        ("variance by a length that is loaded", "x"),
        ("weighted square deviation", "x"),
        ("layer norm, product", "x"),
        ("weighted mean and variance", "y"),
        ("dQ in the row sum D", "dp"),
        ("covariance", "x"),
        ("entropy", "s"),
        ("divided inside", "s"),
    ],
)
def test_as_good_as_eager(name, shifted, offset):
    """Within the project's factor 2 for the most part; numpy's eager sums are pairwise, hence 6, and a floor."""
    ours, eager = errors(PROVED[name], {shifted: offset})
    assert ours <= max(6 * eager, 2e-6), (ours, eager)


def test_the_late_form_would_not_be():
    """What the centred form is for: raw moments lose everything at an offset of 1e4."""
    late = cascade(("S", "sum", x), ("Q", "sum", x * x), ("V", None, r("Q") - r("S") * r("S") / 2048.0))
    ours, _ = errors(late, {"x": 1e4})
    assert ours > 1e-1
    centred, eager = errors(PROVED["variance"], {"x": 1e4})
    assert centred < 1e-5
    assert eager < 1e-5


def test_powers_that_would_overflow():
    c = PROVED["l2 norm, scaled"]
    verdict = decide(c)
    assert isinstance(verdict, Proved)
    for size in (1e30, 1e-30):
        data = {e: (np.arange(1, 65) * size).astype(np.float32) for e in leaves(c)}
        machine = Machine(verdict.certificate, lambda e: None, Arrays(np.float32))
        blocks = [part(data, k, k + 16) for k in range(0, 64, 16)]
        got = machine.finish(functools.reduce(machine.roll, blocks, machine.identity()))
        assert float(got["m"] * np.sqrt(got["Q"])) == pytest.approx(
            float(np.linalg.norm(np.arange(1, 65))) * size, rel=1e-5
        )
