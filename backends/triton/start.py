"""What the first compilation of a process waits for, begun in a thread while the program is still being understood.

Triton is imported, hashes all its files for its key (half a gigabyte), and has a C compiler make its driver's
utilities: most of that is done outside Python, so that another thread loses little by it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from threading import Thread

from flashlight.backends.triton.key import remember_key


def start() -> None:
    """Begin, once in a process."""
    _thread()


def wait() -> None:
    """Until it is done, if it was begun."""
    if _thread.cache_info().currsize:
        _thread().join()


@cache
def _thread() -> Thread:
    thread = Thread(target=_prepare, name="flashlight: Triton starts", daemon=True)
    thread.start()
    return thread


def _prepare() -> None:
    with suppress(Exception):  # what fails here fails again, and is reported, where it is needed
        from triton.runtime import driver

        remember_key()
        _ = driver.active.utils
