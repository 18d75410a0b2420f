"""The grids of a call: patches of one tile of one image that see each other."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.measure import MeasureContext
from analysis.tile_view import TileView


@dataclass
class PatchGrid:
    """Patches that see each other, alike in all the given rows of the batch axis.

    Attributes:
        number: its place among the grids of the call.
        batch: long ``[member]``: rows of the batch axis with this very grid.
        examples: long ``[member]``.
        queries, keys: long: places on the call's axes, ascending.
        query_place, key_place: long ``[... 2]``: row and column, from 0.
        down, across: number of rows and columns that the places span.
    """

    number: int
    batch: Tensor
    examples: Tensor
    queries: Tensor
    keys: Tensor
    query_place: Tensor
    key_place: Tensor
    down: int
    across: int


@dataclass
class GridPart:
    """What a tile holds of a grid.

    Attributes:
        member: bool: which members of the grid.
        rows: bool: which of its queries.
        keys: how many of its keys, from the first.
        name: tells parts of one call apart, for what is kept on the plan.
    """

    member: Tensor
    rows: Tensor
    keys: int
    name: tuple[int, ...]


def needs_patches(context: MeasureContext, measure: str) -> Literal[True] | str:
    """True where queries and keys are positions of one tower that has patches on a grid."""
    known = context.needs_positions()
    if known is not True:
        return known
    tower = context.site.tower
    if not context.same_tower:
        return (
            f"{measure} compares patches of one tower, and {tower} reads another, so it is "
            "not measured there."
        )
    assert context.tokens is not None
    if not bool((context.tokens.row >= 0).any()):
        return (
            f"{measure} needs patches on a grid, and {tower} has none in these inputs, so "
            "it is not measured there."
        )
    return True


def find_grids(plan: CallPlan) -> list[PatchGrid]:
    """The grids of a call, rows of the batch axis with equal grids taken together."""
    return plan.memo("patch grids", lambda: _find(plan))


def part_of(grid: PatchGrid, batch: slice, rows: slice, keys: int) -> GridPart | None:
    """What a block of a call holds of a grid, None for nothing."""
    chosen = (grid.queries >= rows.start) & (grid.queries < rows.stop)
    member = (grid.batch >= batch.start) & (grid.batch < batch.stop)
    count = int((grid.keys < keys).sum())
    if count == 0 or not bool(chosen.any()) or not bool(member.any()):
        return None
    name = (grid.number, batch.start, batch.stop, rows.start, rows.stop, count)
    return GridPart(member, chosen, count, name)


def patches_of(tile: TileView, grid: PatchGrid, part: GridPart) -> Tensor:
    """Float ``[member head query key]``; without a copy where places follow one another."""
    return cut(tile.pattern, tile.batch, tile.rows, grid, part)


def cut(values: Tensor, batch: slice, rows: slice, grid: PatchGrid, part: GridPart) -> Tensor:
    """The same of any block ``[batch head row key]`` of a call."""
    chosen = grid.batch[part.member]
    if chosen.numel() != values.shape[0]:
        values = values[chosen - batch.start]
    queries, keys = grid.queries[part.rows], grid.keys[: part.keys]
    for dim, index, start in ((2, queries, rows.start), (3, keys, 0)):
        first, size = int(index[0]) - start, index.numel()
        if int(index[-1]) - start - first + 1 == size:
            values = values.narrow(dim, first, size)
        else:
            values = values.index_select(dim, index - start)
    return values


def _find(plan: CallPlan) -> list[PatchGrid]:
    queries = _patches(plan, plan.of_queries)
    keys = _patches(plan, plan.of_keys)
    members: dict[Hashable, list[tuple[int, int]]] = {}
    places: dict[Hashable, tuple[Tensor, Tensor]] = {}
    for group, of_query in queries.items():
        of_key = keys.get(group)
        if of_key is not None and of_key.shape[0] > 1:
            shape = of_query.numpy().tobytes(), of_key.numpy().tobytes()
            members.setdefault(shape, []).append(group[:2])
            places[shape] = of_query.to(plan.device), of_key.to(plan.device)
    return [_grid(number, members[shape], *places[shape]) for number, shape in enumerate(members)]


def _patches(
    plan: CallPlan, read: Callable[[str], Tensor]
) -> dict[tuple[int, int, int, int], Tensor]:
    """By batch row, example, image and tile: long ``[patch 3]``, place on the axis, row, column."""
    columns = [read(name) for name in ("example", "image", "tile", "row", "column")]
    table = torch.stack(columns, dim=-1).cpu()
    inside = (table[..., 3] >= 0) & (table[..., 4] >= 0)
    places = inside.nonzero()
    table = torch.cat([places[:, :1], table[inside][:, :3], places[:, 1:], table[inside][:, 3:]], 1)
    groups, group = torch.unique(table[:, :4], dim=0, return_inverse=True)
    order = torch.argsort(group, stable=True)
    parts = table[order][:, 4:].split(torch.bincount(group, minlength=len(groups)).tolist())
    return {
        (row, example, image, tile): part
        for (row, example, image, tile), part in zip(groups.tolist(), parts, strict=True)
    }


def _grid(number: int, members: list[tuple[int, int]], query: Tensor, key: Tensor) -> PatchGrid:
    batch = torch.tensor(members, device=query.device)
    every = torch.cat([query[:, 1:], key[:, 1:]])
    first = every.amin(0)
    down, across = (every.amax(0) - first + 1).tolist()
    return PatchGrid(
        number, batch[:, 0], batch[:, 1], query[:, 0], key[:, 0],
        query[:, 1:] - first, key[:, 1:] - first, down, across,
    )  # fmt: skip
