"""Writing source text: lines with indentation, and names that are valid and unique."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

INDENT = "    "


class Writer:
    """Lines of text at a level of indentation.

    >>> w = Writer()
    >>> with w.block("for i in range(3):"):
    ...     w.line("print(i)")
    >>> print(w.text(), end="")
    for i in range(3):
        print(i)
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "", note: str = "") -> None:
        """One line (or several, split at newlines) at the present level, with an optional comment."""
        comment = f"  # {' '.join(note.split())}" if note else ""
        for part in (text + comment).split("\n"):
            self._lines.append(f"{INDENT * self._depth}{part}".rstrip())

    @contextmanager
    def block(self, head: str, note: str = "") -> Iterator[None]:
        """A head line and an indented body; a body without lines becomes ``pass``."""
        self.line(head, note)
        self._depth += 1
        start = len(self._lines)
        yield
        if len(self._lines) == start:
            self.line("pass")
        self._depth -= 1

    def text(self) -> str:
        return "\n".join(self._lines) + "\n" if self._lines else ""


class Names:
    """Valid, unique Python identifiers for the names of a kernel, the same on every run.

    ``reserved`` names are never given out; keywords and builtins never are either.
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._taken = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *reserved}
        self._given: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        """The identifier that stands for ``name``: itself where possible."""
        if name not in self._given:
            self._given[name] = self.fresh(name)
        return self._given[name]

    def fresh(self, stem: str) -> str:
        """A new identifier like ``stem``, given to nobody else."""
        base = re.sub(r"\W", "_", stem, flags=re.ASCII) or "_"
        base = f"_{base}" if base[0].isdigit() else base
        name, k = base, 1
        while name in self._taken:
            name, k = f"{base}_{k}", k + 1
        self._taken.add(name)
        return name
