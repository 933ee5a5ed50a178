"""Every error a user can meet: one class a kind, each naming the user's line, what was wrong and what to do."""

from __future__ import annotations


class FlashlightError(Exception):
    """Root of all errors raised on purpose by flashlight."""


class UnsupportedOperator(FlashlightError):
    """An operator (or a use of one) that the lifter has no meaning for; the region ends there and eager runs it."""


class CaptureError(FlashlightError):
    """The user's function could not be turned into a graph: data-dependent control flow, no tensor result, ..."""


class DataDependent(CaptureError):
    """Control flow that depends on values: such a function has no one graph.  Unless strict, it runs eagerly."""


class InvalidInput(FlashlightError):
    """Arguments that disagree: ranks, dtypes, devices, shapes."""


class UnknownBackend(FlashlightError):
    """A backend that is not registered, or two distributions that claim one name."""


class BackendUnavailable(FlashlightError):
    """A backend that is registered but cannot run here; the message says what it needs."""


class FallbackRefused(FlashlightError):
    """``strict=True`` and some part of the program would have run unfused."""


class IllegalFusion(FlashlightError):
    """The legality check found a dependence that the schedule breaks; carries the witness point."""

    def __init__(self, message: str, witness: str):
        super().__init__(f"{message}; witness: {witness}")
        self.witness = witness


class NotAffine(FlashlightError):
    """An index or predicate that Presburger arithmetic cannot express."""


class Unplannable(FlashlightError):
    """An operator whose meaning is known and that no plan computes well: it runs as it would have, and is reported."""

    def __init__(self, nodes: tuple[str, ...], message: str):
        super().__init__(message)
        self.nodes = nodes


class NeedsLiteral(FlashlightError):
    """The mathematics needs these sizes as numbers (a divisor, a head dimension); capture is redone with them fixed."""

    def __init__(self, sizes: frozenset[str], reason: str):
        super().__init__(reason)
        self.sizes = sizes


class InternalError(FlashlightError):
    """A defect of flashlight, not of the user's program; please report it with the attached stages."""
