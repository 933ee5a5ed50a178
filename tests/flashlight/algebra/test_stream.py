"""Streaming is the program: any cut, any order of merging, masked blocks, and the laws of the monoid."""

from __future__ import annotations

import math
import random

import pytest

from flashlight.algebra import Proved
from flashlight.algebra.derive import decide
from flashlight.algebra.stream import Machine
from flashlight.expr import kind
from tests.flashlight.algebra.catalogue import PROVED
from tests.flashlight.algebra.data import WAYS, block, masked, program, reader, same, streamed, values, with_length


def proved(name: str):
    verdict = decide(PROVED[name])
    assert isinstance(verdict, Proved), verdict
    return verdict.certificate


def compare(name, v, cuts, how, seed=0):
    want, got = program(PROVED[name], v), streamed(proved(name), v, cuts, how, seed=seed)
    assert {k: (want[k], got[k]) for k in want if not same(want[k], got[k])} == {}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", PROVED)
def test_streaming_equals_the_program(name, how):
    n = with_length(PROVED[name], 60)
    for seed in range(3):
        rng = random.Random(seed)
        compare(name, values(PROVED[name], n, seed), [rng.randrange(n) for _ in range(rng.randrange(9))], how, seed)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", PROVED)
def test_masked_blocks(name, how):
    """The first tile masked, every third, the last, and all of them: NaN where the program has NaN."""
    n = with_length(PROVED[name], 48)
    hidden = (lambda j: j < 16, lambda j: j < 16 or (j // 8) % 3 == 0, lambda j: j >= 32, lambda j: True)
    for hide in hidden:
        if (v := masked(PROVED[name], values(PROVED[name], n, 1), hide)) is not None:
            compare(name, v, [16, 24, 32], how)


# What a row of nothing but masked elements is in PyTorch (torch 2.14), stage by stage.
ALL_MASKED = {
    "causal": {"l": math.nan, "o": math.nan},  # torch.softmax: 0/0
    "all masked gives zero": {"o": 0.0},  # scaled_dot_product_attention: where(all masked, 0, softmax)
    "guarded logsumexp": {"l": 0.0},  # torch.logsumexp: log(0) + 0 = -inf
    "logsumexp": {"l": math.nan},  # m + log(sum(exp(x - m))) by hand: exp(-inf + inf)
    "masked before and after": {"o": 0.0},  # masked_fill(softmax, mask, 0)
    "mask inside exp": {"o": math.nan},
    "sink in the maximum": {"o": 0.0},
}


@pytest.mark.parametrize("name", ALL_MASKED)
def test_rows_of_nothing_but_masked_elements(name):
    v = masked(PROVED[name], values(PROVED[name], 12), lambda j: True)
    for how in WAYS:
        got = streamed(proved(name), v, [3, 7], how)
        assert {k: got[k] for k in ALL_MASKED[name]} == pytest.approx(ALL_MASKED[name], nan_ok=True)


def test_that_table_is_what_torch_does():
    import torch
    import torch.nn.functional as F

    x = torch.full((1, 4), -math.inf)
    assert torch.softmax(x, -1).isnan().all()
    assert torch.logsumexp(x, -1).item() == -math.inf
    assert F.log_softmax(x, -1).isnan().all()
    q = torch.randn(1, 1, 2, 4)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert (F.scaled_dot_product_attention(q, q, q, attn_mask=nothing) == 0).all()


@pytest.mark.parametrize("name", PROVED)
def test_monoid_laws(name):
    """Identity to the last bit, associativity up to rounding."""
    cascade, n = PROVED[name], with_length(PROVED[name], 30)
    v = values(cascade, n, 5)
    machine = Machine(proved(name), reader(v))
    a, b, c = (machine.lift(block(v, i, j)) for i, j in ((0, n // 3), (n // 3, n // 2), (n // 2, n)))
    e = machine.identity()
    for s in (a, b, c):
        assert machine.merge(s, e) == s
        assert machine.merge(e, s) == s
    left, right = machine.merge(machine.merge(a, b), c), machine.merge(a, machine.merge(b, c))
    assert {k: (left[k], right[k]) for k in left if not same(left[k], right[k])} == {}


@pytest.mark.parametrize("name", PROVED)
def test_nan_is_not_lost(name):
    """One NaN among the elements: NaN wherever the program has it."""
    cascade, n = PROVED[name], with_length(PROVED[name], 24)
    base = values(cascade, n, 2)
    for leaf in [e for e in base if isinstance(base[e], list) and kind(e) == "real"]:
        for at in (0, n // 2, n - 1):
            v = {**base, leaf: [math.nan if j == at else x for j, x in enumerate(base[leaf])]}
            want = program(cascade, v)
            for how in ("loop", "tree"):
                got = streamed(proved(name), v, [8, 16], how)
                assert [k for k in want if math.isnan(want[k]) and not math.isnan(got[k])] == []


@pytest.mark.parametrize("name", ["divided inside", "logsumexp", "guarded logsumexp", "sink in the maximum"])
def test_scores_far_from_zero(name):
    n = 40
    for offset, spread in ((5e3, 300.0), (-5e3, 300.0), (1e8, 1.0)):
        v = values(PROVED[name], n, 3)
        v = {e: [offset + spread * t for t in x] if str(e).startswith("s[") else x for e, x in v.items()}
        for how in WAYS:
            want, got = program(PROVED[name], v), streamed(proved(name), v, [7, 20, 21], how)
            assert all(same(want[k], got[k], 1e-6) for k in want), (want, got)


def test_entropy_of_scores_far_apart():
    """The program's p * log(p) is NaN where p underflows; log(exp(u) / l) = u - log(l) is proved equal and is not."""
    v = values(PROVED["entropy"], 40, 3)
    v = {e: [300.0 * t for t in x] if str(e).startswith("s[") else x for e, x in v.items()}
    want, got = program(PROVED["entropy"], v), streamed(proved("entropy"), v, [7, 20], "loop")
    assert math.isnan(want["h"])
    assert got["h"] == pytest.approx(0.0, abs=1e-6)
