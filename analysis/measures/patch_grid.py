"""The patch-to-patch part of a pattern, renormalised and sorted by distance on the grid.

A *grid* is the patches of one tile of one image. Weight from a patch to patches of its own grid
is divided by that query's total there, so that sinks outside do not hide the profile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.call_plan import CallPlan
from analysis.call_view import CallView
from analysis.tile_view import TileView

_KEPT_WEIGHTS = 1 << 23
_LEAST_MASS = 1e-12


@dataclass
class PatchGrid:
    """Patches that see each other, alike in all the given rows of the batch axis.

    Attributes:
        batch: long ``[member]``: rows of the batch axis with this very grid.
        examples: long ``[member]``.
        queries, keys: long: places on the call's axes.
        query_place, key_place: long ``[... 2]``: row and column on the grid.
        hops: number of rings, the query's own patch included.
    """

    batch: Tensor
    examples: Tensor
    queries: Tensor
    keys: Tensor
    query_place: Tensor
    key_place: Tensor
    hops: int

    def weights(self, chosen: Tensor, keys: int) -> Tensor:
        """Float ``[query key hops + 1]``: one-hot Chebyshev ring, and Euclidean distance."""
        away = (self.query_place[chosen][:, None] - self.key_place[None, :keys]).abs()
        ring = torch.nn.functional.one_hot(away.amax(-1), self.hops).float()
        straight = away.double().square().sum(-1).sqrt().float()
        return torch.cat([ring, straight[..., None]], dim=-1)


@dataclass
class PatchSums:
    """Sums over patch queries, per example.

    Attributes:
        mass, density: float64 ``[example head hop]``: renormalised weight at each hop, in total
            and per key at that hop.
        distance: float64 ``[example head]``: Euclidean distance in patches.
        count: float64 ``[example head]``: queries with any weight on patches.
        ring_count: float64 ``[example head hop]``: those of them with a readable key at the hop.
    """

    mass: Tensor
    density: Tensor
    distance: Tensor
    count: Tensor
    ring_count: Tensor


def patch_sums(call: CallView) -> PatchSums:
    """Ask a call for its patch sums; all measures of this family share them."""
    if call.shared.get("patch sums") is None:
        plan = call.plan
        grids = plan.memo("patch grids", lambda: find_grids(plan))
        hops = max((grid.hops for grid in grids), default=1)
        zeros = torch.zeros(
            plan.examples, call.heads, hops, dtype=torch.float64, device=plan.device
        )
        flat = zeros[..., 0]
        sums = PatchSums(zeros.clone(), zeros.clone(), flat.clone(), flat.clone(), zeros.clone())
        for number, grid in enumerate(grids):
            call.each(lambda tile, n=number, grid=grid: _add(call, tile, n, grid, sums))
        call.shared["patch sums"] = sums
    return call.shared["patch sums"]


def find_grids(plan: CallPlan) -> list[PatchGrid]:
    """The grids of a call, rows of the batch axis with equal grids taken together."""
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
    return [_grid(members[shape], *places[shape]) for shape in members]


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


def _grid(members: list[tuple[int, int]], query: Tensor, key: Tensor) -> PatchGrid:
    batch = torch.tensor(members, device=query.device)
    away = (query[:, None, 1:] - key[None, :, 1:]).abs().amax()
    return PatchGrid(
        batch[:, 0], batch[:, 1], query[:, 0], key[:, 0], query[:, 1:], key[:, 1:], int(away) + 1
    )


def _add(call: CallView, tile: TileView, number: int, grid: PatchGrid, sums: PatchSums) -> None:
    rows = (grid.queries >= tile.rows.start) & (grid.queries < tile.rows.stop)
    member = (grid.batch >= tile.batch.start) & (grid.batch < tile.batch.stop)
    keys = int((grid.keys < tile.keys).sum())
    if keys == 0 or not bool(rows.any()) or not bool(member.any()):
        return
    plan = call.plan
    name = ("patch weights", number, tile.rows.start, tile.rows.stop, keys)
    small = grid.queries.numel() * grid.keys.numel() * (grid.hops + 1) <= _KEPT_WEIGHTS
    weights = (
        plan.memo(name, lambda: grid.weights(rows, keys)) if small else grid.weights(rows, keys)
    )
    part = _part(tile, grid.batch[member], grid.queries[rows], grid.keys[:keys])
    profile = _profile(part, weights)
    rings = plan.memo(
        ("ring sizes", *name, tile.batch.start, tile.batch.stop),
        lambda: _ring_sizes(call, grid, grid.batch[member], rows, weights),
    )
    mass = profile[..., :-1].sum(-1)
    inverse = mass.clamp_min(_LEAST_MASS).reciprocal().masked_fill(mass < _LEAST_MASS, 0.0)
    profile = (profile * inverse[..., None]).double()
    there = (mass >= _LEAST_MASS)[..., None] & (rings > 0)
    example = grid.examples[member]
    sums.mass.narrow(-1, 0, grid.hops).index_add_(0, example, profile[..., :-1].sum(2))
    density = profile[..., :-1] / rings.clamp_min(1)
    sums.density.narrow(-1, 0, grid.hops).index_add_(0, example, density.sum(2))
    sums.distance.index_add_(0, example, profile[..., -1].sum(2))
    sums.count.index_add_(0, example, (mass >= _LEAST_MASS).double().sum(2))
    sums.ring_count.narrow(-1, 0, grid.hops).index_add_(0, example, there.double().sum(2))


def _part(tile: TileView, batch: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Float ``[member head query key]``; without a copy where places follow one another."""
    pattern = tile.pattern
    if batch.numel() != pattern.shape[0]:
        pattern = pattern[batch - tile.batch.start]
    for dim, index, start in ((2, queries, tile.rows.start), (3, keys, 0)):
        first, size = int(index[0]) - start, index.numel()
        if int(index[-1]) - start - first + 1 == size:
            pattern = pattern.narrow(dim, first, size)
        else:
            pattern = pattern.index_select(dim, index - start)
    return pattern


def _profile(part: Tensor, weights: Tensor) -> Tensor:
    """Float ``[member head query weight]``: each query has weights of its own."""
    member, heads, queries, keys = part.shape
    by_query = part.permute(2, 0, 1, 3).reshape(queries, member * heads, keys)
    product = torch.bmm(by_query, weights)
    return product.view(queries, member, heads, -1).permute(1, 2, 0, 3)


def _ring_sizes(
    call: CallView, grid: PatchGrid, batch: Tensor, rows: Tensor, weights: Tensor
) -> Tensor:
    """Float ``[member or 1, 1, query, hop]``: how many readable keys lie at each hop."""
    keys = weights.shape[1]
    queries = grid.queries[rows]
    allowed = call.plan.readable(batch, queries, grid.keys[:keys])
    return torch.einsum("mqk,qkh->mqh", allowed.float(), weights[..., :-1])[:, None]
