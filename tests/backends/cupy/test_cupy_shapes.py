"""The kernels that try one rule each (padding, dots, places, loops, fills), through the cupy backend and the shim."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from flashlight.tile import Kernel
from tests.backends import test_triton_shapes as shapes
from tests.backends.cupy.shim import TARGET, ShimBackend

SHIM = ShimBackend()


def call(kernel: Kernel, inputs: Sequence[torch.Tensor], shape: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    out = torch.full(tuple(shape), 7, dtype=getattr(torch, kernel.outputs[0].dtype))
    SHIM.build(SHIM.emit(kernel, TARGET))(list(inputs), [out], list(sizes))
    return out


@pytest.fixture(autouse=True)
def by_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "call", call)
    monkeypatch.setattr(shapes, "TRITON", SHIM)
    monkeypatch.setattr(shapes, "HERE", TARGET)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("reductions_pad_with_the_identity", {"monoid": m, "columns": 5}) for m in ("sum", "prod", "max", "min")),
        ("reductions_pad_with_the_identity", {"monoid": "prod", "columns": 1}),
        *(("reductions_of_integers", {"monoid": "max", "dtype": t}) for t in ("int64", "int32", "uint8", "bool")),
        ("reductions_of_integers", {"monoid": "prod", "dtype": "int32"}),
        *(("dots_pad_with_zero", {"depth": k, "width": w, "mapped_": True}) for k, w in ((1, 7), (5, 32), (24, 1))),
        ("dots_pad_with_zero", {"depth": 5, "width": 7, "mapped_": False}),
        *(("dots_of_other_shapes", {"dims": dims}) for dims in ("if", "fi", "di", "dif")),
        ("a_spread_value_counts_every_point", {}),
        ("loads_at_strange_places", {}),
        ("loops_in_loops_and_states_that_change_places", {}),
        ("bfloat16_rounds_to_nearest", {}),
        *(("fills_of_every_size", {"fill": x, "added": True}) for x in (-math.inf, torch.finfo(torch.float32).min)),
        ("fills_of_every_size", {"fill": -1e9, "added": False}),
    ],
)
def test_shapes(name: str, arguments: dict[str, object]) -> None:
    getattr(shapes, f"test_{name}")(**arguments)
