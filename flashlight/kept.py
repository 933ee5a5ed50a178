"""What a function keeps of a trace: a mask in a cache, an attribute, a list.

A trace runs the user's Python once on tensors without values.  What of those it keeps would be found there by the next
plain call.  So what the program can reach is put back as it was, caches forget what they learnt, and what follows from
the arguments is an error: a captured program would keep it once, and not at every call.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterable, Iterator
from types import CellType, FrameType
from typing import Any

import torch

FROM_ARGUMENTS = "_flashlight_from_arguments"
CACHE = type(functools.lru_cache(lambda: None))
DEEPEST = 3  # tuples in tuples of tensors that are looked into


class Watch:
    """Of the traces of one capture of ``program``."""

    def __init__(self, program: Any):
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.failed: list[weakref.ref[torch.Tensor]] = []  # of traces that did: their frames may hold them for a while
        self.before = [(place, dict(place)) for place in _namespaces(program)]

    def given(self, tensors: Iterable[torch.Tensor]) -> None:
        """These are the arguments."""
        for t in tensors:
            setattr(t, FROM_ARGUMENTS, True)

    def computed(self, out: Any, *args: Any) -> None:
        """An operator was called."""
        follows = any(getattr(t, FROM_ARGUMENTS, False) for t in _tensors(args))
        for t in _tensors(out):
            if follows:
                setattr(t, FROM_ARGUMENTS, True)
            self.made.append(weakref.ref(t))

    def fail(self) -> None:
        """A trace failed; what it kept is let go of in the end."""
        self.failed, self.made = [*self.failed, *self.made], []

    def end(self) -> None:
        """There will be no other trace."""
        self.made, self.failed = self.failed, []
        self.forgotten()

    def forgotten(self) -> bool:
        """Let go of what a trace kept; False if something of it follows from the arguments."""
        if not self._left():
            return True
        gc.collect()
        left, self.made = self._left(), []
        kept = {id(t) for t in left}
        for place, before in self.before:
            for name in [n for n, x in place.items() if kept & {id(t) for t in _tensors(x)}]:
                if name in before:
                    place[name] = before[name]
                else:
                    del place[name]
        holders = [h for h in gc.get_referrers(*left) if h is not left and not isinstance(h, FrameType)] if left else []
        if holders:
            for t in left:
                _release(t, [left, holders])
        return not any(getattr(t, FROM_ARGUMENTS, False) for t in left)

    def _left(self) -> list[torch.Tensor]:
        return list({id(t): t for r in self.made if (t := r()) is not None}.values())


def _release(x: Any, ours: list[Any], depth: int = 0) -> None:
    """Take an object out of the dictionaries, lists and caches that hold it; an attribute or a variable is None then,
    as where nothing has been computed yet."""
    holders = gc.get_referrers(x)  # no function in here may close over x: its cell would be one of them
    for holder in holders:
        if holder is holders or _among(holder, ours):
            continue
        match holder:
            case dict():
                for key in _places(holder, x):
                    if _is_namespace(holder):
                        holder[key] = None
                    else:
                        del holder[key]
            case list():
                holder[:] = _others(holder, x)
            case tuple() if depth < DEEPEST:
                _release(holder, [*ours, holders], depth + 1)
            case CellType():
                holder.cell_contents = None
            case _ if isinstance(holder, CACHE):
                holder.cache_clear()
            case _ if type(holder).__module__.partition(".")[0] not in ("torch", "flashlight", "builtins"):
                for name in _places(getattr(holder, "__dict__", {}), x):
                    setattr(holder, name, None)


def _among(x: Any, things: list[Any]) -> bool:
    return any(x is y for y in things)


def _places(holder: dict[Any, Any], x: Any) -> list[Any]:
    return [k for k, y in holder.items() if y is x]


def _others(holder: list[Any], x: Any) -> list[Any]:
    return [y for y in holder if y is not x]


def _is_namespace(holder: dict[Any, Any]) -> bool:
    """Does it have an object's attributes, or a file's variables?"""
    return any(getattr(o, "__dict__", None) is holder for o in gc.get_referrers(holder))


def _tensors(x: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif depth < DEEPEST and isinstance(x, tuple | list | dict):
        for y in x.values() if isinstance(x, dict) else x:
            yield from _tensors(y, depth + 1)


def _namespaces(program: Any) -> Iterator[dict[str, Any]]:
    """The variables of a program's file, and the attributes of what it is, belongs to, closes over or names; of
    modules, of all that are in them."""
    function = getattr(program, "__func__", program)
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    reached = [program, getattr(program, "__self__", None)]
    for cell in getattr(function, "__closure__", None) or ():
        try:
            reached.append(cell.cell_contents)
        except ValueError:  # empty
            continue
    reached += [names[n] for n in (code.co_names if code else ()) if n in names]
    if names:
        yield names
    seen: set[int] = set()
    for x in reached:
        for own in x.modules() if isinstance(x, torch.nn.Module) else (x,):
            place = getattr(own, "__dict__", None)
            if isinstance(place, dict) and id(place) not in seen and not isinstance(own, type):
                seen.add(id(place))
                yield place
