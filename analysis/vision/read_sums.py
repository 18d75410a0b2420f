"""Sums over the reads of each example, and of the mean of the layer's other heads."""

from __future__ import annotations

import torch
from torch import Tensor


def summed(
    values: Tensor, example: Tensor, chosen: Tensor, examples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums and counts of the chosen reads by example, and of the mean of the layer's other heads.

    ``values [read head]``; NaN counts for nothing.
    """
    known = torch.isfinite(values)
    filled = values.nan_to_num(0.0)
    others = known.sum(1, keepdim=True) - known.long()
    rest = (filled.sum(1, keepdim=True) - filled) / others.clamp_min(1)
    owner = example[chosen]

    def by_example(block: Tensor) -> Tensor:
        total = torch.zeros(examples, values.shape[1], dtype=torch.float64)
        return total.index_add(0, owner, block[chosen].double())

    compared = known & (others > 0)
    return (
        by_example(filled),
        by_example(known),
        by_example(rest.masked_fill(~compared, 0.0)),
        by_example(compared),
    )
