"""The example of a third party's backend, installed by pip as anybody would and run in another process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "backend"

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("pip", "setuptools")), reason="installing needs pip"
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory):
    """Runs Python where the example is installed; returns what was printed."""
    site = tmp_path_factory.mktemp("site")
    copy = tmp_path_factory.mktemp("source")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(copy)], check=True, capture_output=True)
    path = os.pathsep.join([str(site), str(ROOT)])

    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_its_own_tests_pass(python) -> None:
    told = python("-m", "pytest", "-p", "no:cacheprovider", "test_flashlight_loops.py")
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None, told
    assert int(passed[1]) > 20
    assert "skipped" not in told


def test_it_is_found_by_its_name(python) -> None:
    listed = python("-m", "flashlight", "info", "--json")
    assert '"loops": "works on cpu tensors"' in listed


def test_the_page_shows_what_is_there() -> None:
    """Every Python or ini block of docs/backends.md stands in one of the example's files."""
    page = (ROOT / "docs" / "backends.md").read_text()
    files = [f.read_text() for f in EXAMPLE.iterdir() if f.is_file()]
    blocks = re.findall(r"```(?:python|ini)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        lines = block.rstrip().splitlines()
        found = any("\n".join(lines) in text or all(line.strip() in text for line in lines) for text in files)
        assert found, block
