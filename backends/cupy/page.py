"""Lines of C++ at levels of indentation; some are put before all others when they turn out to be needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

INDENT = "  "
WIDTH = 118


class Page:
    """The body of a function.  ``top``: what is computed once, before everything else."""

    def __init__(self) -> None:
        self.top: list[str] = []
        self._lines: list[str] = []
        self._depth = 1

    def line(self, text: str = "") -> None:
        self._lines.append(f"{INDENT * self._depth}{text}".rstrip())

    def note(self, text: str) -> None:
        """A comment that says which statement the next lines are."""
        self.line(f"// {' '.join(text.split())}")

    def loops(self, loops: Sequence[tuple[str, int]], body: Sequence[str]) -> None:
        """Statements in unrolled loops: (the register's variable, how many), outermost first."""
        head = " ".join(f"each({name}, {n})" for name, n in loops)
        if len(body) == 1 and len(head) + len(body[0]) + len(INDENT) * self._depth < WIDTH:
            self.line(f"{head} {body[0]}".strip())
            return
        with self.block(head):
            for text in body:
                self.line(text)

    @contextmanager
    def block(self, head: str, tail: str = "}") -> Iterator[None]:
        """A head and an indented body in braces."""
        self.line(f"{head} {{".strip())
        self._depth += 1
        yield
        self._depth -= 1
        self.line(tail)

    def lines(self) -> list[str]:
        return [*(f"{INDENT}{line}" for line in self.top), *self._lines]
