"""Sums over pairs of patches by displacement: how much weight lies so many rows and columns away.

A table of displacements is ``[... down across]`` with the query in the middle: one row further
down is one patch further down the image. Rings of any metric, spans, neighbours and offsets are
all read off it, so that a pattern is gone through once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.measures.patch_grid import GridPart, PatchGrid


class _Column(NamedTuple):
    """The queries of a part that stand in one column of the grid, and the rows they stand in."""

    column: int
    queries: Tensor | slice
    rows: Tensor | slice


@dataclass
class _Layout:
    """How queries and keys of a part lie on the grid.

    Attributes:
        first, rows: the highest grid row with a query, and how many rows there are from it.
        cells: long ``[key]``: cell of each key in reading order; None where they stand so.
    """

    columns: list[_Column]
    first: int
    rows: int
    cells: Tensor | None


def displaced(
    plan: CallPlan, grid: PatchGrid, part: GridPart, pairs: Tensor, scale: Tensor
) -> Tensor:
    """Float ``[member head down across]``: the sum of ``scale * pairs`` at each displacement.

    Args:
        pairs: ``[member head query key]`` of a part of a grid.
        scale: ``[member head query]``.
    """
    layout = plan.memo(("grid layout", *part.name), lambda: _lay_out(grid, part))
    canvas = _canvas(grid, layout, pairs)
    members, heads, _, height, across = canvas.shape
    down = grid.down
    # First along columns, then along rows: as many steps as the grid has columns and rows.
    bands = pairs.new_zeros(members, heads, layout.rows, height, 2 * across - 1)
    for column, queries, rows in layout.columns:
        target = bands[..., across - 1 - column : 2 * across - 1 - column]
        weights = scale[:, :, queries, None, None]
        if isinstance(rows, slice):
            target[:, :, rows].addcmul_(canvas[:, :, queries], weights)
        else:
            target.index_add_(2, rows, canvas[:, :, queries] * weights)
    table = pairs.new_zeros(members, heads, 2 * down - 1, 2 * across - 1)
    for row in range(layout.rows):
        start = down - 1 - layout.first - row
        table[:, :, start : start + height] += bands[:, :, row]
    return table


def add_centred(total: Tensor, example: Tensor, table: Tensor) -> None:
    """Add ``[member head down across]`` to ``[example head down across]``, middle on middle."""
    for dim in (-2, -1):
        spare = total.shape[dim] - table.shape[dim]
        total = total.narrow(dim, spare // 2, table.shape[dim])
    total.index_add_(0, example, table.double())


def table_shape(grids: list[PatchGrid]) -> tuple[int, int]:
    """Rows and columns of a table that holds the displacements of all grids."""
    down = max((grid.down for grid in grids), default=1)
    across = max((grid.across for grid in grids), default=1)
    return 2 * down - 1, 2 * across - 1


def steps(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Long ``[down 1]`` and ``[1 across]``: rows and columns from the middle of a table."""
    down, across = (torch.arange(size, device=device) - size // 2 for size in shape[-2:])
    return down[:, None], across[None]


def squared_distance(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Long ``[down across]``: squared Euclidean distance of each displacement, in patches."""
    down, across = steps(shape, device)
    return down.square() + across.square()


def _lay_out(grid: PatchGrid, part: GridPart) -> _Layout:
    place = grid.query_place[part.rows]
    first = int(place[:, 0].min())
    columns = []
    for column in range(grid.across):
        queries = (place[:, 1] == column).nonzero()[:, 0]
        if queries.numel():
            rows = place[queries, 0] - first
            steady, straight = _as_slice(queries), _as_slice(rows)
            if steady is None or straight is None:
                columns.append(_Column(column, queries, rows))
            else:
                columns.append(_Column(column, steady, straight))
    cells = grid.key_place[: part.keys, 0] * grid.across + grid.key_place[: part.keys, 1]
    in_order = torch.equal(cells, torch.arange(part.keys, device=cells.device))
    height = int(place[:, 0].max()) - first + 1
    return _Layout(columns, first, height, None if in_order else cells)


def _as_slice(index: Tensor) -> slice | None:
    """The same places as a slice, where they are equally far apart."""
    places = index.tolist()
    step = places[1] - places[0] if len(places) > 1 else 1
    if step < 1 or places != list(range(places[0], places[-1] + 1, step)):
        return None
    return slice(places[0], places[-1] + 1, step)


def _canvas(grid: PatchGrid, layout: _Layout, pairs: Tensor) -> Tensor:
    """``[member head query row column]``: keys on the grid, 0 where there is none."""
    if layout.cells is None:
        spare = -pairs.shape[-1] % grid.across
        full = torch.nn.functional.pad(pairs, (0, spare)) if spare else pairs
    else:
        cells = grid.down * grid.across
        full = pairs.new_zeros(*pairs.shape[:-1], cells).index_add_(-1, layout.cells, pairs)
    return full.unflatten(-1, (-1, grid.across))
