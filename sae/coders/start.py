"""Where a training starts: the point that rows lie around."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.coder import Coder


def geometric_median(
    rows: Float[Tensor, "row width"], *, iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " width"]:
    """The point with the least sum of distances to the rows, by Weiszfeld's iterations.

    Few far rows, as beginnings of sequences are, hardly move it; they do move the mean.

    Args:
        iterations: at most so many.
        tolerance: ends when a step is shorter than so many times the mean distance.

    Raises:
        ValueError: there are no rows.
    """
    if not rows.shape[0]:
        raise ValueError("`rows` must hold at least one row, got none.")
    # Apple's devices have no float64.
    points = rows.float() if rows.device.type == "mps" else rows.double()
    found = points.mean(0)
    for _ in range(iterations):
        distances = (points - found).norm(dim=1)
        spread = distances.mean()
        if not spread > 0:
            break
        # A row at the point itself would weigh infinitely much.
        weights = 1 / distances.clamp_min(1e-9 * spread.item())
        moved = weights @ points / weights.sum()
        done = (moved - found).norm() < tolerance * spread
        found = moved
        if done:
            break
    return found.to(rows.dtype)


@torch.no_grad()
def start_at(coder: Coder, rows: Float[Tensor, "row width"]) -> None:
    """Set the decoder's bias to the geometric median of rows (of the first batch, say).

    A coder that is not centred reads rows as they are and begins at 0: nothing is changed.

    Source: Gao et al. 2024 (arXiv 2406.04093), appendix A.1, and dictionary_learning.
    """
    if coder.centred:
        coder.decoder_bias.copy_(geometric_median(rows))
