"""The table of ATen operators: importing this package fills it."""

from __future__ import annotations

from flashlight.aten import (
    complexes,
    contractions,
    creations,
    gathers,
    joins,
    normalisations,
    pointwise,
    reductions,
    views,
)
from flashlight.aten.table import TABLE, Node

__all__ = [
    "TABLE",
    "Node",
    "complexes",
    "contractions",
    "creations",
    "gathers",
    "joins",
    "normalisations",
    "pointwise",
    "reductions",
    "views",
]
