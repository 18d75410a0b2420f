"""Where on an image the weight lies in reading order: models lean to what they read last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Profile, Result, Score
from analysis.measures.image_focus import (
    DECIDING,
    TEXT_ROLES,
    deciding_queries,
    needs_image_maps,
    writes,
)
from analysis.measures.picked_rows import image_maps, pick_rows
from analysis.tile_view import TileView
from probes.tokens.map import ROLES

_IMAGE = ROLES.index("image")
_BINS = 20


@dataclass(frozen=True)
class RasterShift:
    """Mean place of the weight on an image in reading order: 0 its first key, 1 its last.

    Variant ``text`` takes all text that may read the image, ``last`` the decisive query. Language
    models lean towards the image's last rows, which are the nearest to the text (attention shift,
    FasterVLM, Zhang et al., 2024, arXiv 2412.01818, who show the curve; the number is ours). The
    curve has the share of the weight in each twentieth of the image.
    """

    name: str = "raster_shift"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return needs_image_maps(context, self.name)

    def start(self, call: CallView) -> Finish:
        plan = call.plan
        assert plan.tokens is not None
        rows = pick_rows(call, DECIDING, deciding_queries(plan))
        received = None
        if writes(plan.tokens):
            received = call.column_product("received from text", lambda tile: _text(call, tile))

        def finish() -> Iterator[Result]:
            place = plan.memo("raster places", lambda: _raster_places(plan))
            maps, _ = image_maps(call, rows, DECIDING)
            of_picks = place[rows.picks.batch]
            last = maps.double()
            if received is not None:
                of_blocks = place[plan.block_row]
                weights = plan.columns_by_block(received.values) * (of_blocks >= 0)[:, None]
                moment = (weights * of_blocks.clamp_min(0)[:, None]).sum(-1)
                yield Score("text", plan.sum_blocks(moment), plan.sum_blocks(weights.sum(-1)))
                yield _twentieths(weights, of_blocks)
            moment = (last * of_picks.clamp_min(0)[:, None]).sum(-1)
            add = rows.picks.per_example
            yield Score("last", add(moment, plan.examples), add(last.sum(-1), plan.examples))
            if received is None:
                yield _twentieths(last, of_picks)

        return finish


def _text(call: CallView, tile: TileView) -> Tensor:
    """Float ``[batch head row]``: 1 at text queries."""

    def find() -> Tensor:
        role = call.plan.of_queries("role")
        wanted = torch.tensor([ROLES.index(name) for name in TEXT_ROLES], device=role.device)
        return torch.isin(role, wanted).float()

    chosen = call.plan.memo("text queries", find)[tile.batch, tile.rows]
    return chosen[:, None].expand(-1, tile.pattern.shape[1], -1)


def _raster_places(plan: CallPlan) -> Tensor:
    """Float64 ``[batch key]``: place among the row's image keys from 0 to 1, -1 elsewhere."""
    image = plan.of_keys("role") == _IMAGE
    order = image.double().cumsum(-1) - 1
    most = (image.sum(-1, keepdim=True) - 1).clamp_min(1)
    return torch.where(image, order / most, -1.0)


def _twentieths(weights: Tensor, place: Tensor) -> Profile:
    """Mean share of the weight ``[row head key]`` in each twentieth of the image."""
    total = weights.sum(-1, keepdim=True)
    share = weights / torch.where(total > 0, total, 1.0)
    bins = (place * _BINS).floor().clamp(0, _BINS - 1).long()
    bins = bins.where(place >= 0, _BINS)
    summed = share.new_zeros(*share.shape[:2], _BINS + 1)
    summed.scatter_add_(-1, bins[:, None].expand_as(share), share)
    return Profile("twentieth of the image", summed[..., :-1].sum(0), (total > 0).double().sum(0))


RASTER_SHIFT = RasterShift()
