"""How much a head looks where the other heads of its layer look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.tile_view import TileView, inverse_root


@dataclass(frozen=True)
class HeadSimilarity:
    """Mean over queries of the mean cosine between a head's row and the other heads' rows, 0 to 1.

    Null: the cosine between the uniform row and the other heads' rows.
    """

    name: str = "head_similarity"
    unit: str = "cosine"
    costly: bool = False
    reads_pattern: bool = False

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        if context.heads > 1:
            return True
        return (
            f"head_similarity compares heads of one layer, and {context.site.tower} has one head "
            "per layer, so it is not measured there."
        )

    def start(self, call: CallView) -> Finish:
        # With u = row / |row|: the cosines of head h with all heads sum to u_h . sum_g u_g, so the
        # sum over heads is a feature of (query, key) like any other.
        products = call.pair_product("sum of directions", _sum_of_directions)
        squared = call.rows("squared_norm", lambda tile: tile.squared_norm)
        others = call.heads - 1

        def finish() -> Iterator[Score]:
            inverse = inverse_root(squared.values.double())
            cosines = (products.values * inverse - 1) / others
            total, count = call.mean_over_queries(cosines)
            # A uniform row has n weights 1 / n: its product with a row that sums to 1 is 1 / n,
            # and its norm is 1 / sqrt(n).
            to_uniform = inverse / call.read_counts.clamp_min(1).sqrt()[:, None]
            of_others = (to_uniform.sum(1, keepdim=True) - to_uniform) / others
            yield Score("", total, count, null=call.mean_over_queries(of_others))

        return finish


def _sum_of_directions(tile: TileView) -> Tensor:
    """Float ``[batch row key]``: the sum over heads of row / |row|."""
    weights = tile.inverse_norm
    if not tile.is_coarse:
        return tile.weighted(weights[..., None]).sum(1)
    # [row 1 head] @ [row head key]; a transposed left side is several times slower.
    parts = [
        torch.bmm(weight.T.contiguous()[:, None], pattern.transpose(0, 1))[:, 0]
        for weight, pattern in zip(weights, tile.pattern, strict=True)
    ]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


HEAD_SIMILARITY = HeadSimilarity()
