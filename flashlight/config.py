"""Every environment variable that flashlight reads, typed, in one table.

A knob is read when it is asked for, so that a test or a notebook may set the variable late; ``with KNOB.set(value)``
overrides it for a block, in this thread or task only.  An argument of a call beats ``set``, which beats the
environment, which beats the default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_UNSET: Any = object()


@dataclass(frozen=True)
class Knob(Generic[T]):
    """An environment variable ``name``; ``parse`` reads its text and raises ValueError saying what it accepts."""

    name: str
    help: str
    default: Callable[[], T]
    parse: Callable[[str], T]
    _override: ContextVar[Any] = field(default_factory=lambda: ContextVar("knob", default=_UNSET), compare=False)

    def get(self) -> T:
        """The value now.  Raises ValueError naming the variable when its text cannot be read."""
        override = self._override.get()
        if override is not _UNSET:
            return override  # type: ignore[no-any-return]
        text = os.environ.get(self.name, "").strip()
        if not text:
            return self.default()
        try:
            return self.parse(text)
        except ValueError as error:
            raise ValueError(f"environment variable {self.name}={text!r}: {error}") from None

    @contextmanager
    def set(self, value: T) -> Iterator[None]:
        """Override the value within a ``with`` block."""
        token = self._override.set(value)
        try:
            yield
        finally:
            self._override.reset(token)


def _none() -> None:
    return None


def _level(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 5:
        raise ValueError("expected a level from 0 to 5")
    return int(text)


def _switch(text: str) -> bool:
    if text.lower() not in ("on", "off", "1", "0"):
        raise ValueError("expected on or off")
    return text.lower() in ("on", "1")


def _cache_folder(text: str) -> Path | None:
    return None if text.lower() in ("0", "off") else Path(text).expanduser()


def _user_cache() -> Path | None:
    """Where this system keeps a user's caches."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "flashlight"


BACKEND: Knob[str | None] = Knob(
    "FLASHLIGHT_BACKEND",
    "the backend where optimize() names none: cpu, triton or a registered name; by default the tensors' device decides",
    _none,
    str,
)
CACHE: Knob[Path | None] = Knob(
    "FLASHLIGHT_CACHE",
    "the folder of compiled kernels and tuning results, or off; by default flashlight/ in the user's cache folder",
    _user_cache,
    _cache_folder,
)
DEBUG: Knob[int] = Knob(
    "FLASHLIGHT_DEBUG",
    "what compilations print on stderr: 1 nests formed and cut, 2 also verdicts with their certificates, "
    "3 also schedule trees, 4 also source text, 5 also every other stage",
    lambda: 0,
    _level,
)
DUMP: Knob[Path | None] = Knob(
    "FLASHLIGHT_DUMP",
    "a folder that gets one file for each stage of each compilation",
    _none,
    lambda text: Path(text).expanduser(),
)
TUNE: Knob[bool] = Knob(
    "FLASHLIGHT_TUNE",
    "on or off: whether the first call of a signature on a GPU times a few block lengths; by default on",
    lambda: True,
    _switch,
)

TABLE: tuple[Knob[Any], ...] = (BACKEND, CACHE, DEBUG, DUMP, TUNE)
