"""The one isl context, the lock and the time budget round it, and spaces whose dimensions are known by name."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import ParamSpec, TypeVar

import islpy as isl

from flashlight.expr import Expr

P = ParamSpec("P")
T = TypeVar("T")

CONTEXT = isl.Context()  # our own: a limit on the shared default context would hit other users of islpy
LOCK = threading.RLock()  # isl's contexts are not thread safe

PARAM, DIM = isl.dim_type.param, isl.dim_type.set


class TooHard(Exception):
    """isl has used up the operations allowed for one question.  Never leaves this package: every question has a sound
    answer for this case."""


@contextmanager
def budget(operations: int) -> Iterator[None]:
    """Hold the lock and allow so many isl operations (a few thousand take a millisecond).  Raises TooHard beyond.

    Operations and not seconds, so that the same question has the same answer on every machine.
    """
    with LOCK:
        CONTEXT.reset_operations()
        CONTEXT.set_max_operations(operations)
        try:
            yield
        except isl.Error as error:
            if "maximal number of operations" in str(error):
                raise TooHard(str(error)) from None
            raise
        finally:
            CONTEXT.set_max_operations(0)
            CONTEXT.reset_operations()


def exclusive(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function under the lock, without a limit."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with LOCK:
            return function(*args, **kwargs)

    return run


def number(value: int | Fraction) -> isl.Val:
    """A rational number as isl's."""
    fraction = Fraction(value)
    top = isl.Val.int_from_si(CONTEXT, fraction.numerator)
    return top if fraction.denominator == 1 else top.div(isl.Val.int_from_si(CONTEXT, fraction.denominator))


class Space:
    """A set space whose parameters and dimensions are keyed by expressions (an Index, a Size, an opaque product).

    isl knows dimensions by position; keys are how the rest of this package addresses them.  Two sets may be combined
    only if their spaces have the same parameters in the same order, which is why a question builds one space and stays
    in it.
    """

    def __init__(self, params: Sequence[Expr], dims: Sequence[Expr], name: str | None = None):
        self.params, self.dims, self.name = tuple(params), tuple(dims), name
        texts = [str(e) for e in (*params, *dims)]
        names = unique([f"({t})" if t[0] in "-0123456789" else t for t in texts])  # isl takes no name like a number
        count = len(self.params)
        space = isl.Space.create_from_names(CONTEXT, set=names[count:], params=names[:count])
        self.isl = space if name is None else space.set_tuple_name(DIM, name)
        local = isl.LocalSpace.from_space(self.isl)
        self._zero = isl.Aff.zero_on_domain(local)
        self._keys: dict[Expr, isl.PwAff] = {}
        for k, e in enumerate(self.dims):
            self._keys.setdefault(e, isl.PwAff.from_aff(isl.Aff.var_on_domain(local, DIM, k)))
        for k, e in enumerate(self.params):
            self._keys.setdefault(e, isl.PwAff.from_aff(isl.Aff.var_on_domain(local, PARAM, k)))

    def __contains__(self, key: Expr) -> bool:
        return key in self._keys

    def __getitem__(self, key: Expr) -> isl.PwAff:
        return self._keys[key]

    def constant(self, value: int | Fraction) -> isl.PwAff:
        return isl.PwAff.from_aff(self._zero.set_constant_val(number(value)))

    def universe(self) -> isl.Set:
        return isl.Set.universe(self.isl)

    def empty(self) -> isl.Set:
        return isl.Set.empty(self.isl)


def unique(names: Sequence[str]) -> list[str]:
    """The names, with a prime on those that occurred before."""
    out: list[str] = []
    for name in names:
        while name in out:
            name += "'"
        out.append(name)
    return out


def sample(points: isl.Set, space: Space) -> dict[Expr, int] | None:
    """A point of a set, parameters included, or None if it is empty."""
    point = points.sample_point()
    if point.is_void():
        return None
    out = {}
    for kind, keys in ((PARAM, space.params), (DIM, space.dims)):
        for k, key in enumerate(keys):
            out[key] = int(point.get_coordinate_val(kind, k).get_num_si())
    return out
