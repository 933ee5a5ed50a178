"""The user's line: of a running call, of a graph's node, of an error."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterator
from typing import Any

import torch

from flashlight.program import Origin

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


def _users_frames(frame: Any) -> Iterator[Any]:
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_HERE, _TORCH, "<frozen", "<eval_with_key>")) and "contextlib" not in file:
            yield frame
        frame = frame.f_back


def stack(frame: Any) -> str:
    """The line of the traced function that is running, as ``file\\nline``."""
    for f in _users_frames(frame):
        return f"{f.f_code.co_filename}\n{f.f_lineno}"
    return ""


def origin_of(node: torch.fx.Node) -> Origin:
    file, _, line = (node.meta.get("stack_trace") or node.stack_trace or "").partition("\n")
    if not line.isdigit():
        return Origin((node.name,))
    return Origin((node.name,), file, int(line), linecache.getline(file, int(line)).strip() or None)


def users_line(error: BaseException) -> tuple[str, int, str] | None:
    """File, line and text of the innermost line of the user's that an exception came through."""
    tb, found = error.__traceback__, None
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if next(_users_frames(tb.tb_frame), None) is tb.tb_frame:
            found = (file, tb.tb_lineno, linecache.getline(file, tb.tb_lineno).strip())
        tb = tb.tb_next
    return found


def place_of(error: BaseException) -> str:
    where = users_line(error)
    return f"{where[0]}:{where[1]}" if where else ""
