"""Massive activations: single entries of the residual stream far beyond all others.

Sun et al., *Massive Activations in Large Language Models* (COLM 2024, arXiv 2402.17762) call an
entry massive if ``|x| > 100`` and at least 1,000 times the median ``|x|`` of its hidden state. The
absolute size does not carry over to other families, so here the ratio to the median and a robust z
are what is told, and the published rule stands beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

TOP = 3
"""Entries that are kept of each hidden state."""
PUBLISHED_SIZE, PUBLISHED_RATIO = 100.0, 1000.0
MAD_TO_SIGMA = 1.4826
"""A normal's standard deviation over its median absolute deviation."""
_NORMAL = NormalDist()


@dataclass(frozen=True)
class LargestEntries:
    """The largest entries of one hidden state ``x [position model_width]``.

    Attributes:
        value: float ``[entry]``, signed, the largest |x| first.
        position, dimension: long ``[entry]``.
        median: of |x| over all entries.
        deviation: median absolute deviation of |x| from that.
        entries: how many there are.
    """

    value: Tensor
    position: Tensor
    dimension: Tensor
    median: float
    deviation: float
    entries: int

    @property
    def ratio(self) -> Tensor:
        """Float ``[entry]``: |x| over the median |x|; NaN where that is 0."""
        size = self.value.abs().double()
        return size / self.median if self.median > 0 else torch.full_like(size, torch.nan)

    @property
    def robust_z(self) -> Tensor:
        """Float ``[entry]``: ``(|x| - median) / (1.4826 MAD)``; NaN where the MAD is 0."""
        far = self.value.abs().double() - self.median
        spread = MAD_TO_SIGMA * self.deviation
        return far / spread if spread > 0 else torch.full_like(far, torch.nan)

    @property
    def published(self) -> Tensor:
        """Bool ``[entry]``: massive by the published rule."""
        return (self.value.abs() > PUBLISHED_SIZE) & (self.ratio >= PUBLISHED_RATIO)


def largest_entries(x: Tensor, top: int = TOP) -> LargestEntries:
    """The ``top`` largest |x| of ``x [position model_width]``, which must hold only real positions.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    size = x.detach().float().abs()
    flat = size.flatten()
    if not bool(torch.isfinite(flat).all()):
        raise ValueError(
            "The residual stream must be finite, got NaN or infinity. Check the weights, or load "
            "the model with dtype='float32'."
        )
    place = flat.topk(min(top, flat.numel())).indices
    median = flat.median()
    deviation = (flat - median).abs().median()
    return LargestEntries(
        x.flatten()[place].float().cpu(),
        (place // x.shape[-1]).cpu(),
        (place % x.shape[-1]).cpu(),
        float(median),
        float(deviation),
        flat.numel(),
    )


def normal_ratio(entries: int) -> float:
    """The null of the ratio: the median of the largest of so many |x|, if x were normal.

    >>> round(normal_ratio(1), 6), round(normal_ratio(10**6), 2)
    (1.0, 7.36)
    """
    share = 0.5 ** (1 / entries)  # |x| of every entry lies below, with a probability of a half
    return _NORMAL.inv_cdf((1 + share) / 2) / _NORMAL.inv_cdf(0.75)
