"""Programs compared across backends: what is off is found, named, and told with its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashlight import backend as registry
from flashlight.__main__ import main
from flashlight.backend import Source, Target
from flashlight.backends.cpu import CpuBackend
from flashlight.equivalence import compare
from flashlight.errors import BackendUnavailable, UnknownBackend
from flashlight.testing import assert_equivalent
from flashlight.tile import Kernel
from tests.programs import causal, inputs, layer_norm


class Off(CpuBackend):
    """The cpu backend, but for the last row of what a kernel writes."""

    name = "off"
    value = "1e-3"

    def emit(self, kernel: Kernel, target: Target) -> Source:
        source = super().emit(kernel, target)
        text = source.text.replace(f"def {source.entry}(", "def right(")
        wrong = f"def {source.entry}(inputs, outputs, sizes):\n    right(inputs, outputs, sizes)\n"
        return replace(source, text=f"{text}\n\n{wrong}    outputs[0][..., -1, 2] += {self.value}\n")


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> type[Off]:
    monkeypatch.setitem(registry.BUILTIN, "off", f"{__name__}:Off")
    monkeypatch.setattr(registry, "get", lambda name, real=registry.get: Off() if name == "off" else real(name))
    return Off


def test_what_is_equivalent() -> None:
    args = inputs("causal", 20)
    found = compare(causal, args)
    assert found.ran == ("cpu",)
    assert not found.problems
    assert {name for name, _ in found.absent} >= {"cupy"}
    eager, cpu = found.differences
    assert 0 < eager.error < 1e-5
    assert 0 < cpu.error <= cpu.allowed
    assert str(found).endswith("equivalent: cpu")
    assert_equivalent(causal, args)
    x, weight, bias = inputs("layer_norm", 5)
    assert_equivalent(layer_norm, [x], {"weight": weight, "bias": bias})


def test_what_is_off_is_named_with_its_place(off: type[Off]) -> None:
    args = inputs("causal", 20)
    found = compare(causal, args, backends=["cpu", "off"])
    (wrong,) = found.problems
    assert (wrong.by, wrong.output, wrong.where[2:]) == ("off", 0, (19, 2))
    assert wrong.error == pytest.approx(1e-3, rel=1e-2)
    assert str(found).endswith("not equivalent: off")
    with pytest.raises(
        AssertionError, match=r"off on cpu, output 0: largest difference 0\.001 at \[\d, \d, 19, 2\]; NOT within"
    ):
        assert_equivalent(causal, args, backends=["cpu", "off"])
    assert_equivalent(causal, args, backends=["cpu"])


def test_nan_in_one_place_counts_most(off: type[Off], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(off, "value", "float('nan')")
    (wrong,) = compare(causal, inputs("causal", 20), backends=["off"]).problems
    assert wrong.where[2:] == (19, 2)
    assert "NaN is not where eager has it" in wrong.problem


def test_arguments_are_left_alone() -> None:
    def inplace(x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2).softmax(-1)

    x = torch.randn(5, 30)
    before = x.clone()
    assert_equivalent(inplace, [x])
    assert torch.equal(x, before)


def test_what_runs_unfused_is_told() -> None:
    found = compare(lambda x: x.sort(-1).values.softmax(-1), [torch.randn(4, 30)], backends=["cpu"])
    assert [name for name, _ in found.unfused] == ["cpu"]
    assert "cpu ran part of it unfused: " in str(found)


def test_backends_that_cannot_run_or_do_not_exist() -> None:
    args = inputs("causal", 5)
    with pytest.raises(BackendUnavailable, match="backend 'cupy': the cupy backend runs on CUDA tensors"):
        assert_equivalent(causal, args, backends=["cpu", "cupy"])
    with pytest.raises(UnknownBackend, match="there is no backend 'nope'"):
        compare(causal, args, backends=["nope"])


PROGRAM = """
import torch

def attention(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v

def example_inputs():
    return tuple(torch.randn(1, 2, 9, 8) for _ in range(3))
"""


def test_the_command(off: type[Off], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    assert main(["verify", f"{file}:attention"]) == 1  # the registry has a backend that is off
    told = capsys.readouterr().out
    assert "cpu on cpu, output 0: largest difference" in told
    assert told.rstrip().endswith("not equivalent: off")
    assert main(["verify", f"{file}:attention", "--backend", "cpu", "--shapes", "2,7,8;2,9,8;2,9,8"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("equivalent: cpu")
    assert main(["verify", f"{file}:attention", "--backend", "cupy"]) == 1
    assert "cupy took no part: " in capsys.readouterr().out
    assert main(["verify", f"{file}:nothing"]) == 1
    assert "defines no function 'nothing'" in capsys.readouterr().err
