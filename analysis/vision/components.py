"""Connected regions of maps, and how far a map falls into several: spatial entropy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d


def components(inside: Tensor) -> Tensor:
    """Long ``[map row column]``: a number per connected region, 0 outside of all.

    Cells that touch, corners included, belong together. Numbers are unique within a map and need
    not follow one another.

    >>> components(torch.tensor([[[True, False, True], [True, False, True]]]))[0].tolist()
    [[4, 0, 6], [4, 0, 6]]
    """
    maps, rows, columns = inside.shape
    number = torch.arange(1, rows * columns + 1, device=inside.device, dtype=torch.float32)
    label = number.view(1, rows, columns) * inside
    while maps:
        # Every cell takes the largest number around it; along a line that is a step per round.
        grown = max_pool2d(label[:, None], 3, stride=1, padding=1)[:, 0] * inside
        if torch.equal(grown, label):
            break
        label = grown
    return label.long()


def spatial_entropy(maps: Tensor, where: Tensor) -> Tensor:
    """Nats, float64 ``[map]``: 0 for one region, log n for n equal ones; NaN for a flat map.

    ``B = max(S - mean S, 0)`` falls into connected regions C with ``P(C) = sum_C B / sum B``, and
    the entropy is that of P (Peruzzo et al., *Spatial Entropy as an Inductive Bias for Vision
    Transformers*, 2022, arXiv 2206.04636; Kang et al., CVPR 2025, arXiv 2503.06287, find heads that
    localise by it).

    Args:
        maps: float ``[map row column]``, 0 and up.
        where: bool, the same shape: cells that exist; the mean is over them.
    """
    count = where.sum((1, 2), keepdim=True).clamp_min(1)
    mean = (maps * where).sum((1, 2), keepdim=True) / count
    excess = torch.where(where, maps - mean, 0.0)
    # A flat map differs from its mean by rounding only.
    excess = excess.masked_fill(excess <= 1e-5 * mean, 0.0).double()
    label = components(excess > 0).flatten(1)
    weight = excess.new_zeros(maps.shape[0], label.shape[1] + 1)
    weight.scatter_add_(1, label, excess.flatten(1))
    total = weight.sum(1, keepdim=True)
    share = weight / torch.where(total > 0, total, torch.nan)
    return torch.special.entr(share).sum(1)
