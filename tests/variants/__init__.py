"""The catalogue of attention variants, each as its inventors would write it; nothing in it knows of flashlight."""

from __future__ import annotations

from tests.variants import (
    biases,
    heads,
    masks,
    normalisers,
    others,
    outputs,
    recurrent,
    scans,
    science,
    selection,
    thresholds,
    transforms,
)
from tests.variants.table import Family, Variant

FAMILIES: tuple[Family, ...] = tuple(
    m.FAMILY
    for m in (
        masks,
        biases,
        transforms,
        heads,
        normalisers,
        thresholds,
        scans,
        science,
        selection,
        outputs,
        recurrent,
        others,
    )
)
VARIANTS: dict[str, Variant] = {v.key: v for f in FAMILIES for v in f.variants}
