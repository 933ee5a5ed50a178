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
from typing import Any

import torch

FROM_ARGUMENTS = "_flashlight_from_arguments"
CACHE = type(functools.lru_cache(lambda: None))
DEEPEST = 3  # tuples in tuples of tensors that are looked into


class Watch:
    """Of one trace of ``program``."""

    def __init__(self, program: Any):
        self.made: list[weakref.ref[torch.Tensor]] = []
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

    def forgotten(self) -> bool:
        """Let go of what was kept; False if something of it follows from the arguments."""
        if not self._left():
            return True
        gc.collect()
        left = self._left()
        kept = {id(t) for t in left}
        for place, before in self.before:
            for name in [n for n, x in place.items() if kept & {id(t) for t in _tensors(x)}]:
                if name in before:
                    place[name] = before[name]
                else:
                    del place[name]
        for t in left:
            _release(t, [left])
        return not any(getattr(t, FROM_ARGUMENTS, False) for t in left)

    def _left(self) -> list[torch.Tensor]:
        return list({id(t): t for r in self.made if (t := r()) is not None}.values())


def _release(x: Any, ours: list[Any], depth: int = 0) -> None:
    """Take an object out of the dictionaries, lists and caches that hold it."""
    holders = gc.get_referrers(x)
    for holder in holders:
        if any(holder is y for y in (*ours, holders)):
            continue
        match holder:
            case dict():
                for key in [k for k, y in holder.items() if y is x]:
                    del holder[key]
            case list():
                holder[:] = [y for y in holder if y is not x]
            case tuple() if depth < DEEPEST:
                _release(holder, [*ours, holders], depth + 1)
            case _ if isinstance(holder, CACHE):
                holder.cache_clear()


def _tensors(x: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif depth < DEEPEST and isinstance(x, tuple | list | dict):
        for y in x.values() if isinstance(x, dict) else x:
            yield from _tensors(y, depth + 1)


def _namespaces(program: Any) -> Iterator[dict[str, Any]]:
    """The attributes of what a program is, belongs to, closes over or names; of modules, of all that are in them."""
    function = getattr(program, "__func__", program)
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    reached = [program, getattr(program, "__self__", None)]
    for cell in getattr(function, "__closure__", None) or ():
        try:
            reached.append(cell.cell_contents)
        except ValueError:  # empty
            continue
    reached += [names[n] for n in (code.co_names if code else ()) if n in names]
    seen: set[int] = set()
    for x in reached:
        for own in x.modules() if isinstance(x, torch.nn.Module) else (x,):
            place = getattr(own, "__dict__", None)
            if isinstance(place, dict) and id(place) not in seen and not isinstance(own, type):
                seen.add(id(place))
                yield place
