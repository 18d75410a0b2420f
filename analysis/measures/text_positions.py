"""Where measures of token order apply, and the features that they share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measure import MeasureContext
from analysis.tile_view import TileView
from probes.tokens.map import TowerTokens

_TEXT_ROLES = ("text", "system", "generated")


def needs_text_order(context: MeasureContext, measure: str) -> Literal[True] | str:
    """True where queries and keys are positions of one sequence that holds text."""
    known = context.needs_positions()
    if known is not True:
        return known
    tower = context.site.tower
    if not context.same_tower:
        return (
            f"{measure} compares positions of one sequence, and {tower} reads another, so it is "
            "not measured there."
        )
    assert context.tokens is not None
    if not holds_text(context.tokens):
        return (
            f"{measure} needs a sequence of text tokens, and {tower} has none, so it is not "
            "measured there; for patches there is attention_distance_patches."
        )
    return True


def holds_text(tokens: TowerTokens) -> bool:
    return bool(tokens.has_role(*_TEXT_ROLES).any())


def key_places(call: CallView, offset: int) -> Tensor:
    """Long ``[batch query]``: the key ``offset`` places before each query, -1 where none is.

    A negative offset is after it.

    Places are counted within a sequence; padding is no place.
    """

    def find() -> Tensor:
        plan = call.plan
        rows, keys = plan.key_index.shape
        real = plan.key_rank >= 0
        base = plan.key_index.masked_fill(~real, 1 << 40).amin(1, keepdim=True)
        index = (plan.key_index - base).masked_fill(~real, -1)
        size = int(index.max()) + 1
        # The last slot takes what is no place: padding, and queries without such a key.
        where = torch.full((rows, size + 1), -1, device=plan.device)
        column = torch.arange(keys, device=plan.device).expand(rows, keys)
        where.scatter_(1, index.where(real, size), column.where(real, -1))
        wanted = plan.query_index - offset - base
        inside = (plan.of_queries("rank") >= offset) & (wanted >= 0) & (wanted < size)
        return where.gather(1, wanted.where(inside, size))

    return call.plan.memo(("key places", offset), find)


def weight_at(tile: TileView, places: Tensor) -> Tensor:
    """Float ``[batch head row]``: each query's weight on one key; 0 where it is -1."""
    index = places[tile.batch, tile.rows]
    absent = (index < 0) | (index >= tile.keys)
    chosen = index.clamp(0, tile.keys - 1)[:, None, :, None]
    heads = tile.pattern.shape[1]
    weights = tile.pattern.gather(-1, chosen.expand(-1, heads, -1, -1))[..., 0]
    return weights.masked_fill_(absent[:, None], 0.0)


def common_shift(plan: CallPlan) -> int | None:
    """The first query's place minus the first key's, if every row runs on from there alike."""

    def find() -> int | None:
        query, key = plan.query_index, plan.key_index
        queries, keys = query.shape[1], key.shape[1]
        step = torch.arange(max(queries, keys), device=query.device)
        consecutive = (query - query[:, :1] == step[:queries]).all() and (
            key - key[:, :1] == step[:keys]
        ).all()
        shift = query[:, 0] - key[:, 0]
        return int(shift[0]) if consecutive and bool((shift == shift[0]).all()) else None

    return plan.memo("distance offsets", find)
