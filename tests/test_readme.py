"""What the README shows is what the program prints, and what it says to run exists."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import flashlight
from flashlight.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(p.stem for p in (ROOT / "examples").glob("*.py"))
BEGIN = "<!-- printed by: python -m flashlight explain examples/attention.py:attention -->\n"
END = "<!-- end of print -->"


def test_the_printed_program_is_the_programs(request):
    space = runpy.run_path(str(ROOT / "examples" / "attention.py"), run_name="example")
    report = flashlight.explain(space["attention"], *space["example_inputs"]())
    head, begin, rest = (ROOT / "README.md").read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    text = f"{head}{begin}```\n{report.program}\n```\n{END}{tail}"
    if request.config.getoption("--update-golden"):
        (ROOT / "README.md").write_text(text)
    assert (ROOT / "README.md").read_text() == text


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_fuse(name, capsys):
    function = "layer_norm" if name == "layer_norm" else "attention"
    assert main(["explain", f"{ROOT}/examples/{name}.py:{function}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("flashlight: 1 kernel on cpu, no fallback")


def test_the_first_example_runs():
    done = subprocess.run(
        [sys.executable, "examples/attention.py", "--length", "128"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    error, eager = map(float, re.search(r"float64: (\S+) \(eager: (\S+)\)", done.stdout).groups())
    assert error <= 2 * eager + 1e-7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "nowhere.py:f"], "there is no file nowhere.py"),
        (["explain", "nowhere.py"], "is not FILE:FUNCTION"),
        (["explain", f"{ROOT}/examples/softcap.py:nope"], "defines no function 'nope'; it defines attention"),
        (["explain", f"{ROOT}/benchmarks/workloads.py:causal"], "has neither causal_inputs() nor example_inputs()"),
        (["explain", f"{ROOT}/examples/softcap.py:attention", "--shapes", "1,x"], "integers with commas between"),
        (["explain", f"{ROOT}/examples/softcap.py:attention", "--backend", "nope"], "there is no backend 'nope'"),
    ],
)
def test_wrong_commands_are_told_in_a_sentence(arguments, said, capsys):
    assert main(arguments) == 1
    heard = capsys.readouterr().err
    assert said in heard
    assert heard.count("\n") == 1


def test_info_needs_no_gpu(capsys):
    assert main(["info", "--json"]) == 0
    import json

    found = json.loads(capsys.readouterr().out)
    assert found["backends"]["cpu"] == "works on cpu tensors"
    assert "FLASHLIGHT_CACHE" in found["settings"]
    assert found["versions"]["flashlight"] == flashlight.__version__
    assert main(["info"]) == 0
