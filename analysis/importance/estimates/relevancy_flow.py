"""Rollout and gradient relevancy of one tower, carried down from where it is read.

Both are products of one matrix per layer, of which only the rows of the reads are wanted. So a
vector over positions is carried from the last layer to the first, and no matrix over positions is
ever made: tiles of the pattern are used as they come.

- rollout (Abnar and Zuidema, 2020): ``R = Â_L ... Â_1``, ``Â = rownorm(mean_h A + I)``;
- relevancy (Chefer, Gur and Wolf, 2021, ICCV, the rule for self-attention): ``R <- R + Ā R`` with
  ``Ā = mean_h (d objective / d A * A)^+``, so ``R = (I + Ā_L) ... (I + Ā_1)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from analysis.importance.estimates.attention_gradients import pattern_gradient
from analysis.importance.estimates.sink_keys import own_position
from probes.attention_call import AttentionCall, Tile

PLAIN, MASKED = "", "sinks_masked"
VARIANTS = (PLAIN, MASKED)


@dataclass
class Flow:
    """Vectors over the positions of one tower, for all examples of a batch at once.

    Attributes:
        rollout, relevancy: variant -> float64 ``[position + 1]``, in the order of the tower's
            token map; the last entry stands for positions that are not in it and stays 0.
    """

    rollout: dict[str, Tensor]
    relevancy: dict[str, Tensor]

    @classmethod
    def starting(cls, start: Tensor) -> Flow:
        """From the reads: float64 ``[position]``, summing to 1 in each example."""
        wide = torch.cat([start.double(), start.new_zeros(1, dtype=torch.float64)])
        return cls({v: wide.clone() for v in VARIANTS}, {v: wide.clone() for v in VARIANTS})


@dataclass
class HeadShares:
    """Per query row of one call and variant, float32 ``[batch head query]``, to be summed.

    Attributes:
        relevancy: ``sum_k (d objective / d A * A)^+``.
        rollout: how much of the rollout that is at this row the head takes from other positions;
            None where there is no flow.
    """

    relevancy: dict[str, Tensor] = field(default_factory=dict)
    rollout: dict[str, Tensor] = field(default_factory=dict)


def carry(
    flow: Flow | None, calls: Iterable[tuple[AttentionCall, Tensor, Tensor]]
) -> list[HeadShares]:
    """Carry a flow through one layer, and give each head's share in it.

    Args:
        flow: changed in place; None where positions are not known: then only relevancy is given.
        calls: call, gradient ``[batch head query value_width]`` at its z, and bool
            ``[batch key]``: keys that count as sinks.
    """
    calls = list(calls)
    shares = [_empty(call, flow is not None) for call, _, _ in calls]
    after = None if flow is None else _copied(flow)
    for (call, gradient, sinks), share in zip(calls, shares, strict=True):
        for tile in call.tiles():
            g = pattern_gradient(tile, gradient)
            here = (tile.batch, slice(None), tile.rows)
            for variant in VARIANTS:
                pattern = tile.pattern
                if variant == MASKED:
                    pattern = without_keys(pattern, sinks[tile.batch, : tile.keys])
                relevant = (g * pattern).clamp_min_(0)
                share.relevancy[variant][here] = relevant.sum(-1)
                if flow is not None and after is not None:
                    moved = _step(flow, after, tile, variant, pattern, relevant)
                    share.rollout[variant][here] = moved
    if flow is not None and after is not None:
        flow.rollout, flow.relevancy = after.rollout, after.relevancy
        for vector in (*flow.rollout.values(), *flow.relevancy.values()):
            vector[-1] = 0.0
    return shares


def without_keys(pattern: Tensor, keys: Tensor) -> Tensor:
    """``[batch head row key]`` with some keys (bool ``[batch key]``) gone and rows summing to 1.

    A row that read nothing else is left empty.
    """
    kept = pattern.masked_fill(keys[:, None, None], 0.0)
    total = kept.sum(-1, keepdim=True)
    return kept / torch.where(total > 0, total, 1.0)


def _step(
    flow: Flow, after: Flow, tile: Tile, variant: str, pattern: Tensor, relevant: Tensor
) -> Tensor:
    """Add one tile's part of a layer; ``[batch head row]``: what each head moves of the rollout."""
    call = tile.call
    assert call.query_index is not None and call.key_index is not None
    unknown = flow.rollout[variant].numel()
    query = call.query_index[tile.batch, tile.rows].cpu() % unknown
    key = call.key_index[tile.batch, : tile.keys].cpu() % unknown
    rolled, risen = flow.rollout[variant][query], flow.relevancy[variant][query]
    mean = pattern.mean(1).double()
    weight = rolled / (mean.sum(-1).cpu() + 1)
    down = after.rollout[variant]
    down.index_add_(0, query.flatten(), (weight - rolled).flatten())
    down.index_add_(0, key.flatten(), _to_keys(weight, mean))
    after.relevancy[variant].index_add_(0, key.flatten(), _to_keys(risen, relevant.mean(1)))
    own = own_position(call, tile.batch, tile.rows, tile.keys)[:, None]
    elsewhere = pattern.masked_fill(own, 0.0).sum(-1)
    return elsewhere * rolled[:, None].to(elsewhere)


def _to_keys(rows: Tensor, matrix: Tensor) -> Tensor:
    """Float64 ``[batch * key]``: ``rows [batch row]`` times ``matrix [batch row key]``."""
    there = rows.to(matrix.device)[:, None]
    return torch.bmm(there, matrix.double()).flatten().cpu()


def _empty(call: AttentionCall, with_rollout: bool) -> HeadShares:
    def zeros() -> dict[str, Tensor]:
        shape = (call.batch, call.heads, call.queries)
        return {variant: torch.zeros(shape, device=call.device) for variant in VARIANTS}

    return HeadShares(zeros(), zeros() if with_rollout else {})


def _copied(flow: Flow) -> Flow:
    return Flow(
        {variant: vector.clone() for variant, vector in flow.rollout.items()},
        {variant: vector.clone() for variant, vector in flow.relevancy.items()},
    )
