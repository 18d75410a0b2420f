"""FastV: the image tokens that the last token of the prompt attends to in an early decoder layer.

Chen et al., *An Image is Worth 1/2 Tokens After Layer 2* (ECCV 2024, arXiv 2403.06764): the mean
over heads of the last query's row in layer K - 1 (counted from 0), for all image tokens of the
prompt; from layer K on, ``round(N (1 - R))`` of them are there. K = 2 and R = .5 for 32 layers.
Chosen once, at the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.vision.patch_statistics import Need, needs_of
from analysis.vision.pruning.selector import Depths, Tile, largest


@dataclass(frozen=True)
class FastV:
    """See the top of this file."""

    name: str = "fastv"
    among: Literal["prompt"] = "prompt"

    def needs(self, depths: Depths) -> tuple[Need, ...]:
        if depths.pruned_from < 1:
            raise ValueError(
                "fastv reads the layer before the one it prunes from, so `from_layer` must be at "
                f"least 1, got {depths.pruned_from}."
            )
        return needs_of("language", [depths.pruned_from - 1], "deciding_attention")

    def kept(self, seen: Mapping[Need, Tensor], depths: Depths, tile: Tile, count: int) -> Tensor:
        return largest(seen[self.needs(depths)[0]], count)
