"""Dependencies point one way (design table in CONTRIBUTING.md): imports are read from the sources, not run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"flashlight": ROOT / "flashlight", "flashlight.backends": ROOT / "backends",
           "flashlight.polyhedral": ROOT / "polyhedral"}  # fmt: skip

# part -> (modules of flashlight it may import, third-party distributions it may import); a name covers what is below.
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "flashlight.errors": (set(), set()),
    "flashlight.config": (set(), set()),
    "flashlight.expr": (set(), set()),
    "flashlight.cache": ({"flashlight.config", "flashlight.errors"}, set()),
    "flashlight.program": ({"flashlight.expr"}, set()),
    "flashlight.tile": ({"flashlight.expr"}, set()),
    "flashlight.algebra": (
        {"flashlight.algebra", "flashlight.expr", "flashlight.errors"},
        {"sympy", "mpmath"},
    ),
    "flashlight.polyhedral": (
        {"flashlight.polyhedral", "flashlight.expr", "flashlight.program", "flashlight.errors"},
        {"islpy"},
    ),
    "flashlight.backends": (
        {
            "flashlight.backends",
            "flashlight.tile",
            "flashlight.backend",
            "flashlight.errors",
            "flashlight.expr",
            "flashlight.cache",
        },
        {"torch", "numpy", "triton", "cupy", "cupy_backends", "cuda"},
    ),
}
# Who else may import islpy, sympy, triton or cupy: nobody.
CONFINED = {"islpy": "flashlight.polyhedral", "sympy": "flashlight.algebra", "triton": "flashlight.backends",
            **dict.fromkeys(("cupy", "cupy_backends", "cuda"), "flashlight.backends")}  # fmt: skip
# Questions about what is installed, not uses of it.
EXEMPT = {("flashlight.__main__", "triton"), ("flashlight.__main__", "islpy"), ("flashlight.__main__", "sympy")}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package != "flashlight" or parts[0] not in ("backends", "polyhedral"):
                found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str) -> list[tuple[str, int]]:
    """Every module that a module's source imports anywhere but for type checkers, with the line."""
    tree = ast.parse(MODULES[name].read_text())
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in block.body
        for node in ast.walk(child)
    }
    found = []
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(a.name, node.lineno) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{MODULES[name]}:{node.lineno}: write the import in full: links break relative ones"
            )
            for a in node.names:
                qualified = f"{node.module}.{a.name}"
                found.append((qualified if qualified in MODULES else str(node.module), node.lineno))
    return found


def below(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def test_the_table_names_what_exists():
    assert len(MODULES) > 20
    for part in TABLE:
        assert any(below(m, part) for m in MODULES), part


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    part = next((p for p in sorted(TABLE, key=len, reverse=True) if below(name, p)), None)
    for target, line in imports(name):
        where = f"{MODULES[name].relative_to(ROOT)}:{line} imports {target}"
        top = target.partition(".")[0]
        assert top not in ("backends", "polyhedral"), f"{where}: the bare name is a second copy of the module"
        if top in CONFINED and (name, top) not in EXEMPT:
            assert below(name, CONFINED[top]), f"{where}: only {CONFINED[top]} may"
        if part is None or top in sys.stdlib_module_names:
            continue
        ours, others = TABLE[part]
        if top == "flashlight":
            assert any(below(target, p) for p in ours), f"{where}: {part} may import {sorted(ours)}"
        else:
            assert top in others, f"{where}: {part} may import {sorted(others)}"


def test_torch_is_not_imported_by_the_symbolic_half(run_python):
    """`import flashlight.polyhedral` and the algebra cost no second for torch, and no half for sympy."""
    names = [m for m in MODULES if below(m, "flashlight.polyhedral") or below(m, "flashlight.algebra")]
    code = f"import sys, importlib\nfor m in {names}: importlib.import_module(m)\n"
    assert run_python(code + "print([m for m in ('torch', 'triton', 'sympy') if m in sys.modules])") == "[]"
    assert run_python("import sys, flashlight\nprint('torch' in sys.modules)") == "False"


@pytest.fixture
def run_python():
    import subprocess

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
