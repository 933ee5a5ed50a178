"""Every spelling: one kernel, no fallback, that of its group, right values; and the page that says so is up to date."""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from math import prod

import pytest
import torch
from torch.utils._pytree import tree_leaves

import flashlight
from docs import generate_spellings
from flashlight import backend
from flashlight.canonical import canonical
from flashlight.lengths import value_at
from flashlight.pipeline import Record, generate
from flashlight.targets import assumed
from flashlight.tile import Let, LoadOp, Loop
from tests.programs import error_within_twice_eager
from tests.spellings import GROUPS, SPELLINGS

GROUP = {g.name: g for g in GROUPS}
FIRST = {g.name: g.spellings[0].key for g in GROUPS}


CAST = re.compile(r"dtype|\.to\(|float|type_as")
CASTS = {k for k, s in SPELLINGS.items() if CAST.search(inspect.getsource(s.source)) or k in FIRST.values()}


def marked(*, slow=()):
    """Spellings as parameters; what is known to fail has to fail, so that the table is told when it does not."""

    def marks(key):
        fails = SPELLINGS[key].fails
        return [pytest.mark.xfail(strict=True, reason=fails)] * bool(fails) + [pytest.mark.slow] * (key in slow)

    return [pytest.param(k, marks=marks(k)) for k in SPELLINGS]


@pytest.fixture(autouse=True)
def loud():
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UserWarning)
        yield


@functools.cache
def compiled(key):
    """The result of a first call, how many nests it takes and how many scores they compute, and the canonical texts of
    their kernels as the cpu and the triton backend get them."""
    s = SPELLINGS[key]
    fast = flashlight.optimize(s.program(), strict=True)
    out = fast(*s.arguments())
    (variant,) = fast._variants
    kernels = [low.kernel for g in variant.generated for low in g.lowered]
    made = [generate(a, assumed("triton"), backend.get("triton"), Record()) for a in variant.analyses]
    assert not any(g.declined for g in made), [g.declined for g in made]
    assert all("@triton.jit" in x.text for g in made for x in g.sources)
    texts = [text_of(k) for k in (*kernels, *(low.kernel for g in made for low in g.lowered))]
    captured = variant.lifted.captured
    sizes = dict(zip(captured.names, captured.actual, strict=True))
    nests = sum(len(a.plan.nests) for a in variant.analyses)
    return out, nests, sum(exponentials(k, sizes) for k in kernels), "\n".join(texts)


def text_of(kernel):
    """The canonical text, and what a kernel's text leaves out."""
    k = canonical(kernel)
    loops = [g.body for x in k.body if isinstance(x, Loop) for g in x.segments]
    outside = [x.op.other for body in (k.body, *loops) for x in body if isinstance(x, Let) and isinstance(x.op, LoadOp)]
    return f"{k}\n  {k.warps} warps, {k.stages} stages, reverse {[g.reverse for g in k.grid]}, outside {outside}"


def exponentials(kernel, sizes):
    """How many scores exp is taken of: the points of the blocks that are more than a column of rows."""
    extent = {x.axis: value_at(x.extent, sizes) for x in (*kernel.dims, *kernel.grid)}
    batch = prod(extent[g.axis] for g in kernel.grid if g.block == 1)
    streamed = {d.axis for d in kernel.dims if d.role == "stream"}
    loops = [x.segments[0].body for x in kernel.body if isinstance(x, Loop)]
    lets = [x for body in (kernel.body, *loops) for x in body if isinstance(x, Let) and "exp" in str(x.op)]
    blocks = [x.dims for x in lets if len(x.dims) > 1 or streamed & set(x.dims)]
    return sum(batch * prod(extent[a] for a in dims) for dims in blocks)


@pytest.mark.parametrize("key", marked())
def test_one_kernel_that_of_the_group(key):
    s = SPELLINGS[key]
    out, kernels, scores, text = compiled(key)
    assert (kernels, round(scores / GROUP[s.group].scores)) == (s.kernels, s.repeats), "tell the table"
    ok, ours, eager = error_within_twice_eager(s.reference(torch.float32), tree_leaves(s.arguments()), out)
    assert ok, (ours, eager)
    if s.apart:
        assert text != compiled(FIRST[s.group])[3], "the kernel is the group's now: drop the reason from the table"
    else:
        assert text == compiled(FIRST[s.group])[3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("key", marked(slow=SPELLINGS.keys() - CASTS))
def test_sixteen_bits(key, dtype):
    s = SPELLINGS[key]
    if dtype not in s.dtypes:
        pytest.skip("this spelling is tried in float32 only")
    out = flashlight.optimize(s.program(dtype), strict=True)(*s.arguments(dtype))
    assert out.dtype == s.program(dtype)(*s.arguments(dtype)).dtype
    ok, ours, eager = error_within_twice_eager(s.reference(dtype), tree_leaves(s.arguments(dtype)), out)
    assert ok, (ours, eager)


def test_keys_permuted_straight_with_as_many_tokens_as_heads():
    """Where the lengths agree, keys bound before their permutation have the right shape: torch.compile 2.14.1 is off by
    2 here (pytorch issue 195320).  The same function then takes other lengths."""
    s = SPELLINGS["coincidence.keys_straight"]
    fast = flashlight.optimize(s.program(), strict=True)
    for shape in ((2, 16, 16, 32), (2, 7, 7, 32), (3, 16, 4, 32), (1, 5, 16, 32)):
        args = [torch.randn(shape) for _ in range(3)]
        ok, ours, eager = error_within_twice_eager(s.program(), args, fast(*args))
        assert ok, (shape, ours, eager)


def test_a_group_begins_with_its_own_kernel():
    assert len(SPELLINGS) >= 90
    assert not [k for k in FIRST.values() if SPELLINGS[k].apart or SPELLINGS[k].fails]


def test_the_page_is_up_to_date():
    text = generate_spellings.PAGE.read_text()
    assert generate_spellings.again(text) == text, "run docs/generate_spellings.py"
    assert "not measured" not in text, "run docs/generate_spellings.py --torch GROUP"
