"""The event of each query: the key outside sinks that it reads most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.attention_call import AttentionCall, Tile

CRITERIA = ("weight", "contribution")
"""By what the key is chosen: ``p``, or ``p |v W_O|``."""

_NUMBERS = 1 << 22
"""Of ``v W_O W_O^T`` that are held at a time: 16 MiB."""


@dataclass
class RowEvents:
    """One event per query, chosen by one criterion; each ``[batch head query]``.

    Attributes:
        key: long, place on the key axis; -1 where a query reads nothing outside sinks.
        weight: float32, ``p`` of the key.
        share: float32, of all that the query reads outside sinks.
        contribution: float32, ``p |v W_O|``; NaN where the output matrix is not known.
        contribution_share: float32, of the sum of ``p |v W_O|`` over all keys, sinks included.
    """

    key: Tensor
    weight: Tensor
    share: Tensor
    contribution: Tensor
    contribution_share: Tensor


def value_norms(call: AttentionCall, gram: Tensor) -> Tensor:
    """Float32 ``[batch head key]``: ``|v W_O|`` of every head, from ``gram = W_O W_O^T``.

    Args:
        gram: float32 ``[head width width]``; query heads that share a value keep their own matrix.
    """
    batch, kv_heads, keys, width = call.value.shape
    group = gram.to(call.value.device).view(1, kv_heads, -1, width, width)
    squared = torch.empty(batch, call.heads, keys, device=call.value.device)
    # Keys in slices: every query head has a product of its own with each value.
    at_once = max(1, _NUMBERS // (batch * call.heads * width))
    for start in range(0, keys, at_once):
        some = slice(start, start + at_once)
        value = call.value[:, :, None, some].float()
        product = torch.linalg.vecdot(value @ group, value)
        squared[:, :, some] = product.reshape(batch, call.heads, -1)
    return squared.clamp_min_(0).sqrt_()


def row_events(
    call: AttentionCall, tiles: Iterable[Tile], keep: Tensor, norms: Tensor | None
) -> dict[str, RowEvents]:
    """Criterion -> the events of a call; without norms there is only ``weight``.

    Args:
        keep: float32 ``[batch head key]`` of `outside_sinks`.
        norms: float32 ``[batch head key]`` of `value_norms`.
    """
    found = {name: _empty(call) for name in CRITERIA[: 1 if norms is None else 2]}
    for tile in tiles:
        seen = slice(0, tile.keys)
        weights = tile.pattern * keep[tile.batch, :, None, seen]
        outside = weights.sum(-1)
        length = everything = None
        if norms is not None:
            length = norms[tile.batch, :, seen]
            everything = torch.matmul(tile.pattern, length[..., None])[..., 0]
            key = (weights * length[:, :, None]).argmax(-1)
            weight = weights.gather(-1, key[..., None])[..., 0]
            _fill(found["contribution"], tile, weight, key, outside, length, everything)
        weight, key = weights.max(-1)
        _fill(found["weight"], tile, weight, key, outside, length, everything)
    return found


def _empty(call: AttentionCall) -> RowEvents:
    shape = (call.batch, call.heads, call.queries)
    numbers = [torch.full(shape, float("nan"), device=call.device) for _ in range(4)]
    return RowEvents(torch.full(shape, -1, device=call.device), *numbers)


def _fill(
    events: RowEvents,
    tile: Tile,
    weight: Tensor,
    key: Tensor,
    outside: Tensor,
    length: Tensor | None,
    everything: Tensor | None,
) -> None:
    at = tile.batch, slice(None), tile.rows
    events.key[at] = key.masked_fill(weight <= 0, -1)
    events.weight[at] = weight
    events.share[at] = weight / outside.clamp_min(1e-30)
    if length is not None and everything is not None:
        contribution = weight * length.gather(-1, key)
        events.contribution[at] = contribution
        events.contribution_share[at] = contribution / everything.clamp_min(1e-30)
