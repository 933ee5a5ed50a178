"""Which elements of which tensors an instance reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashlight.expr import Const, Expr, Index, Load, Ref, axes, children
from flashlight.polyhedral.affine import Translator, is_affine, parameters
from flashlight.polyhedral.domain import IterationDomain, box, iteration_domain
from flashlight.polyhedral.linear import as_linear
from flashlight.polyhedral.loops import Interval, Line
from flashlight.polyhedral.space import DIM, Space, TooHard, budget
from flashlight.program import Statement

OPERATIONS = 50_000


@dataclass(frozen=True)
class Access:
    """Instance -> element: ``index`` over the domain's axes, None where any element of that dimension may be meant
    (the index is loaded, is not affine, or varies along an axis of a fold)."""

    domain: IterationDomain
    tensor: str
    index: tuple[Expr | None, ...]

    @property
    def is_exact(self) -> bool:
        return None not in self.index

    def __str__(self) -> str:
        return f"{self.domain} -> {self.tensor}[{', '.join(map(show, self.index))}]"


def show(e: Expr | None) -> str:
    """An index as text, ``*`` for any."""
    if e is None:
        return "*"
    text = str(as_linear(e).expr())
    return text[1:-1] if text.startswith("(") and text.endswith(")") and ")" not in text[1:-1] else text


def reads(s: Statement) -> tuple[Access, ...]:
    """The loads of a statement's body, also those in the index of a load, each once."""
    return accesses(iteration_domain(s), s.body)


def accesses(domain: IterationDomain, body: Expr) -> tuple[Access, ...]:
    """The loads of an expression that is evaluated at every point of a domain."""
    own = {a.name for a in domain.axes}

    def index(e: Expr) -> Expr | None:
        return e if axes(e) <= own and is_affine(e) else None

    return tuple(dict.fromkeys(Access(domain, x.tensor, tuple(map(index, x.index))) for x in _loads(body)))


def write(s: Statement) -> Access:
    """Every instance writes the element of its own axes (a reduction, once for each point that it reduces)."""
    return Access(iteration_domain(s), s.name, tuple(Index(a.name) for a in s.axes))


def _loads(body: Expr) -> Iterator[Load]:
    seen: set[Expr] = set()
    stack = [body]
    while stack:
        e = stack.pop()
        if e not in seen:
            seen.add(e)
            if isinstance(e, Load):
                yield e
            stack.extend(reversed(children(e)))


def footprint(access: Access, shape: tuple[Expr, ...], fixed: tuple[str, ...] = ()) -> tuple[Interval, ...]:
    """The smallest box of elements that is touched while the ``fixed`` axes stand still, one interval a dimension, over
    the indices of these axes and sizes; the whole dimension where no short text for less is found."""
    return tuple(_extent(access, e, n, fixed) for e, n in zip(access.index, shape, strict=True))


def _extent(access: Access, index: Expr | None, length: Expr, fixed: tuple[str, ...]) -> Interval:
    whole = Interval(Const(0), length)
    if index is None:
        return whole
    element = Ref("element")
    still = [Index(a.name) for a in access.domain.axes if a.name in fixed]
    moving = [Index(a.name) for a in access.domain.axes if a.name not in fixed]
    params = (*still, *parameters(index, length, *(a.extent for a in access.domain.axes)))
    try:
        with budget(OPERATIONS):
            space = Space(params, (element, *moving))
            inside = box(access.domain, space)
            at = space[element].eq_set(Translator(space).value(index))
            line = Space(params, (element,))
            context = inside.project_out(DIM, 0, 1 + len(moving)).insert_dims(DIM, 0, 1)
            touched = at.intersect(inside).project_out(DIM, 1, len(moving))
            found = Line(line, context, len(still))
            return found.interval(found.hull(touched, context), context, outer=True) or whole
    except TooHard:
        return whole
