"""The disk store: one sealed file an entry, so that what comes back is exactly what was put in, or nothing.

An entry is text (JSON or source), never code that reading would run.  Its file holds a schema line, the SHA-256 of all
that follows, the key and the text.  A file that does not check (bits flipped, cut short, written by something else,
moved from another key) is set aside and counts as a miss, with one warning; so does a folder or a file that others
could have written.  Files appear by an atomic rename: readers see a whole entry or none, and no lock is involved, so
that a writer that dies leaves nothing to wait for.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path

from flashlight import config

_SCHEMA = b"flashlight-entry 1\n"
_ASIDE = "damaged"


class CacheWarning(UserWarning):
    """The disk store met damage or a folder it cannot use; compilation goes on without it."""


def key(*parts: str) -> str:
    """A key made of all that decides an entry: its texts (source, target), and the versions of flashlight and of
    the compilers below it."""
    return json.dumps([*parts, *_versions()])


@cache
def _versions() -> tuple[str, ...]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "none"

    return tuple(f"{name} {version(name)}" for name in ("flashlight-attention", "torch", "triton"))


def default() -> Store | None:
    """The store of ``FLASHLIGHT_CACHE``; None when that is off."""
    folder = config.CACHE.get()
    return None if folder is None else Store(folder)


class Store:
    """Entries in one folder.  Nothing here raises for the sake of the disk: a store that cannot serve warns once and
    misses."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._warned = False

    def get(self, key: str) -> str | None:
        """The text last put under ``key``, or None."""
        path = self._path(key)
        try:
            if not self._usable():
                return None
            data = self._read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(f"{path} cannot be read ({error})")
            return None
        text = None if data is None else _open(data, key)
        if text is None:
            self._set_aside(path)
        return text

    def put(self, key: str, text: str) -> bool:
        """Store ``text`` under ``key``, replacing what was there; False if the folder cannot be used."""
        path = self._path(key)
        partial = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.partial")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._usable():
                return False
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_seal(key, text))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn(f"{self.folder} cannot be written ({error})")
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.entry"

    def _usable(self) -> bool:
        """Whether nobody else could have put files into the folder.  Raises FileNotFoundError when there is none."""
        found = self.folder.stat()
        if not stat.S_ISDIR(found.st_mode):
            self._warn(f"{self.folder} is not a folder")
            return False
        if not _ours(found):
            self._warn(f"{self.folder} belongs to another user or others may write to it; give it mode 0700")
            return False
        return True

    def _read(self, path: Path) -> bytes | None:
        """The bytes of an entry; None if others could have written them, or if it is no regular file."""
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError:
            if path.is_symlink():
                return None
            raise
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            return file.read() if stat.S_ISREG(found.st_mode) and _ours(found) else None

    def _set_aside(self, path: Path) -> None:
        """Keep a damaged entry for whoever wants to know, out of the way of the next one."""
        try:
            aside = self.folder / _ASIDE
            aside.mkdir(mode=0o700, exist_ok=True)
            path.replace(aside / path.name)
            self._warn(f"entry {path.name} is damaged: set aside in {aside}, and made again")
        except OSError as error:
            self._warn(f"entry {path.name} is damaged and cannot be set aside ({error}); it is ignored")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"flashlight cache: {message}", CacheWarning, stacklevel=4)


def _seal(key: str, text: str) -> bytes:
    body = json.dumps(key).encode() + b"\n" + text.encode()
    return _SCHEMA + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _open(data: bytes, key: str) -> str | None:
    """The text of a sealed entry, None unless every byte is as it was written for this key."""
    head = len(_SCHEMA) + 65
    body = data[head:]
    if data[:head] != _SCHEMA + hashlib.sha256(body).hexdigest().encode() + b"\n":
        return None
    prefix = json.dumps(key).encode() + b"\n"
    return body[len(prefix) :].decode() if body.startswith(prefix) else None


def _ours(found: os.stat_result) -> bool:
    if not hasattr(os, "getuid"):  # Windows keeps a user's cache folder private itself
        return True
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
