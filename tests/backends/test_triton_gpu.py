"""The triton backend on a GPU: results, layouts, what a call costs."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest
import torch

import flashlight
from benchmarks.workloads import WORKLOADS, Shape
from flashlight import tune
from flashlight._conformance import attention, block, ceildiv
from flashlight.backend import Target
from flashlight.backends.triton import TritonBackend, launch
from flashlight.expr import Const, Expr, Index, Size, apply
from flashlight.testing import assert_close
from flashlight.tile import Buffer, Carry, Dim, Kernel, LoadOp, Loop, ReduceOp, Segment, Stmt, Store
from tests.end_to_end import test_caches as caches
from tests.end_to_end import test_listed_tiles as listed
from tests.end_to_end import test_loaded_masks as loaded
from tests.end_to_end import test_long_contractions as long

pytestmark = pytest.mark.gpu
TRITON = TritonBackend()
N = Size("N")


def target() -> Target:
    major, minor = torch.cuda.get_device_capability()
    return Target("cuda", 10 * major + minor, 132, 232448)


def built(kernel: Kernel):  # type: ignore[no-untyped-def]
    return TRITON.build(TRITON.emit(kernel, target()))


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = True) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


@pytest.mark.parametrize("depth", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_attention_of_real_sizes(depth: int, dtype: str) -> None:
    stream = 32 if dtype == "float32" or depth == 256 else 64
    kernel = attention(causal=True, dtype=dtype, depth=depth, row=64, stream=stream)
    q, k, v = (torch.randn(2, 3, 333, depth, device="cuda", dtype=getattr(torch, dtype)) for _ in range(3))
    out = torch.empty_like(q)
    built(kernel)([q, k, v], [out], [2, 3, 333, 333])
    assert_close(out.cpu(), exact(q.double(), k.double(), v.double()).cpu(), exact(q, k, v).cpu(), what="attention")


def test_lengths_share_a_compilation_and_layouts_do_not() -> None:
    run = built(attention(dtype="bfloat16", depth=64, row=64, stream=64))

    def call(n: int, inside: bool = False, shift: int = 0) -> None:
        def tensor() -> torch.Tensor:
            flat = torch.randn(2 * 3 * n * 64 + shift, device="cuda").bfloat16()[shift:]
            return flat.view(2, n, 3, 64).transpose(1, 2) if inside else flat.view(2, 3, n, 64)

        q, k, v = tensor(), tensor(), tensor()
        out = torch.empty(2, 3, n, 64, device="cuda", dtype=torch.bfloat16)
        run([q, k, v], [out], [2, 3, n, n])
        torch.testing.assert_close(out, exact(q.clone(), k.clone(), v.clone(), False), rtol=2e-2, atol=2e-2)

    for n in (64, 100, 1, 257, 1000):
        call(n)
    assert len(run.kernels) == 1
    for n in (64, 100):
        call(n, inside=True)
    assert len(run.kernels) == 1  # no stride is a literal: the same code serves
    call(64, shift=1)
    assert len(run.kernels) == 2  # pointers that are no multiples of 16 bytes
    call(100, shift=1)
    assert len(run.kernels) == 2


def test_a_tensor_beyond_32_bits() -> None:
    """Rows that lie further apart than 32 bits reach, summed along a streamed axis."""
    free, _ = torch.cuda.mem_get_info()
    length, far = 1 << 15, 1 << 17
    if free < length * far * 2 * 1.1:
        pytest.skip("needs 9 GB")
    j = Index("j")
    trip: tuple[Stmt, ...] = (
        block("x_tile", "j", "float32", LoadOp("x", (j, Const(0)), ("j",))),
        block("part", "", "float32", ReduceOp("sum", "x_tile", "j")),
        block("s_next", "", "float32", apply("add", _ref("s"), _ref("part"))),
    )
    loop = Loop("j", (Carry("s", (), "float32", 0.0, "s_next"),), (Segment("full", Const(0), ceildiv(N, 64), trip),))
    kernel = Kernel(
        "far", ("N",), (Buffer("x", "float32", (N, Const(1))),), (Buffer("y", "float32", ()),), (),
        (Dim("j", 64, N, "stream"),), (loop, Store("y", (), "s")),
    )  # fmt: skip
    run = built(kernel)
    storage = torch.zeros(length * far, dtype=torch.float16, device="cuda").view(torch.float32)
    x = storage.as_strided((length, 1), (far // 2, 1))
    x.fill_(1.0)
    y = torch.empty((), device="cuda")
    for n in (100, length):  # the second is too long for the first one's code
        run([x[:n]], [y], [n])
        assert y.item() == n
    assert len(run.kernels) == 1 + (length * far // 2 >= 2**31)


def _ref(name: str) -> Expr:
    from flashlight.expr import Ref

    return Ref(name)


def test_a_call_costs_little_more_than_a_launch() -> None:
    run = built(attention(dtype="bfloat16", depth=64, row=64, stream=64))
    q, k, v = (torch.randn(1, 2, 64, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = torch.empty_like(q)
    inputs, outputs, sizes = (q, k, v), (out,), (1, 2, 64, 64)
    run(inputs, outputs, sizes)
    known = next(iter(run.ready.values()))
    arguments, stream = [*(t.data_ptr() for t in (q, k, v, out)), *sizes], run.stream(0)

    def bare() -> None:
        known.start((1, 2, 1), stream, arguments)

    def cost(call) -> float:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(30):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                call()
            times.append((time.perf_counter() - start) / 50)
        return statistics.median(times)

    assert cost(lambda: run(inputs, outputs, sizes)) - cost(bare) < 15e-6


def test_calls_with_tiles_to_find_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of blocks are shorter than the sizes that are looked at: no call but the first examines strides."""
    prepared: list[object] = []
    first = launch._Launcher.prepared
    monkeypatch.setattr(launch._Launcher, "prepared", lambda *args: prepared.append(args[1]) or first(*args))
    fast = flashlight.optimize(loaded.document_and_causal, backend="triton", strict=True)
    args = [x.cuda() for x in loaded.inputs(500, heads=2)]
    fast(*args)
    assert prepared
    prepared.clear()
    for _ in range(3):
        fast(*args)
    assert not prepared


def test_registers_that_were_withheld_are_not_sought_in_strides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each kernel is compiled once, also where one more program may share the multiprocessor."""
    from triton import knobs

    names: list[str] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda *, src, **_: names.append(src.name))
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("FLASHLIGHT_TUNE", "0")
    monkeypatch.setenv("FLASHLIGHT_CACHE", str(tmp_path))
    workload, shape = WORKLOADS["document_causal"], Shape.parse("1,2,256,64")
    args = workload.make(shape, torch.bfloat16, torch.device("cuda"))
    flashlight.optimize(workload.function(shape), strict=True)(*args)
    assert sorted(names) == ["nest0", "nest0_classes"]


def test_axes_longer_than_a_grid_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then all of them lie along the first dimension, by code of its own."""
    q, k, v = (torch.randn(2, 3, 200, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    outs = []
    run = built(attention(causal=True, dtype="bfloat16", depth=64, row=64, stream=64))
    for widest in (65535, 2):
        monkeypatch.setattr(launch, "WIDEST", widest)
        outs.append(torch.empty_like(q))
        run([q, k, v], [outs[-1]], [2, 3, 200, 200])
    assert torch.equal(*outs)
    assert len(run.kernels) == 2
    many = torch.randn(1, 70_000, 5, 16, device="cuda")
    fast = flashlight.optimize(lambda q: torch.softmax(q @ q.mT, -1) @ q, backend="triton", strict=True)
    torch.testing.assert_close(fast(many), torch.softmax(many @ many.mT, -1) @ many, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("fn", long.PROGRAMS, ids=lambda f: f.__name__)
def test_contractions_in_strips(fn, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """Columns that are no multiple of a block, fewer than one, and only whole blocks; one compiled function."""
    fast = flashlight.optimize(fn, strict=True)
    for rows, columns in ((700, 1111), (130, 3), (256, 2048)):
        args = tuple(x.cuda() for x in long.arguments(rows, columns, 1024, dtype))
        long.agrees(fn, args, fast)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("fn", [long.attention, long.causal], ids=lambda f: f.__name__)
def test_values_beside_strips(fn, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    fast = flashlight.optimize(fn, strict=True)
    for length in (700, 1024):
        long.agrees(fn, tuple(x.cuda() for x in long.heads(length, 640, dtype)), fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fn", caches.PROGRAMS, ids=lambda f: f.__name__)
def test_one_of_two_tensors(fn, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    with torch.device("cuda"):
        fast = flashlight.optimize(fn, backend="triton", strict=True)
        for new, past in ((70, 100), (1, 900), (333, 7)):
            caches.agrees(fn, [x.cuda() for x in caches.arguments(new, past, dtype)], fast)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", listed.PROGRAMS)
def test_listed_tiles(name: str, dtype: torch.dtype) -> None:
    """Lists of one place and of many, of partial and of full tiles, empty ones too."""
    fn = listed.PROGRAMS[name]
    for backend in ("triton", "cupy"):
        fast = flashlight.optimize(fn, backend=backend, strict=True)
        for n in (100, 1024, 2500):
            args = [x.cuda() for x in listed.inputs(n, dtype)]
            own, exact_ = fn(*args), fn(*(x.double() if x.is_floating_point() else x for x in args))
            assert_close(fast(*args).cpu(), exact_.cpu(), own.cpu(), what=f"{name} at {n} on {backend}")


def test_a_trial_times_the_gpu_and_not_python() -> None:
    """A call that Python takes long to issue, for a kernel that takes a few microseconds."""
    x = torch.zeros(1 << 16, device="cuda")

    def call() -> None:
        time.sleep(5e-4)
        x.add_(1.0)

    (ms,) = tune.events([call], x.device)
    assert ms < 0.1
