"""Plain PyTorch programs through the cupy backend and the shim: within the error rule, and as on the cpu backend."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

import flashlight
from flashlight.testing import assert_equivalent
from tests import programs
from tests.end_to_end import test_listed_tiles as listed
from tests.end_to_end import test_loaded_masks as loaded
from tests.end_to_end import test_long_contractions as long
from tests.end_to_end import test_random as random_programs
from tests.end_to_end import test_statistics_first as first
from tests.end_to_end.test_parts import decode, decode_up_to, norm_args, parts, pieces
from tests.spellings import SPELLINGS

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def loud():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def check(fn: Callable[..., Any], args: tuple[Any, ...], fast: Any, own: Any) -> None:
    """The result is within twice eager's error, and no further from the cpu backend's than both may be off."""
    out, cpu = fast(*args), own(*args)
    ok, ours, eager = programs.error_within_twice_eager(fn, args, out)
    assert ok, (ours, eager)
    assert out.dtype == cpu.dtype
    torch.testing.assert_close(out, cpu, atol=4 * eager + 8 * torch.finfo(out.dtype).eps, rtol=1e-2, equal_nan=True)


def pair(fn: Callable[..., Any], shim: str) -> tuple[Any, Any]:
    return (flashlight.optimize(fn, backend=name, strict=True) for name in (shim, "cpu"))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", programs.CASES)
def test_programs(name: str, dtype: torch.dtype, shim: str) -> None:
    fast, own = pair(programs.CASES[name].fn, shim)
    for k, (n, m) in enumerate([(33, 47), (70, 21)] if dtype == torch.float32 else [(35, 70)]):
        check(programs.CASES[name].fn, programs.inputs(name, n, m, dtype, seed=k), fast, own)


@pytest.mark.parametrize("name", ["sliding_window", "soft_cap", "dense_bias", "layer_norm"])
def test_float16(name: str, shim: str) -> None:
    fast, own = pair(programs.CASES[name].fn, shim)
    check(programs.CASES[name].fn, programs.inputs(name, 35, 70, torch.float16), fast, own)


@pytest.mark.parametrize("name", ["causal", "layer_norm", "weighted_variance"])
def test_float64(name: str, shim: str) -> None:
    fast, own = pair(programs.CASES[name].fn, shim)
    check(programs.CASES[name].fn, programs.inputs(name, 20, 37, torch.float64), fast, own)


def test_lengths_that_are_multiples_and_ones_that_are_not(shim: str) -> None:
    """One compiled kernel, every length: rows aligned and not, one key, no full block, several."""
    fast, own = pair(programs.softmax_attention, shim)
    for n, m in ((1, 1), (2, 129), (64, 64), (65, 128), (128, 3)):
        check(programs.softmax_attention, programs.inputs("softmax_attention", n, m, torch.float16), fast, own)
    assert fast.compilations <= 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("program", [loaded.document, loaded.lengths, loaded.blocks], ids=lambda p: p.__name__)
def test_masks_over_loaded_values(program: Callable[..., Any], dtype: torch.dtype, shim: str) -> None:
    """Kernels that find the tiles run first, and the bounds of the loops are read from what they wrote."""
    fast, own = pair(program, shim)
    for n in (40, 150) if dtype == torch.float32 else (150,):
        check(program, loaded.inputs(n, dtype), fast, own)
    source = fast.explain(*loaded.inputs(150, dtype)).kernels[shim].sources[-1].text
    assert ("_list[" if program is loaded.blocks else "_lo[") in source


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["fixed", "dilated", "by_head", "selected"])
def test_listed_tiles(name: str, dtype: torch.dtype, shim: str) -> None:
    """Copies run ahead along a list of tiles."""
    fast, own = pair(listed.PROGRAMS[name], shim)
    for n in (300, 256) if dtype == torch.float32 else (300,):
        check(listed.PROGRAMS[name], listed.inputs(n, dtype), fast, own)
    assert "_list[" in fast.explain(*listed.inputs(300, dtype)).kernels[shim].sources[-1].text


@pytest.mark.parametrize("mask", ["but the first", "prefix", "chunked", "band"])
def test_segments_of_every_kind(mask: str, shim: str) -> None:
    """Partial, full, partial blocks, any of them empty: copies run ahead from one to the next, or begin anew."""
    fn = random_programs.program("scaled", mask, "_softmax")
    fast, own = pair(fn, shim)
    for n, m in ((29, 140), (70, 200), (131, 66), (70, 5), (3, 64)):
        q, k, v = (torch.randn(1, 2, length, 16) for length in (n, m, m))
        check(fn, (q, k, v), fast, own)


def test_ends_that_count_for_some_rows_only(shim: str) -> None:
    def some_rows(q, k, v):
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        return torch.softmax(scores.masked_fill(torch.arange(q.shape[2])[:, None] >= 100, float("-inf")), -1) @ v

    fast, own = pair(some_rows, shim)
    for n in (64, 200):
        check(some_rows, tuple(torch.randn(3, 1, 2, n, 16)), fast, own)


def test_positions_that_are_computed_twice(shim: str) -> None:
    """An index expression that occurs twice in one place."""
    s = SPELLINGS["grouped.more_rows"]
    fast, own = pair(s.program(), shim)
    check(s.reference(torch.float32), tuple(tree_leaves(s.arguments())), lambda *_: fast(*s.arguments()),
          lambda *_: own(*s.arguments()))  # fmt: skip


def test_grouped_heads(shim: str) -> None:
    def grouped(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True)

    fast, own = pair(grouped, shim)
    q, (k, v) = torch.randn(2, 6, 50, 32), torch.randn(2, 2, 2, 50, 32).unbind()
    check(grouped, (q, k, v), fast, own)
    check(grouped, (q.bfloat16(), k.bfloat16(), v.bfloat16()), fast, own)


def test_strides_and_offsets_that_align_to_nothing(shim: str) -> None:
    """Views of one packed tensor, heads inside, a column left out in front: elements are read one by one."""
    packed = torch.randn(2, 40, 3, 2, 17).bfloat16()
    q, k, v = packed[..., 1:].permute(2, 0, 3, 1, 4).unbind()
    fast, own = pair(programs.causal, shim)
    check(programs.causal, (q, k, v), fast, own)
    turned = tuple(x.mT.contiguous().mT for x in (q, k, v))  # the last dimension has gaps
    check(programs.causal, turned, fast, own)


def test_equivalence_is_a_question_of_users(shim: str) -> None:
    assert_equivalent(programs.soft_cap, programs.inputs("soft_cap", 20, 30, torch.bfloat16), backends=["cpu", shim])


@pytest.mark.parametrize("program", [decode, decode_up_to])
def test_few_rows_in_parts(program: Callable[..., Any], shim: str) -> None:
    fast, own = pair(program, shim)
    q, (k, v) = torch.randn(2, 4, 1, 16), torch.randn(2, 2, 2, 1100, 16).unbind()
    check(program, (q, k, v) if program is decode else (q, k, v, torch.tensor([1100, 70])), fast, own)
    assert parts(fast) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fn", long.PROGRAMS[:4], ids=lambda f: f.__name__)
def test_contractions_in_strips(fn: Callable[..., Any], dtype: torch.dtype, shim: str) -> None:
    long.agrees(fn, long.arguments(70, 150, 640, dtype), flashlight.optimize(fn, backend=shim, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_beside_strips(dtype: torch.dtype, shim: str) -> None:
    long.agrees(long.causal, long.heads(130, 640, dtype), flashlight.optimize(long.causal, backend=shim, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("program", [first.layer_norm_product, first.empty_rows], ids=lambda p: p.__name__)
def test_few_rows_pass_by_pass(program: Callable[..., Any], dtype: torch.dtype, shim: str) -> None:
    args = norm_args(3, 700, dtype) if program is first.layer_norm_product else first.inputs(700, dtype)
    fast, own = pair(program, shim)
    check(program, tuple(args), fast, own)
    assert len(pieces(fast)[-1].divided) == 2
