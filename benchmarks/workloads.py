"""The table of benchmark workloads: programs as users write them, their inputs, useful work, and how peers spell them.

The programs are plain PyTorch; nothing in them knows of flashlight.  The spellings for SDPA and FlexAttention sit
beside them so that every peer gets the same tensors and computes the same values.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

WINDOW = PREFIX = 256
CAP = 20.0
DOCUMENTS = 12
SDPA_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Shape:
    """(batch, query heads, length, head dimension), with fewer key heads where ``kv_heads`` says so.

    Written ``4,16,4096,64``, or ``4,16/2,4096,64`` with two key heads, or ``4x256,4,256,64`` with an alignment of 256
    rows (or 256 rows of a pair tensor) in each batch entry, each row a sequence, or ``16,32/8,1:8192,128`` with one
    query to 8192 keys (``few``: how many queries, 0 for as many as keys).
    """

    batch: int
    heads: int
    length: int
    width: int
    kv_heads: int
    rows: int = 1
    few: int = 0

    @staticmethod
    def parse(text: str) -> Shape:
        """Raises ValueError when the text is not four numbers."""
        batch, heads, length, width = text.split(",")
        entries, _, rows = batch.partition("x")
        q, _, kv = heads.partition("/")
        few, _, keys = length.rpartition(":")
        return Shape(int(entries), int(q), int(keys), int(width), int(kv or q), int(rows or 1), int(few or 0))

    @property
    def queries(self) -> int:
        return self.few or self.length

    def __str__(self) -> str:
        heads = str(self.heads) if self.kv_heads == self.heads else f"{self.heads}/{self.kv_heads}"
        batch = str(self.batch) if self.rows == 1 else f"{self.batch}x{self.rows}"
        length = f"{self.few}:{self.length}" if self.few else str(self.length)
        return f"{batch},{heads},{length},{self.width}"


def shapes(*texts: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, texts))


@dataclass(frozen=True)
class Maker:
    """Makes the tensors of one cell: seeded, the same for all peers and on every device."""

    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype or self.dtype)


@dataclass(frozen=True)
class Flex:
    """FlexAttention's spelling: functions of (score, b, h, q, k) and (b, h, q, k)."""

    score: Callable[..., Tensor] | None = None
    mask: Callable[..., Tensor] | None = None
    approximate: Callable[..., Tensor] | None = None  # a second spelling of ``score`` that peers also use
    batched: bool = False  # the mask differs between batch entries
    headed: bool = False  # and between heads


Args = tuple[Any, ...]


@dataclass(frozen=True)
class Route:
    """A program put together by hand from SDPA or FlexAttention: a function of the cell's tensors, compiled whole.

    ``kernels``: SDPA's backends to try on CUDA, of which the function pins the one that it gets as ``kernel``.
    ``before``: what a user makes once, before the clock starts (FlexAttention's block mask), as keyword arguments.
    """

    name: str
    function: Callable[..., Any]
    kernels: tuple[str, ...] = ()
    before: Callable[[Args], dict[str, Any]] | None = None


def _matrix_size(s: Shape) -> tuple[int, int]:
    return s.batch * s.heads * s.width, s.length


@dataclass(frozen=True)
class Workload:
    """A named program.

    ``axes``: per input, then per output, a letter a dimension: b batch, h query head, g key head, r row (of which
    a part may be taken for the float64 reference), ``.`` anything else.  ``flops``: useful operations, masked scores
    excluded.  ``sdpa``: keyword arguments of ``scaled_dot_product_attention``; ``flex``: see :class:`Flex`; both read
    the cell's own tensors, and are None where the library has no form of the program.  ``hand``: routes by hand where
    neither has a form.  ``matrix``: rows, and columns of each, where there are rows r.  ``shapes``: the program's own,
    in place of its suite's, and ``tiny`` ones.  ``grouped``: the program itself says what fewer key heads and fewer
    queries mean.  ``elements``: how many elements have to be read and written, of a program that memory bounds.
    """

    name: str
    program: Callable[..., Any]
    inputs: Callable[[Shape, Maker], Args]
    axes: tuple[str, ...]
    flops: Callable[[Shape], float]
    sdpa: Callable[[Args], dict[str, Any]] | None = None
    flex: Callable[[Args], Flex] | None = None
    hand: tuple[Route, ...] = ()
    matrix: Callable[[Shape], tuple[int, int]] = _matrix_size
    shapes: tuple[Shape, ...] = ()
    tiny: tuple[Shape, ...] = ()
    grouped: bool = False
    elements: Callable[[Shape], int] | None = None

    def function(self, shape: Shape) -> Callable[..., Any]:
        """The program for a shape: with fewer key heads, the heads are repeated first, as users do (programs without a
        FlexAttention form say themselves what fewer heads mean)."""
        if shape.kv_heads == shape.heads or self.flex is None or self.grouped:
            return self.program
        repeats, program = shape.heads // shape.kv_heads, self.program

        @functools.wraps(program)
        def grouped(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
            return program(q, k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1), *rest)

        return grouped

    def make(self, shape: Shape, dtype: torch.dtype, device: str | torch.device, seed: int = 0) -> Args:
        """The cell's inputs.  Raises ValueError for fewer queries than keys, unless the program is one for them."""
        if shape.few and not self.grouped:
            raise ValueError(f"{self.name} has a query for every key: ask for {shape.length} instead of {shape}'s")
        where = torch.device(device)
        return self.inputs(shape, Maker(dtype, where, torch.Generator(where).manual_seed(seed)))

    def part(self, shape: Shape, budget: float) -> tuple[slice, ...]:
        """How much of (b, h, g, r) the reference covers: the last batch entry, and as many of the last heads or rows
        as fit ``budget`` bytes of float64 scores."""
        group = shape.heads // shape.kv_heads
        pairs = 8.0 * shape.rows * shape.queries * shape.length
        g = max(1, min(shape.kv_heads, int(budget / (pairs * group)) if pairs else shape.kv_heads))
        rows, columns = self.matrix(shape)
        r = max(1, min(rows, int(budget / (8.0 * max(columns, 1)))))
        taken = ((1, shape.batch), (g * group, shape.heads), (g, shape.kv_heads), (r, rows))
        return tuple(slice(size - n, size) for n, size in taken)

    @staticmethod
    def cut(x: Any, axes: str, part: tuple[slice, ...]) -> Any:
        """The part of a tensor that a reference on ``part`` reads or writes."""
        if not isinstance(x, Tensor):
            return x
        whole = slice(None)
        return x[tuple(part["bhgr".index(a)] if a != "." else whole for a in axes)]


def wide(args: Args) -> Args:
    """The same arguments in float64."""
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


# ---- attention programs ----------------------------------------------------------------------------------------------
def positions(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    i = torch.arange(q.shape[-2], device=q.device)[:, None]
    j = torch.arange(k.shape[-2], device=k.device)[None, :]
    return i, j


def scores(q: Tensor, k: Tensor) -> Tensor:
    s: Tensor = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return s


def vanilla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores(q, k), dim=-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = positions(q, k)
    return torch.softmax(scores(q, k).masked_fill(j > i, float("-inf")), dim=-1) @ v


def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = positions(q, k)
    keep = (j <= i) & (i - j < WINDOW)
    return torch.softmax(torch.where(keep, scores(q, k), float("-inf")), dim=-1) @ v


def prefix_lm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = positions(q, k)
    keep = (j <= i) | (j < PREFIX)
    return torch.softmax(scores(q, k).masked_fill(~keep, float("-inf")), dim=-1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    i, j = positions(q, k)
    biased = scores(q, k) + slopes[:, None, None] * (j - i)
    return torch.softmax(biased, dim=-1).to(v.dtype) @ v


def softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(CAP * torch.tanh(scores(q, k) / CAP), dim=-1) @ v


def dense_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(scores(q, k) + bias, dim=-1) @ v


def document(q: Tensor, k: Tensor, v: Tensor, doc: Tensor) -> Tensor:
    keep = doc[:, None] == doc[None, :]
    return torch.softmax(scores(q, k).masked_fill(~keep, float("-inf")), dim=-1) @ v


def document_causal(q: Tensor, k: Tensor, v: Tensor, doc: Tensor) -> Tensor:
    i, j = positions(q, k)
    keep = (doc[:, None] == doc[None, :]) & (j <= i)
    return torch.softmax(scores(q, k).masked_fill(~keep, float("-inf")), dim=-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_padding(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


# ---- programs that are not attention ---------------------------------------------------------------------------------
def log_softmax(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=-1)


def logsumexp(x: Tensor) -> Tensor:
    return torch.logsumexp(x, dim=-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * weight + bias


def rms_norm_product(x: Tensor, gain: Tensor, w: Tensor) -> Tensor:
    return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain) @ w


def weighted_variance(scores: Tensor, values: Tensor) -> Tensor:
    p = torch.softmax(scores, dim=-1)
    mean = (p * values).sum(-1, keepdim=True)
    return (p * (values - mean) ** 2).sum(-1)


# ---- inputs ----------------------------------------------------------------------------------------------------------
def qkv(s: Shape, m: Maker) -> Args:
    keys = s.batch, s.kv_heads, s.length, s.width
    return m.normal(s.batch, s.heads, s.length, s.width), m.normal(*keys), m.normal(*keys)


def _cross(s: Shape, m: Maker) -> Args:
    keys = s.batch, s.kv_heads, _keys(s), s.width
    return m.normal(s.batch, s.heads, s.length, s.width), m.normal(*keys), m.normal(*keys)


def _with_slopes(s: Shape, m: Maker) -> Args:
    slopes = torch.exp2(-8.0 * torch.arange(1, s.heads + 1, device=m.device) / s.heads)
    return *qkv(s, m), slopes


def _with_bias(s: Shape, m: Maker) -> Args:
    return *qkv(s, m), m.normal(1, s.heads, s.length, s.length)


@functools.cache
def cuts(length: int) -> tuple[int, ...]:
    """Where documents after the first begin."""
    g = torch.Generator().manual_seed(1)
    return tuple(sorted((torch.randperm(max(length - 1, 0), generator=g)[: DOCUMENTS - 1] + 1).tolist()))


def _with_documents(s: Shape, m: Maker) -> Args:
    starts = torch.tensor(cuts(s.length), device=m.device, dtype=torch.int64)
    return *qkv(s, m), torch.bucketize(torch.arange(s.length, device=m.device), starts, right=True).int()


def _with_padding(s: Shape, m: Maker) -> Args:
    lengths = torch.tensor([_live(s, b) for b in range(s.batch)], device=m.device)
    return *qkv(s, m), torch.arange(s.length, device=m.device) < lengths[:, None, None, None]


def _rows(s: Shape) -> int:
    return _matrix_size(s)[0]


def _matrix(s: Shape, m: Maker) -> Args:
    return (m.normal(_rows(s), s.length) * 3 + 1,)


def _norm(s: Shape, m: Maker) -> Args:
    return *_matrix(s, m), m.normal(s.length), m.normal(s.length)


def _product(s: Shape, m: Maker) -> Args:
    return m.normal(_rows(s), s.length) + 0.5, m.normal(s.length), m.normal(s.length, s.width) / math.sqrt(s.length)


def _pair(s: Shape, m: Maker) -> Args:
    return m.normal(_rows(s), s.length) * 2, m.normal(_rows(s), s.length) + 3


# ---- useful work -----------------------------------------------------------------------------------------------------
def _keys(s: Shape) -> int:
    return max(1, s.length // 2)


def _live(s: Shape, b: int) -> int:
    """The unpadded length of batch entry b: from half to all of the keys."""
    return max(1, s.length - (b * s.length) // (2 * s.batch))


def _documents(s: Shape) -> list[int]:
    edges = (0, *cuts(s.length), s.length)
    return [b - a for a, b in itertools.pairwise(edges)]


def pairs(live: Callable[[Shape], float]) -> Callable[[Shape], float]:
    """Two products of 2 * width operations for each live (query, key) pair of a head."""
    return lambda s: 4.0 * s.batch * s.rows * s.heads * s.width * live(s)


def triangle_of(n: int) -> float:
    return n * (n + 1) / 2


def _each(operations: int) -> Callable[[Shape], float]:
    return lambda s: float(operations) * _rows(s) * s.length


# ---- FlexAttention's spellings ---------------------------------------------------------------------------------------
def _causal_mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def _window_mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i >= j) & (i - j < WINDOW)


def _prefix_mask(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i >= j) | (j < PREFIX)


def _alibi_flex(args: Args) -> Flex:
    slopes = args[3]
    return Flex(score=lambda s, b, h, i, j: s + slopes[h] * (j - i))


def _softcap_flex(args: Args) -> Flex:
    def approximate(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        bounded: Tensor = torch.ops.flashlight_benchmarks.tanh_approximate(s / CAP)
        return CAP * bounded

    return Flex(score=lambda s, b, h, i, j: CAP * torch.tanh(s / CAP), approximate=approximate)


def _bias_flex(args: Args) -> Flex:
    bias = args[3]
    return Flex(score=lambda s, b, h, i, j: s + bias[0, h, i, j])


def _document_flex(args: Args) -> Flex:
    doc = args[3]
    return Flex(mask=lambda b, h, i, j: doc[i] == doc[j])


def _document_causal_flex(args: Args) -> Flex:
    doc = args[3]
    return Flex(mask=lambda b, h, i, j: (doc[i] == doc[j]) & (i >= j))


def _padding_flex(args: Args) -> Flex:
    keep = args[3]
    return Flex(mask=lambda b, h, i, j: keep[b, 0, 0, j], batched=True)


# ---- SDPA's spellings: masks are built before the clock runs ---------------------------------------------------------
def _keep(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Args], dict[str, Any]]:
    return lambda args: {"attn_mask": rule(*positions(args[0], args[1]))}


def _alibi_sdpa(args: Args) -> dict[str, Any]:
    i, j = positions(args[0], args[1])
    return {"attn_mask": (args[3][:, None, None] * (j - i))[None].to(args[0].dtype)}


def _document_sdpa(args: Args) -> dict[str, Any]:
    return {"attn_mask": args[3][:, None] == args[3][None, :]}


def _document_causal_sdpa(args: Args) -> dict[str, Any]:
    i, j = positions(args[0], args[1])
    return {"attn_mask": (args[3][:, None] == args[3][None, :]) & (j <= i)}


_IN = ("bh..", "bg..", "bg..")
_OUT = "bh.."
_WORKLOADS = (
    Workload(
        "vanilla", vanilla, qkv, (*_IN, _OUT), pairs(lambda s: s.length**2), lambda a: {}, lambda a: Flex()
    ),
    Workload(
        "causal", causal, qkv, (*_IN, _OUT), pairs(lambda s: triangle_of(s.length)),
        lambda a: {"is_causal": True}, lambda a: Flex(mask=_causal_mask),
    ),
    Workload(
        "sliding_window", sliding_window, qkv, (*_IN, _OUT),
        pairs(lambda s: triangle_of(s.length) - triangle_of(max(s.length - WINDOW, 0))),
        _keep(lambda i, j: (j <= i) & (i - j < WINDOW)), lambda a: Flex(mask=_window_mask),
    ),
    Workload(
        "prefix_lm", prefix_lm, qkv, (*_IN, _OUT),
        pairs(lambda s: triangle_of(s.length) + triangle_of(min(s.length, PREFIX) - 1)),
        _keep(lambda i, j: (j <= i) | (j < PREFIX)), lambda a: Flex(mask=_prefix_mask),
    ),
    Workload(
        "alibi", alibi, _with_slopes, (*_IN, "h", _OUT), pairs(lambda s: s.length**2), _alibi_sdpa, _alibi_flex
    ),
    Workload("softcap", softcap, qkv, (*_IN, _OUT), pairs(lambda s: s.length**2), None, _softcap_flex),
    Workload(
        "dense_bias", dense_bias, _with_bias, (*_IN, ".h..", _OUT), pairs(lambda s: s.length**2),
        lambda a: {"attn_mask": a[3]}, _bias_flex,
    ),
    Workload(
        "document", document, _with_documents, (*_IN, ".", _OUT),
        pairs(lambda s: sum(n * n for n in _documents(s))), _document_sdpa, _document_flex,
    ),
    Workload(
        "document_causal", document_causal, _with_documents, (*_IN, ".", _OUT),
        pairs(lambda s: sum(map(triangle_of, _documents(s)))), _document_causal_sdpa, _document_causal_flex,
    ),
    Workload("sdpa", sdpa, qkv, (*_IN, _OUT), pairs(lambda s: s.length**2), lambda a: {}, lambda a: Flex()),
    Workload(
        "sdpa_causal", sdpa_causal, qkv, (*_IN, _OUT), pairs(lambda s: triangle_of(s.length)),
        lambda a: {"is_causal": True}, lambda a: Flex(mask=_causal_mask),
    ),
    Workload(
        "sdpa_padding", sdpa_padding, _with_padding, (*_IN, "b...", _OUT),
        pairs(lambda s: s.length * sum(_live(s, b) for b in range(s.batch)) / s.batch),
        lambda a: {"attn_mask": a[3]}, _padding_flex,
    ),
    Workload(
        "cross", vanilla, _cross, (*_IN, _OUT), pairs(lambda s: s.length * _keys(s)), lambda a: {}, lambda a: Flex()
    ),
    Workload("log_softmax", log_softmax, _matrix, ("r.", "r."), _each(5)),
    Workload("logsumexp", logsumexp, _matrix, ("r.", "r"), _each(4)),
    Workload("layer_norm", layer_norm, _norm, ("r.", ".", ".", "r."), _each(8)),
    Workload(
        "rms_norm_product", rms_norm_product, _product, ("r.", ".", "..", "r."),
        lambda s: (2.0 * s.width + 4) * _rows(s) * s.length,
    ),
    Workload("weighted_variance", weighted_variance, _pair, ("r.", "r.", "r"), _each(11)),
)  # fmt: skip

WORKLOADS: dict[str, Workload] = {w.name: w for w in _WORKLOADS}
