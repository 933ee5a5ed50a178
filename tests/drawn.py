"""Programs drawn at random: a seed gives the same program, sizes and arguments on every machine.

A program is put together from what people write: scores (one to three functions of them, and a bias), masks (of places
and of labels), an output that is a cascade of reductions, and a layout of batches and heads.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from tests.end_to_end import test_random

DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float64)
LAYOUTS = ("plain", "plain", "no heads", "one key head", "one batch of keys", "plain", "grouped", "repeated",
           "heads inside", "one batch of queries")  # fmt: skip
FILLS = (float("-inf"), float("-inf"), -1e4)

SCORES: dict[str, Callable[..., torch.Tensor]] = test_random.SCORES | {
    "by head": lambda s, i, j: s * (torch.arange(s.shape[-3], device=s.device)[:, None, None] + 1) * 0.5,
    "softplus": lambda s, i, j: F.softplus(s),
    "silu": lambda s, i, j: F.silu(s) + 0.1,
    "distance": lambda s, i, j: s - 0.1 * (i - j).abs().to(s.dtype),
    "waves": lambda s, i, j: s + torch.cos(0.3 * (i - j).to(s.dtype)),
    "clipped": lambda s, i, j: s.clamp(-2.0, 3.0),
    "root": lambda s, i, j: torch.sign(s) * (torch.sqrt(s.abs() + 0.01) - 0.1),  # no jump at zero: all err by that
}
MASKS: dict[str, Callable[..., Any]] = test_random.MASKS | {
    "later": lambda i, j: j >= i,
    "checkered": lambda i, j: (i + j) % 2 == 0,
    "others": lambda i, j: i != j,
    "dilated": lambda i, j: ((i - j) % 4 == 0) & ((i - j).abs() < 40),
    "far": lambda i, j: (i - j).abs() >= 3,
}


def _in_float32(s, v):
    wide = s.float() if s.dtype in (torch.bfloat16, torch.float16) else s
    return torch.softmax(wide, -1).to(v.dtype) @ v


def _twice(s, v):
    return torch.softmax(3.0 * torch.softmax(s, -1), -1) @ v


def _thresholded(s, v):
    p = torch.softmax(s, -1)
    above = torch.relu(p - 0.25 * p.amax(-1, keepdim=True))
    return (above @ v) / (above.sum(-1, keepdim=True) + 0.1)


def _entropy(s, v):
    p = torch.softmax(s, -1)
    return -(p * torch.log(p + 1e-6)).sum(-1), p @ v


def _by_length(s, v):
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e @ v) / (e * e).sum(-1, keepdim=True).sqrt()


def _spread(s, v):
    p, s = torch.softmax(s, -1), s.clamp(min=-30.0)
    mean = (p * s).sum(-1, keepdim=True)
    return (p * (s - mean) ** 2).sum(-1)


def _centred(s, v):
    p = torch.softmax(s, -1)
    return (p - 0.5 * p.mean(-1, keepdim=True)) @ v  # a half: like values would cancel


def _standardised(s, v):
    s = s.clamp(min=-8.0)
    mean = s.mean(-1, keepdim=True)
    return torch.softmax((s - mean) * torch.rsqrt(((s - mean) ** 2).mean(-1, keepdim=True) + 0.1), -1) @ v


def _squares(s, v):
    w = torch.relu(s) ** 2
    return (w @ v) / (w.sum(-1, keepdim=True) + 0.5)


def _extremes(s, v):
    return s.amax(-1), s.clamp(min=-9.0).amin(-1), torch.sigmoid(s - s.amax(-1, keepdim=True)) @ v


OUTPUTS = test_random.OUTPUTS | {
    f.__name__: f
    for f in (_in_float32, _twice, _thresholded, _entropy, _by_length, _spread, _centred, _standardised, _squares,
              _extremes)
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A program and the sizes it is called with.

    ``shape``: batches, heads of keys, query heads for each.  ``lengths``: of queries and keys.  ``depths``: of a key
    and of a value.  ``bias``, ``labels``: does it read a bias for each pair of places, a label for each place.
    """

    seed: int
    scores: tuple[str, ...]
    bias: bool
    masks: tuple[str, ...]
    labels: bool
    either: bool
    fill: float
    output: str
    dtype: torch.dtype
    layout: str
    shape: tuple[int, int, int]
    lengths: tuple[int, int]
    depths: tuple[int, int]

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *more: torch.Tensor) -> Any:
        rest = list(more)
        if self.layout == "heads inside":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        elif self.layout == "repeated":
            k, v = (x.repeat_interleave(self.shape[2], 1) for x in (k, v))
        elif self.layout == "grouped":
            q, k, v = q.unflatten(1, (k.shape[1], -1)), k[:, :, None], v[:, :, None]
        i = torch.arange(q.shape[-2], device=q.device)[:, None]
        j = torch.arange(k.shape[-2], device=q.device)[None, :]
        s = q @ k.mT * q.shape[-1] ** -0.5
        for name in self.scores:
            s = SCORES[name](s, i, j)
        if self.bias:
            s = s + rest.pop(0)
        kept = [keep for name in self.masks if (keep := MASKS[name](i, j)) is not None]
        if self.labels:
            kept.append(rest[0][:, None] == rest[1][None, :])
        if kept:
            both = kept[0] | kept[-1] if self.either else kept[0] & kept[-1]
            s = s.masked_fill(~both, self.fill)
        return OUTPUTS[self.output](s, v)

    def arguments(self, device: str = "cpu") -> tuple[torch.Tensor, ...]:
        g = torch.Generator().manual_seed(self.seed)
        (b, h, group), (n, m), (d, e) = self.shape, self.lengths, self.depths
        queries, keys = {
            "no heads": ((), ()),
            "one key head": ((b, h), (b, 1)),
            "one batch of keys": ((b, h), (h,)),
            "one batch of queries": ((1, h), (b, h)),
            "grouped": ((b, h * group), (b, h)),
            "repeated": ((b, h * group), (b, h)),
        }.get(self.layout, ((b, h), (b, h)))
        shapes = ((*queries, n, d), (*keys, m, d), (*keys, m, e))
        made = [torch.randn(x, generator=g) for x in shapes]
        if self.layout == "heads inside":
            made = [x.transpose(1, 2).contiguous() for x in made]
        if self.bias:
            made.append(torch.randn(n, m, generator=g))
        made = [x.to(device, self.dtype) for x in made]
        if self.labels:
            made += [torch.randint(3, (x,), generator=g).to(device) for x in (n, m)]
        return tuple(made)


def draw(seed: int, largest: int) -> Drawn:
    """``largest``: of the lengths, some of which are 1."""
    pick = random.Random(seed)
    layout = pick.choice(LAYOUTS)
    scores = sorted(SCORES.keys() - {"by head"}) if layout == "no heads" else sorted(SCORES)
    n, m = (pick.choice((1, *(pick.randint(2, largest) for _ in range(9)))) for _ in range(2))
    d = pick.choice((1, 5, 16, 16, 32))  # 1 makes no product of matrices but a program for each row, slow to emulate
    drawn = Drawn(
        seed,
        scores=tuple(pick.sample(scores, pick.choice((1, 1, 2, 3)))),
        bias=pick.random() < 0.15,
        masks=tuple(pick.sample(sorted(MASKS), pick.choice((1, 1, 2)))),
        labels=pick.random() < 0.15,
        either=pick.random() < 0.5,
        fill=pick.choice(FILLS),
        output=pick.choice(sorted(OUTPUTS)),
        dtype=pick.choice(DTYPES),
        layout=layout,
        shape=(pick.choice((1, 2)), pick.choice((1, 2)), pick.choice((2, 3))) if d > 1 else (1, 1, 2),
        lengths=(n, n if pick.random() < 0.3 else m),
        depths=(d, pick.choice((1, 8, 20))),
    )
    if drawn.lengths[0] * drawn.depths[1] < 16:
        # The rule holds us to the largest error that eager shows: of a few elements, all may happen to be exact.
        drawn = replace(drawn, shape=(2, 2, 3), depths=(d, 20))
    return drawn if drawn.dtype != torch.float64 or _exact(drawn) else replace(drawn, dtype=torch.float32)


def _exact(drawn: Drawn) -> bool:
    """Is the rule for float64 one for this program?

    Float64 eager is held against itself: its own error e is taken for none, and eight roundings of the largest value
    are allowed.  Twice eager's error, as the rule is elsewhere, may be 3 e away from it; so e must be within eight
    thirds of a rounding, of which half is asked: other CPUs add in another order.  Float32 shows whether it is, by
    other numbers too.  (Where probabilities are thresholded or exponentiated again, or outputs are small differences of
    larger numbers, it is not.)
    """
    return all(_within(replace(drawn, seed=drawn.seed + k, dtype=torch.float32), 4 / 3) for k in range(4))


def _within(drawn: Drawn, roundings: float) -> bool:
    """Is float32 eager's error at most so many roundings of the largest value?"""
    args = drawn.arguments()
    wide = tuple(x.double() if x.is_floating_point() else x for x in args)
    for plain, exact in zip(tree_leaves(drawn(*args)), tree_leaves(drawn(*wide)), strict=True):
        known = torch.isfinite(exact)
        off, top = ((x * known).nan_to_num(0).abs().max().item() for x in (plain - exact, exact))
        if off > roundings * torch.finfo(torch.float32).eps * top:
            return False
    return True
