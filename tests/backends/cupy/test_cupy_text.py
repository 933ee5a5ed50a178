"""What the text looks like: names of the user's program, a comment for each statement, the same in every process."""

from __future__ import annotations

import re
from dataclasses import replace

import torch

import flashlight
from flashlight._conformance import attention, layer_norm
from flashlight.backend import Target
from flashlight.backends import scalar
from flashlight.backends.cupy import CupyBackend
from flashlight.expr import OPS
from flashlight.tile import Let, Loop
from tests.processes import printed
from tests.programs import causal

CUPY, HOPPER = CupyBackend(), Target("cuda", 90, 132, 232448)


def test_every_statement_is_a_comment_and_every_name_the_programs() -> None:
    kernel = attention("causal", dtype="bfloat16", causal=True)
    text = CUPY.emit(kernel, HOPPER).text
    for name in ("q_tile", "s", "m_next", "l_next", "p", "acc_next", "o"):
        assert re.search(rf"// {name}: \w+\[[ide,j]*\] = ", text), name
        assert re.search(rf"^ +(?:float|Pair<bf16>) {name}(?:_\d)?(?:\[\d+\])+;", text, re.MULTILINE), name
    assert 'extern "C" __global__ void __launch_bounds__(THREADS, 1) causal(' in text
    assert "// store out[b, h, i, e] = o guard i" in text
    (loop,) = (x for x in kernel.body if isinstance(x, Loop))
    assert text.count("dot<bf16") == sum("dot{" in str(x) for g in loop.segments for x in g.body)
    assert sum(isinstance(x, Let) for x in kernel.body) == 2


def test_scores_feed_the_next_dot_from_registers() -> None:
    """No shared memory between the two dots of a trip: what is staged there are keys and values, copied ahead."""
    args = tuple(torch.randn(1, 2, 9, 64).bfloat16() for _ in range(3))
    text = flashlight.explain(causal, *args, backend="cupy").kernels["cupy"].source
    trip = text[text.index("// full blocks of") :]
    trip = trip[: trip.index("// partial blocks of")]
    assert trip.count("__syncthreads();") == 1
    assert trip.count("dot<bf16") == 2
    assert "scratch" not in text
    assert "copies_wait<" in trip


def test_text_is_the_same_in_every_process_and_needs_no_device() -> None:
    code = (
        "import sys; sys.modules['cupy'] = sys.modules['cuda'] = None\n"
        "from flashlight._conformance import *; from flashlight.backend import Target\n"
        "from flashlight.backends.cupy import CupyBackend\n"
        "for k in (attention(causal=True, bias=True, slopes=True, group=2, dtype='bfloat16'), layer_norm()):\n"
        "    print(CupyBackend().emit(k, Target('cuda', 90, 132, 232448)).text, end='')\n"
        "assert 'torch.cuda' not in sys.modules or not sys.modules['torch'].cuda.is_initialized()\n"
    )
    made = printed(code)
    kernels = [attention(causal=True, bias=True, slopes=True, group=2, dtype="bfloat16"), layer_norm()]
    assert made == {"".join(CUPY.emit(k, HOPPER).text for k in kernels)}


def test_less_shared_memory_means_fewer_stages() -> None:
    kernel = replace(attention(dtype="bfloat16", row=128, stream=64, depth=128), warps=8)
    ahead = []
    for room in (232448, 101376, 49152):
        target = Target("cuda", 90, 132, room)
        assert CUPY.supports(target, kernel) is None
        text = CUPY.emit(kernel, target).text
        ahead.append(max(map(int, re.findall(r"\w+_trip \+ (\d+) < ", text)), default=0))
        assert int(re.findall(r"#define SHARED (\d+)", text)[0]) <= room
    assert ahead == [2, 1, 0]


def test_the_table_spells_every_operator() -> None:
    assert set(OPS) == set(scalar.CUDA)
