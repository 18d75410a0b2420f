"""The patch-to-patch part of a pattern, renormalised and summed by displacement on the grid.

Weight from a patch to patches of its own grid is divided by that query's total there, so that
sinks outside do not hide the profile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.measures.displacements import add_centred, displaced, steps, table_shape
from analysis.measures.patch_grid import (
    GridPart,
    PatchGrid,
    find_grids,
    part_of,
    patches_of,
)
from analysis.tile_view import TileView

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "chebyshev": torch.maximum,
    "manhattan": torch.add,
    "euclidean": lambda down, across: torch.hypot(down.double(), across.double()).round().long(),
}
"""Hop of a patch so many rows and columns away. Euclidean: the nearest whole number, which is never
half way between two, as the square of such a number is no whole number."""

_KEPT = 1 << 23
_LEAST_MASS = 1e-12
_ROWS = 64


@dataclass
class PatchSums:
    """Sums over patch queries.

    Attributes:
        grids: the grids of the call.
        tables: per grid, float64 ``[member head down across]``: renormalised weight at each
            displacement.
        alive: per grid, bool ``[member head query]``: queries with any weight on patches.
        weight: float64 ``[example head down across]``: the tables, summed.
        count: float64 ``[example head]``: how many queries are alive.
    """

    grids: list[PatchGrid]
    tables: list[Tensor]
    alive: list[Tensor]
    _empty: Tensor

    @cached_property
    def weight(self) -> Tensor:
        total = self._empty.clone()
        for grid, table in zip(self.grids, self.tables, strict=True):
            add_centred(total, grid.examples, table)
        return total

    @cached_property
    def count(self) -> Tensor:
        total = self._empty[..., 0, 0].clone()
        for grid, alive in zip(self.grids, self.alive, strict=True):
            total.index_add_(0, grid.examples, alive.double().sum(-1))
        return total

    def per_example(self, read: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """Numbers of each tile, ``read(table)`` ``[member head]``, summed over each example."""
        parts = read(self._empty[:0])
        totals = [self._empty[..., 0, 0].clone() for _ in parts]
        for grid, table in zip(self.grids, self.tables, strict=True):
            for total, part in zip(totals, read(table), strict=True):
                total.index_add_(0, grid.examples, part.double())
        return totals

    def mass(self, metric: str = "chebyshev") -> Tensor:
        """Float64 ``[example head hop]``: renormalised weight at each hop."""
        return by_hop(self.weight, metric)


def patch_sums(call: CallView) -> PatchSums:
    """Ask a call for its patch sums; all measures of this family share them."""
    if call.shared.get("patch sums") is None:
        plan = call.plan
        grids = find_grids(plan)
        tables, alive = [], []
        for grid in grids:
            first = (len(grid.batch), call.heads)
            shape = table_shape([grid])
            tables.append(torch.zeros(*first, *shape, dtype=torch.float64, device=plan.device))
            room = torch.zeros(*first, len(grid.queries), dtype=torch.bool, device=plan.device)
            alive.append(room)
        sums = PatchSums(grids, tables, alive, _empty(call, grids))

        def add(tile: TileView, grid: PatchGrid) -> None:
            part = part_of(grid, tile.batch, tile.rows, tile.keys)
            if part is None:
                return
            pairs, inverse = _renormalised(tile, grid, part)
            tables[grid.number][part.member] += displaced(plan, grid, part, pairs, inverse)
            where = part.member[:, None, None] & part.rows
            room = alive[grid.number]
            room.masked_scatter_(where.expand_as(room), inverse > 0)

        for grid in grids:
            call.each(lambda tile, grid=grid: add(tile, grid))
        call.shared["patch sums"] = sums
    return call.shared["patch sums"]


def density_sums(call: CallView, metric: str) -> Tensor:
    """Ask for float64 ``[example head down across]``: weights over the size of their ring.

    The size of a ring is the number of keys that the query may read there.
    """
    name = f"patch density {metric}"
    if call.shared.get(name) is None:
        plan = call.plan
        grids = find_grids(plan)
        total = _empty(call, grids)

        def add(tile: TileView, grid: PatchGrid) -> None:
            part = part_of(grid, tile.batch, tile.rows, tile.keys)
            if part is None:
                return
            pairs, inverse = _renormalised(tile, grid, part)
            small = grid.queries.numel() * grid.keys.numel() * len(grid.batch) <= _KEPT
            weights = (
                plan.memo((name, *part.name), lambda: _per_key(plan, grid, part, metric))
                if small
                else _per_key(plan, grid, part, metric)
            )
            table = displaced(plan, grid, part, pairs * weights[:, None], inverse)
            add_centred(total, grid.examples[part.member], table)

        for grid in grids:
            call.each(lambda tile, grid=grid: add(tile, grid))
        call.shared[name] = total
    return call.shared[name]


def readers_by_hop(call: CallView, sums: PatchSums, metric: str) -> Tensor:
    """Float64 ``[example head hop]``: counted queries with a readable key at each hop."""
    plan = call.plan
    total = torch.zeros_like(sums.mass(metric))
    for grid in sums.grids:
        there = (ring_sizes(plan, grid, metric) > 0).double()
        alive = sums.alive[grid.number].double()
        found = torch.einsum("mhq,mqr->mhr", alive, there.expand(len(alive), -1, -1))
        total.narrow(-1, 0, found.shape[-1]).index_add_(0, grid.examples, found)
    return total


def readable_pairs(call: CallView, sums: PatchSums) -> Tensor:
    """Float64 ``[example head down across]``: pairs of each displacement that may be read.

    Of queries that count; heads are one where all heads count the same queries.
    """
    plan = call.plan
    grids = sums.grids
    alike = all(bool((alive == alive[:, :1]).all()) for alive in sums.alive)
    heads = 1 if alike else call.heads
    total = torch.zeros(
        plan.examples, heads, *sums.weight.shape[-2:], dtype=torch.float64, device=plan.device
    )
    for grid in grids:
        alive = sums.alive[grid.number][:, :heads].float()
        for first in range(0, len(grid.queries), _ROWS):
            rows = torch.zeros(len(grid.queries), dtype=torch.bool, device=plan.device)
            rows[first : first + _ROWS] = True
            every = torch.ones(len(grid.batch), dtype=torch.bool, device=plan.device)
            part = GridPart(every, rows, len(grid.keys), (grid.number, -1, first))
            allowed = readable(plan, grid, rows, len(grid.keys)).float()[:, None]
            pairs = allowed.expand(len(grid.batch), heads, -1, -1)
            add_centred(total, grid.examples, displaced(plan, grid, part, pairs, alive[:, :, rows]))
    return total


def by_hop(table: Tensor, metric: str) -> Tensor:
    """``[... hop]``: a table of displacements ``[... down across]`` summed within each ring."""
    ring = METRICS[metric](*(step.abs() for step in steps(table.shape, table.device)))
    total = table.new_zeros(*table.shape[:-2], int(ring.max()) + 1)
    return total.index_add_(-1, ring.flatten(), table.flatten(-2))


def ring_sizes(plan: CallPlan, grid: PatchGrid, metric: str) -> Tensor:
    """Float ``[member or 1, query, hop]``: how many readable keys lie at each hop."""

    def count() -> Tensor:
        parts = []
        for first in range(0, len(grid.queries), _ROWS):
            rows = torch.zeros(len(grid.queries), dtype=torch.bool, device=plan.device)
            rows[first : first + _ROWS] = True
            allowed = readable(plan, grid, rows, len(grid.keys)).float()
            ring = _rings(grid, rows, len(grid.keys), metric).expand(allowed.shape)
            sizes = allowed.new_zeros(*allowed.shape[:2], _hops(grid, metric))
            parts.append(sizes.scatter_add_(-1, ring, allowed))
        return torch.cat(parts, dim=1)

    return plan.memo(("ring sizes", grid.number, metric), count)


def readable(plan: CallPlan, grid: PatchGrid, rows: Tensor, keys: int) -> Tensor:
    """Bool ``[member or 1, query, key]``: pairs of a grid that some head may read."""
    batch = grid.batch[:1] if plan.mask.tensor is None else grid.batch
    return plan.readable(batch, grid.queries[rows], grid.keys[:keys])


def _empty(call: CallView, grids: list[PatchGrid]) -> Tensor:
    shape = (call.plan.examples, call.heads, *table_shape(grids))
    return torch.zeros(shape, dtype=torch.float64, device=call.plan.device)


def _renormalised(tile: TileView, grid: PatchGrid, part: GridPart) -> tuple[Tensor, Tensor]:
    """The weights of a part ``[member head query key]``, and one over each query's total."""

    def find() -> tuple[Tensor, Tensor]:
        pairs = patches_of(tile, grid, part)
        mass = pairs.sum(-1)
        inverse = mass.clamp_min(_LEAST_MASS).reciprocal()
        return pairs, inverse.masked_fill(mass < _LEAST_MASS, 0.0)

    return tile.memo(f"patches of grid {grid.number}", find)


def _per_key(plan: CallPlan, grid: PatchGrid, part: GridPart, metric: str) -> Tensor:
    """Float ``[member or 1, query, key]``: one over the size of the ring that a key lies in."""
    sizes = ring_sizes(plan, grid, metric)
    sizes = sizes[part.member] if sizes.shape[0] == len(part.member) else sizes
    inverse = sizes[:, part.rows].clamp_min(1).reciprocal()
    ring = _rings(grid, part.rows, part.keys, metric)
    return inverse.gather(-1, ring.expand(inverse.shape[0], -1, -1))


def _rings(grid: PatchGrid, rows: Tensor, keys: int, metric: str) -> Tensor:
    """Long ``[1 query key]``."""
    away = (grid.query_place[rows][:, None] - grid.key_place[None, :keys]).abs()
    return METRICS[metric](away[..., 0], away[..., 1])[None]


def _hops(grid: PatchGrid, metric: str) -> int:
    last = torch.tensor(grid.down - 1), torch.tensor(grid.across - 1)
    return int(METRICS[metric](*last)) + 1
