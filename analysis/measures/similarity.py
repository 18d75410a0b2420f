"""How much a head looks where the other heads of its layer look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView, TileView
from analysis.measure import Finish, MeasureContext, Score


@dataclass(frozen=True)
class HeadSimilarity:
    """Mean cosine between a head's whole pattern and those of the other heads, 0 to 1.

    Per sequence, then the mean over sequences. Null: the cosine between the uniform pattern and
    the other heads.
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
        if call.step:
            return lambda: ()
        plan = call.plan
        gram = torch.zeros(
            plan.blocks, call.heads, call.heads, dtype=torch.float64, device=plan.device
        )
        call.each(lambda tile: _add_products(call, tile, gram))
        seen = call.read_counts

        def finish() -> Iterator[Score]:
            squared = gram.diagonal(dim1=-2, dim2=-1)
            norm = squared.sqrt().clamp_min(1e-150)
            cosine = gram / (norm[..., None] * norm[:, None])
            others = (cosine.sum(-1) - cosine.diagonal(dim1=-2, dim2=-1)) / (call.heads - 1)
            # A row of the uniform pattern has n weights 1 / n: its product with any row that sums
            # to 1 is 1 / n, and so is its square.
            inverse = 1 / seen.clamp_min(1)
            flat = plan.memo("uniform squares", lambda: _by_block(call, inverse))
            to_uniform = flat.sqrt()[:, None] / norm
            null = (to_uniform.sum(-1, keepdim=True) - to_uniform) / (call.heads - 1)
            count = plan.count_blocks()
            yield Score(
                "", plan.sum_blocks(others), count,
                null=(plan.sum_blocks(null), count.expand(-1, call.heads)),
            )  # fmt: skip

        return finish


def _add_products(call: CallView, tile: TileView, gram: Tensor) -> None:
    plan = call.plan
    if plan.single:
        flat = tile.pattern.flatten(2)
        gram[tile.batch] += flat @ flat.transpose(1, 2)
        return
    blocks = plan.query_block[tile.batch, tile.rows]
    for row in range(blocks.shape[0]):
        for block in blocks[row].unique().tolist():
            if block >= 0:
                flat = tile.pattern[row][:, blocks[row] == block].flatten(1)
                gram[block] += flat @ flat.T


def _by_block(call: CallView, values: Tensor) -> Tensor:
    """Float64 ``[block]``: the sum of ``[batch query]`` over the counted queries of a block."""
    plan = call.plan
    total = torch.zeros(plan.blocks + 1, dtype=torch.float64, device=plan.device)
    kept = values.masked_fill(~plan.used, 0.0).flatten()
    return total.index_add_(0, plan.query_block.flatten() % (plan.blocks + 1), kept)[:-1]


HEAD_SIMILARITY = HeadSimilarity()
