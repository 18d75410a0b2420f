"""Groups of neighbours that look at the same keys, other groups at others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.tile_view import TileView

_LEAST_CHANGE = 0.01


@dataclass(frozen=True)
class Block:
    """How much more alike rows next to one another are than any two rows, as cosines.

    The mean cosine of a query's row with the row before it in the sequence, minus the mean cosine
    of two different rows. A head whose rows are all alike, or all different, has 0; m groups of n
    neighbours, each of which reads itself, have about ``1 - 1/m - 1/n``. Variant ``edges`` tells
    groups from a window that slides: ``sum (1 - c)^2 / sum max(1 - c, 0.01)`` over cosines c of
    neighbours, 1 where rows change all at once, near 0 where they change a little at every step.
    Mean over sequences, of prompts.
    """

    name: str = "block"
    unit: str = "cosine"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return True

    def start(self, call: CallView) -> Finish:
        if call.step:
            return lambda: ()
        plan = call.plan
        neighbours = call.rows("cosine with the row before", _with_row_before())
        directions = call.column_product("row directions", lambda tile: tile.inverse_norm)

        def finish() -> Iterator[Score]:
            follows = _follows(plan.used, plan.query_block)
            count = plan.sum_by_block(torch.ones_like(plan.used).double()[:, None], follows)
            near = plan.sum_by_block(neighbours.values, follows) / count.clamp_min(1)
            rows = plan.queries_by_block[:, None]
            # All directions have length 1, so the square of their sum holds each with itself once.
            summed = plan.columns_by_block(directions.values).square().sum(-1)
            every = (summed - rows) / (rows * (rows - 1)).clamp_min(1)
            known = (count > 0).double()
            counted = plan.sum_blocks(known)
            yield Score("", plan.sum_blocks((near - every) * known), counted)
            change = (1 - neighbours.values).clamp_min(0)
            once = plan.sum_by_block(change.square(), follows)
            step = plan.sum_by_block(change.clamp_min(_LEAST_CHANGE), follows)
            edges = once / step.clamp_min(_LEAST_CHANGE)
            yield Score("edges", plan.sum_blocks(edges * known), counted, unit="share")

        return finish


def _with_row_before() -> Callable[[TileView], Tensor]:
    """Reads ``[batch head row]``, tiles in order: what is before a tile's first row is kept."""
    last: list[tuple[Tensor, Tensor]] = []

    def read(tile: TileView) -> Tensor:
        pattern, inverse = tile.pattern, tile.inverse_norm
        products = torch.zeros_like(inverse)
        room = tile.room(pattern[:, :, 1:].shape, 3)
        products[..., 1:] = torch.mul(pattern[:, :, 1:], pattern[:, :, :-1], out=room).sum(-1)
        before = torch.zeros_like(inverse)
        before[..., 1:] = inverse[..., :-1]
        if tile.rows.start > 0:
            row, scale = last.pop()
            keys = min(row.shape[-1], tile.keys)
            products[..., 0] = (pattern[:, :, 0, :keys] * row[..., :keys]).sum(-1)
            before[..., 0] = scale
        last[:] = [(pattern[:, :, -1].clone(), inverse[..., -1].clone())]
        return products * inverse * before

    return read


def _follows(used: Tensor, block: Tensor) -> Tensor:
    """Bool ``[batch query]``: counted queries right behind a counted one of their sequence."""
    found = torch.zeros_like(used)
    found[:, 1:] = used[:, 1:] & used[:, :-1] & (block[:, 1:] == block[:, :-1])
    return found


BLOCK = Block()
