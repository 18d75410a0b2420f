"""Sums along the diagonals of a pattern: how much weight lies how many tokens back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measures.text_positions import common_shift
from analysis.tile_view import TileView

_ROOM = 2


@dataclass
class OffsetSums:
    """What lies on each diagonal, summed over the queries of each block (sequence).

    Attributes:
        values: float64 ``[block head offset]``.
        zero: index of offset 0; index ``zero + n`` holds the keys n tokens before their query.
    """

    values: Tensor
    zero: int

    @property
    def by_distance(self) -> Tensor:
        """Float64 ``[block head distance]``: both directions added, 0 to the farthest."""
        back, ahead = self.values[..., self.zero :], self.values[..., : self.zero].flip(-1)
        farthest = max(back.shape[-1] - 1, ahead.shape[-1])
        total = back.new_zeros(*back.shape[:-1], farthest + 1)
        total[..., : back.shape[-1]] += back
        total[..., 1 : ahead.shape[-1] + 1] += ahead
        return total


def offset_sums(call: CallView) -> OffsetSums:
    """Ask a call for its weight by offset; all measures of this family share it."""
    if call.shared.get("offset sums") is None:
        sums = empty_offsets(call.plan, call.heads)

        def add(tile: TileView) -> None:
            add_offsets(call.plan, tile.batch, tile.rows, tile.pattern, sums, tile)

        call.each(add)
        call.shared["offset sums"] = sums
    return call.shared["offset sums"]


def empty_offsets(plan: CallPlan, heads: int) -> OffsetSums:
    """Room for every offset that a call can have."""
    queries, keys = plan.query_index.shape[1], plan.key_index.shape[1]
    shift = common_shift(plan)
    if shift is None:
        rank = plan.of_queries("rank"), plan.of_keys("rank")
        back, ahead = (max(int(part.max()), 0) for part in rank)
    else:
        back, ahead = max(queries - 1 + shift, 0), max(keys - 1 - shift, 0)
    shape = (plan.blocks, heads, ahead + back + 1)
    return OffsetSums(torch.zeros(shape, dtype=torch.float64, device=plan.device), ahead)


def add_offsets(
    plan: CallPlan,
    batch: slice,
    rows: slice,
    values: Tensor,
    sums: OffsetSums,
    tile: TileView | None = None,
) -> None:
    """Add a block of pairs to the sums.

    Args:
        batch, rows: where the block lies in the call; its keys start at 0.
        values: float ``[batch head row key]``, 0 at pairs that do not count.
        tile: whose memory is used for a copy; without one, new memory.
    """
    shift = common_shift(plan)
    if shift is None or not plan.single:
        _scatter(plan, batch, rows, values, sums)
        return
    members, heads, count, keys = values.shape
    width = keys + count
    size = members * heads * count * width + count
    room = values.new_empty(size) if tile is None else tile.room((size,), _ROOM)
    padded = room[: size - count].view(members, heads, count, width)
    padded[..., :count] = 0
    padded[..., count:] = values
    # Rows are ``width`` apart. Read as if they were one more apart, each starts one key later
    # than the one above, so that diagonals stand upright; the zeros in front take the overhang.
    room[size - count :] = 0
    skewed = torch.as_strided(
        room, (members * heads, count, width), (count * width, width + 1, 1),
        room.storage_offset(),
    )  # fmt: skip
    diagonals = skewed.sum(1).view(members, heads, width)[..., 1:].flip(-1)
    # From the last row and key 0 on backwards: offset rows.stop - 1 + shift - 0 is the largest.
    least = rows.start + shift - (keys - 1)
    first = sums.zero + least
    sums.values[batch, :, first : first + width - 1] += diagonals


def _scatter(plan: CallPlan, batch: slice, rows: slice, values: Tensor, sums: OffsetSums) -> None:
    """The same pair by pair, where rows do not run alike or hold several sequences."""
    keys, size = values.shape[-1], sums.values.shape[-1]
    back = plan.of_queries("rank")[batch, rows, None] - plan.of_keys("rank")[batch, None, :keys]
    block = plan.query_block[batch, rows]
    place = block.clamp_min(0)[..., None] * size + (back + sums.zero).clamp(0, size - 1)
    chosen = values.double().masked_fill((block < 0)[:, None, :, None], 0.0)
    flat = chosen.permute(1, 0, 2, 3).flatten(1)
    heads = flat.shape[0]
    total = flat.new_zeros(heads, sums.values.shape[0] * size)
    total.index_add_(1, place.flatten(), flat)
    sums.values += total.view(heads, -1, size).transpose(0, 1)
