"""Correlations of many maps with one, all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST = 3


def pearson(maps: Tensor, other: Tensor) -> Tensor:
    """Float64 ``[...]``: of ``maps [... place]`` and ``other``, which broadcasts to it.

    NaN where it has no meaning: under 3 places, or one side constant.
    """
    left, right = maps.double(), other.double().expand_as(maps)
    if left.shape[-1] < FEWEST:
        return torch.full(left.shape[:-1], torch.nan, dtype=torch.float64)
    left, right = (_centred(side) for side in (left, right))
    size = torch.linalg.vector_norm(left, dim=-1) * torch.linalg.vector_norm(right, dim=-1)
    product = torch.linalg.vecdot(left, right)
    return torch.where(size > 0, product / size, torch.nan).clamp(-1.0, 1.0)


def spearman(maps: Tensor, other: Tensor) -> Tensor:
    """The same of ranks; ties share the mean of theirs."""
    return pearson(ranks(maps), ranks(other))


def ranks(values: Tensor) -> Tensor:
    """Float64 ``[... place]``, from 1, ties sharing the mean of theirs.

    >>> ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    lower = (values[..., :, None] > values[..., None, :]).sum(-1)
    equal = (values[..., :, None] == values[..., None, :]).sum(-1)
    return lower.double() + (equal.double() + 1) / 2


def _centred(values: Tensor) -> Tensor:
    """Minus the mean; exactly 0 where all are alike, which rounding would hide."""
    alike = (values == values[..., :1]).all(-1, keepdim=True)
    return (values - values.mean(-1, keepdim=True)).masked_fill(alike, 0.0)
