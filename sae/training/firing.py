"""Which latents have not fired for long."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Firing:
    """For each latent, how many rows have gone by since the batch in which it fired last.

    Counts are whole numbers that several processes can add up: give `update` sums over all of
    them, and all have the same counts.

    Attributes:
        rows_since: rows since then; those of the batch itself are not counted.
        seen: rows in all.
        dead_after: rows without firing after which a latent is dead.
    """

    def __init__(self, latents: int, dead_after: int, device: torch.device | str = "cpu") -> None:
        self.rows_since: Int[Tensor, "latent"] = torch.zeros(
            latents, dtype=torch.int64, device=device
        )
        self.seen = 0
        self.dead_after = dead_after

    def update(self, fired: Int[Tensor, "latent"], rows: int) -> None:
        """Count a batch of ``rows`` rows, at ``fired`` of which each latent fired."""
        # Masked in place: no new tensor per step, no wait for the device.
        self.rows_since.add_(rows).masked_fill_(fired > 0, 0)
        self.seen += rows

    @property
    def dead(self) -> Bool[Tensor, "latent"] | None:
        """Which latents are dead; None as long as none can be."""
        if self.seen < self.dead_after:
            return None
        return self.rows_since >= self.dead_after

    def dead_count(self) -> int:
        """How many latents are dead."""
        dead = self.dead
        return 0 if dead is None else int(dead.sum())

    def revive(self, latents: Bool[Tensor, "latent"]) -> None:
        """Count these as if they had just fired; for latents that were started anew."""
        self.rows_since.masked_fill_(latents, 0)
