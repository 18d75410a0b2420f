"""EViT: the tokens that the CLS token attends to, thinned out at three depths.

Liang et al., *Not All Patches are What You Need* (ICLR 2022, arXiv 2202.07800), ``drop_loc`` 3, 6
and 9 of 12 layers: at each, of the N tokens that are left the ``ceil(kappa N)`` with the largest
mean over heads of the CLS row stay. Here ``kappa`` is the third root of the share that is to stay,
and the last stage keeps exactly as many as were asked for.

The vision tower itself runs as it is: a token that was dropped at one stage is still attended to at
the next, and no token is made of the dropped ones (``fuse_token``), as EViT does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.vision.patch_statistics import Need, needs_of
from analysis.vision.pruning.selector import Depths, Tile, largest

STAGES = (3 / 12, 6 / 12, 9 / 12)


@dataclass(frozen=True)
class Evit:
    """See the top of this file."""

    name: str = "evit"
    among: Literal["tile"] = "tile"

    def needs(self, depths: Depths) -> tuple[Need, ...]:
        layers = [min(round(stage * depths.vision), depths.vision - 1) for stage in STAGES]
        return needs_of("vision", dict.fromkeys(layers), "cls_attention")

    def kept(self, seen: Mapping[Need, Tensor], depths: Depths, tile: Tile, count: int) -> Tensor:
        return thinned_out([seen[need] for need in self.needs(depths)], count)


def thinned_out(stages: Sequence[Tensor], count: int) -> Tensor:
    """Bool ``[n]``: what is left of n tokens after some stages of the same keep rate.

    Args:
        stages: scores ``[n]`` of each stage.
    """
    n = len(stages[0])
    rate = (count / n) ** (1 / len(stages))
    left = torch.ones(n, dtype=torch.bool)
    for number, scores in enumerate(stages):
        last = number == len(stages) - 1
        # A rate whose powers should give a whole number is off by rounding.
        stay = count if last else max(count, math.ceil(rate * int(left.sum()) - 1e-9))
        left = largest(scores.cpu().masked_fill(~left, -math.inf), stay)
    return left
