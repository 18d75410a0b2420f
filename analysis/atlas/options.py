"""What a pattern atlas keeps and how its map is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Space = Literal["both", "features", "latent"]
SPACES = ("both", "features", "latent")
METHODS = ("auto", "mixture", "kmeans", "hdbscan")


@dataclass(frozen=True)
class AtlasOptions:
    """Sizes of an atlas and how its map is drawn.

    Attributes:
        samples: most patterns in all; every head gets as many.
        side: pooled patterns are so many cells wide and high, a multiple of 8.
        space: patterns are compared by their ``features``, the autoencoder's ``latent`` or both.
        clusters: how they are found: ``mixture`` (of Gaussians), ``kmeans``, ``hdbscan``, or
            ``auto``, the first; their number is chosen by stability. Or a number, taken as it is.
        exemplars: whether the strongest and the usual events of each head are kept as well.
    """

    samples: int = 20_000
    side: int = 64
    space: Space = "both"
    clusters: str = "auto"
    exemplars: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"`samples` must be at least 1, got {self.samples}.")
        if self.side < 16 or self.side % 8:
            raise ValueError(f"`side` must be a multiple of 8, at least 16, got {self.side}.")
        if self.space not in SPACES:
            raise ValueError(f"`space` must be one of {', '.join(SPACES)}, got {self.space!r}.")
        number = self.clusters.isdecimal() and int(self.clusters) > 0
        if self.clusters not in METHODS and not number:
            raise ValueError(
                f"`clusters` must be one of {', '.join(METHODS)}, or a number of clusters, got "
                f"{self.clusters!r}."
            )
