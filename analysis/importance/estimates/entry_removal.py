"""What an objective does if one weight of a pattern is taken away and its row sums to 1 again.

MoA (Fu et al., 2024, arXiv 2406.14909) asks which pairs of positions a head can do without. With
``g = d objective / d A`` (``gradient_z @ value^T``) and the rest of row i scaled up by
``1 / (1 - A_ij)``, the objective, linear in z, changes by

    E_ij = -A_ij (g_ij - sum_k g_ik A_ik) / (1 - A_ij).

Where a query has one key alone, nothing is left: there z becomes 0 and ``E = -g A``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from probes.attention_call import Tile
from probes.masks import MASKED_SCORE

_SINK = 1e-5
"""Below this a row that does not sum to 1 is rounding."""


def removal_effects(tile: Tile, gradient: Tensor) -> Tensor:
    """Float32 ``[batch head row key]``: what removing each weight adds to the objective.

    Args:
        gradient: of the objective at the pattern, the tile's shape.
    """
    pattern = tile.pattern
    mean = (pattern * gradient).sum(-1, keepdim=True)
    # The largest weight of a row is kept apart: near 1, both 1 - p and g - mean are nothing but
    # rounding as differences, while p (g - mean) / (1 - p) is p times g minus the others' mean.
    largest, where = pattern.max(-1, keepdim=True)
    others = _without(tile, where)
    rest = (others * gradient).sum(-1, keepdim=True)
    effects = pattern * (mean - gradient) / (1 - pattern.clamp_max(0.5))
    of_largest = largest * (rest - gradient.gather(-1, where))
    return effects.scatter(-1, where, of_largest)


def _without(tile: Tile, where: Tensor) -> Tensor:
    """The rows of a tile without one key, brought to sum 1; 0 where nothing else is there.

    What a row gives to a learned sink counts as a key that says nothing: it is brought up with the
    others.
    """
    if tile.scores is None:
        sink = (1 - tile.pattern.sum(-1, keepdim=True)).clamp_min(0.0)
        left = tile.pattern.scatter(-1, where, 0.0)
        total = left.sum(-1, keepdim=True) + sink.masked_fill(sink < _SINK, 0.0)
        return left / total.masked_fill(total == 0, 1.0)
    scores = tile.scores.scatter(-1, where, MASKED_SCORE)
    alone = scores.amax(-1, keepdim=True) <= MASKED_SCORE / 2
    return torch.softmax(scores, -1).masked_fill(alone, 0.0)
