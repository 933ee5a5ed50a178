"""Calls like ones before: the same launches with other addresses, and what makes a call unlike the others."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import flashlight
from flashlight import backend as registry
from flashlight import runtime
from flashlight.backends.cpu import CpuBackend
from tests.end_to_end import test_loaded_masks as loaded
from tests.end_to_end.test_parts import decode, norm_args, parts, variance_product

ISSUED: list[int] = []


class Addressed(CpuBackend):
    """The CPU's kernels, which take addresses as a GPU's do."""

    def build(self, source: Any) -> Any:
        return Run(super().build(source))


class Run:
    def __init__(self, run: Callable[..., None]):
        self.run = run

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> None:
        self.run(inputs, outputs, sizes)

    def bound(self, inputs: Sequence[Any], outputs: Sequence[Any], sizes: Sequence[int]) -> Callable[..., None]:
        like = [(x.dtype, x.shape, x.stride()) for x in (*inputs, *outputs)]

        def issue(addresses: Sequence[int]) -> None:
            ISSUED.append(len(addresses))
            made = [at(a, *x) for a, x in zip(addresses, like, strict=True)]
            self.run(made[: len(inputs)], made[len(inputs) :], sizes)

        return issue


def at(address: int, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> torch.Tensor:
    assert address % 16 == 0
    elements = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    memory = (ctypes.c_char * (elements * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(tuple(shape), tuple(stride))


@pytest.fixture(autouse=True)
def addressed(monkeypatch):
    monkeypatch.setitem(registry.BUILTIN, "addressed", "tests.flashlight.test_replay:Addressed")
    detect = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: detect(device, "cpu"))
    ISSUED.clear()


def optimized(fn: Any) -> Any:
    return flashlight.optimize(fn, backend="addressed", strict=True)


def calls(fn: Any, makes: Callable[[], Sequence[Any]], times: int = 4, **kwargs: Any) -> Any:
    """Call with new values each time: the third call is the first that is a repetition."""
    fast = optimized(fn)
    for k in range(times):
        args = makes()
        issued = len(ISSUED)
        got, want = fast(*args, **kwargs), fn(*args, **kwargs)
        torch.testing.assert_close(got, want)
        assert (len(ISSUED) > issued) == (k >= 2)
    return fast


def attention(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v


def three(*shape: int) -> Callable[[], list[torch.Tensor]]:
    return lambda: [torch.randn(shape or (2, 3, 40, 16)) for _ in range(3)]


def test_one_kernel():
    calls(attention, three())
    assert set(ISSUED) == {4}


def test_no_call_makes_its_results_twice(monkeypatch):
    make, made = torch.empty_like, []
    fast = optimized(attention)
    fast(*three()())
    monkeypatch.setattr(torch, "empty_like", lambda x, **kwargs: made.append(tuple(x.shape)) or make(x, **kwargs))
    for _ in range(3):  # what is run, what is looked at to be repeated, what is repeated
        fast(*three()())
        assert made.count((2, 3, 40, 16)) == 1
        made.clear()


def test_kernels_that_read_what_others_wrote():
    calls(loaded.document_and_causal, lambda: loaded.inputs(300))
    assert len(ISSUED) == 4  # a finder and what it finds for, twice


def test_parts_of_few_rows(monkeypatch):
    here = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(here(device, name), processors=1000))
    fast = calls(decode, lambda: (torch.randn(2, 4, 1, 16), torch.randn(2, 2, 1100, 16), torch.randn(2, 2, 1100, 16)))
    assert parts(fast) > 1


def test_passes_of_few_rows(monkeypatch):
    here = runtime.detect
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(here(device, name), processors=1000))
    fast = calls(variance_product, lambda: norm_args(3, 1100))
    assert len(ISSUED) == 8  # two passes, each in parts that are merged, twice
    assert parts(fast) > 1


def test_several_results_some_of_them_arguments_or_numbers():
    def program(q, k, v):
        s = q @ k.mT
        return {"out": torch.softmax(s, -1) @ v, "lse": torch.logsumexp(s, -1), "keys": k, "length": q.shape[-2]}

    fast = calls(program, three())
    q, k, v = three()()
    assert fast(q, k, v)["keys"] is k


def test_arguments_by_name_and_plain_ones():
    def program(q, k, v, *, scale=1.0):
        return torch.softmax(q @ k.mT * scale, -1) @ v

    calls(program, three(), scale=0.5)


def test_what_a_module_holds_is_looked_up_each_time():
    module = torch.nn.Linear(16, 16)
    fast = optimized(module)
    x = torch.randn(5, 16)
    with torch.no_grad():
        for k in range(5):
            module.weight.data = torch.randn(16, 16) if k < 4 else torch.randn(16, 16).T
            issued = len(ISSUED)
            torch.testing.assert_close(fast(x), module(x))
            assert (len(ISSUED) > issued) == (k in (2, 3))  # then it has other strides


def test_other_shapes_and_strides_are_other_calls():
    fast = calls(attention, three())
    turned = [x.mT.contiguous().mT for x in three()()]
    longer = three(2, 3, 57, 16)()
    for args in (turned, longer):
        issued = len(ISSUED)
        for _ in range(2):
            torch.testing.assert_close(fast(*args), attention(*args))
        assert len(ISSUED) == issued
        torch.testing.assert_close(fast(*args), attention(*args))
        assert len(ISSUED) == issued + 1


def test_addresses_that_no_kernel_was_made_for():
    fast = calls(attention, three())
    q, k, v = three()()
    off = torch.randn(q.numel() + 1)[1:].view_as(q)
    issued = len(ISSUED)
    torch.testing.assert_close(fast(off, k, v), attention(off, k, v))
    assert len(ISSUED) == issued
    fast = optimized(attention)
    for _ in range(4):
        torch.testing.assert_close(fast(off, k, v), attention(off, k, v))
    assert len(ISSUED) == issued  # nothing is known from calls with such addresses


def test_what_is_not_only_launches_is_run_as_it_was():
    def program(q, k, v):
        q.mul_(0.5)
        return attention(q, k, v)

    fast = optimized(program)
    for _ in range(4):
        args = three()()
        again = [x.clone() for x in args]
        torch.testing.assert_close(fast(*args), program(*again))
        torch.testing.assert_close(args[0], again[0])
    assert not ISSUED


def test_results_are_each_calls_own():
    fast = optimized(attention)
    results = [(fast(*args), attention(*args)) for args in (three()() for _ in range(5))]
    for got, want in results:
        torch.testing.assert_close(got, want)
