"""Which query tokens read which key tokens: mass, and lift over chance.

The mass of a pair is the weight summed over all queries of the one and keys of the other. Chance is
the same sum on the pattern that weighs all keys that a query may read alike, at the same positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.atlas.exemplars.pair_codes import pair_codes
from analysis.atlas.exemplars.place_store import BatchPlaces
from analysis.atlas.exemplars.reach import Reach, allowed_blocks
from analysis.call_plan import CallPlan
from probes.attention_call import AttentionCall, Tile


@dataclass(frozen=True)
class PairIndex:
    """The pairs that the drawn queries of one plan may read.

    Attributes:
        batch, query: long ``[row]``: the drawn queries, rising by batch row and query.
        codes: int64 ``[pair]``, rising.
        chance: float64 ``[pair]``: mass under even weights.
        queries: float64 ``[pair]``: how many drawn queries may read such a key.
        index: int32 ``[row key]``: place in ``codes``, their number where a query may not read.
    """

    batch: Tensor
    query: Tensor
    codes: NDArray[np.int64]
    chance: NDArray[np.float64]
    queries: NDArray[np.float64]
    index: Tensor


def pair_index(plan: CallPlan, reach: Reach, places: BatchPlaces, budget: int) -> PairIndex:
    """The pairs of a plan, worked out once for all layers that share it."""
    return plan.memo("exemplar pairs", lambda: _index(plan, reach, places, budget))


def pair_masses(call: AttentionCall, tiles: Iterable[Tile], pairs: PairIndex) -> Tensor:
    """Float32 ``[head pair]``: the mass of each pair in one call."""
    sums = torch.zeros(call.heads, pairs.codes.size + 1, device=call.device)
    for tile in tiles:
        inside = (pairs.batch >= tile.batch.start) & (pairs.batch < tile.batch.stop)
        inside &= (pairs.query >= tile.rows.start) & (pairs.query < tile.rows.stop)
        rows = inside.nonzero()[:, 0]
        if not rows.numel():
            continue
        b, q = pairs.batch[rows] - tile.batch.start, pairs.query[rows] - tile.rows.start
        # [head row key]: the drawn rows of the tile.
        weights = tile.pattern.permute(1, 0, 2, 3)[:, b, q]
        where = pairs.index[rows, : tile.keys].flatten()
        sums.index_add_(1, where, weights.reshape(call.heads, -1))
    return sums[:, :-1]


def _drawn(plan: CallPlan, reach: Reach, places: BatchPlaces, budget: int) -> Tensor:
    """Bool ``[batch query]``: queries in the order of their keys until the budget is used up."""
    used = reach.used.cpu().numpy()
    batch, query = np.nonzero(used)
    flat = plan.query_index.cpu().numpy()[batch, query]
    block = plan.query_block.cpu().numpy()[batch, query]
    keys = places.keys[flat]
    cost = reach.readable.cpu().numpy()[batch, query].astype(np.float64)
    order = np.lexsort((keys, block))
    spent = np.cumsum(cost[order])
    first = np.searchsorted(block[order], block[order], side="left")
    before = spent - cost[order] - (spent - cost[order])[first]
    chosen = np.zeros(used.shape, dtype=bool)
    kept = order[(before + cost[order] <= budget) | (before == 0)]
    chosen[batch[kept], query[kept]] = True
    return torch.from_numpy(chosen).to(plan.device)


def _index(plan: CallPlan, reach: Reach, places: BatchPlaces, budget: int) -> PairIndex:
    chosen = _drawn(plan, reach, places, budget)
    batch, query = chosen.nonzero(as_tuple=True)
    keys = plan.key_index.shape[1]
    codes = torch.full((batch.numel(), keys), -1, device=plan.device)
    for part, allowed in allowed_blocks(plan):
        rows = ((query >= part.start) & (query < part.stop)).nonzero()[:, 0]
        b, q = batch[rows], query[rows]
        may = allowed[b, q - part.start] & ~reach.absent[b]
        codes[rows] = pair_codes(plan, reach, b, q, keys).masked_fill(~may, -1)
    flat = codes.cpu().numpy().ravel()
    found, inverse = np.unique(flat, return_inverse=True)
    missing = int(found.size > 0 and found[0] < 0)
    found, inverse = found[missing:], inverse.ravel() - missing
    inverse = np.where(inverse < 0, found.size, inverse)
    readable = reach.readable[batch, query].cpu().numpy()
    each = np.repeat(1.0 / np.maximum(readable, 1), keys)
    chance = np.bincount(inverse, weights=each, minlength=found.size + 1)[: found.size]
    chance = chance.astype(np.float64)
    row = np.repeat(np.arange(batch.numel()), keys)
    once = np.unique(row.astype(np.int64) * (found.size + 1) + inverse) % (found.size + 1)
    count = np.bincount(once, minlength=found.size + 1)[: found.size].astype(np.float64)
    index = torch.from_numpy(inverse.astype(np.int32)).view(batch.numel(), keys).to(plan.device)
    return PairIndex(batch, query, found, chance, count, index)
