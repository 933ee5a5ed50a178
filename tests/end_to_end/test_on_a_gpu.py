"""Every spelling and every variant on a GPU, by both of its backends: values within twice eager's error, nothing more
unfused than elsewhere."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

import flashlight
from flashlight.targets import place
from flashlight.testing import assert_close
from tests.end_to_end import test_operators, test_places
from tests.spellings import SPELLINGS
from tests.variants import VARIANTS

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
DTYPES = [torch.float32, torch.bfloat16]
RUNNING = [
    test_operators.stick_breaking,
    test_operators.running_scores,
    test_operators.contextual_positions,
    test_operators.forgetting,
    test_operators.running,
]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings(), torch.no_grad(), torch.device(DEVICE):
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.fixture(params=["triton", "cupy"])
def backend(request):
    found, why = place(request.param, torch.device(DEVICE))
    if found is None or found.type != DEVICE:
        pytest.skip(why or f"{request.param} takes no CUDA tensors here")
    return request.param


def there(arguments):
    """What ``arguments()`` makes, on the GPU.  It is made on the CPU: the tests' generators are there."""
    with torch.device("cpu"):
        made = arguments()
    return tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), made)


def exact(args):
    return tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, args)


def close(backend, program, reference, args, strict=True):
    """``reference``: the program for float64 arguments."""
    got = tree_leaves(flashlight.optimize(program, backend=backend, strict=strict)(*args))
    wants, owns = tree_leaves(reference(*exact(args))), tree_leaves(program(*args))
    for k, (out, want, own) in enumerate(zip(got, wants, owns, strict=True)):
        assert out.device.type == DEVICE
        assert_close(out.cpu(), want.cpu(), own.cpu(), what=f"output {k}")


@pytest.mark.parametrize("key", [v.key for v in VARIANTS.values() if not v.slow])
def test_variants(key, backend):
    v = VARIANTS[key]
    close(backend, v.program, v.program, there(v.arguments), strict=not v.unfused and not v.declined)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("key", [k for k, s in SPELLINGS.items() if not s.fails])
def test_spellings(key, dtype, backend):
    s = SPELLINGS[key]
    if dtype not in s.dtypes:
        pytest.skip("this spelling is tried in float32 only")
    program, reference = s.program(dtype), s.program(torch.float64)
    if isinstance(program, torch.nn.Module):
        program, reference = program.to(DEVICE), reference.to(DEVICE)
    close(backend, program, reference, there(lambda: s.arguments(dtype)))


@pytest.mark.parametrize("program", test_places.PROGRAMS, ids=lambda f: f.__name__)
def test_places_in_an_order(program, backend):
    torch.manual_seed(0)
    x, y, v = (torch.randn(2, 2, 1000, 64) for _ in range(3))
    fast = flashlight.optimize(program, backend=backend, strict=True)
    for p, q in zip(tree_leaves(fast(x, y, v)), tree_leaves(program(x, y, v)), strict=True):
        same = p == q if p.dtype == torch.int64 else torch.isclose(p, q, atol=1e-3, rtol=1e-3)
        assert same.float().mean() > 0.99  # places may differ where scores differ in their last bits only


@pytest.mark.parametrize("program", RUNNING, ids=lambda f: f.__name__)
def test_running_sums(program, backend):
    torch.manual_seed(0)
    close(backend, program, program, (torch.randn(2, 4, 1500), *(torch.randn(2, 4, 1500, 64) for _ in range(3))))
