"""The stable rank of whole patterns: costly, because the pattern must be kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.tile_view import TileView


def stable_rank(pattern: Tensor) -> Tensor:
    """``|A|_F^2 / |A|_2^2`` of each matrix ``[... query key]``: 1 (all rows alike) to its rank.

    >>> stable_rank(torch.eye(3)).item()
    3.0
    """
    matrix = pattern.double()
    # Eigenvalues of the smaller Gram matrix are the squared singular values.
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.transpose(-1, -2)
    largest = torch.linalg.eigvalsh(matrix @ matrix.transpose(-1, -2))[..., -1]
    return matrix.square().sum((-2, -1)) / largest.clamp_min(1e-300)


@dataclass(frozen=True)
class StableRank:
    """Stable rank of the pattern of each sequence, mean over sequences; 1 to its rank.

    Named, not part of "all": it keeps the whole pattern of a layer.
    """

    name: str = "stable_rank"
    unit: str = "rank"
    costly: bool = True
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        if call.step:
            return lambda: ()
        plan = call.plan
        whole = torch.zeros(call.batch, call.heads, call.queries, call.keys, device=plan.device)

        def keep(tile: TileView) -> None:
            whole[tile.batch, :, tile.rows, : tile.keys] = tile.pattern

        call.each(keep)

        def finish() -> Iterator[Score]:
            ranks = torch.zeros(plan.blocks, call.heads, dtype=torch.float64, device=plan.device)
            for block in range(plan.blocks):
                row = int(plan.block_row[block])
                queries = plan.used[row] & (plan.query_block[row] == block)
                ranks[block] = stable_rank(whole[row][:, queries])
            yield Score("", plan.sum_blocks(ranks), plan.count_blocks())

        return finish


STABLE_RANK = StableRank()
