"""``python -m flashlight explain FILE:FUNCTION``, ``... verify FILE:FUNCTION`` and ``python -m flashlight info``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from flashlight import config
from flashlight.errors import BackendUnavailable, FlashlightError

_PACKAGES = ("torch", "triton", "islpy", "sympy", "numpy", "cupy-cuda13x")


class UsageError(FlashlightError):
    """A command line that names something that is not there; the message says what was looked for."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status (0, 1 for an error told on stderr, 2 for a wrong command line)."""
    asked = _parser().parse_args(arguments)
    try:
        return int(asked.run(asked))
    except (FlashlightError, ValueError) as error:
        print(f"flashlight: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m flashlight")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain", help="what becomes of a function: statements, proofs, schedule, tiles; nothing of it is run"
    )
    explain.add_argument("--backend", help="emit for this backend, whether or not it can run here")
    explain.add_argument("--source", action="store_true", help="print the kernels too, and what they take of a GPU")
    explain.add_argument("--html", metavar="FILE", help="save the report, kernels included, as one page")
    explain.set_defaults(run=_explain)
    verify = commands.add_parser(
        "verify",
        help="run a function on every backend present and by float64 eager: the largest differences, and where",
    )
    verify.add_argument("--backend", action="append", help="only this backend; may be given several times")
    verify.set_defaults(run=_verify)
    for command in (explain, verify):
        command.add_argument("what", metavar="FILE:FUNCTION")
        command.add_argument("--shapes", help="random arguments, not the file's: 2,4,128,64;2,4,128,64;2,4,128,64")
        command.add_argument("--dtype", default="float32", help="of --shapes (default: %(default)s)")
    info = commands.add_parser("info", help="versions, devices, backends and why one of them does not work here")
    info.add_argument("--json", action="store_true", help="for programs")
    info.set_defaults(run=_info)
    return parser


# ---- explain ---------------------------------------------------------------------------------------------------------
def _asked(asked: argparse.Namespace) -> tuple[Any, tuple[Any, ...]]:
    """The function of FILE:FUNCTION and the arguments to call it with."""
    path, colon, name = asked.what.rpartition(":")
    if not colon or not path or not name:
        raise UsageError(f"{asked.what!r} is not FILE:FUNCTION, like examples/attention.py:attention")
    functions = _load(Path(path))
    if not callable(functions.get(name)):
        own = functions["__name__"]
        defined = ", ".join(n for n, f in functions.items() if callable(f) and getattr(f, "__module__", own) == own)
        raise UsageError(f"{path} defines no function {name!r}; it defines {defined or 'none'}")
    return functions[name], _random(asked.shapes, asked.dtype) if asked.shapes else _example(functions, path, name)


def _explain(asked: argparse.Namespace) -> int:
    function, arguments = _asked(asked)

    import flashlight

    report = flashlight.explain(function, *arguments, backend=asked.backend)
    print(report)
    if asked.source:
        text = report.kernels[report.backend]
        print(f"\n{text.source}")
        try:
            print("\n".join(text.resources))
        except BackendUnavailable as error:  # what was asked for is printed; its compiler is not here
            print(error)
    if asked.html:
        report.save(asked.html)
    return 0


def _verify(asked: argparse.Namespace) -> int:
    """Status 0 where every backend that ran is within the error rule, 1 where one is not or none ran."""
    import torch

    torch.manual_seed(0)
    function, arguments = _asked(asked)

    from flashlight.equivalence import compare

    found = compare(function, arguments, backends=asked.backend)
    print(found)
    return 0 if found.ran and not found.problems else 1


def _load(path: Path) -> dict[str, Any]:
    """The names a file defines.  Raises UsageError when there is no such file."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"explained_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and inspect look a function's module up by name
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return vars(module)


def _example(functions: dict[str, Any], path: str, name: str) -> tuple[Any, ...]:
    for maker in (f"{name}_inputs", "example_inputs"):
        if callable(functions.get(maker)):
            made = functions[maker]()
            return tuple(made) if isinstance(made, tuple | list) else (made,)
    raise UsageError(
        f"{path} has neither {name}_inputs() nor example_inputs(): define one that returns the arguments to explain "
        f"{name} with, as a tuple, or give --shapes"
    )


def _random(shapes: str, dtype: str) -> tuple[Any, ...]:
    import torch

    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"torch has no dtype {dtype!r}")
    try:
        sizes = [tuple(int(n) for n in shape.split(",")) for shape in shapes.split(";")]
    except ValueError:
        raise UsageError(f"--shapes {shapes!r}: integers with commas between, tensors with semicolons") from None
    return tuple(torch.randn(size).to(getattr(torch, dtype)) for size in sizes)


# ---- info ------------------------------------------------------------------------------------------------------------
def _info(asked: argparse.Namespace) -> int:
    found = facts()
    if asked.json:
        print(json.dumps(found, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for title, rows in found.items():
        table = Table(title=title, title_justify="left", show_header=False, title_style="bold")
        for name, text in rows.items():
            table.add_row(name, text)
        console.print(table)
    return 0


def facts() -> dict[str, dict[str, str]]:
    """What is installed and what works here.  Needs no GPU and never raises for one that is broken."""
    import flashlight

    ours = {"flashlight": flashlight.__version__, "python": platform.python_version()}
    return {
        "versions": {**ours, **{name: _version(name) for name in _PACKAGES}},
        "devices": _devices(),
        "backends": _backends(),
        "settings": {knob.name: _setting(knob) for knob in config.TABLE},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, str]:
    import torch

    found = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        return found | {"cuda": f"none: {built}"}
    for k in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(k)
        found[f"cuda:{k}"] = f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB"
    return found


def _backends() -> dict[str, str]:
    import torch

    from flashlight import backend as registry
    from flashlight.targets import place

    found = {}
    for name in registry.names():
        device, why = place(name, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
        found[name] = f"works on {device.type} tensors" if device else f"not here: {why}"
    return found


def _setting(knob: config.Knob[Any]) -> str:
    try:
        value = str(knob.get())
    except ValueError as error:
        value = str(error)
    return f"{value}  ({knob.help})"


if __name__ == "__main__":
    sys.exit(main())
