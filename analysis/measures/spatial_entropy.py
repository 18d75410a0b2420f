"""In how many places of the image the weight of a decisive query is large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from analysis.measures.image_focus import DECIDING, deciding_queries, needs_image_maps
from analysis.measures.picked_rows import image_maps, pick_rows, shuffled_places
from analysis.vision.components import spatial_entropy


@dataclass(frozen=True)
class SpatialEntropy:
    """In how many places a map is large, in nats: 0 for one region, log n for n alike.

    See `analysis.vision.components.spatial_entropy`. The null is the same map with its weights
    shuffled over the image. Tiles of one image are regions apart.
    """

    name: str = "spatial_entropy"
    unit: str = "nats"
    costly: bool = True
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        verdict = needs_image_maps(context, self.name)
        if verdict is not True:
            return verdict
        keys = context.key_tokens
        assert keys is not None
        if not bool((keys.row >= 0).any()):
            return (
                f"{self.name} needs image positions on a grid, and those that "
                f"{context.site.tower} reads have no place, so it is not measured there."
            )
        return True

    def start(self, call: CallView) -> Finish:
        rows = pick_rows(call, DECIDING, deciding_queries(call.plan))

        def finish() -> Iterator[Score]:
            plan = call.plan
            maps, allowed = image_maps(call, rows, DECIDING)
            places = shuffled_places(plan, rows.picks, allowed, DECIDING)
            shuffled = maps.gather(-1, places[:, None].expand_as(maps))
            both = torch.cat([maps, shuffled], dim=1)
            entropy = self._entropy(plan, both, rows.picks.batch, allowed)
            known = torch.isfinite(entropy)
            values, count = (
                rows.picks.per_example(part, plan.examples)
                for part in (torch.where(known, entropy, 0.0), known)
            )
            (own, chance), (counted, drawn) = values.chunk(2, dim=1), count.chunk(2, dim=1)
            yield Score("", own, counted, null=(chance, drawn))

        return finish

    def _entropy(self, plan: CallPlan, maps: Tensor, batch: Tensor, allowed: Tensor) -> Tensor:
        """Float64 ``[pick head]``."""
        cell, (down, across) = plan.memo("canvas cells", lambda: _canvas(plan))
        cells = cell[batch]
        known = (cells >= 0) & allowed
        cells = cells.where(known, down * across)
        shape = len(batch), maps.shape[1], down * across + 1
        canvas = maps.new_zeros(shape).scatter_(-1, cells[:, None].expand_as(maps), maps)
        where = known.new_zeros(len(batch), down * across + 1).scatter_(-1, cells, known)
        flat = canvas[..., :-1].reshape(-1, down, across)
        there = where[:, None, :-1].expand_as(canvas[..., :-1]).reshape(-1, down, across)
        return spatial_entropy(flat, there).view(shape[:2])


def _canvas(plan: CallPlan) -> tuple[Tensor, tuple[int, int]]:
    """Long ``[batch key]``: cell of a canvas on which tiles lie under one another, -1 for none."""
    columns = [plan.of_keys(name).cpu() for name in ("image", "tile", "row", "column")]
    image, tile, row, column = columns
    known = (row >= 0) & (column >= 0)
    across = int(column.max()) + 1
    height = int(row.max()) + 2  # a free row between tiles keeps their regions apart
    group = torch.where(known, image * (int(tile.max()) + 1) + tile, -1)
    for line in range(len(group)):
        found, number = torch.unique(group[line], return_inverse=True)
        group[line] = number - int(bool((found == -1).any()))
    cell = (group * height + row) * across + column
    down = (int(group.max()) + 1) * height
    return torch.where(known, cell, -1).to(plan.device), (down, across)


SPATIAL_ENTROPY = SpatialEntropy()
