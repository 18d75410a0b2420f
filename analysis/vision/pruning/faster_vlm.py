"""FasterVLM: the image tokens that the CLS token attends to in the last layer but one.

Zhang et al., *[CLS] Attention is All You Need for Training-Free Visual Token Pruning* (2024, arXiv
2412.01818): the mean over heads of the CLS row, in the layer whose output LLaVA reads. Vision
towers without a CLS token give the mean over queries instead (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from analysis.vision.patch_statistics import Need, needs_of
from analysis.vision.pruning.selector import Depths, Tile, largest


@dataclass(frozen=True)
class FasterVlm:
    """See the top of this file."""

    name: str = "faster_vlm"
    among: Literal["tile"] = "tile"

    def needs(self, depths: Depths) -> tuple[Need, ...]:
        if depths.vision < 2:
            raise ValueError(
                "faster_vlm reads the last layer but one of the vision tower, which has only "
                f"{depths.vision}. Choose another method."
            )
        return needs_of("vision", [depths.vision - 2], "cls_attention")

    def kept(self, seen: Mapping[Need, Tensor], depths: Depths, tile: Tile, count: int) -> Tensor:
        return largest(seen[self.needs(depths)[0]], count)
