"""How well a map over patches lies on a box: coverage, overlap at a threshold, pointing.

Everything is in pixels of the original image. Patches of several tiles may overlap each other (a
thumbnail and crops): areas are added up over patches, so each tile counts with its own patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_HALF = 0.5


def coverage(patches: Tensor, boxes: Sequence[Sequence[float]]) -> Tensor:
    """Float64 ``[patch]``: the share of each patch's area that lies in one of the boxes, 0 to 1.

    Args:
        patches: float ``[patch 4]``: left, top, right, bottom; NaN counts as outside.
        boxes: the same four numbers each. Where they overlap, a patch counts at most once.
    """
    known = torch.nan_to_num(patches.double(), nan=0.0)
    size = (known[:, 2:] - known[:, :2]).clamp_min(0).prod(-1)
    inside = torch.zeros(len(patches), dtype=torch.float64, device=patches.device)
    for box in boxes:
        edge = torch.tensor(box, dtype=torch.float64, device=patches.device)
        low = torch.maximum(known[:, :2], edge[:2])
        high = torch.minimum(known[:, 2:], edge[2:])
        inside += (high - low).clamp_min(0).prod(-1)
    return (inside / torch.where(size > 0, size, 1.0)).clamp_max(1.0)


def areas(patches: Tensor) -> Tensor:
    """Float64 ``[patch]``: pixels of each patch, 0 where its place is not known."""
    known = torch.nan_to_num(patches.double(), nan=0.0)
    return (known[:, 2:] - known[:, :2]).clamp_min(0).prod(-1)


def hit_patches(cover: Tensor) -> Tensor:
    """Bool ``[... patch]``: patches that count as on the box when pointed at.

    Half of the patch has to lie in the box; of a box too small for that, the patches that it
    covers most.
    """
    most = cover.amax(-1, keepdim=True)
    return (cover >= torch.minimum(most, torch.full_like(most, _HALF))) & (cover > 0)


def overlaps(order: Tensor, cover: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
    """How the first k patches of an order overlap with the box, for k = 1, 2, ...

    Returns:
        Float ``[...]`` twice, 0 to 1: the best intersection over union over all k, and that of the
        k whose patches come closest to the box in area, for which its size has to be known and no
        threshold is chosen by where it lies.

    Args:
        order: long ``[... patch]``: the patches from the largest weight down, those of area 0 last.
        cover, area: ``[... patch]`` from `coverage` and `areas`.
    """
    taken = area.expand_as(order).gather(-1, order).cumsum(-1)
    inside = (cover * area).expand_as(order).gather(-1, order).cumsum(-1)
    box = inside[..., -1:]
    union = taken + box - inside
    ratio = inside / torch.where(union > 0, union, 1.0)
    nearest = (taken - box).abs().argmin(-1, keepdim=True)
    return ratio.amax(-1), ratio.gather(-1, nearest)[..., 0]


def from_largest(maps: Tensor, there: Tensor) -> Tensor:
    """Long, the shape of ``maps [... patch]``: patches from the largest weight down.

    Equal weights come in the order of the patches, patches that are not ``there`` last.
    """
    kept = maps.masked_fill(~there, -1.0)
    return kept.sort(dim=-1, descending=True, stable=True).indices
