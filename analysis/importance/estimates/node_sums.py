"""Drops of an objective for replaced queries, keys and values of a site, summed per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from torch import Tensor

from analysis.importance.estimates.attention_gradients import (
    NodeDrops,
    no_scores_sentence,
    node_drops,
)
from analysis.importance.score_sheet import examples_of, per_example
from probes.attention_call import AttentionCall
from probes.gradients import ZGradients
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch

StandIn = Callable[[AttentionCall, str], Tensor]
"""What replaces the ``query``, ``key`` or ``value`` of a call, broadcastable to it."""
NODES = tuple(node.name for node in fields(NodeDrops))


def node_sums(
    batch: Batch,
    site: Site,
    sides: Sequence[ZGradients],
    stand_in: StandIn,
    *,
    nodes: Sequence[str] = NODES,
) -> dict[str, list[Tensor]] | str:
    """Node -> float64 ``[example head]`` for each side, or why there is none.

    Args:
        sides: gradients of several objectives of one forward, with its calls.
        nodes: which of `NODES`.
    """
    total: dict[str, list[Tensor]] = {}
    for pairs in zip(*(side.by_call(site) for side in sides), strict=True):
        call = pairs[0][0]
        if call.query is None or call.pattern_edits:
            return no_scores_sentence(call)
        drops = node_drops(
            call,
            [gradient for _, gradient in pairs],
            query=stand_in(call, "query"),
            key=stand_in(call, "key"),
            value=stand_in(call, "value") if "value" in nodes else None,
        )
        example = examples_of(batch, site, (call.batch, call.queries), call.query_index)
        for node in nodes:
            sums = [
                per_example(getattr(drop, node).transpose(1, 2), example, batch.size)
                for drop in drops
            ]
            known = total.get(node)
            total[node] = (
                sums if known is None else [a + b for a, b in zip(known, sums, strict=True)]
            )
    return total


def z_sums(batch: Batch, site: Site, gradients: ZGradients, change: Tensor) -> Tensor:
    """Float64 ``[example head]``: ``sum change * gradient`` at z.

    Args:
        change: ``[batch query head value_width]``, z minus what replaces it.
    """
    gradient = gradients.gradient[site]
    product = (change.float() * gradient).sum(-1)
    return per_example(product, examples_of(batch, site, product.shape[:2]), batch.size)
