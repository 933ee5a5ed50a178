"""The harness itself: peers compute what the programs say, useful work is counted right, tables follow the results."""

from __future__ import annotations

import json

import pytest
import torch

import flashlight
from benchmarks import compare, machine, measure, peers, suites
from benchmarks.beyond import BEYOND
from benchmarks.peers import candidates
from benchmarks.suites import SUITES
from benchmarks.workloads import PREFIX, WORKLOADS, Shape, Workload, wide

FIELDS = ["suite", "workload", "shape", "dtype", "pass", "peer", "backend", "ms", "tflops", "gbps", "peak_mib"]
FIELDS += ["error", "device", "torch", "triton", "commit", "command"]
SMALL = Shape(2, 4, 300, 8, 4)


@pytest.mark.parametrize("name", WORKLOADS)
def test_sdpa_spells_the_same_program(name):
    workload = WORKLOADS[name]
    for shape in (SMALL, Shape(2, 4, 300, 8, 2)) if workload.flex else (SMALL,):
        args = workload.make(shape, torch.float32, "cpu")
        want = workload.function(shape)(*wide(args))
        assert want.isfinite().all()
        for c in candidates(workload, shape, args, ("eager", "sdpa")):
            torch.testing.assert_close(c.prepare()().double(), want, atol=1e-4, rtol=1e-4, msg=f"{c.peer} {c.backend}")


@pytest.mark.parametrize("name", [n for n in WORKLOADS if WORKLOADS[n].flex])
def test_flex_spells_the_same_program(name):
    from torch.nn.attention.flex_attention import create_mask

    args = WORKLOADS[name].make(SMALL, torch.float32, "cpu")
    q, k, v = args[:3]
    flex = WORKLOADS[name].flex(args)
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 4, q.shape[2], k.shape[2])), indexing="ij")
    scores = q @ k.mT * 8**-0.5
    scores = flex.score(scores, b, h, i, j) if flex.score else scores
    if flex.mask:
        keep = create_mask(flex.mask, 2, 4, q.shape[2], k.shape[2], device="cpu")
        assert flex.batched or (keep == keep[:1]).all()
        scores = scores.masked_fill(~keep, -torch.inf)
    torch.testing.assert_close(torch.softmax(scores, -1) @ v, WORKLOADS[name].program(*args), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in WORKLOADS if WORKLOADS[n].flex])
@pytest.mark.parametrize("length", [1, 7, PREFIX, 300])
def test_useful_work_is_that_of_live_scores(name, length):
    shape = Shape(2, 4, length, 8, 4)
    args = WORKLOADS[name].make(shape, torch.float32, "cpu")
    options = WORKLOADS[name].sdpa(args) if WORKLOADS[name].sdpa else {}
    n, m = args[0].shape[2], args[1].shape[2]
    mask = options.get("attn_mask", torch.ones(n, m, dtype=torch.bool))
    keep = mask if mask.dtype == torch.bool else torch.ones(n, m, dtype=torch.bool)
    keep = keep.tril() if options.get("is_causal") else keep
    live = keep.expand(2, 4, n, m).sum().item()
    assert WORKLOADS[name].flops(shape) == 4 * 8 * live


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_part_is_the_whole_where_it_covers_it(name):
    workload = WORKLOADS[name]
    args = workload.make(SMALL, torch.float64, "cpu")
    part = workload.part(SMALL, 2 * 8.0 * SMALL.length**2 if workload.flex else 8.0 * 3 * SMALL.length)
    some = [Workload.cut(x, axes, part) for x, axes in zip(args, workload.axes, strict=False)]
    assert some[0].numel() < args[0].numel()
    whole = workload.program(*args)
    torch.testing.assert_close(workload.program(*some), Workload.cut(whole, workload.axes[-1], part))


def tiny(workload):
    return workload.tiny[0] if workload.tiny else SUITES["beyond"].tiny[0]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", BEYOND)
def test_programs_beyond_flex_are_right_and_routes_by_hand_are_the_same_programs(name):
    workload = BEYOND[name]
    settings = measure.Settings("beyond", torch.device("cpu"), "cmd", ("flashlight",), seconds=0.001, first=False)
    (line,) = measure.cell(workload, tiny(workload), "float32", settings)
    assert line.ms is not None, line.error
    args = wide(workload.make(tiny(workload), torch.float32, "cpu"))
    want = workload.program(*args)
    for route in workload.hand:
        out = route.function(*args, **(route.before(args) if route.before else {}))
        torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5, check_dtype=False, msg=route.name)


@pytest.mark.parametrize("name", BEYOND)
def test_a_part_of_all_results_is_the_whole_where_it_covers_it(name):
    workload, shape = BEYOND[name], tiny(BEYOND[name])
    args = workload.make(shape, torch.float64, "cpu")
    part = workload.part(shape, 8.0 * shape.rows * shape.length**2)
    some = [Workload.cut(x, axes, part) for x, axes in zip(args, workload.axes, strict=False)]
    assert some[0].numel() < args[0].numel()
    outs = zip(measure._outputs(workload.program(*args)), workload.axes[len(args) :], strict=True)
    cut = tuple(Workload.cut(x, axes, part) for x, axes in outs)
    torch.testing.assert_close(measure._outputs(workload.program(*some)), cut)


def test_every_result_is_held_to_its_own_reference(monkeypatch):
    def second_is_off(f, backend):
        return lambda *a: (f(*a)[0], f(*a)[1] * 1.01, f(*a)[2])

    monkeypatch.setattr(peers, "_optimized", second_is_off)
    settings = measure.Settings("beyond", torch.device("cpu"), "cmd", ("flashlight",), seconds=0.001)
    (line,) = measure.cell(BEYOND["entropy"], Shape(1, 2, 40, 8, 2), "float32", settings)
    assert line.ms is None
    assert str(line.error).startswith("ValueError: wrong: error")
    assert measure._error(torch.tensor([1, 90, 3, 4]), torch.tensor([1, 2, 3, 4])) == 0.25


def test_lines_have_the_agreed_fields_and_failures_are_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHLIGHT_COMMIT", "abc")

    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", broken)
    settings = measure.Settings("first", torch.device("cpu"), "cmd", ("eager", "sdpa"), seconds=0.001)
    measure.environment.cache_clear()
    lines = list(measure.cell(WORKLOADS["causal"], Shape(1, 2, 40, 8, 2), "float32", settings))
    rows = [json.loads(line.json()) for line in lines]
    assert all(list(r) == FIELDS for r in rows)
    eager = [r for r in rows if r["peer"] == "eager" and r["pass"] == "forward"]
    assert len(eager) == 1
    assert eager[0]["ms"] > 0
    assert 0 < eager[0]["error"] < 1e-5
    failed = [r for r in rows if r["peer"] == "sdpa"]
    assert [(r["ms"], r["error"]) for r in failed] == [(None, "RuntimeError: no such kernel")] * 2
    assert {r["commit"] for r in rows} == {"abc"}
    measure.environment.cache_clear()

    store = measure.Store(tmp_path / "x.jsonl")
    store.replace(lines)
    store.replace(lines[:1])
    assert measure.Store(tmp_path / "x.jsonl").rows == rows[:1]


def test_a_wrong_result_has_no_time(monkeypatch):
    monkeypatch.setattr(peers, "_optimized", lambda f, backend: lambda *a: f(*a) * 1.01)
    settings = measure.Settings("first", torch.device("cpu"), "cmd", ("flashlight",), seconds=0.001)
    (line,) = measure.cell(WORKLOADS["causal"], Shape(1, 2, 40, 8, 2), "float32", settings)
    assert line.ms is None
    assert str(line.error).startswith("ValueError: wrong: error")


def test_tables_are_what_the_results_say():
    for path, name, content in compare.written(compare.load(compare.RESULTS)):
        text = path.read_text()
        assert compare.replaced(text, name, content) == text, f"{path}: run python -m benchmarks.compare"


def test_ratios_and_their_means():
    def row(peer, ms, backend="x", workload="w"):
        r = dict.fromkeys(FIELDS, "?") | {"tflops": None, "peak_mib": None, "error": 1e-3, "pass": "forward"}
        return r | {"workload": workload, "peer": peer, "backend": backend, "ms": ms}

    rows = [row("flashlight", 2.0), row("eager", 8.0), row("sdpa", 1.0, "cudnn"), row("flex", 4.0, "inductor")]
    rows += [row("flashlight", 1.0, workload="v"), row("eager", 8.0, workload="v"), row("sdpa", None, workload="v")]
    text = compare.tables(compare.cells(rows))
    assert "| SDPA cudnn | 0.500 | 2.00 |" in text
    assert "best peer / ours 2.00" in text  # of 1/2 and 8
    assert "Slower than the best peer in 1 of 2 cells." in text
    assert "failed" in text


def test_tables_show_routes_by_hand_where_there_are_any():
    row = dict.fromkeys(FIELDS, "?") | {"tflops": None, "peak_mib": None, "error": 1e-3, "pass": "forward"}
    times = (("flashlight", "x", 2.0), ("compile", "x", 8.0), ("hand", "two calls", 3.0), ("hand", "four calls", 4.0))
    text = compare.tables(compare.cells([row | {"peer": p, "backend": b, "ms": ms} for p, b, ms in times]))
    assert "| by hand: two calls | 1.50 |" in text
    assert text.splitlines()[6].endswith("| 3.00 (two calls) | 4.00 | 1.50 | - |")
    assert "torch.compile / ours 4.00, 4.00 at least; by hand / ours 1.50." in text
    assert "by hand" not in compare.tables(compare.cells([row | {"peer": "flashlight", "backend": "x", "ms": 1.0}]))


SASS = """
        /*0100*/                   LDSM.16.M88.4 R4, [R2] ;          /* 0x0 */
        /*0110*/                   HMMA.16816.F32.BF16 R8, R4, R6, RZ ;
        /*0120*/              @!P0 SHFL.BFLY PT, R3, R2, 0x2, 0x1f ;
        /*0130*/               @P1 BRA 0x110 ;
        /*0140*/                   HMMA.16816.F32.BF16 R8, R4, R6, RZ ;
        /*0150*/                   MUFU.EX2 R1, R2 ;
        /*0160*/              @UP0 BRA 0x150 ;
        /*0170*/                   BRA 0x170 ;
"""


def test_the_hottest_loop_is_the_one_with_most_products():
    assert machine.hottest(SASS) == {"all": 3, "tensor": 1, "shuffles": 1}
    assert machine.hottest("") == {}


def test_machine_code_is_described_without_a_gpu():
    q, k, v = (torch.randn(1, 2, 64, 16).half() for _ in range(3))
    text = flashlight.explain(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, q, k, v).kernels["cupy"]
    found = machine.described(text)
    assert found["tile"] == [64, 64]
    assert found["loop"]["tensor"] > 0
    assert found["loop"]["all"] > found["loop"]["tensor"] + found["loop"]["special"]
    assert found["registers"] > 32


def test_backends_stand_side_by_side():
    code = {"tile": [64, 64], "threads": 128, "registers": 146, "spills": 0, "shared": 49152}
    code["loop"] = {"all": 320, "tensor": 64}
    row = dict.fromkeys(FIELDS, "?") | {"suite": "backends", "tflops": None, "error": 1e-3, "pass": "forward"}
    times = (("flashlight", "triton", 2.0), ("flashlight", "cupy", 4.0), ("sdpa", "flash", 3.0))
    rows = [row | {"peer": p, "backend": b, "ms": ms} for p, b, ms in times]
    rows[1]["code"] = code
    text = compare.tables(compare.cells(rows))
    assert "| 2.00 | 4.00 | 0.500 | 3.00 | 0.750 | - | - | - | - | 64x64 | 146 | 12 | 10.0 2.00 0 0 |" in text
    assert "Geometric mean: triton / cupy 0.500, 0.500 at least." in text


def test_suites_name_workloads():
    for suite in SUITES.values():
        assert {w.name for w, _ in suite.cells()} == {w.name for w, _ in suite.cells(tiny=True)} == {*suite.workloads}
        assert {*suite.workloads} <= {*suites.WORKLOADS}
    assert [str(s) for _, s in SUITES["flex"].cells(("triangle", "causal"), tiny=True)] == [
        "2,4,96,16", "2,4/2,96,16", "2x3,4,96,16",
    ]  # fmt: skip
    assert str(Shape.parse("4x256,4,256,64")) == "4x256,4,256,64"
    with pytest.raises(ValueError, match="not enough"):
        Shape.parse("1,2,3")
    assert str(Shape.parse("4,16/2,4096,64")) == "4,16/2,4096,64"
    assert str(Shape.parse("4,16/2,1:4096,64")) == "4,16/2,1:4096,64"
