"""Which keys of a call are sinks: by what they are, or because most queries read them.

A key is a sink of every head if it is BOS, CLS, a register, or the first key of its sequence (but
not an image patch). It is a sink of one head if queries read it *whatever they ask*: its mean
weight over the queries that may read it is at least ``sink`` (0.3, Gu et al., ICLR 2025) and at
least twice that of the uniform pattern, and more than half of those queries give it at least
``sink / 2``. As in `sink_weight`, a key with less than half the readers of the most-read key of its
sequence is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from analysis.atlas.exemplars.reach import Reach
from probes.attention_call import AttentionCall, Tile

_MOST = 0.5
_OVER_UNIFORM = 2.0


def outside_sinks(call: AttentionCall, tiles: Iterable[Tile], reach: Reach, sink: float) -> Tensor:
    """Float32 ``[batch head key]``: 1 at keys that are no sinks and no padding, else 0."""
    total = torch.zeros(call.batch, call.heads, call.keys, device=call.device)
    often = torch.zeros_like(total)
    every = bool(reach.used.all())
    for tile in tiles:
        pattern = tile.pattern
        if not every:
            pattern = pattern * reach.used[tile.batch, None, tile.rows, None]
        total[tile.batch, :, : tile.keys] += pattern.sum(2)
        often[tile.batch, :, : tile.keys] += (pattern >= sink / 2).float().sum(2)
    readers = reach.readers.clamp_min(1)[:, None]
    mean, null = total / readers, reach.uniform[:, None] / readers
    read = (mean >= sink) & (mean >= _OVER_UNIFORM * null) & (often > _MOST * readers)
    out = (read & reach.judged[:, None]) | (reach.standing | reach.absent)[:, None]
    return (~out).float()
