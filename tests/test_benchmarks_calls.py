"""The parts of the harness about bandwidth and about what calls cost."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import calls, compare, device, measure
from benchmarks.decode import BARS, DECODE, elements
from benchmarks.peers import candidates
from benchmarks.suites import SUITES
from benchmarks.workloads import WORKLOADS, Shape, Workload, wide

TINY = SUITES["decode"].tiny[0]
CPU = torch.device("cpu")
ROW = {"dtype": "bfloat16", "device": "a GPU", "torch": "2", "triton": "3", "commit": "abc", "command": "run"}
ROW |= {"tflops": None, "peak_mib": None, "error": None, "backend": "x", "pass": "forward", "shape": "1,2,3,4"}


# ---- decoding --------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", DECODE)
def test_peers_decode_the_same(name):
    from torch.nn.attention.flex_attention import flex_attention

    args = DECODE[name].make(TINY, torch.float32, "cpu")
    want = DECODE[name].function(TINY)(*wide(args))
    assert want.shape == args[0].shape == (2, 4, 1, 16)
    for c in candidates(DECODE[name], TINY, args, ("flashlight", "eager", "sdpa"), ("cpu",)):
        if c.stage == "forward":
            torch.testing.assert_close(c.prepare()().double(), want, atol=1e-5, rtol=1e-5, msg=f"{c.peer} {c.backend}")
    torch.testing.assert_close(flex_attention(*args, enable_gqa=True).double(), want, atol=1e-5, rtol=1e-5)
    assert elements(TINY) == sum(x.numel() for x in (*args, want))


def test_a_part_of_decoding_is_the_whole_where_it_covers_it():
    workload = DECODE["decode"]
    args = workload.make(TINY, torch.float64, "cpu")
    part = workload.part(TINY, 8.0 * 2 * TINY.length)
    some = [Workload.cut(x, axes, part) for x, axes in zip(args, workload.axes, strict=False)]
    assert [tuple(x.shape) for x in some] == [(1, 2, 1, 16), (1, 1, 96, 16), (1, 1, 96, 16)]
    torch.testing.assert_close(workload.program(*some), Workload.cut(workload.program(*args), "bh..", part))


def test_programs_bound_by_memory_say_their_bandwidth_and_a_copys():
    settings = measure.Settings("decode", CPU, "cmd", ("flashlight",), seconds=0.001, first=False)
    ours, copy = measure.cell(DECODE["decode"], TINY, "float32", settings)
    assert ours.gbps == pytest.approx(4 * elements(TINY) / ours.ms / 1e6, rel=1e-3)
    assert (copy.peer, copy.stage, copy.tflops) == ("copy", "copy", None)
    assert copy.gbps == pytest.approx(4 * 2 * 2 * (2 * 2 * 96 * 16) / copy.ms / 1e6, rel=1e-3)
    (other,) = measure.cell(WORKLOADS["causal"], Shape(1, 2, 40, 8, 2), "float32", settings)
    assert other.gbps is None


def test_fewer_queries_than_keys_are_for_programs_that_know_what_they_mean():
    with pytest.raises(ValueError, match="causal has a query for every key"):
        WORKLOADS["causal"].make(Shape.parse("1,2,1:40,8"), torch.float32, "cpu")


def test_the_table_of_decoding_has_shares_of_the_copy():
    shape = next(iter(BARS))
    base = ROW | {"suite": "decode", "workload": "decode", "shape": shape}
    rows = [base | {"peer": p, "ms": ms, "gbps": gbps} for p, ms, gbps in
            (("flashlight", 0.1, 1500), ("eager", 0.3, 500), ("sdpa", None, None))]  # fmt: skip
    rows += [base | {"peer": "copy", "pass": "copy", "ms": 0.1, "gbps": 3000}]
    text = compare.tables(compare.cells(rows))
    assert f"| decode | {shape} | 0.100 | 1500 | 3000 | 0.500 | 0.60 | 0.167 | - | failed | - |" in text
    assert "| 1 of 6 | 3.00 | - | - | 3.00 |" in compare.short(compare.cells(rows))  # the copy is no peer


# ---- calls -----------------------------------------------------------------------------------------------------------
def job(**more):
    return calls.Job(CPU, "cmd", "float32", "cpu", peers=("flashlight",), blocks=1, **more)


def test_the_cost_of_calls_is_stored_like_everything_else(tmp_path):
    issued, first = calls.cells(job(), ("causal",), tiny=True)
    passes = [(x.stage, x.peer, x.backend) for x in (*issued, *first)]
    assert passes == [(s, "flashlight", "cpu") for s in ("overhead", "first", "new length", "warm")]
    assert all(x.ms > 0 and x.error is None for x in (*issued, *first)), first
    assert first[1].ms < first[0].ms  # nothing is compiled for another length
    store = measure.Store(tmp_path / "calls.jsonl")
    store.replace(issued)
    store.replace(first)
    assert [r["shape"] for r in store.rows] == ["1,1,64,64", *["1,2,96,16"] * 3]
    table = compare.tables(compare.cells(store.rows))
    assert "| causal 1,1,64,64 | a call |" in table
    assert "| causal 1,2,96,16 | first call, warm caches |" in table


def test_a_process_that_does_not_end_in_time_is_a_line():
    (line,) = calls.first(job(limit=0.05), WORKLOADS["causal"], calls.TINY)
    assert (line.stage, line.ms, line.error) == ("first", None, "no result after 0.05 s; --limit allows more")


def test_a_process_that_fails_is_a_line_and_so_is_what_a_new_length_compiles(monkeypatch):
    found = iter([{"first": {"ms": 900.0, "mask": 2.0}, "new length": {"ms": 5.0, "compilations": 1, "kernels": 0}},
                  {"first": {"error": "ValueError: no"}}])  # fmt: skip
    monkeypatch.setattr(calls, "process", lambda *asked: next(found))
    lines = list(calls.first(job(), WORKLOADS["causal"], calls.TINY))
    assert [(x.stage, x.ms) for x in lines] == [
        ("first", 900), ("first, mask", 2), ("new length", 5), ("warm", None),
    ]  # fmt: skip
    assert [x.error for x in lines if x.error] == [
        "compiled for a new length: compilations 1", "ValueError: no",
    ]  # fmt: skip


def test_nothing_is_begun_after_the_deadline(capsys):
    assert list(calls.cells(job(deadline=0), ("causal",))) == []
    assert "calls: out of time before overhead causal" in capsys.readouterr().out


def test_the_table_of_calls_says_bars_and_failures():
    base = ROW | {"suite": "calls", "workload": "causal", "gbps": None}
    rows = [base | {"pass": p, "peer": peer, "ms": ms, "error": error} for p, peer, ms, error in (
        ("launch", "launch", 0.003, None), ("overhead", "flashlight", 0.012, None), ("overhead", "flex", 0.05, None),
        ("overhead", "sdpa", 0.01, None), ("first", "flashlight", 900, None), ("first", "flex", 2500, None),
        ("first, mask", "flex", 20, None), ("warm", "flashlight", None, "no result"), ("warm", "flex", 90, None),
        ("new length", "flashlight", 20, "compiled for a new length: kernels 1"),
    )]  # fmt: skip
    lines = compare.tables(compare.cells(rows)).splitlines()[6:]
    assert lines[0] == "| causal 1,2,3,4 | a call above a bare launch (3.00 us) | 12.0 us | 50.0 us | 10.0 us | 15 us |"
    assert lines[1].endswith("| first call, empty caches | 0.900 s | 2.50 s (mask 20.0 ms) | - | FlexAttention's |")
    assert lines[2].endswith("| first call, warm caches | failed | 90.0 ms | - | 0.5 s |")
    assert lines[3].endswith("| new length | 20.0 ms, compiled | - | - | compiles nothing |")
    assert lines[5] == "- causal 1,2,3,4, warm, flashlight: no result"
    assert compare.short(compare.cells(rows)).count("\n") == 1  # no means of these


def test_a_partial_run_shows():
    base = ROW | {"suite": "flex", "peer": "flashlight", "ms": 1.0}
    own = [base | {"workload": n, "shape": "4,16,4096,64"} for n in ("vanilla", "causal")]
    assert "| 2 of 40 |" in compare.short(compare.cells(own))
    other = base | {"workload": "vanilla", "shape": "1,8,2048,64"}
    assert "| 2 of 40 (+ 1 at other shapes) |" in compare.short(compare.cells([*own, other]))


def test_the_script_for_a_borrowed_gpu_has_both_parts(tmp_path, monkeypatch):
    asked = ["device.py", "--out", str(tmp_path), "--device", "cpu", "--parts", "decode,calls", "--tiny"]
    monkeypatch.setattr("sys.argv", [*asked, "--peers", "eager", "--each", "0.001"])
    assert device.main() == 0
    rows = [json.loads(r) for r in (tmp_path / "decode.jsonl").read_text().splitlines()]
    assert {(r["workload"], r["peer"], r["error"] is None or r["peer"] == "eager") for r in rows} == {
        (w, p, True) for w in DECODE for p in ("eager", "copy")
    }


def test_the_script_tries_random_programs(tmp_path, monkeypatch):
    asked = ["device.py", "--out", str(tmp_path), "--device", "cpu", "--parts", "random", "--tiny", "--jobs", "2"]
    monkeypatch.setattr("sys.argv", [*asked, "--seeds", "3:6"])
    assert device.main() == 0
    rows = [json.loads(r) for r in (tmp_path / "random.jsonl").read_text().splitlines()]
    assert {r["workload"] for r in rows} == {"random 3", "random 4", "random 5"}
    assert all(r["ok"] and r["share"]["cpu"] < 1 for r in rows)
    table = compare.checked([*rows, rows[0] | {"ok": False, "problems": "what is wrong"}])
    assert "| random | cpu |" in table
    assert table.endswith("what is wrong")
