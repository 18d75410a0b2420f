"""The k largest of each row, faster than a search through all of it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ENOUGH = 32
"""Columns per wanted value from which groups save time (measured; below, `torch.topk` is as fast).
"""


def strongest(
    pre: Float[Tensor, "row latent"], k: int
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The k largest of each row and where they are: those of `torch.topk`, in any order.

    Columns are put into groups; the k groups of largest maximum hold k values that are as large as
    anything outside of them, so a search among their members finds the same values. Which of equal
    values is taken is as open as in `torch.topk`.
    """
    columns = pre.shape[1]
    if columns < _ENOUGH * k:
        found = pre.topk(k, dim=1, sorted=False)
        return found.values, found.indices
    # Work is about groups + k · size; a group's members lie `groups` apart, so that the maximum
    # is taken over whole vectors.
    size = 1 << int(math.log2(columns / k) / 2)
    groups = columns // size
    grouped = pre[:, : groups * size].unflatten(1, (size, groups))
    _, best = strongest(grouped.amax(1), k)
    steps = torch.arange(0, groups * size, groups, device=pre.device)
    candidates = (best[:, :, None] + steps).flatten(1)
    if groups * size < columns:
        left_over = torch.arange(groups * size, columns, device=pre.device)
        candidates = torch.cat([candidates, left_over.expand(pre.shape[0], -1)], dim=1)
    values, found = strongest(pre.gather(1, candidates), k)
    return values, candidates.gather(1, found)
