"""Not in the catalogue: the same mathematics outside attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.variants.table import Family

others = Family("others", "Beyond the catalogue")

NORM = "https://arxiv.org/abs/1607.06450"
LLOYD = "https://doi.org/10.1109/TIT.1982.1056489"


@others.add(
    0, "layer norm, then a product", "mean and variance of what is multiplied", NORM,
    lambda r: (r(300, 600) + 0.5, r(600), r(600), r(600, 48) / 24), passes=2,
)  # fmt: skip
def norm_product(x, gain, shift, w):
    return F.layer_norm(x, (x.shape[-1],), gain, shift) @ w


@others.add(0, "k-means assignment", "the nearest of many centres", LLOYD, lambda r: (r(300, 24), r(400, 24)))
def k_means(x, centres):
    return torch.cdist(x, centres).argmin(-1)


@others.add(0, "k-means assignment by expansion", "argmin of a product", LLOYD, lambda r: (r(300, 24), r(400, 24)))
def k_means_expanded(x, centres):
    distance = x.square().sum(-1, keepdim=True) - 2 * x @ centres.T + centres.square().sum(-1)
    return distance.argmin(-1)


FAMILY = others
