"""What every test gets: a fixed seed, a disk store of its own, few threads, and golden files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: many test processes on few cores are slowest when each of them takes all cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="accept what the tests print as the golden texts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FLASHLIGHT_CACHE"] = str(tmp_path_factory.mktemp("store", numbered=True) / "flashlight")
    os.environ["FLASHLIGHT_TUNE"] = "off"  # on a GPU, compiling several tilings of everything would take hours


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """``golden(text)`` compares with ``tests/golden/FILE/TEST.txt``: the path is the test's name.

    ``pytest --update-golden`` writes the files; what changed is then read in the diff before it is committed.
    """
    path = GOLDEN / request.path.stem / f"{request.node.name}.txt"

    def compare(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.rstrip("\n") + "\n")
        assert path.exists(), f"{path} is missing: run pytest --update-golden, and read it before it is committed"
        assert text.rstrip("\n") + "\n" == path.read_text()

    return compare
