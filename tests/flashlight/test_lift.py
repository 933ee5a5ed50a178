"""Every operator with a row in the table: the lifted program, evaluated as it reads, gives what PyTorch gives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten

from flashlight.capture import capture
from flashlight.dims import History
from flashlight.errors import NeedsLiteral
from flashlight.lengths import value_at
from flashlight.lift import lift
from flashlight.lifted import Eager, Region
from tests.interpret import run_program

INF = math.inf


def lifted(fn, args):
    flat, spec = tree_flatten((args, {}))
    history = History()
    while True:
        dims = history.plan(flat)
        try:
            return lift(capture(fn, flat, spec, dims)), flat
        except NeedsLiteral as need:
            if not history.need(dims, need.sizes):
                raise


def evaluated(fn, args):
    """The function's flat outputs as the lifted program defines them (no eager step allowed)."""
    out, flat = lifted(fn, args)
    assert not any(isinstance(s, Eager) for s in out.steps), [s for s in out.steps if isinstance(s, Eager)]
    sizes = {b.name: flat[b.position].shape[b.dim] for b in out.captured.sizes}
    env = {n: flat[x.position] if x.position is not None else x.value for n, x in out.inputs}
    for s in out.steps:
        assert isinstance(s, Region)
        env = run_program(s.program, env, sizes)
    return [env[o] if isinstance(o, str) else torch.as_tensor(value_at(o, sizes)) for o in out.outputs]


def holds(fn, *args):
    got = evaluated(fn, args)
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    want = tree_flatten(fn(*wide))[0]
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape, (g.shape, w.shape)
        torch.testing.assert_close(g, w, equal_nan=True, check_dtype=False, rtol=1e-6, atol=1e-9)


x, y, z = (torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(s)) for s in range(3))
m, w = torch.randn(5, 6), torch.randn(6, 7)
flag = torch.tensor([True, False, True, True, False, False, True])
ids = torch.tensor([0, 2, 1, -1, 2])
count = torch.randint(-9, 9, (5, 7))

UNARY = {
    **{
        n: getattr(torch, n)
        for n in (
            "neg",
            "abs",
            "exp",
            "exp2",
            "expm1",
            "tanh",
            "sigmoid",
            "sin",
            "cos",
            "erf",
            "erfc",
            "floor",
            "ceil",
            "round",
            "trunc",
            "sign",
            "square",
            "reciprocal",
            "relu",
            "isnan",
            "isinf",
            "isfinite",
            "logical_not",
            "frac",
            "positive",
        )
    },
    **{
        n: (lambda t, n=n: getattr(torch, n)(t.abs() + 0.5)) for n in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt")
    },
    **{
        n: getattr(F, n)
        for n in (
            "gelu",
            "silu",
            "softplus",
            "logsigmoid",
            "elu",
            "leaky_relu",
            "hardtanh",
            "mish",
            "relu6",
            "hardsigmoid",
            "selu",
        )
    },
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
    "clamp": lambda t: t.clamp(-0.5, 0.7),
    "clamp_min": lambda t: t.clamp_min(0.1),
    "threshold": lambda t: F.threshold(t, 0.1, 9),
    "nan_to_num": lambda t: torch.nan_to_num(t / t.round(), 1.0, 7.0, -7.0),
    "scalars": lambda t: 2 - 3 * t / 4 + (1 - t) ** 2,
    "powers": lambda t: t**3 + t.abs() ** 0.5 + t.abs() ** 1.7 + 2**t + (t + 3) ** -1,
    "remainder": lambda t: t % 0.7,
    "fmod": lambda t: torch.fmod(t, 0.7),
    "floor_divide": lambda t: t // 0.3,
    "rounding": lambda t: torch.div(t, 0.3, rounding_mode="trunc"),
    "casts": lambda t: (t * 4).to(torch.int32) + (t > 0).float(),
    "in_place": lambda t: t.clone().mul_(2).add_(1).exp_(),
    "double": lambda t: t.double() * t,
    "rsub": lambda t: torch.rsub(t, 1.5, alpha=2),
    "dropout_eval": lambda t: F.dropout(t, 0.4, training=False),
    "dropout_0": lambda t: F.dropout(t, 0.0),
}


@pytest.mark.parametrize("name", UNARY)
def test_pointwise(name):
    holds(UNARY[name], x)


BINARY = {
    **{
        n: getattr(torch, n)
        for n in ("add", "sub", "mul", "div", "maximum", "minimum", "lt", "le", "gt", "ge", "eq", "ne", "logaddexp")
    },
    "where": lambda a, b: torch.where(a > b, a, 3.0),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, -INF),
    "alpha": lambda a, b: torch.add(a, b, alpha=3),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "addcmul": lambda a, b: torch.addcmul(a, b, a, value=2),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, a.abs() + 1),
    "logic": lambda a, b: ((a > 0) & (b > 0)) | ~(a > b) ^ (b > 1),
    "broadcast": lambda a, b: a[:, :1] * b[:, 0, None, :1] + b[1, :, None, 2],
    "pow": lambda a, b: a.abs() ** b,
}


@pytest.mark.parametrize("name", BINARY)
def test_two_operands(name):
    holds(BINARY[name], x, y)


REDUCE = {
    "sum": lambda t: t.sum(),
    "sum_dims": lambda t: t.sum((0, 2)),
    "keepdim": lambda t: t.sum(1, keepdim=True),
    "mean": lambda t: t.mean(-1),
    "mean_all": lambda t: t.mean(),
    "amax": lambda t: t.amax(-1),
    "amin": lambda t: t.amin((0, 1), keepdim=True),
    "max_dim": lambda t: t.max(1).values,
    "max": lambda t: t.max(),
    "min_dim": lambda t: t.min(0, keepdim=True)[0],
    "prod": lambda t: t.prod(1),
    "var": lambda t: t.var(-1),
    "var_biased": lambda t: t.var((0, 1), correction=0),
    "std": lambda t: t.std(-1, keepdim=True),
    "var_mean": lambda t: torch.var_mean(t, -1),
    "any": lambda t: (t > 1).any(-1),
    "all": lambda t: (t > -3).all(),
    "norm": lambda t: t.norm(dim=-1),
    "norm1": lambda t: torch.linalg.vector_norm(t, 1, -1),
    "norm_inf": lambda t: torch.linalg.vector_norm(t, INF),
    "logsumexp": lambda t: t.logsumexp(-1),
    "logsumexp2": lambda t: torch.logsumexp(t, (0, 2)),
    "softmax": lambda t: t.softmax(1),
    "log_softmax": lambda t: F.log_softmax(t, -1),
    "softmin": lambda t: F.softmin(t, 0),
    "layer_norm": lambda t: F.layer_norm(t, (7,)),
    "layer_norm2": lambda t: F.layer_norm(t, (5, 7), eps=0.1),
    "rms_norm": lambda t: F.rms_norm(t, (7,)),
    "normalize": lambda t: F.normalize(t, dim=-1),
    "count_nonzero": lambda t: torch.count_nonzero(t > 0, 1),
    "masked_softmax": lambda t: t.masked_fill(flag, -INF).softmax(-1),
    "all_masked": lambda t: t.masked_fill(t < 99, -INF).logsumexp(-1),
    "cosine": lambda t: F.cosine_similarity(t, t.flip(1), dim=-1),
}


@pytest.mark.parametrize("name", REDUCE)
def test_reductions(name):
    holds(REDUCE[name], x)


VIEWS = {
    "permute": lambda t: t.permute(2, 0, 1),
    "transpose": lambda t: t.transpose(0, -1),
    "mT": lambda t: t.mT,
    "movedim": lambda t: t.movedim(0, -1),
    "view": lambda t: t.reshape(15, 7),
    "split_view": lambda t: t.transpose(0, 1).reshape(5, -1).view(5, 7, 3),
    "flatten": lambda t: t.flatten(1),
    "unflatten": lambda t: t.flatten().unflatten(0, (5, 3, 7)),
    "squeeze": lambda t: t[:1].squeeze(0).unsqueeze(-1),
    "expand": lambda t: t[:, :1].expand(3, 4, 7),
    "select": lambda t: t[1, :, -2],
    "slice": lambda t: t[:, 1:4, ::2],
    "narrow": lambda t: t.narrow(2, -3, 2),
    "unbind": lambda t: t.unbind(0)[1],
    "split": lambda t: t.split(2, 1)[2],
    "chunk": lambda t: torch.cat(t.chunk(3, -1), 0) if t.shape[-1] % 3 == 0 else t.chunk(3, -1)[1],
    "sizes": lambda t: t.split([2, 4, 1], -1)[1],
    "flip": lambda t: t.flip(0, 2),
    "roll": lambda t: t.roll((2, -1), (1, 2)),
    "roll_flat": lambda t: t.roll(3),
    "repeat": lambda t: t.repeat(2, 1, 3),
    "repeat_interleave": lambda t: t.repeat_interleave(2, 1),
    "diagonal": lambda t: t.diagonal(1, 1, 2),
    "unfold": lambda t: t.unfold(2, 3, 2),
    "cat": lambda t: torch.cat([t, t[:, :2], t * 2], 1),
    "stack": lambda t: torch.stack([t, -t], 1),
    "pad": lambda t: F.pad(t, (1, 2, 0, 1), value=3.5),
    "tril": lambda t: t.tril(),
    "triu": lambda t: t.triu(2),
    "tile": lambda t: t.tile(2),
    "index": lambda t: t[:, ids],
    "index2": lambda t: t[ids[:3], ids[1:4]],
    "index_mixed": lambda t: t[ids.view(5, 1), :, ids % 2],
    "index_select": lambda t: t.index_select(1, ids.abs()),
    "take": lambda t: torch.take_along_dim(t, (t > 0).long(), 2),
    "gather": lambda t: t.gather(1, (t[:, :2] > 0).long()),
    "set_column": lambda t: _set(t, (slice(None), 1), 4.0),
    "set_slice": lambda t: _set(t, (..., slice(1, None, 2)), t[..., ::2][..., :3]),
    "heads": lambda t: t.repeat(1, 1, 8).view(3, 5, 7, 8).transpose(1, 2).reshape(21, 5, 8),
    "rotate": lambda t: torch.cat([-t[..., 3:6], t[..., :3]], -1),
    "swap": lambda t: t.swapaxes(0, 1).T if t.ndim == 2 else t.swapdims(0, 2),
    "expand_as": lambda t: t[:1].expand_as(t),
    "contiguous": lambda t: t.mT.contiguous(),
}


def _set(t, where, value):
    out = t.clone()
    out[where] = value
    return out


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    holds(VIEWS[name], x)


MADE = {
    "arange": lambda t: t + torch.arange(t.shape[-1]),
    "arange3": lambda t: t[..., 0] * torch.arange(2, 2 + 3 * t.shape[1], 3),
    "linspace": lambda t: t + torch.linspace(0, 3, 7),
    "full": lambda t: t + torch.full_like(t, 2) + torch.ones(7) - t.new_zeros(5, 1),
    "eye": lambda t: t @ torch.eye(t.shape[-1], dtype=t.dtype),
    "empty": lambda t: torch.empty_like(t).copy_(t),
    "tensor": lambda t: t * torch.tensor(3.0) + torch.tensor([1.0] * 7),
    "float_arange": lambda t: t + torch.arange(0, 1, 1 / 8)[:7],
    "outer": lambda t: torch.outer(t[0, 0], t[0, 1]),
    "scalar_size": lambda t: t / t.shape[1] + t.numel() + t.size(0) ** 0.5,
}


@pytest.mark.parametrize("name", MADE)
def test_creations(name):
    holds(MADE[name], x)


PRODUCTS = {
    "matmul": lambda: holds(lambda a, b: a @ b, x, torch.randn(7, 4)),
    "batched": lambda: holds(lambda a, b: a @ b.mT, x, y),
    "broadcast": lambda: holds(lambda a, b: a @ b, x, torch.randn(2, 1, 7, 3)),
    "vector": lambda: holds(lambda a, b: a @ b, x, torch.randn(7)),
    "left_vector": lambda: holds(lambda a, b: a @ b, torch.randn(5), x),
    "dot": lambda: holds(torch.dot, torch.randn(9), torch.randn(9)),
    "mm": lambda: holds(torch.mm, m, w),
    "bmm": lambda: holds(torch.bmm, x, y.mT.contiguous()),
    "mv": lambda: holds(torch.mv, m, w[:, 0]),
    "linear": lambda: holds(F.linear, x, torch.randn(4, 7), torch.randn(4)),
    "addmm": lambda: holds(lambda a, b, c: torch.addmm(c, a, b, beta=2, alpha=0.5), m, w, torch.randn(7)),
    "baddbmm": lambda: holds(lambda a, b, c: torch.baddbmm(c, a, b), x, y.mT.contiguous(), torch.randn(3, 5, 5)),
    "einsum": lambda: holds(lambda a, b: torch.einsum("bid,bjd->bij", a, b), x, y),
    "einsum3": lambda: holds(lambda a, b, c: torch.einsum("bid,bjd,bje->bie", a, b, c), x, y, z),
    "implicit": lambda: holds(lambda a, b: torch.einsum("ij,jk", a, b), m, w),
    "ellipsis": lambda: holds(lambda a, b: torch.einsum("...id,...jd->...ji", a, b), x, y),
    "trace": lambda: holds(lambda a: torch.einsum("bii->b", a), torch.randn(3, 5, 5)),
    "inner": lambda: holds(torch.inner, x, torch.randn(2, 7)),
    "tensordot": lambda: holds(lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])), x, torch.randn(5, 7, 2)),
    "cdist": lambda: holds(torch.cdist, x, y),
    "scaled": lambda: holds(lambda a, b: (a * 0.25) @ (b / 3).mT * 2, x, y),
    "vecdot": lambda: holds(torch.linalg.vecdot, x, y),
    "sdpa": lambda: holds(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, scale=0.3), x, y, z),
    "sdpa_causal": lambda: holds(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, is_causal=True), x, y, z),
    "sdpa_gqa": lambda: holds(
        lambda a, b, c: F.scaled_dot_product_attention(a, b, c, enable_gqa=True),
        torch.randn(2, 6, 4, 8),
        torch.randn(2, 3, 5, 8),
        torch.randn(2, 3, 5, 8),
    ),
    "embedding": lambda: holds(lambda t, e: F.embedding(t, e), ids.abs(), m),
    "cross_entropy": lambda: holds(lambda a, t: F.cross_entropy(a, t), m, ids.abs()),
    "cross_entropy_sum": lambda: holds(
        lambda a, t: F.cross_entropy(a, t, reduction="sum", ignore_index=2), m, ids.abs()
    ),
    "nll": lambda: holds(lambda a, t: F.nll_loss(a, t, reduction="none"), m, ids.abs()),
    "integers": lambda: holds(lambda c: (c // 2) % 3 + c * 2 - (c > 0).long(), count),
    "int_sum": lambda: holds(lambda c: c.sum(-1) + c.amax(-1), count),
    "int_mean": lambda: holds(lambda c: c.float().mean(), count),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_gathers(name):
    PRODUCTS[name]()


def test_a_slice_longer_than_the_length():
    """Where a length that PyTorch clips would follow another formula at this call's sizes, the sizes become literal."""
    long, short = torch.randn(2, 40, 8), torch.randn(2, 9, 8)
    for t in (long, short):
        holds(lambda t: t[:, :16] * 2, t)
        holds(lambda t: t[:, -16:] + t[:, -16:].diagonal(0, 1, 2)[:, None, :1], t)


def test_an_operator_without_a_row_ends_the_region():
    def fn(a, b):
        s = torch.sort(a @ b.mT, dim=-1).values
        return s.softmax(-1)

    out, _ = lifted(fn, (x, y))
    kinds = [type(s).__name__ + ("" if isinstance(s, Region) else "!" * bool(s.reason)) for s in out.steps]
    assert kinds == ["Region", "Eager!", "Eager", "Region"]
    (eager,) = (s for s in out.steps if isinstance(s, Eager) and s.reason)
    assert eager.origin.file == __file__
    assert "torch.sort" in (eager.origin.text or "")


def test_names_are_the_users():
    def attention(q, k, v):
        scores = q @ k.mT
        weights = scores.softmax(-1)
        return weights @ v

    out, _ = lifted(attention, (x, y, z))
    text = str(out.steps[0].program)
    assert "scores[b,i,j]" in text
    assert "weights_max[b,i]" in text
    assert "inputs   k: float32[B, N, 7]; q: float32[B, N, 7]" in text
