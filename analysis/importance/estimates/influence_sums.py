"""Influence of the pairs of a site, summed per example by distance and by displacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.importance.estimates.attention_gradients import pattern_gradient
from analysis.importance.estimates.entry_removal import removal_effects
from analysis.importance.score_sheet import examples_of, per_example
from analysis.measure import MeasureContext
from analysis.measures.attention_span import text_or_patches
from analysis.measures.diagonals import OffsetSums, add_offsets, empty_offsets
from analysis.measures.displacements import add_centred, displaced, table_shape
from analysis.measures.patch_grid import cut, find_grids, needs_patches, part_of
from analysis.measures.text_positions import needs_text_order
from analysis.plan_cache import PlanCache
from analysis.scores import add_padded
from probes.attention_call import AttentionCall
from probes.gradients import ZGradients
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch

_MEASURE = "influence_span"
_ROWS = 64


@dataclass
class Spread:
    """Sums over the pairs of each example, ``[example head ...]``, and what even rows would have.

    Attributes:
        values: float64 ``[example head distance]`` or ``[example head down across]``.
        null: the same with one head: each query's share lies evenly over the keys it may read.
    """

    values: Tensor
    null: Tensor


@dataclass
class InfluenceSums:
    """What removing single weights of a site would change.

    Attributes:
        total: float64 ``[example head]``: absolute influence of all pairs.
        by_distance: of text, in tokens; None where there is none.
        by_displacement: between patches of one tile; None where there are none.
        why: why there is neither, else empty.
    """

    total: Tensor
    by_distance: Spread | None = None
    by_displacement: Spread | None = None
    why: str = ""


def influence_sums(
    batch: Batch, site: Site, gradients: ZGradients, plans: PlanCache
) -> InfluenceSums:
    """Go through every pattern of a site once.

    Args:
        plans: of the batch, shared by its sites.
    """
    total = torch.zeros(batch.size, gradients.z[site].shape[2], dtype=torch.float64)
    found = InfluenceSums(total)
    for call, gradient in gradients.by_call(site):
        plan, _ = plans.find(call)
        spreads = plan if isinstance(plan, str) else _spreads(call, plan)
        rows = torch.zeros(call.batch, call.heads, call.queries, device=call.device)
        for tile in call.tiles():
            effects = removal_effects(tile, pattern_gradient(tile, gradient)).abs_()
            rows[tile.batch, :, tile.rows] = effects.sum(-1)
            if isinstance(plan, CallPlan) and isinstance(spreads, _Spreads):
                _add(plan, tile.batch, tile.rows, effects, spreads)
        example = examples_of(batch, site, (call.batch, call.queries), call.query_index)
        found.total += per_example(rows.transpose(1, 2), example, batch.size).cpu()
        if isinstance(plan, CallPlan) and isinstance(spreads, _Spreads):
            null = plan.memo("even spreads", lambda c=call, p=plan: _even_spreads(c, p))
            for name in ("by_distance", "by_displacement"):
                both = getattr(spreads, name), getattr(null, name)
                setattr(found, name, _added(getattr(found, name), *both))
        else:
            found.why = str(spreads)
    return found


@dataclass
class _Spreads:
    """Room for what is summed of a call: by offset of text, by displacement of patches."""

    plan: CallPlan
    offsets: OffsetSums | None
    by_displacement: Tensor | None

    @property
    def by_distance(self) -> Tensor | None:
        if self.offsets is None:
            return None
        found, plan = self.offsets.by_distance, self.plan
        total = found.new_zeros(plan.examples, *found.shape[1:])
        return total.index_add_(0, plan.block_example, found)


def _spreads(call: AttentionCall, plan: CallPlan, heads: int = 0) -> _Spreads | str:
    """Room for a call, or why its pairs have no distance."""
    context = MeasureContext(call.site, call.heads, plan.tokens, plan.key_tokens)
    heads = heads or call.heads
    why = text_or_patches(context, _MEASURE)
    if why is not True:
        return why
    by_order, by_grid = needs_text_order(context, _MEASURE), needs_patches(context, _MEASURE)
    table = None
    if by_grid is True:
        shape = plan.examples, heads, *table_shape(find_grids(plan))
        table = torch.zeros(shape, dtype=torch.float64, device=plan.device)
    return _Spreads(plan, empty_offsets(plan, heads) if by_order is True else None, table)


def _add(plan: CallPlan, batch: slice, rows: slice, values: Tensor, spreads: _Spreads) -> None:
    """Count a block of pairs ``[batch head row key]``."""
    if spreads.offsets is not None:
        add_offsets(plan, batch, rows, values, spreads.offsets)
    if spreads.by_displacement is None:
        return
    for grid in find_grids(plan):
        part = part_of(grid, batch, rows, values.shape[-1])
        if part is not None:
            pairs = cut(values, batch, rows, grid, part)
            table = displaced(plan, grid, part, pairs, torch.ones_like(pairs[..., 0]))
            add_centred(spreads.by_displacement, grid.examples[part.member], table)


def _even_spreads(call: AttentionCall, plan: CallPlan) -> _Spreads:
    """The same of rows whose weight lies evenly over what each counted query may read."""
    spreads = _spreads(call, plan, 1)
    assert isinstance(spreads, _Spreads)
    every = slice(0, call.batch)
    for first in range(0, call.queries, _ROWS):
        rows = slice(first, min(first + _ROWS, call.queries))
        keys = plan.mask.key_end(rows)
        allowed = (plan.may_read(rows, keys) & plan.used[:, rows, None]).float()
        even = allowed / allowed.sum(-1, keepdim=True).clamp_min(1)
        _add(plan, every, rows, even[:, None], spreads)
    return spreads


def _added(known: Spread | None, values: Tensor | None, null: Tensor | None) -> Spread | None:
    if values is None or null is None:
        return known
    if known is None:
        return Spread(values, null)
    return Spread(_sum(known.values, values), _sum(known.null, null))


def _sum(left: Tensor, right: Tensor) -> Tensor:
    """The sum where one may reach farther: tables lie middle on middle, distances start at 0."""
    if left.dim() == 3:
        return add_padded(left, right)
    shape = [max(sizes) for sizes in zip(left.shape, right.shape, strict=True)]
    total = left.new_zeros(shape)
    for part in (left, right):
        add_centred(total, torch.arange(shape[0], device=left.device), part)
    return total
