"""HiPrune: anchors on objects, the tokens around them, and registers for the rest.

Liu et al., *HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention* (2025, arXiv
2508.00553), as its code has it. What a token receives is the mean over heads and over all queries
of its column (CLS and registers ask too), not the CLS row. Of a budget of N:

    anchors    the round(alpha N / 5) tokens that receive most in the object layer (9 of 24)
    buffers    the four neighbours of each anchor in the grid
    registers  what receives most in the layer that the language model reads, up to N

Two differences from the code, which adds -1, 1, -24 and 24 to the index of an anchor and clamps it:
there the neighbour of a row's last token is the first one of the next row, and an anchor in the top
row brings in the first token of all. Here neighbours are those of the grid, and there are none
beyond its edge. With a small budget there may be no anchor at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.vision.patch_statistics import Need, needs_of
from analysis.vision.pruning.selector import Depths, Tile, largest

OBJECT_LAYER = 9 / 24
"""The ninth of 24 layers in LLaVA's tower; 16 of Qwen2.5-VL's 32."""


@dataclass(frozen=True)
class HiPrune:
    """See the top of this file.

    Attributes:
        alpha: share of the budget that is for anchors and buffers.
        depth: which layer finds objects: the layer of this number of so many, counted from 1.
    """

    alpha: float = 0.1
    depth: float = OBJECT_LAYER
    name: str = "hiprune"
    among: Literal["tile"] = "tile"

    def needs(self, depths: Depths) -> tuple[Need, ...]:
        objects = min(max(round(self.depth * depths.vision) - 1, 0), depths.vision - 1)
        return needs_of("vision", [objects, depths.features], "received")

    def kept(self, seen: Mapping[Need, Tensor], depths: Depths, tile: Tile, count: int) -> Tensor:
        shallow, deep = (seen[need].cpu() for need in self.needs(depths))
        anchors = largest(shallow, min(round(self.alpha * count / 5), count))
        chosen = anchors | around(anchors, tile)
        if int(chosen.sum()) > count:  # a tiny budget: anchors first, then the better buffers
            return largest(shallow.masked_fill(~chosen, -math.inf), count)
        return largest(deep.masked_fill(chosen, math.inf), count)


def around(anchors: Tensor, tile: Tile) -> Tensor:
    """Bool ``[n]``: the tokens above, below, left and right of the anchors, in the same grid."""
    row, column = tile.row, tile.column
    apart = (row[:, None] - row[anchors]).abs() + (column[:, None] - column[anchors]).abs()
    return (apart == 1).any(-1)
