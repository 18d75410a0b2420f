"""Rows made from a known sparse dictionary: what a coder should find is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SparseDictionary:
    """Rows are sums of few features with positive strengths, an offset and noise.

    Features of a row are drawn without replacement, feature i with odds ``(i + 1) ** -skew``;
    strengths are uniform between 0.5 and 1.5 times ``strength``.

    Attributes:
        directions: of length 1, in random directions.
        offset: what is added to every row.
        active: features per row.
        strength: mean strength of a feature that fires.
        noise: standard deviation of the noise of each entry.
        skew: 0: all features are as frequent; 1: Zipf's law.
    """

    directions: Float[Tensor, "feature width"]
    offset: Float[Tensor, " width"]
    active: int = 3
    strength: float = 3.0
    noise: float = 0.05
    skew: float = 0.0

    @classmethod
    def random(
        cls, width: int = 32, features: int = 128, *, seed: int = 0, **others: Any
    ) -> SparseDictionary:
        """Four times overcomplete unless other sizes are given."""
        # Far from the seeds of coders: they draw their first rows the same way, and would know.
        generator = torch.Generator().manual_seed(seed + 7_000_003)
        directions = torch.randn(features, width, generator=generator)
        directions = directions / directions.norm(dim=1, keepdim=True)
        offset = torch.randn(width, generator=generator)
        return cls(directions, offset / offset.norm(), **others)

    def strengths(self, rows: int, seed: int = 0) -> Float[Tensor, "row feature"]:
        """How strongly each feature fires at each row."""
        features = self.directions.shape[0]
        generator = torch.Generator().manual_seed(seed)
        odds = torch.arange(1, features + 1) ** -float(self.skew)
        # The largest of log(u) / odds are a draw without replacement (Efraimidis and Spirakis).
        keys = torch.rand(rows, features, generator=generator).log() / odds
        which = keys.topk(self.active, dim=1).indices
        drawn = self.strength * (0.5 + torch.rand(rows, self.active, generator=generator))
        return torch.zeros(rows, features).scatter(1, which, drawn)

    def rows(self, rows: int, seed: int = 0) -> Float[Tensor, "row width"]:
        """What a coder sees: of the `strengths` of the same seed."""
        generator = torch.Generator().manual_seed(seed + 1_000_003)
        noise = self.noise * torch.randn(rows, self.directions.shape[1], generator=generator)
        return self.strengths(rows, seed) @ self.directions + self.offset + noise

    def recovered(self, decoder: Float[Tensor, "latent width"], least: float = 0.9) -> float:
        """Share of the features that have a decoder row of at least this cosine."""
        return (self.best_cosines(decoder) >= least).float().mean().item()

    def best_cosines(self, decoder: Float[Tensor, "latent width"]) -> Float[Tensor, " feature"]:
        """Of each feature, the largest cosine with a decoder row."""
        rows = decoder.detach().float()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return (self.directions @ rows.T).amax(1)
