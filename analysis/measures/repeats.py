"""Weight on repeated tokens: earlier copies of the query's token, and what followed them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_view import CallView, Rows
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.offsets import weight_by_place
from analysis.measures.text_positions import needs_text_order
from analysis.tile_view import TileView
from probes.tokens.map import ROLES


@dataclass(frozen=True)
class _Repeats:
    """What both measures share: total weight on the chosen pairs over total weight."""

    name: str
    shift: int
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        order = needs_text_order(context, self.name)
        if order is not True:
            return order
        assert context.tokens is not None
        if not bool((context.tokens.ids >= 0).any()):
            return (
                f"{self.name} compares token ids, and those of {context.site.tower} are not "
                "known, so it is not measured there."
            )
        return True

    def start(self, call: CallView) -> Finish:
        rows = call.pair_product(self.name, lambda tile: _chosen(call, tile)[self.shift])
        first, later = weight_by_place(call)

        def finish() -> Iterator[Score]:
            total, rest = (call.plan.sum_queries(part.values) for part in (rows, later))
            yield Score("", total, call.plan.sum_queries(first.values) + rest)
            # The two sums below round apart where all weight is on a first key that is a copy.
            total = (total - self._on_first(call, first)).clamp_min(0.0).minimum(rest)
            yield Score("exclude_bos", total, rest)

        return finish

    def _on_first(self, call: CallView, first: Rows) -> Tensor | float:
        if self.shift:
            return 0.0  # Nothing stands before the first key, so it follows no copy.
        plan = call.plan
        query_ids, key_ids = _ids(call)
        of_first = key_ids.masked_fill(plan.key_rank != 0, -1).amax(-1, keepdim=True)
        again = (query_ids == of_first) & (query_ids >= 0) & (plan.of_queries("rank") > 0)
        return plan.sum_queries(first.values, again)


def _chosen(call: CallView, tile: TileView) -> tuple[Tensor, Tensor]:
    """Float ``[batch row key]`` twice: earlier copies, and the keys right after them."""
    return tile.memo("repeats", lambda: _compare(call, tile))


def _compare(call: CallView, tile: TileView) -> tuple[Tensor, Tensor]:
    plan = call.plan
    query_ids, key_ids = _ids(call)
    query = query_ids[tile.batch, tile.rows]
    key = key_ids[tile.batch, : tile.keys]
    query_place = plan.query_index[tile.batch, tile.rows]
    key_place = plan.key_index[tile.batch, : tile.keys]
    pairs = (query[..., None] == key[:, None]) & (key_place[:, None] < query_place[..., None])
    if not plan.single:
        blocks = plan.query_block[tile.batch, tile.rows], plan.key_block[tile.batch, : tile.keys]
        pairs &= blocks[0][..., None] == blocks[1][:, None]
    copies = pairs.float()
    after = torch.zeros_like(copies)
    after[..., 1:] = copies[..., :-1]
    return copies, after


def _ids(call: CallView) -> tuple[Tensor, Tensor]:
    """Long ``[batch query]`` and ``[batch key]``: token ids; -1 and -2 where there is no token."""

    def read() -> tuple[Tensor, Tensor]:
        image = torch.tensor([ROLES.index("image"), ROLES.index("pad"), -1])
        image = image.to(call.plan.device)
        query, key = call.plan.of_queries("ids"), call.plan.of_keys("ids")
        query = query.masked_fill(torch.isin(call.plan.of_queries("role"), image), -1)
        key = key.masked_fill(torch.isin(call.plan.of_keys("role"), image), -1)
        return query, key.masked_fill(key < 0, -2)

    return call.plan.memo("ids", read)


DUPLICATE_TOKEN = _Repeats("duplicate_token", 0)
INDUCTION = _Repeats("induction", 1)
