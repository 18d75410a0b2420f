"""Boxes of one image where they would be in another, which may have another size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Box = tuple[float, ...]
"""Left, top, right, bottom in pixels of the original image."""


def scaled(
    boxes: Sequence[Box], of: Float[Tensor, "patch 4"], to: Float[Tensor, "other_patch 4"]
) -> tuple[Box, ...]:
    """Boxes at the same place, and of the same size, relative to what all patches cover together.

    Args:
        of: patches of their own image, boxes themselves.
        to: those of the image that they are moved to; where both cover the same, boxes stay
            exactly as they are.
    """
    (from_low, from_high), (low, high) = _covered(of), _covered(to)
    if torch.equal(from_low, low) and torch.equal(from_high, high):
        return tuple(boxes)
    corners = torch.tensor(boxes, dtype=torch.float64).view(-1, 2, 2)
    moved = low + (corners - from_low) / (from_high - from_low) * (high - low)
    return tuple(tuple(box) for box in moved.flatten(1).tolist())


def _covered(patches: Float[Tensor, "patch 4"]) -> tuple[Tensor, Tensor]:
    known = patches.double().cpu()
    return known[:, :2].amin(0), known[:, 2:].amax(0)
