"""The launcher, with a driver that is the shim: arguments, layouts, and what is compiled when."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flashlight._conformance import attention
from flashlight.backends.cupy import CupyBackend, launch
from flashlight.backends.cupy.launch import Call, launcher
from flashlight.errors import BackendUnavailable, InternalError
from tests.backends.cupy.fake_cupy import FakeCupy
from tests.backends.cupy.shim import TARGET

SOURCE = CupyBackend().emit(attention("flash", dtype="bfloat16", causal=True), TARGET)


def call(run, q, k, v):
    out = torch.full_like(q, torch.nan)
    b, h, n, _ = q.shape
    run([q, k, v], [out], [b, h, n, k.shape[2]])
    s = q.float() @ k.float().mT * q.shape[-1] ** -0.5
    s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(out.float(), s.softmax(-1) @ v.float(), atol=2e-2, rtol=2e-2)


def qkv(n: int, heads: int = 2) -> list[torch.Tensor]:
    return [torch.randn(1, heads, n, 16).bfloat16() for _ in range(3)]


def test_lengths_share_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(monkeypatch, SOURCE)
    run = launcher(SOURCE)
    for n in (20, 33, 20):
        call(run, *qkv(n))
    assert cupy.launches == 3
    assert cupy.compiled == [tuple((f"ALIGN_{x}", "16") for x in ("k", "out", "q", "v"))]


def test_threads_of_their_own_have_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(monkeypatch, SOURCE)
    run = launcher(SOURCE)
    call(run, *qkv(20))
    with ThreadPoolExecutor(1) as others:
        for _ in range(2):
            others.submit(call, run, *qkv(20)).result()
    assert cupy.launches == 3
    assert len(cupy.bound) == len(set(cupy.bound)) == 2


def test_each_layout_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(monkeypatch, SOURCE)
    run = launcher(SOURCE)
    q, k, v = qkv(20)
    wide = torch.randn(1, 2, 20, 34).bfloat16()
    call(run, q, k, v)
    call(run, wide[..., 2:18], k, v)  # rows begin at multiples of 4 bytes
    call(run, wide[..., 1:17], k, v)  # at multiples of 2
    call(run, wide[..., ::2][..., :16], k, v)  # with gaps
    call(run, wide[..., 2:18], k, v)
    aligned = [dict(d)["ALIGN_q"] for d in cupy.compiled]
    assert aligned == ["16", "4", "2", "0"]
    assert cupy.launches == 5


def test_many_layouts_end_in_one_that_assumes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(monkeypatch, SOURCE)
    monkeypatch.setattr(launch, "VARIANTS", 2)
    run = launcher(SOURCE)
    wide = torch.randn(1, 2, 20, 40).bfloat16()
    for start in (0, 8, 4, 2, 1, 3):
        call(run, wide[..., start : start + 16], *qkv(20)[1:])
    assert [dict(d)["ALIGN_q"] for d in cupy.compiled] == ["16", "8", "0"]


def test_long_strides_take_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(monkeypatch, SOURCE)
    run = launcher(SOURCE)
    q, k, v = qkv(9)
    far = torch.as_strided(q, q.shape, (2**31 + 8, *q.stride()[1:]))  # of a batch of one
    call(run, far, k, v)
    assert ("STRIDE", "long long") in cupy.compiled[0]


def test_shared_memory_beyond_48_kib_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    source = CupyBackend().emit(attention("flash", dtype="bfloat16", row=64, stream=64, depth=96, causal=True), TARGET)
    assert Call(source).shared > 48 << 10
    cupy = FakeCupy(monkeypatch, source)
    call(launcher(source), *[torch.randn(1, 1, 70, 96).bfloat16() for _ in range(3)])
    assert list(cupy.shared_limits.values()) == [Call(source).shared]


def test_nothing_to_do_and_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = FakeCupy(monkeypatch, SOURCE)
    run = launcher(SOURCE)
    q = torch.randn(0, 2, 20, 16).bfloat16()
    run([q, q, q], [q.clone()], [0, 2, 20, 20])
    with pytest.raises(InternalError, match="thread blocks are too many"):
        run([q, q, q], [q.clone()], [2**16, 2**12, 2**12, 2**12])
    assert cupy.launches == 0


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailable, match="the cupy backend launches through CuPy"):
        launcher(SOURCE)
