"""Tilings by trial: what the model puts first, how the fastest is found, remembered and shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import flashlight
from flashlight import config, runtime, tune, variant
from flashlight.lower import Lowered, Tiling
from flashlight.roofline import Roofline, tilings
from flashlight.targets import HOPPER
from flashlight.testing import assert_close
from tests.end_to_end.test_parts import norm_args, variance_product

SIZES = (1, 2, 512, 64)


def causal(q, k, v):
    live = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~live, -torch.inf).softmax(-1) @ v


def window(q, k, v):
    i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    return (q @ k.mT).masked_fill((j > i) | (i - j >= 256), -torch.inf).softmax(-1) @ v


def documents(q, k, v):
    of = v[0, 0, :, 0]
    return (q @ k.mT).masked_fill(of[:, None] != of, -torch.inf).softmax(-1) @ v


def full(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def rows(q, k, v):
    return (q - q.mean(-1, keepdim=True)) * k


def lowered(program, shape=SIZES, dtype=torch.bfloat16) -> Lowered:
    fast = flashlight.optimize(program, backend="triton")
    args = [torch.randn(shape).to(dtype) for _ in range(3)]
    flat, spec = torch.utils._pytree.tree_flatten((tuple(args), {}))
    compiled = fast._compile(flat, spec, torch.device("cpu"), run=False)
    return compiled.generated[0].lowered[-1]


def sizes_of(low: Lowered, length: int, batch: int = 4) -> dict[str, int]:
    known = {"B": batch, "H": 16}
    return {n: known.get(n, length) for n in low.program.sizes}


@pytest.fixture
def remembered(monkeypatch, tmp_path):
    """A process that knows nothing, and a disk that does not either."""
    monkeypatch.setenv("FLASHLIGHT_CACHE", str(tmp_path / "store"))
    tune._known().clear()
    yield
    tune._known().clear()


# ---- the model -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", [causal, window, full], ids=lambda f: f.__name__)
def test_estimates_grow_with_the_lengths(program):
    low = lowered(program)
    times = [Roofline(low, HOPPER, sizes_of(low, n)).clocks(low.tiling) for n in (1024, 2048, 4096)]
    assert times[0] < times[1] < times[2]


def test_a_mask_saves_time():
    times = [
        Roofline(low, HOPPER, sizes_of(low, 4096)).clocks(low.tiling) for low in map(lowered, (window, causal, full))
    ]
    assert 3 * times[0] < times[1] < 0.7 * times[2]


@pytest.mark.parametrize("width", [64, 128])
def test_what_is_live_for_few_tiles_is_tried_with_shorter_ones(width):
    low = lowered(window, (1, 2, 512, width))
    found = tilings(low, HOPPER, sizes_of(low, 4096, batch=32), tune.LIMIT)
    assert {t.stream for t in found} == {32}
    assert {t.masked for t in found} == {False, True}


@pytest.mark.parametrize("program", [causal, full], ids=lambda f: f.__name__)
def test_long_loops_are_not_tried_with_shorter_tiles_or_masks_throughout(program):
    low = lowered(program)
    found = tilings(low, HOPPER, sizes_of(low, 16384, batch=32), 8)
    assert {t.rows[0] * t.stream for t in found} == {64 * 128}
    assert not any(t.masked for t in found)


def test_what_only_the_call_knows_is_tried_with_more_slack():
    low = lowered(documents)
    sizes = sizes_of(low, 16384, batch=8)
    model = Roofline(low, HOPPER, sizes)
    found = tilings(low, HOPPER, sizes, 8)
    assert max(map(model.clocks, found)) > 1.05 * model.clocks(low.tiling)
    assert (found[0].rows[0], found[0].stream) in {(128, 64), (64, 128)}


def test_what_only_the_call_knows_is_tried_once_and_not_with_masks_throughout():
    """Each trial takes two kernels, and most tiles of documents are full."""
    low = lowered(documents)
    sizes = sizes_of(low, 4096, batch=64)
    assert [(t.rows[0], t.stream) for t in tilings(low, HOPPER, sizes, tune.LIMIT)] == [(64, 32)]
    assert not any(t.masked for t in tilings(low, HOPPER, sizes, 16))


def test_few_programs_are_not_taken_to_wait_for_each_other():
    low = lowered(full)
    model = Roofline(low, HOPPER, sizes_of(low, 1024))  # one for every other processor
    assert model.clocks(Tiling((64,), 64)) < model.clocks(Tiling((128,), 64, 8))


def test_tilings_fit_the_device():
    low = lowered(full, (1, 2, 512, 128))
    small = Roofline(low, HOPPER.__class__("cuda", 80, 108, 60_000), sizes_of(low, 4096))
    assert small.clocks(Tiling((128,), 128, 8, 3)) == float("inf")
    assert Roofline(low, HOPPER, sizes_of(low, 4096)).clocks(Tiling((128,), 128, 8, 3)) < float("inf")


def test_nothing_is_tried_without_products():
    low = lowered(rows)
    assert tilings(low, HOPPER, sizes_of(low, 4096), 4) == ()


def test_products_have_tilings_of_their_own():
    low = lowered(lambda x, w, _: x[0, 0] @ w[0, 0].T, (1, 1, 600, 512))
    found = tilings(low, HOPPER, sizes_of(low, 4096), 4)
    assert found
    assert all(len(t.rows) == 2 and t != low.tiling for t in found)


# ---- masks throughout ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("program", [causal, window, full], ids=lambda f: f.__name__)
@pytest.mark.parametrize("length", [64, 200])
def test_one_loop_with_masks_is_right(program, length):
    fast = flashlight.optimize(program, backend="cpu", strict=True, tiling=Tiling((64,), 64, masked=True))
    args = [torch.randn(2, 2, length, 16) for _ in range(3)]
    assert_close(fast(*args), program(*(a.double() for a in args)), program(*args))
    assert all("full" not in line for line in fast.explain(*args).tiles)


# ---- trials ----------------------------------------------------------------------------------------------------------
def tuned(program, monkeypatch, clock):
    """The program on the CPU, tuned as if this were a GPU, with a clock that the test holds."""

    def tuner_for(backend, target, device, sizes):
        return tune.Tuner(backend, HOPPER, device, sizes, clock)

    monkeypatch.setattr(runtime, "tuner_for", tuner_for)
    return flashlight.optimize(program, backend="cpu", strict=True)


def args_of(length=300):
    return [torch.randn(1, 2, length, 16) for _ in range(3)]


def test_the_fastest_stays_and_the_next_process_knows(monkeypatch, remembered):
    asked = []

    def clock(calls):
        for call in calls:
            call()
        asked.append(len(calls))
        return [1.0, 0.9, 0.5, *([2.0] * (len(calls) - 3))]

    args, fast = args_of(), tuned(window, monkeypatch, clock)
    assert_close(fast(*args), window(*(a.double() for a in args)), window(*args))
    fast(*args)
    assert len(asked) == 1
    assert asked[0] >= 3
    trials = [line for line in fast.explain(*args).tilings if "ms" in line]
    assert len(trials) == asked[0]
    assert "0.5 ms" in trials[0]
    tune._known().clear()  # as a new process
    again = tuned(window, monkeypatch, clock)
    again(*args)
    assert len(asked) == 1
    assert again.explain(*args).tilings == fast.explain(*args).tilings
    again(*args_of(290))
    tuned(window, monkeypatch, clock)(*args_of(1200))  # longer by a power of two: another question
    assert len(asked) == 2


def test_passes_that_run_one_by_one_are_compiled_once_for_all_trials(monkeypatch, remembered):
    detect, separate, made = runtime.detect, variant.separate, []
    monkeypatch.setattr(runtime, "detect", lambda device, name: replace(detect(device, name), processors=1000))
    monkeypatch.setattr(variant, "separate", lambda *args: made.append(separate(*args)) or made[-1])
    tried = []

    def clock(calls):
        tried.extend(calls)
        return [float(k) for k in range(len(calls))]

    args, fast = norm_args(3, 3000), tuned(variance_product, monkeypatch, clock)
    assert_close(fast(*args), variance_product(*(a.double() for a in args)), variance_product(*args))
    assert len(tried) > 1
    assert len(made) == 1


def test_what_is_hardly_faster_changes_nothing(monkeypatch, remembered):
    fast = tuned(window, monkeypatch, lambda calls: [1.0, *([0.99] * (len(calls) - 1))])
    args = args_of()
    plain = flashlight.optimize(window, backend="cpu").explain(*args).tilings[0]
    fast(*args)
    assert fast.explain(*args).tilings[0].startswith(plain)


def test_a_tiling_that_fails_is_told_and_does_no_harm(monkeypatch, remembered):
    make = tune.Tuned.chosen

    def chosen(self, env, sizes):
        other, tried = self.make, []

        def fails_first(tiling):
            tried.append(tiling)
            if len(tried) == 1:
                raise RuntimeError("too many registers")
            return other(tiling)

        self.make = fails_first
        return make(self, env, sizes)

    monkeypatch.setattr(tune.Tuned, "chosen", chosen)
    fast = tuned(window, monkeypatch, lambda calls: [float(k) for k in range(1, len(calls) + 1)])
    args = args_of()
    assert_close(fast(*args), window(*(a.double() for a in args)), window(*args))
    assert any("RuntimeError: too many registers" in line for line in fast.explain(*args).tilings)


def test_the_schedulers_own_failure_is_raised(monkeypatch, remembered):
    fast = tuned(window, monkeypatch, lambda calls: [1.0] * len(calls))
    broken = lambda self, env, sizes: (_ for _ in ()).throw(RuntimeError("does not run"))  # noqa: E731
    monkeypatch.setattr("flashlight.variant.Divisible.__call__", broken)
    with pytest.raises(RuntimeError, match="does not run"):
        fast(*args_of())


def test_tuning_is_for_gpus_and_can_be_turned_off():
    cpu = torch.device("cpu")
    with config.TUNE.set(True):
        assert tune.tuner_for("triton", HOPPER, torch.device("cuda"), {}) is not None
    assert tune.tuner_for("cpu", HOPPER, cpu, {}) is None
    with config.TUNE.set(False):
        assert tune.tuner_for("triton", HOPPER, torch.device("cuda"), {}) is None


def test_the_switch_says_what_it_takes(monkeypatch):
    monkeypatch.setenv("FLASHLIGHT_TUNE", "maybe")
    with pytest.raises(ValueError, match="FLASHLIGHT_TUNE='maybe': expected on or off"):
        config.TUNE.get()
