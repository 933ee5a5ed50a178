"""Wrong input: one clear error or a reported fallback, a case a test."""

from __future__ import annotations

import warnings

import pytest
import torch

import flashlight
from flashlight.errors import (
    BackendUnavailable,
    CaptureError,
    DataDependent,
    FallbackRefused,
    InvalidInput,
    UnknownBackend,
)
from flashlight.runtime import FallbackWarning
from tests.programs import CASES, inputs

attention = CASES["softmax_attention"].fn


def test_unknown_backend_lists_those_that_exist():
    with pytest.raises(UnknownBackend, match=r"no backend 'tritn'.*cpu.*triton"):
        flashlight.optimize(attention, backend="tritn")


def test_a_gpu_backend_on_cpu_tensors(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="triton"):
        flashlight.optimize(attention, backend="triton")(*inputs("softmax_attention", 8, 8))


def test_not_a_program():
    with pytest.raises(InvalidInput, match="not int"):
        flashlight.optimize(3)


def test_ranks_that_disagree():
    q, k, v = inputs("softmax_attention", 8, 8)
    with pytest.raises(InvalidInput, match=r"programs\.py"):
        flashlight.optimize(attention)(q, k[0, 0, :, :3], v)


def test_dtypes_that_disagree():
    q, k, v = inputs("softmax_attention", 8, 8)
    with pytest.raises(InvalidInput, match=r"dtype|type"):
        flashlight.optimize(attention)(q, k.double(), v)


def test_devices_that_disagree():
    q, k, v = inputs("softmax_attention", 8, 8)
    with pytest.raises(InvalidInput, match=r"different devices: cpu, meta"):
        flashlight.optimize(attention)(q, k.to("meta"), v)


def test_no_tensor_argument():
    with pytest.raises(InvalidInput, match="no argument is a tensor"):
        flashlight.optimize(lambda a: a + 1)(3)


def test_no_tensor_result():
    with pytest.raises(CaptureError, match="returns no tensor"):
        flashlight.optimize(lambda a: 3)(torch.randn(4))


def branchy(x):
    if x.sum() > 0:
        return torch.softmax(x, -1)
    return x


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_arguments_run_eagerly_and_say_so(make):
    def program(a, b):
        return torch.softmax(a @ b, -1)

    a, b = make(torch.randn(5, 5)), torch.randn(5, 6)
    with pytest.warns(FallbackWarning, match=r"argument 0 is a sparse_\w+ tensor.*to_dense"):
        torch.testing.assert_close(flashlight.optimize(program)(a, b), program(a, b))
    with pytest.raises(FallbackRefused, match="argument 0 is a sparse"):
        flashlight.optimize(program, strict=True)(a, b)
    with pytest.raises(InvalidInput, match="argument 0 is a sparse"):
        flashlight.explain(program, a, b)


def test_nested_arguments_run_eagerly_and_say_so():
    ragged = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)], layout=torch.jagged)
    with pytest.warns(FallbackWarning, match=r"argument 0 is a nested tensor.*to_padded_tensor"):
        out = flashlight.optimize(lambda a, b: a @ b)(ragged, torch.randn(5, 6))
    assert out.is_nested


def test_views_that_negate_run_eagerly_and_say_so():
    """The imaginary parts of a conjugate have the memory of what they are the negatives of."""
    fast = flashlight.optimize(lambda a: torch.softmax(a, -1))
    a = torch.randn(4, 7, dtype=torch.complex64)
    for x in (a.imag, a.conj().imag.clone().t().contiguous().t()):
        torch.testing.assert_close(fast(x), torch.softmax(x, -1))
    with pytest.warns(FallbackWarning, match=r"argument 0 is the negative.*resolve_neg"):
        torch.testing.assert_close(fast(a.conj().imag), torch.softmax(-a.imag, -1))


def test_data_dependent_control_flow_runs_eagerly_and_says_so():
    fast, x = flashlight.optimize(branchy), torch.randn(4, 8)
    with pytest.warns(FallbackWarning, match=r"test_errors.py"):
        out = fast(x)
    torch.testing.assert_close(out, branchy(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(x)  # warns once
    with pytest.raises(DataDependent, match=r"test_errors.py"):
        flashlight.optimize(branchy, strict=True)(x)


def middle(q, k, v):
    s = torch.sort(q @ k.transpose(-1, -2), dim=-1).values
    return torch.softmax(s, -1) @ v


def test_an_unsupported_operator_ends_the_region_not_the_program():
    args = inputs("softmax_attention", 9, 17)
    fast = flashlight.optimize(middle)
    with pytest.warns(FallbackWarning, match=r"sort"):
        out = fast(*args)
    torch.testing.assert_close(out, middle(*args))
    report = fast.explain(*args)
    assert len(report.fallbacks) == 1
    assert "programs.py" in str(report.fallbacks[0]) or "test_errors.py" in str(report.fallbacks[0])
    with pytest.raises(FallbackRefused, match="sort"):
        flashlight.optimize(middle, strict=True)(*args)
