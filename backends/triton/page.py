"""Text with open blocks: lines may still be put before a loop while its body is being written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager

from flashlight.backends.source import INDENT, Names


def tidy(text: str) -> str:
    """An expression's text with no more parentheses than it takes."""
    tree = ast.parse(text, mode="eval")
    return ast.unparse(tree).replace("'", '"')


class Page:
    """Lines at nested levels.  Level 0 is the function's body, every open loop adds one.

    What does not change in a loop is hoisted: written once, at the level of what it depends on, and found again by
    its text.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self._levels: list[list[str]] = [[]]
        self._known: list[dict[str, str]] = [{}]
        self._set: list[set[str]] = [set()]
        self._given: dict[tuple[int, str], str] = {}

    @property
    def level(self) -> int:
        """How many loops are open."""
        return len(self._levels) - 1

    def line(self, text: str, note: str = "", level: int | None = None) -> None:
        """One line (or several, split at newlines) at a level, by default the innermost."""
        comment = f"  # {' '.join(note.split())}" if note else ""
        self._levels[self.level if level is None else level] += (text + comment).split("\n")

    def assign(self, name: str, text: str, note: str = "", level: int | None = None) -> None:
        """``name = text``, with no more parentheses than it takes."""
        self.line(f"{name} = {tidy(text)}", note, level)

    def hoist(self, text: str, stem: str, level: int, note: str = "") -> str:
        """The name of a variable that holds ``text``, defined at ``level`` unless an enclosing one has it already."""
        if name := self.find(text, level):
            return name
        name = self._given.setdefault((level, text), "") or self.names.fresh(stem)
        self._given[level, text] = name  # a later loop uses the same name for the same thing
        self.assign(name, text, note, level)
        self._known[level][text] = name
        return name

    def find(self, text: str, level: int | None = None) -> str:
        """The variable that holds ``text`` already; "" if there is none."""
        for known in self._known[: None if level is None else level + 1]:
            if text in known:
                return known[text]
        return ""

    def once(self, name: str, text: str, level: int) -> None:
        """``name = text`` at ``level``, unless that stands there or at an enclosing one."""
        if not any(name in known for known in self._set[: level + 1]):
            self.assign(name, text, level=level)
            self._set[level].add(name)

    @contextmanager
    def block(self, head: str, note: str = "") -> Iterator[None]:
        """A head line and an indented body.  Names hoisted in the body end with it."""
        self._levels.append([])
        self._known.append({})
        self._set.append(set())
        yield
        body = self._levels.pop()
        self._known.pop()
        self._set.pop()
        self.line(head, note)
        self._levels[-1] += [f"{INDENT}{line}".rstrip() for line in body or ["pass"]]

    def lines(self) -> list[str]:
        return self._levels[0]
