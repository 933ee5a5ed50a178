"""The mapped layout: what is packaged is what is there, and the two links serve checkouts."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import flashlight

ROOT = Path(__file__).resolve().parent.parent
ROOTS = {"flashlight": "flashlight", "flashlight.backends": "backends", "flashlight.polyhedral": "polyhedral"}


@pytest.fixture(scope="module")
def options():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def tree() -> dict[str, str]:
    """Every package in the three source folders: import name -> folder."""
    found = {}
    for package, folder in ROOTS.items():
        for inside, folders, _ in os.walk(ROOT / folder):  # links are not followed
            folders[:] = [f for f in folders if f != "__pycache__"]
            path = Path(inside)
            if any(path.glob("*.py")):
                parts = path.relative_to(ROOT / folder).parts
                found[".".join((package, *parts))] = path.relative_to(ROOT).as_posix()
    return found


def test_every_package_is_listed_and_mapped(options):
    """A package that is not listed imports from a checkout and is missing from the wheel."""
    listed = options["options"]["packages"].split()
    mapped = dict(row.split(" = ") for row in options["options"]["package_dir"].strip().splitlines())
    assert sorted(listed) == sorted(tree())
    assert mapped == tree()


def test_every_package_has_an_init():
    for folder in tree().values():
        assert (ROOT / folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("name", ["backends", "polyhedral"])
def test_links_exist_and_are_relative(name):
    link = ROOT / "flashlight" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.samefile(ROOT / name)


def test_the_package_that_is_imported_is_ours():
    assert flashlight.__file__ is not None, (
        "`import flashlight` found a namespace package: another distribution or a leftover folder named flashlight "
        "without an __init__.py comes first on sys.path; uninstall it or remove the folder"
    )


@pytest.mark.parametrize("name", ["backends", "polyhedral"])
def test_bare_names_are_refused(name):
    code = f"import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"import flashlight.{name}, not {name}" in done.stderr


def test_the_version_is_told_once(options):
    assert flashlight.__version__ == options["metadata"]["version"]


def test_entry_points_resolve(options):
    for rows in options["options.entry_points"].values():
        for row in rows.strip().splitlines():
            module, _, attribute = row.split("=")[1].strip().partition(":")
            assert hasattr(importlib.import_module(module), attribute), row


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_the_wheel_holds_every_module_and_imports_elsewhere(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*ROOTS.values(), "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in tree().items()
        for path in (ROOT / folder).glob("*.py")
    }
    assert {n for n in names if n.endswith(".py")} == expected
    assert "flashlight/py.typed" in names
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import flashlight, flashlight.backends, flashlight.polyhedral; print(flashlight.polyhedral.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(tmp_path / "site"))
