"""Weight on the patch next to the query's own: one row up or down, one column left or right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.patch_grid import needs_patches
from analysis.measures.patch_sums import patch_sums, readable_pairs

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Rows and columns from the query to the key."""


@dataclass(frozen=True)
class RowBand:
    """Mean weight on the next patch in one direction, 0 to 1.

    Taken from patches to patches of the same tile, each query's weight there renormalised to 1,
    over the queries that have a patch there and may read it. Flattened row by row, ``up`` and
    ``down`` are bands one row beside the diagonal, ``left`` and ``right`` those next to it.
    """

    name: str = "row_band"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_patches(context, self.name)

    def start(self, call: CallView) -> Finish:
        sums = patch_sums(call)

        def finish() -> Iterator[Score]:
            pairs = readable_pairs(call, sums)
            middle = [size // 2 for size in sums.weight.shape[-2:]]
            for name, step in DIRECTIONS.items():
                row, column = (place + away for place, away in zip(middle, step, strict=True))
                if row not in range(2 * middle[0] + 1) or column not in range(2 * middle[1] + 1):
                    continue
                weight, count = (part[..., row, column] for part in (sums.weight, pairs))
                # A causal mask forbids two of the four directions.
                if bool((count > 0).any()):
                    yield Score(name, weight, count.expand_as(weight))

        return finish


ROW_BAND = RowBand()
