"""The table of ATen operators: importing this package fills it."""

from __future__ import annotations

from flashlight.aten import (
    activations,
    complexes,
    contractions,
    creations,
    gathers,
    joins,
    losses,
    normalisations,
    pointwise,
    reductions,
    trigonometry,
    views,
)
from flashlight.aten.table import TABLE, Node

__all__ = [
    "TABLE",
    "Node",
    "activations",
    "complexes",
    "contractions",
    "creations",
    "gathers",
    "joins",
    "losses",
    "normalisations",
    "pointwise",
    "reductions",
    "trigonometry",
    "views",
]
