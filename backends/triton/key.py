"""Triton's key of itself, remembered: it hashes all its files, half a gigabyte, once in every process that compiles.

The digest goes to flashlight's store, under the paths, sizes and times of the files it is of; a process that finds it
gives it to Triton, which then computes the same keys of kernels as ever.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from flashlight import cache as disk


@cache
def remember_key() -> None:
    """Let Triton know its key from an earlier process, or keep it for later ones.

    Nothing where the store is off, or where this Triton computes its key otherwise.
    """
    from triton.runtime import cache as theirs

    store, compute = disk.default(), getattr(theirs, "triton_key", None)
    if store is None or compute is None or not hasattr(compute, "cache_info") or compute.cache_info().currsize:
        return
    key = disk.key("triton's key 1", _listing(Path(theirs.__file__).parents[1]))
    known = store.get(key)
    if known is None:
        store.put(key, compute())
    else:
        theirs.triton_key = cache(lambda: known)


def _listing(root: Path) -> str:
    """A digest of the paths, sizes and times of all files below a folder but Python's own caches."""
    digest = hashlib.sha256()
    for folder, below, files in os.walk(root):
        below[:] = sorted(d for d in below if d != "__pycache__")
        for name in sorted(files):
            found = os.stat(path := os.path.join(folder, name))
            digest.update(f"{path} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()
