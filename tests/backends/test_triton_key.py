"""Triton's key: the one that an earlier process computed, as long as Triton's files are those of then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashlight.backends.triton.key import _listing

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
CODE = """
from triton.runtime import cache
from flashlight.backends.triton.key import remember_key
own = cache.triton_key
remember_key()
print(cache.triton_key is own, cache.triton_key())
"""


def process(store: str) -> list[str]:
    env = {**os.environ, "FLASHLIGHT_CACHE": store, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split(maxsplit=1)


def test_the_next_process_has_the_same_key_and_hashes_nothing(tmp_path: Path) -> None:
    (first, key), (second, again) = process(str(tmp_path / "store")), process(str(tmp_path / "store"))
    assert (first, second) == ("True", "False")
    assert key == again
    assert process("off") == ["True", key]


def test_files_that_change_are_another_triton(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    file = tmp_path / "lib" / "a.so"
    file.write_bytes(b"one")
    before = _listing(tmp_path)
    assert _listing(tmp_path) == before
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert _listing(tmp_path) == before
    os.utime(file, ns=(1, 1))
    assert _listing(tmp_path) != before
