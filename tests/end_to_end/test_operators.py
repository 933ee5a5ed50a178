"""Operators that are written with others: running sums, shifts, one-hot rows, numbers scattered, masks assigned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import flashlight
from flashlight.runtime import FallbackWarning

N, D = 300, 16


def running(x, q, k, v):
    return x.cumsum(-1), (x > 0).cumsum(-1), x.cummax(-1).values, x.logcumsumexp(-1), v.cumsum(2)


def forgetting(x, q, k, v):
    c = F.logsigmoid(x).cumsum(-1)
    s = q @ k.mT * 0.25 + c[..., :, None] - c[..., None, :]
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(-1) @ v


def shifted(x, q, k, v):
    i = torch.arange(k.shape[2])
    return (q @ k.mT).masked_fill((i >> 6) > (i[:, None] >> 6), -torch.inf).softmax(-1) @ v, (i << 2) & 15


def hard(x, q, k, v):
    return F.one_hot((q @ k.mT).argmax(-1), k.shape[2]).to(v.dtype) @ v


def chosen_blocks(x, q, k, v):
    tokens = k.unflatten(2, (-1, 50)).mean(3)
    blocks = (q @ tokens.mT).topk(2, -1).indices
    keep = torch.zeros(*q.shape[:3], tokens.shape[2]).scatter(-1, blocks, 1.0) > 0
    return (q @ k.mT).masked_fill(~keep.repeat_interleave(50, -1), -torch.inf).softmax(-1) @ v


def assigned(x, q, k, v):
    s = q @ k.mT
    s[:, :, torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)] = -torch.inf
    return s.softmax(-1) @ v


def two_halves(x, q, k, v):
    n, i = q.shape[2] // 2, torch.arange(q.shape[2])
    block = torch.where(i >= n, (i - n) // 16, i // 16)
    return (q @ k.mT).masked_fill(block[:, None] != block, -torch.inf).softmax(-1) @ v


def packed(x, q, k, v):
    """Sequences one behind the other, told apart by where each begins."""
    begins = torch.tensor([0, 70, 71, 200, N])
    own = torch.bucketize(torch.arange(q.shape[2]), begins[1:], right=True)
    other = torch.searchsorted(begins, torch.arange(q.shape[2]), side="right") - 1
    return (q @ k.mT).masked_fill(own[:, None] != other, -torch.inf).softmax(-1) @ v


def windows(x, q, k, v):
    """The bias of a Swin window, by the published code's indices; and a mask made the other way round."""
    rows = torch.stack(torch.meshgrid(torch.arange(15), torch.arange(20), indexing="ij")).flatten(1)
    apart = rows[:, :, None] - rows[:, None] + torch.tensor([14, 19])[:, None, None]
    bias = x.flatten()[apart[0] * 39 + apart[1]]
    i, j = torch.meshgrid(torch.arange(q.shape[2]), torch.arange(k.shape[2]), indexing="xy")
    return ((q @ k.mT + bias).masked_fill(j < i, -torch.inf)).softmax(-1) @ v


def inputs():
    g = torch.Generator().manual_seed(0)
    return (torch.randn(2, 2, N, generator=g), *(torch.randn(2, 2, N, D, generator=g) for _ in range(3)))


@pytest.mark.parametrize(
    "program",
    [running, forgetting, shifted, hard, chosen_blocks, assigned, two_halves, packed, windows],
    ids=lambda f: f.__name__,
)
def test_without_a_fallback(program):
    got, want = (
        torch.utils._pytree.tree_leaves(f(*inputs()))
        for f in (flashlight.optimize(program, backend="cpu", strict=True), program)
    )
    for p, q in zip(got, want, strict=True):
        assert p.dtype == q.dtype
        torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-5)


def stick_breaking(x, q, k, v):
    z = q @ k.mT * 0.25
    before = torch.ones(z.shape[-2:], dtype=torch.bool).tril(-1)
    beyond = F.logsigmoid(-z).masked_fill(~before, 0.0)
    after = beyond.flip(-1).cumsum(-1).flip(-1) - beyond
    return (F.logsigmoid(z) + after).masked_fill(~before, -torch.inf).exp() @ v


def running_scores(x, q, k, v):
    gates = F.logsigmoid(q @ k.mT)
    return (gates.cumsum(-1) + q @ v.mT * 0.1).softmax(-1) @ v, gates.sum(-1)


def contextual_positions(x, q, k, v):
    s = q @ k.mT * 0.25
    places = torch.sigmoid(s).tril().flip(-1).cumsum(-1).flip(-1)
    return (s - 0.1 * places).masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf).softmax(
        -1
    ) @ v


@pytest.mark.parametrize("program", [stick_breaking, running_scores, contextual_positions], ids=lambda f: f.__name__)
def test_running_sums_of_scores_in_one_pass(program):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (N, 129, 64, 1):
        args = tuple(t[:, :, :n].contiguous() for t in inputs())
        got, want = (torch.utils._pytree.tree_leaves(f(*args)) for f in (fast, program))
        for p, q in zip(got, want, strict=True):
            torch.testing.assert_close(p, q, atol=2e-5, rtol=2e-5)
    report = flashlight.explain(program, *inputs(), backend="cpu")
    assert report.launches == 1
    assert not report.notes
    assert "pass 2" not in report.schedule


def test_a_running_sum_across_all_scores_is_left_to_torch():
    def program(x, q, k, v):
        return F.logsigmoid(q @ k.mT).cumsum(-2).exp() @ v

    with pytest.warns(FallbackWarning, match="it runs along a length at every point of a plane"):
        got = flashlight.optimize(program, backend="cpu")(*inputs())
    torch.testing.assert_close(got, program(*inputs()), atol=1e-4, rtol=1e-4)


def looped(q, k):
    return torch.stack([(q[:, h] @ k[:, h].mT).softmax(-1) for h in range(q.shape[1])], 1)


def grouped(q, k):
    return F.scaled_dot_product_attention(q, k[:, :2], k[:, :2], enable_gqa=True)


def padded(q, k):
    n = q.shape[2]
    k = F.pad(k, (0, 0, 0, -n % 64))
    live = torch.arange(k.shape[2]) < n
    return (q @ k.mT).masked_fill(~live, -torch.inf).softmax(-1)[..., :n] @ q


@pytest.mark.parametrize("program", [looped, grouped, padded], ids=lambda f: f.__name__)
def test_only_the_lengths_that_must_be_are_numbers(program):
    fast = flashlight.optimize(program, backend="cpu", strict=True)
    for n in (64, 41, 128, 57):
        x = torch.randn(2, 4, n, D)
        torch.testing.assert_close(fast(x, x), program(x, x), atol=2e-5, rtol=1e-5)
    assert fast.compilations == (2 if program is padded else 1)  # with and without padding


def test_one_query_that_sees_no_key():
    def program(q, k):
        s = q @ k.mT
        return s.masked_fill(~torch.ones_like(s, dtype=torch.bool).tril(-1), -1e9).softmax(-1)

    q, k = torch.randn(2, 2, 1, D), torch.randn(2, 2, N, D)
    got = flashlight.optimize(program, backend="cpu", strict=True)(q, k)
    torch.testing.assert_close(got, program(q, k))


def made(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


LOGITS, CHANCES, CLASSES = made(6, 5, 7), made(6, 5, 7).softmax(1), made(6, 5, 7).argmax(1)
WEIGHT, ROWS, OTHERS = made(5).exp(), made(6, 40), made(6, 40).flip(0)
HOLES = ROWS.masked_fill(ROWS > 1, torch.nan)
EDGES = torch.tensor([0.0, -0.0, 1.0, -2.0, 1e30, torch.inf, -torch.inf])
FAR = torch.tensor(
    [0.0, 1e-7, -0.3, 0.5, -0.99, 1.0, -2.5, 30.0, 88.9, -100.0, 1e10, -1e30, torch.inf, -torch.inf, torch.nan]
)
PLACES = (ROWS > 0)[:, :9].long().contiguous()
REDUCTIONS = "none", "mean", "sum"


def every_reduction(loss, **options):
    """The loss of its arguments (the third are class weights), in each reduction."""

    def program(x, target, *weight):
        return [loss(x, target, *weight, reduction=r, **options) for r in REDUCTIONS]

    return program


def written(x, i, y):
    x = x.clone()
    x[:, i] = y[:, i] + 1
    x[:, -1 - i] = 3.0
    return x


OPERATORS = {
    "cross_entropy": (every_reduction(F.cross_entropy, ignore_index=2), LOGITS, CLASSES, WEIGHT),
    "smoothed": (every_reduction(F.cross_entropy, label_smoothing=0.1), LOGITS, CLASSES),
    "smoothed_weights": (
        every_reduction(F.cross_entropy, ignore_index=2, label_smoothing=0.1),
        LOGITS,
        CLASSES,
        WEIGHT,
    ),
    "class_chances": (every_reduction(F.cross_entropy), LOGITS, CHANCES, WEIGHT),
    "smoothed_chances": (every_reduction(F.cross_entropy, label_smoothing=0.1), LOGITS[..., 0], CHANCES[..., 0]),
    "nll": (every_reduction(F.nll_loss, ignore_index=2), LOGITS, CLASSES, WEIGHT),
    "kl_div": (every_reduction(F.kl_div), LOGITS, CHANCES.where(CHANCES > 0.1, 0.0)),
    "kl_div_of_logarithms": (every_reduction(F.kl_div, log_target=True), LOGITS, CHANCES.log()),
    "kl_div_batchmean": (lambda x, p: F.kl_div(x, p, reduction="batchmean"), LOGITS, CHANCES),
    "l1": (every_reduction(F.l1_loss), ROWS, OTHERS),
    "mse": (every_reduction(F.mse_loss), ROWS, OTHERS),
    "huber": (every_reduction(F.huber_loss, delta=0.5), ROWS, OTHERS),
    "smooth_l1": (every_reduction(F.smooth_l1_loss, beta=0.5), ROWS, OTHERS),
    "soft_margin": (every_reduction(F.soft_margin_loss), ROWS, OTHERS.sign()),
    "bce": (every_reduction(F.binary_cross_entropy), ROWS.sigmoid(), (OTHERS > 0).float()),
    "bce_of_logits": (
        lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, w, pos_weight=w),
        ROWS,
        OTHERS.sigmoid(),
        OTHERS.exp(),
    ),
    "avg_pool1d": (lambda x: (F.avg_pool1d(x, 4), F.avg_pool1d(x, 3, 2)), LOGITS),
    "avg_pool2d": (lambda x: (F.avg_pool2d(x, 2), F.avg_pool2d(x, (3, 2), (2, 1), divisor_override=4)), LOGITS),
    "diag_of_a_vector": (lambda x: (x.diag() @ x, x.diag(2), x.diag(-1), torch.diagflat(x)), WEIGHT),
    "diag_of_a_matrix": (lambda x: (x.diag() * 2, x.diag(-3) * 2, x.trace()), ROWS),
    "kron": (
        lambda x, y: (torch.kron(x, y), torch.kron(x[0], y), torch.kron(x, y[0]), torch.kron(x, torch.ones(1, 2, 1))),
        ROWS[:7, :5],
        ROWS[:6, 3:9],
    ),
    "block_diag": (lambda x: torch.block_diag(x, x[0], x[:3, :2] > 0, x[0, 0]), ROWS[:7, :5]),
    "index_copy": (
        lambda x, i, y: (
            x.index_copy(1, i, y),
            x.T.index_copy(0, i - 0, y.T),
            x.index_copy(1, i[:1], y[:, :1]),
        ),
        ROWS,
        torch.tensor([3, 0, 31, 17]),
        ROWS[:, 20:24],
    ),
    "index_put": (
        lambda x, i, y: (
            x.index_put((i,), y[:4]),
            x.index_put((i // 2,), y[:1, :1], accumulate=True),
            written(x, i, y),
        ),
        ROWS,
        torch.tensor([3, 0, 5, 1]),
        ROWS * 2,
    ),
    "index_add": (
        lambda x, i, y: (x.index_add(1, i, y, alpha=2), x.index_add(1, i // 50, y)),
        ROWS,
        torch.tensor([3, 0, 31, 17]),
        ROWS[:, 20:24],
    ),
    "index_fill": (lambda x, i: (x.index_fill(1, i, 7.0), x.index_fill(1, i, x[0, 0])), ROWS, torch.tensor([3, 31])),
    "entr": (lambda x: torch.special.entr(x), EDGES),
    "diag_embed": (lambda x: (torch.diag_embed(x), torch.diag_embed(x, -2, 0, 2), torch.diag_embed(x, 1)), ROWS),
    "nan": (lambda x: (x.nansum(1), x.nansum(), x.nanmean(1, keepdim=True), x.nanmean()), HOLES),
    "norm": (
        lambda x: [torch.linalg.vector_norm(x, p, 1, keepdim=True) for p in (0, 1, 2, 3, torch.inf, -torch.inf)],
        ROWS,
    ),
    "norm_of_a_matrix": (lambda x: (torch.linalg.norm(x), torch.linalg.matrix_norm(x), x.norm()), ROWS),
    "addr": (lambda x, y: torch.addr(x, y[:, 0], y[0], beta=0.5, alpha=2), ROWS, OTHERS),
    "logaddexp": (torch.logaddexp, EDGES[:, None], EDGES),
    "hypot": (torch.hypot, EDGES[:, None], EDGES),
    "xlogy": (lambda x, y: (x.xlogy(y), torch.xlogy(x, 2.0)), EDGES[:, None], EDGES),
    "angles": (
        lambda x, y: (x.asin(), x.acos(), x.atan(), torch.atan2(x, y), x.sinc(), x.deg2rad(), x.rad2deg()),
        EDGES[:, None],
        EDGES,
    ),
    "hyperbolic": (lambda x: (x.sinh(), x.cosh(), x.asinh(), (x * x).acosh(), x.atanh()), FAR),
    "signs": (lambda x, y: (x.signbit(), torch.copysign(x, y), torch.copysign(x, -2.0)), EDGES[:, None], EDGES),
    "without_nan": (lambda x, y: (torch.fmax(x, y), torch.fmin(x, y)), HOLES, HOLES.flip(0)),
    "logaddexp2": (torch.logaddexp2, EDGES[:, None], EDGES),
    "logit": (lambda x: (x.sigmoid().logit(), torch.logit(x, 0.1)), ROWS),
    "xlog1py": (torch.special.xlog1py, EDGES[:, None], EDGES),
    "rounded": (lambda x: (x.round(decimals=2), (x * 1e3).round(decimals=-2), x.round()), ROWS),
    "ldexp": (lambda x, i: torch.ldexp(x, i - 3), ROWS[0], torch.arange(ROWS.shape[1]) % 7),
    "aminmax": (lambda x: (torch.aminmax(x), torch.aminmax(x, dim=1, keepdim=True)), ROWS),
    "argmax_kept": (lambda x: (x.argmax(keepdim=True), x[0].argmin(keepdim=True)), ROWS),
    "towards_zero": (
        lambda i, j: (torch.div(i, j, rounding_mode="trunc"), torch.div(i, 3, rounding_mode="trunc")),
        torch.arange(-9, 9)[:, None],
        torch.tensor([-4, -1, 2, 5]),
    ),
    "bits": (
        lambda w, s: (
            w & w.flip(0),
            w | w.flip(0),
            w ^ 5,
            ~w,
            w & 12,
            (w >> s) & 1,
            (w & (1 << s)) != 0,
            w.long() << s,
        ),
        torch.tensor([2**31 - 1, -(2**31), 12345678, -7, 0, 1])[:, None].int(),
        torch.arange(32),
    ),
    "bits_of_bytes": (
        lambda w, s: (~w, (w >> s) & 1, w & 1 << s, 255 ^ w),
        torch.tensor([255, 0, 129, 64], dtype=torch.uint8)[:, None],
        torch.arange(8, dtype=torch.uint8),
    ),
    "heaviside": (torch.heaviside, EDGES, EDGES.flip(0)),
    "activations": (
        lambda x: (F.hardswish(x * 3), F.celu(x, 0.5), F.softshrink(x), F.hardshrink(x), F.glu(x)),
        ROWS,
    ),
    "take": (lambda x, i: (x.take(i), torch.take_along_dim(x, i, 1), torch.take_along_dim(x, i)), ROWS, PLACES),
}


@pytest.mark.filterwarnings("ignore:reduction. .mean. divides the total loss")
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_what_it_is_in_torch(name):
    program, *args = OPERATORS[name]
    want = torch.utils._pytree.tree_leaves(program(*args))
    got = torch.utils._pytree.tree_leaves(flashlight.optimize(program, backend="cpu", strict=True)(*args))
    for p, q in zip(got, want, strict=True):
        assert p.dtype == q.dtype
        torch.testing.assert_close(p, q, atol=2e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("given", [{"padding": 1}, {"ceil_mode": True}], ids=str)
def test_pooling_beyond_the_edges_is_left_to_torch(given):
    with pytest.warns(FallbackWarning, match="average pooling with padding or ceil_mode"):
        got = flashlight.optimize(lambda x: F.avg_pool1d(x, 2, **given), backend="cpu")(LOGITS)
    torch.testing.assert_close(got, F.avg_pool1d(LOGITS, 2, **given))


@pytest.mark.parametrize("batch", [2, 128, 130])
def test_what_is_the_same_in_all_trips_is_computed_before_them(batch):
    """The count of a mean was taken for what a trip over full tiles had called alike."""

    def program(x):
        return F.nll_loss(F.log_softmax(x, 1), torch.zeros(x.shape[0], x.shape[2], dtype=torch.long))

    x = torch.randn(batch, 5, 37)
    torch.testing.assert_close(flashlight.optimize(program, strict=True)(x), program(x))


def normalised(x, image, w, c, m, v):
    return (
        F.group_norm(image, 2, w, c),
        F.instance_norm(x, weight=w, bias=c),
        F.batch_norm(image, m, v, w, c),
        F.batch_norm(x, None, None, training=True),
    )


def test_channels_are_normalised():
    fast = flashlight.optimize(normalised, strict=True)
    for batch, length in ((2, 37), (3, 130)):
        x, image = torch.randn(batch, 8, length), torch.randn(batch, 8, 6, length)
        args = (x, image, *(torch.rand(8) + 0.5 for _ in range(4)))
        torch.testing.assert_close(fast(*args), normalised(*args), atol=1e-5, rtol=1e-4)
    for backend in ("triton", "cupy"):
        assert flashlight.explain(normalised, *args, backend=backend).kernels[backend].sources
