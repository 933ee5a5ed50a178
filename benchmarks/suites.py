"""The suites: which workloads are measured together, at which shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.beyond import BEYOND
from benchmarks.decode import BARS, DECODE
from benchmarks.masks import MASKS
from benchmarks.workloads import WORKLOADS as COMMON
from benchmarks.workloads import Shape, Workload, shapes

WORKLOADS: dict[str, Workload] = {**COMMON, **BEYOND, **DECODE, **MASKS}


@dataclass(frozen=True)
class Suite:
    """Workloads, shapes and dtypes measured together; ``tiny`` shapes only try the harness out.  A workload that has
    shapes of its own is measured at those.  ``backends``: of flashlight, () for the device's own."""

    name: str
    workloads: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    tiny: tuple[Shape, ...] = (Shape(2, 4, 96, 16, 4),)
    backends: tuple[str, ...] = ()

    def measured(self, asked: str | None) -> tuple[str, tuple[str, ...]]:
        """The name that lines have, and flashlight's backends.  ``asked``: others than the suite's, by commas; they
        have cells of their own, since nothing is compared across runs."""
        return (f"{self.name}, {asked}", tuple(asked.split(","))) if asked else (self.name, self.backends)

    def cells(self, names: Iterable[str] = (), tiny: bool = False) -> Iterator[tuple[Workload, Shape]]:
        """(workload, shape) in the order of measurement.  ``names``: () for all; others than the suite's may be asked
        for."""
        asked = [WORKLOADS[n] for n in names or self.workloads]
        yield from ((w, s) for s in (self.tiny if tiny else self.shapes) for w in asked if not w.shapes)
        yield from ((w, s) for w in asked for s in (w.tiny if tiny else w.shapes) if w.shapes)


FLEX = ("vanilla", "causal", "alibi", "softcap", "sliding_window", "prefix_lm", "document", "document_causal")
FLEX_SHAPES = shapes("4,16,4096,64", "4,16,4096,128", "16,16,1024,64", "1,16,16384,64", "4,16/2,4096,64")
GROUPED = (Shape(2, 4, 96, 16, 4), Shape(2, 4, 96, 16, 2))


SUITES: dict[str, Suite] = {
    s.name: s
    for s in (
        Suite(
            "first",
            tuple(n for n in COMMON if not n.startswith("document")),
            shapes("4,16,4096,64", "4,16,4096,128"),
            ("bfloat16",),
        ),
        Suite("flex", FLEX, FLEX_SHAPES, ("bfloat16",), GROUPED),
        Suite("backends", FLEX, FLEX_SHAPES, ("bfloat16",), GROUPED, ("triton", "cupy")),
        Suite("cpu", FLEX, shapes("1,8,2048,64"), ("float32",)),
        # softcap has a FlexAttention form; it is there for softcap_loaded, the same but for the pass for its maximum.
        Suite("beyond", ("softcap", *BEYOND), shapes("4,16,4096,64"), ("bfloat16",)),
        Suite("masks", tuple(MASKS), shapes("4,16,4096,64", "1,16,16384,64"), ("bfloat16",)),
        Suite("decode", tuple(DECODE), shapes(*BARS), ("bfloat16",), shapes("2,4/2,1:96,16")),
    )
}
