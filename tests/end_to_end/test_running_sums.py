"""Running sums that are written: one sweep along the axis, which stores as it runs; on every backend here.

``tests/backends`` runs the same programs in Triton's interpreter and through the cupy shim.
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

import flashlight
from flashlight import draft
from flashlight.algebra import Unknown
from flashlight.expr import evaluate
from flashlight.testing import tolerance
from flashlight.tile import Loop, ScanOp, Store, lets

inside = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by tests/backends/test_triton_interpreter.py"
)


# ---- programs of x (rows, n): each is written in one sweep, without the axis in the grid -----------------------------
def forward(x):
    return F.logsigmoid(x).cumsum(-1)


def backward(x):
    return x.flip(-1).cumsum(-1).flip(-1)


def of_the_reverse(x):
    return x.flip(-1).cumsum(-1)


def exclusive(x):
    return x.cumsum(-1) - x


def exclusive_backward(x):
    return x.flip(-1).cumsum(-1).flip(-1) - x


def conditional(x):
    """A condition on values, and one on places: where it fails there is still something to write."""
    early = torch.arange(x.shape[-1], device=x.device) < 37
    return x.masked_fill(x < 0, 0.0).masked_fill(~early, 0.0).cumsum(-1)


def decay(x):
    return F.logsigmoid(x).cumsum(-1).exp()


def triangle(x):
    n = x.shape[-1]
    return torch.ones(n, n, dtype=x.dtype, device=x.device).tril() @ x[..., None]


def twice(x):
    return x.cumsum(-1).cumsum(-1)


def counted(x):
    return (x > 0).cumsum(-1), x.cumsum(-1) * x


def both_ways(x):
    return x.cumsum(-1), x.flip(-1).cumsum(-1).flip(-1) * 0.5


ALONG = [
    forward, backward, of_the_reverse, exclusive, exclusive_backward, conditional, decay, triangle, twice, counted,
    both_ways,
]  # fmt: skip


# ---- programs of other shapes ----------------------------------------------------------------------------------------
def ones(x):
    """All rows are alike; the sum is written first."""
    return torch.ones_like(x).cumsum(-1) * 0.5


def columns(x):
    return x.transpose(-1, -2).contiguous().cumsum(-2)


def middle(x):
    """Along the second dimension of (1, n, rows)."""
    return x.mT[None].cumsum(1) - 0.5


def folded(x):
    """Sums over a short axis, and what is done to them, run along the long one."""
    return (x[..., None] * torch.arange(3, device=x.device)).sum(-1).tanh().cumsum(-1)


def spread_out(x):
    """What runs is read at points of an axis of its reader's: it is written once, for all of them."""
    return x.cumsum(-1).exp()[..., None] * torch.arange(8.0, device=x.device)


def of_probabilities(x):
    """Two passes: what is known at the end, then what runs."""
    return x.softmax(-1).cumsum(-1)


def share(x):
    return x.exp().cumsum(-1) / x.exp().sum(-1, keepdim=True)


def against_each_other(x):
    return x.cumsum(-1) - x.flip(-1).cumsum(-1).flip(-1)


def scores(x):
    """A running sum of a product, written with it."""
    return (x.mT @ x * 0.1).cumsum(-1)


def forgetting(x):
    width = torch.arange(1.0, 17.0, dtype=x.dtype, device=x.device) / 10
    q, k, v = (torch.outer(f(x[0]), width) for f in (torch.sin, torch.cos, torch.tanh))
    c = F.logsigmoid(x + 2).cumsum(-1)
    s = q @ k.mT + c[:, :, None] - c[:, None, :]
    future = torch.ones(s.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    return s.masked_fill(future, -torch.inf).softmax(-1) @ v


OTHERS = [
    ones, columns, middle, folded, spread_out, of_probabilities, share, against_each_other, scores, forgetting,
]  # fmt: skip


# ---- values ----------------------------------------------------------------------------------------------------------
def check(program, backend, rows, n, dtype=torch.float32, fast=None, make=torch.randn):
    """Against float64, infinities and NaN where eager has them; the optimized program."""
    fast = fast or flashlight.optimize(program, backend=backend, strict=True)
    x = make(rows, n, generator=torch.Generator().manual_seed(rows + n)).to(dtype)
    got, want, exact = (tree_leaves(y) for y in (fast(x), program(x), program(x.double())))
    for p, w, e in zip(got, want, exact, strict=True):
        assert (p.dtype, p.shape) == (w.dtype, w.shape)
        if not p.is_floating_point():
            assert torch.equal(p, w)
            continue
        odd = ~torch.isfinite(w)
        assert torch.equal(p[odd].nan_to_num(7.0), w[odd].nan_to_num(7.0))
        # Eager adds up in float64 on a CPU; here float32 is added to float32, one by one in Triton's interpreter.
        rounding = torch.finfo(torch.float32).eps * max(e[~odd].abs().tolist(), default=0.0)
        assert max((p.double() - e).abs()[~odd].tolist(), default=0.0) <= tolerance(e, w) + n**0.5 * rounding
    return fast


def with_odd_values(rows, n, generator):
    x = torch.randn(rows, n, generator=generator)
    for row, at in enumerate((0, n // 2, n - 1)):
        x[row, at] = torch.inf
    x[1, n // 2 + 3] = -torch.inf
    x[3, n // 3] = torch.nan
    return x


@pytest.mark.parametrize("program", [*ALONG, *OTHERS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_of_any_length(program, backend):
    for rows, n in ((3, 300), (2, 1), (5, 5)):
        check(program, backend, rows, n)


@pytest.mark.parametrize(
    "program", [forward, exclusive_backward, decay, middle, both_ways, of_probabilities], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_one_kernel_for_all_lengths(program, backend):
    """Among them a row of several blocks, whose last is not full."""
    fast = None
    for rows, n in ((2, 5000), (3, 300), (2, 8192)):
        fast = check(program, backend, rows, n, fast=fast)
    assert fast is not None
    assert fast.compilations == 1


@pytest.mark.parametrize("program", [forward, backward, exclusive, conditional, middle], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_infinities_and_nan_spoil_what_comes_after_them(program, backend):
    check(program, backend, 4, 5000, make=with_odd_values)


@pytest.mark.parametrize("program", [forward, exclusive_backward, middle, scores], ids=lambda f: f.__name__)
@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=inside)])
def test_in_sixteen_bits(program, backend):
    check(program, backend, 3, 300, dtype=torch.bfloat16)


@pytest.mark.parametrize("program", [forward, exclusive_backward, middle], ids=lambda f: f.__name__)
def test_of_nothing(program):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for rows, n in ((2, 0), (0, 300)):
        assert torch.equal(fast(torch.empty(rows, n)), program(torch.empty(rows, n)))


# ---- plans -----------------------------------------------------------------------------------------------------------
def kernels_of(program, *args):
    return [s.kernel for s in flashlight.explain(program, *args, backend="triton").kernels["triton"].sources]


def positions(kernel, n):
    """How many positions of its streamed axis a program visits, where all sizes are ``n``."""
    (loop,) = (s for s in kernel.body if isinstance(s, Loop))
    block = kernel.dim(loop.axis).block
    return sum(block * max(0, evaluate(g.hi, lambda e: n) - evaluate(g.lo, lambda e: n)) for g in loop.segments), block


@pytest.mark.parametrize("program", ALONG, ids=lambda f: f.__name__)
def test_each_row_is_read_once(program):
    """The grid has no streamed axis, a program visits each position once, and stores on its way."""
    made = kernels_of(program, torch.randn(3, 300))
    assert len(made) == (2 if program is both_ways else 1)
    for kernel in made:
        (loop,) = (s for s in kernel.body if isinstance(s, Loop))
        assert loop.axis not in {g.axis for g in kernel.grid}
        assert len(kernel.grid) == 1
        visited, block = positions(kernel, 100_000)
        assert 100_000 <= visited < 100_000 + block
        stored = [[x.buffer for x in g.body if isinstance(x, Store)] for g in loop.segments]
        assert stored == [[b.name for b in kernel.outputs]] * len(loop.segments)
        assert not any(isinstance(s, Store) for s in kernel.body)


@pytest.mark.parametrize("program", [spread_out, share, against_each_other, forgetting], ids=lambda f: f.__name__)
def test_what_is_read_beside_it_is_read_after_it(program):
    """Each running sum has a kernel of its own; no program of the others adds one up."""
    made = kernels_of(program, torch.randn(3, 300))
    runs = [any(isinstance(x.op, ScanOp) for x in lets(k.body)) for k in made]
    assert runs == [True] * (len(made) - 1) + [False]
    notes = flashlight.explain(program, torch.randn(3, 300), backend="cpu").notes
    assert len(notes) == len(made) - 1


def test_a_block_is_a_long_piece_of_a_row_or_several_rows_side_by_side():
    """By where neighbours lie in memory, and how long the rows are."""
    made = [
        (forward, torch.randn(4, 16, 4096), (1, 4096)),
        (forward, torch.randn(2, 64, 300), (8, 512)),
        (lambda x: x.cumsum(1).exp(), torch.randn(2, 300, 64), (16, 256)),
    ]
    for program, x, blocks in made:
        (kernel,) = kernels_of(program, x)
        assert tuple(d.block for d in kernel.dims) == blocks


def test_one_sum_beside_others_of_its_row_is_no_kernel_of_its_own():
    """Where each row adds up as much anyway: the number of the image that a text token follows."""

    def program(q, k, v, media):
        own = media.cumsum(-1)[:, None, :, None]
        mask = own == torch.arange(k.shape[2]) // 8 + 1
        return (q @ k.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ v

    q, k, v = (torch.randn(2, 2, 40, 16) for _ in range(3))
    media = torch.rand(2, 40) < 0.3
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    torch.testing.assert_close(fast(q, k, v, media), program(q, k, v, media), equal_nan=True)
    assert flashlight.explain(program, q, k, v, media, backend="cpu").launches == 1


def test_what_the_algebra_does_not_prove_is_summed_as_before(monkeypatch):
    monkeypatch.setattr(draft, "decide", lambda cascade: Unknown("cumsum", "a test says so"))
    (kernel,) = kernels_of(forward, torch.randn(3, 300))
    assert len(kernel.grid) == 2
    check(forward, "cpu", 3, 300)


def test_a_window_is_a_sum_of_a_few_tiles():
    """Two conditions of place are no running sum: there is nothing to carry."""

    def window(x):
        i = torch.arange(x.shape[-1])
        near = (i <= i[:, None]) & (i > i[:, None] - 16)
        return x.float() @ near.to(x.dtype).mT

    report = flashlight.explain(window, torch.randn(3, 300), backend="cpu")
    assert "as it runs" not in "".join(report.nests)
    torch.testing.assert_close(flashlight.optimize(window, backend="cpu")(x := torch.randn(3, 300)), window(x))
