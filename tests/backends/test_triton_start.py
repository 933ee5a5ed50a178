"""Triton is made ready in a thread, once, and waited for."""

from __future__ import annotations

import threading

import pytest
import torch

import flashlight
from flashlight import backend as registry
from flashlight.backend import Startable, Target
from flashlight.backends.triton import TritonBackend, start


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch):
    """The threads that prepare, each held until ``go``."""
    threads, go = [], threading.Event()

    def prepare() -> None:
        go.wait(10)
        threads.append(threading.current_thread())

    monkeypatch.setattr(start, "_prepare", prepare)
    start._thread.cache_clear()
    yield threads, go
    go.set()
    start._thread.cache_clear()


def test_it_is_begun_once_and_waited_for(prepared) -> None:
    threads, go = prepared
    backend = TritonBackend()
    assert isinstance(backend, Startable)
    for _ in range(3):
        backend.start(Target("cuda", 90))  # returns, though nothing is done yet
    assert not threads
    go.set()
    start.wait()
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_what_was_not_begun_is_not_waited_for(prepared) -> None:
    TritonBackend().start(Target("cpu", interpret=True))
    start.wait()
    assert not prepared[0]


def test_a_failure_is_left_to_whom_it_concerns(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> None:
        raise OSError("no disk")

    monkeypatch.setattr(start, "remember_key", failing)
    start._prepare()


def test_only_calls_begin_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Target] = []
    monkeypatch.setattr(registry.get("cpu"), "start", begun.append, raising=False)
    fast, x = flashlight.optimize(lambda x: x.softmax(-1)), torch.randn(4, 8)
    fast.explain(x)
    assert not begun
    fast(x)
    assert [t.device for t in begun] == ["cpu"]
