"""How often and how strongly each latent fires: dead and dense ones, and how frequent the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.coders.coder import Coder
from sae.judging.duplicates import Duplicates, duplicates
from sae.judging.one_pass import CodedRows, one_pass
from sae.reading.latent_reading import wide_dtype

DENSE = 0.1
"""Share of the rows above which a latent counts as dense (SAEBench)."""
_BIN = 0.25


@dataclass(frozen=True)
class LatentStatistics:
    """What the latents of a coder did on some rows.

    Attributes:
        rows: how many there were; a latent that fires less than once in so many looks dead.
        fired: at how many rows each latent was not 0.
        mean_strength: over the rows it fired at; NaN where it never did.
        largest_strength: NaN where it never fired.
        duplicates: decoder rows that nearly agree; None where they were not looked for.
    """

    rows: int
    fired: Int[Tensor, " latent"] = field(repr=False)
    mean_strength: Float[Tensor, " latent"] = field(repr=False)
    largest_strength: Float[Tensor, " latent"] = field(repr=False)
    duplicates: Duplicates | None = None

    @property
    def density(self) -> Float[Tensor, " latent"]:
        """Share of the rows at which each latent fires, 0 to 1."""
        return self.fired.double() / self.rows

    @property
    def dead_share(self) -> float:
        """Share of the latents that never fired on `rows` rows."""
        return float((self.fired == 0).double().mean())

    @property
    def dense_share(self) -> float:
        """Share of the latents that fire at more than 10 % of the rows."""
        return float((self.density > DENSE).double().mean())

    def density_histogram(self, width: float = _BIN) -> tuple[list[float], list[int]]:
        """Edges of log10 density, ascending to 0, and how many latents lie in each bin.

        Dead latents are in none: counts sum to those that fired. Bins hold their lower edge, the
        last one both.

        Args:
            width: of a bin, in powers of ten.
        """
        lowest = math.floor(math.log10(1 / self.rows) / width) if self.rows > 1 else -1
        edges = [step * width for step in range(min(lowest, -1), 1)]
        alive = self.density[self.fired > 0].log10()
        # Rounding must not push a density out of the last bin.
        counts, _ = np.histogram(alive.clamp(edges[0], 0.0).numpy(), bins=edges)
        return edges, counts.tolist()

    def record(self) -> dict[str, Any]:
        """What is not by latent, for JSON."""
        edges, counts = self.density_histogram()
        return {
            "rows": self.rows,
            "latents": self.fired.numel(),
            "dead_share": self.dead_share,
            "dense_share": self.dense_share,
            "density_log10_edges": edges,
            "density_counts": counts,
            "duplicates": None if self.duplicates is None else self.duplicates.record(),
        }


def latent_statistics(
    coder: Coder, activations: Any, *, site: str | None = None, find_duplicates: bool = True
) -> LatentStatistics:
    """Density, strengths and duplicates of a coder's latents, in one pass over the data.

    Args:
        activations: `Activations`, or what `as_activations` makes one of.
        site: which of several sites; by default the one that the coder says it belongs to.
        find_duplicates: compare decoder rows; takes latents² x width operations.

    Raises:
        ValueError: as `sae.judging.fidelity.judge`.
    """
    sums = LatentSums(coder.latents)
    sites: Mapping[str, str] | None = None if site is None else {"coder": site}
    one_pass({"coder": coder}, activations, {"coder": [sums]}, sites)
    return sums.statistics(duplicates(coder.decoder) if find_duplicates else None)


class LatentSums:
    """Sums by latent, of which `statistics` makes the numbers."""

    def __init__(self, latents: int) -> None:
        """Nothing was seen yet."""
        self._rows = 0
        self._fired = torch.zeros(latents, dtype=torch.long)
        self._total = torch.zeros(latents, dtype=torch.float64)
        self._largest = torch.full((latents,), -math.inf, dtype=torch.float64)

    def add(self, coded: CodedRows) -> None:
        """Count a block of rows."""
        strengths = coded.strengths
        active = strengths != 0
        total = strengths.sum(0, dtype=wide_dtype(strengths.device))
        largest = strengths.masked_fill(~active, -math.inf).amax(0)
        self._rows += strengths.shape[0]
        self._fired += active.sum(0).cpu()
        self._total += total.cpu().double()
        self._largest = torch.maximum(self._largest, largest.cpu().double())

    def statistics(self, found: Duplicates | None = None) -> LatentStatistics:
        """Of all rows so far; at least one."""
        alive = self._fired > 0
        unknown = torch.full_like(self._total, math.nan)
        return LatentStatistics(
            self._rows,
            self._fired.clone(),
            torch.where(alive, self._total / self._fired.clamp_min(1), unknown),
            torch.where(alive, self._largest, unknown),
            found,
        )
