"""What a change of one head's queries, keys or values does to an objective, in closed form.

Attribution patching multiplies a gradient with a change. On queries and keys that fails where the
softmax is saturated: its gradient is next to nothing, although another query would look elsewhere.
AtP* (Kramár et al., 2024, arXiv 2403.00745) lets the change go through the softmax exactly and
takes the gradient at the pattern. With ``g = d objective / d pattern``, which is
``gradient_z @ value^T``, and ``G_t = sum_k A_tk g_tk``:

- query fix: ``sum_tk (A - A')_tk g_tk``, ``A'`` the rows with the replaced query;
- key fix, each key position s on its own: ``delta_ts`` is what the score changes by, then
  ``p' = sigmoid(delta + logit p)`` and the other keys of the row scale by ``(1 - p')/(1 - p)``;
  summed up this is ``sum_ts (p - p')_ts (g_ts - G_t) / (1 - p_ts)``: no row is made twice;
- without a fix, both are ``sum_tk A_tk (g_tk - G_t) (score - score')_tk``.

Everything runs tile by tile. All results are drops: positive where the objective falls when the
replacement is put in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.attention_call import AttentionCall, Tile
from probes.masks import MASKED_SCORE


@dataclass
class NodeDrops:
    """By how much an objective falls if queries, keys or values of a head are replaced.

    All float32 ``[batch head query]``: the part of each query row, to be summed over rows.

    Attributes:
        query, key: with the fixes; ``query_plain`` and ``key_plain`` are linear.
        value: linear, as z is in the values; None where no replaced values were given.
    """

    query: Tensor
    query_plain: Tensor
    key: Tensor
    key_plain: Tensor
    value: Tensor | None = None


def node_drops(
    call: AttentionCall,
    gradients: Sequence[Tensor],
    *,
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    rows: int | None = None,
) -> list[NodeDrops]:
    """Drops of some objectives for replaced queries, keys and values of every head of a call.

    Args:
        gradients: ``[batch head query value_width]`` for each objective, with respect to z.
        query: broadcastable to the call's queries; ``key`` and ``value`` to its keys and values
            (of the heads that keys have). Where query heads share a key, it counts for each of
            them as far as that head reads it.
        rows: query rows per tile.

    Raises:
        ValueError: the call's queries and keys are not known, as where a model writes out its own
            softmax, or an edit of the pattern is in force.
    """
    if call.query is None or call.key is None or call.pattern_edits:
        raise ValueError(no_scores_sentence(call))
    by_query = replace(call, query=query.to(call.query.dtype).expand_as(call.query))
    by_key = replace(call, key=key.to(call.key.dtype).expand_as(call.key))
    other_value = None if value is None else value.to(call.value.dtype).expand_as(call.value)
    shape = (call.batch, call.heads, call.queries)
    nodes = 4 if other_value is None else 5
    made = [
        NodeDrops(*(torch.zeros(shape, device=call.device) for _ in range(nodes)))
        for _ in gradients
    ]
    streams = (call.tiles(rows=rows), by_query.tiles(rows=rows), by_key.tiles(rows=rows))
    for tile, queried, keyed in zip(*streams, strict=True):
        assert tile.scores is not None and queried.scores is not None and keyed.scores is not None
        here = (tile.batch, slice(None), tile.rows)
        pattern, delta = tile.pattern, keyed.scores - tile.scores
        by_key_alone = _single_key_drop_per_contrast(tile, delta)
        for gradient, drops in zip(gradients, made, strict=True):
            g = pattern_gradient(tile, gradient)
            slope = pattern * (g - (pattern * g).sum(-1, keepdim=True))
            drops.query[here] = ((pattern - queried.pattern) * g).sum(-1)
            drops.query_plain[here] = (slope * (tile.scores - queried.scores)).sum(-1)
            drops.key_plain[here] = -(slope * delta).sum(-1)
            drops.key[here] = by_key_alone.sum_with(g)
            if drops.value is not None:
                swapped = pattern_gradient(tile, gradient, other_value)
                drops.value[here] = (pattern * (g - swapped)).sum(-1)
    return made


def no_scores_sentence(call: AttentionCall) -> str:
    """Why queries and keys of a call cannot be replaced."""
    return (
        f"The queries and keys of {call.site.tower} are not known, because the model writes out "
        "its own softmax there (or an edit changes the pattern), so only z is estimated."
    )


def pattern_gradient(tile: Tile, gradient: Tensor, value: Tensor | None = None) -> Tensor:
    """Float32 ``[batch head row key]``: the objective's gradient at the pattern of a tile.

    Args:
        gradient: ``[batch head query value_width]``, with respect to z of the tile's call.
        value: other values than the call's, in their shape.
    """
    value = tile.call.value if value is None else value
    rows = gradient[tile.batch, :, tile.rows].float()
    keys = value[tile.batch, :, : tile.keys].float().transpose(-1, -2)
    batch, heads, count, width = rows.shape
    groups = keys.shape[1]
    packed = rows.reshape(batch, groups, heads // groups * count, width)
    return torch.matmul(packed, keys).reshape(batch, heads, count, tile.keys)


@dataclass
class _SingleKeyDrops:
    """``(p - p') / (1 - p)`` of every pair, to be multiplied with the contrast ``g - G``.

    The largest weight of a row is kept apart: near 1, ``1 - p`` and ``g - G`` are nothing but
    rounding as differences. There ``(g - G) / (1 - p)`` is ``g`` minus the mean of the others'
    under their own softmax, and the odds ``p / (1 - p)`` come from scores.

    Attributes:
        others: the softmax of each row without its largest weight.
        top: ``p - p'`` of the largest weight, ``[batch head row 1]``; ``where``, which key it is.
    """

    weight: Tensor
    pattern: Tensor
    others: Tensor
    top: Tensor
    where: Tensor

    def sum_with(self, g: Tensor) -> Tensor:
        """``[batch head row]``: the drops of all keys, each replaced alone, added up."""
        contrast = g - (self.pattern * g).sum(-1, keepdim=True)
        of_top = g.gather(-1, self.where) - (self.others * g).sum(-1, keepdim=True)
        return (self.weight * contrast).sum(-1) + (self.top * of_top)[..., 0]


def _single_key_drop_per_contrast(tile: Tile, delta: Tensor) -> _SingleKeyDrops:
    pattern, scores = tile.pattern, tile.scores
    assert scores is not None
    best, where = scores.max(-1, keepdim=True)
    without = scores.scatter(-1, where, MASKED_SCORE)
    others = torch.softmax(without, -1)
    # The largest weight of a softmax is 1 / sum of exp(score - largest score): half the work of a
    # logsumexp beside it.
    of_others = without.amax(-1, keepdim=True) - others.amax(-1, keepdim=True).log()
    alone = of_others <= MASKED_SCORE / 2
    rest = 1 - pattern.clamp_max(0.75)
    odds = scores - torch.logaddexp(best, of_others) - rest.log()
    weight = (pattern - torch.sigmoid(odds + delta)) / rest
    weight = weight.scatter(-1, where, 0.0).masked_fill(alone, 0.0)
    odds_of_top = best - of_others
    moved = torch.sigmoid(odds_of_top + delta.gather(-1, where))
    top = (torch.sigmoid(odds_of_top) - moved).masked_fill(alone, 0.0)
    return _SingleKeyDrops(weight, pattern, others, top, where)
