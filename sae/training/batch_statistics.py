"""What is logged of one batch, over all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.coder import Losses
from sae.training.distributed import Processes


@dataclass(frozen=True)
class BatchStatistics:
    """Of the rows of one step.

    Attributes:
        loss: what was minimised, mean over processes.
        parts: each part of it by name, likewise.
        l0: mean number of active latents per row.
        explained_variance: 1 - squared error / squared distance from the mean row; at most 1,
            negative where the mean row would have been better. None where rows do not vary.
    """

    loss: float
    parts: Mapping[str, float]
    l0: float
    explained_variance: float | None


def batch_statistics(
    x: Float[Tensor, "batch width"], losses: Losses, processes: Processes
) -> BatchStatistics:
    """Sums of all processes, each with as many rows of its own, in float64."""
    # Apple's GPUs have no float64.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    rows = x.to(wide)
    error = (rows - losses.reconstruction).pow(2).sum()
    scalars = [error, losses.fired.sum(), losses.total.detach(), *losses.parts.values()]
    sums = processes.summed(torch.stack([value.to(wide) for value in scalars])).tolist()
    count = x.shape[0] * processes.count
    mean = processes.summed(rows.sum(0)) / count
    spread = float(processes.summed((rows - mean).pow(2).sum()))
    parts = zip(losses.parts, sums[3:], strict=True)
    return BatchStatistics(
        loss=sums[2] / processes.count,
        parts={name: value / processes.count for name, value in parts},
        l0=sums[1] / count,
        explained_variance=1 - sums[0] / spread if spread > 0 else None,
    )
