"""FlowCut: tokens are dropped every second layer, by what has flowed to them so far.

Tong et al., *FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language
Models* (2025, arXiv 2505.19536), as its code for LLaVA has it. In each layer but the last two:

    S     = (Ia / sum Ia + Is / sum Is) * Id
    S_cum = S_cum / 2 + S / 2                        (S in the first layer)

with, of each patch, ``Ia`` the mean over heads of the CLS row, ``Is`` the mean over heads of
``softmax_j(v_cls . v_j)`` (unscaled, CLS included), ``Id`` the L1 norm of its value averaged over
heads. With r layers still to come before the last one that prunes, whenever r is even,

    round((N - T) / sqrt(r) * (1 - (entropy(Ia) / log N)^2))

of the N patches that are left go, down to the target T; at r = 0 all but T go.

Three differences: the vision tower itself runs as it is, so a dropped patch still takes part in
later layers; each image has its own entropy (the code takes the largest number of a batch for all);
and a tower without a CLS token, whose CLS row is its mean over queries, has no ``Is``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from analysis.vision.patch_statistics import Need, needs_of
from analysis.vision.pruning.selector import Depths, Tile, largest

READ = ("cls_attention", "cls_similarity", "value_norm")


class Flow(NamedTuple):
    """What one layer says of each patch, ``[n]``."""

    attention: Tensor
    similarity: Tensor
    norm: Tensor


@dataclass(frozen=True)
class FlowCut:
    """See the top of this file."""

    name: str = "flowcut"
    among: Literal["tile"] = "tile"

    def needs(self, depths: Depths) -> tuple[Need, ...]:
        if depths.vision < 3:
            raise ValueError(
                "flowcut reads all layers of the vision tower but the last two, and it has only "
                f"{depths.vision}. Choose another method."
            )
        return needs_of("vision", range(depths.vision - 2), *READ)

    def kept(self, seen: Mapping[Need, Tensor], depths: Depths, tile: Tile, count: int) -> Tensor:
        columns = [seen[need].double().cpu() for need in self.needs(depths)]
        layers = [Flow(*columns[first : first + 3]) for first in range(0, len(columns), 3)]
        return flowed(layers, count)


def flowed(layers: Sequence[Flow], target: int) -> Tensor:
    """Bool ``[n]``: the patches that are left when ``target`` are to stay."""
    left = torch.ones(len(layers[0].norm), dtype=torch.bool)
    cumulative = torch.zeros(len(left), dtype=torch.float64)
    for number, layer in enumerate(layers):
        remaining = len(layers) - 1 - number
        if int(left.sum()) <= target:
            break
        attention = torch.where(left, layer.attention, 0.0)
        similarity = torch.where(left, layer.similarity, 0.0)
        score = (_shares(attention) + _shares(similarity)) * layer.norm
        cumulative = score if number == 0 else 0.5 * cumulative + 0.5 * score
        if remaining % 2 == 0:
            stay = max(target, int(left.sum()) - _dropped(attention, left, target, remaining))
            left = largest(cumulative.masked_fill(~left, -math.inf), stay)
    return left


def _dropped(attention: Tensor, left: Tensor, target: int, remaining: int) -> int:
    """How many patches go at a layer with so many layers still to come."""
    count = int(left.sum())
    if not remaining:
        return count
    ratio = float(torch.special.entr(_shares(attention)).sum()) / math.log(count)
    return round((count - target) / math.sqrt(remaining) * (1 - ratio**2))


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else values
