"""How much weight each key of a call receives from the queries that may read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probes.attention_call import AttentionCall

FEWEST_READERS = 0.5
"""Of the most-read key: the last keys of a causal sequence have few readers, and one confident
reader is no sink."""


@dataclass
class Received:
    """Weight that keys receive, summed over queries that are real.

    Attributes:
        total: float32 ``[batch head key]``.
        readers: float32 ``[batch key]``: how many real queries may read a key.
        uniform: float32 ``[batch key]``: the same sum on the pattern that weighs all allowed keys
            alike.
    """

    total: Tensor
    readers: Tensor
    uniform: Tensor

    @property
    def mean(self) -> Tensor:
        """Float32 ``[batch head key]``: ``alpha_k``, 0 where nobody may read."""
        return self.total / self.readers.clamp_min(1)[:, None]

    @property
    def null(self) -> Tensor:
        """Float32 ``[batch key]``: ``alpha_k`` of the uniform pattern."""
        return self.uniform / self.readers.clamp_min(1)

    @property
    def judged(self) -> Tensor:
        """Bool ``[batch key]``: keys with at least half as many readers as the most-read one."""
        most = self.readers.amax(-1, keepdim=True)
        return (self.readers >= FEWEST_READERS * most) & (self.readers > 0)


def received(call: AttentionCall, real: Tensor, *, edited: bool = True) -> Received:
    """The weight that each key receives in a call, tile by tile.

    Args:
        real: bool ``[batch query]``: queries that are no padding.
        edited: whether changes that edits make to the pattern count; changes to scores always do.
    """
    if not edited:
        # A call of its own, so that edits count their rows only once.
        call = replace(call, pattern_edits=[], counting=False)
    total = torch.zeros(call.batch, call.heads, call.keys, device=call.device)
    readers = torch.zeros(call.batch, call.keys, device=call.device)
    uniform = torch.zeros(call.batch, call.keys, device=call.device)
    real = real.to(call.device)
    for tile in call.tiles():
        used = real[tile.batch, tile.rows].float()
        seen = slice(0, tile.keys)
        total[tile.batch, :, seen] += torch.einsum("bhrk,br->bhk", tile.pattern, used)
        allowed = tile.allowed().any(1).to(used) * used[..., None]
        readers[tile.batch, seen] += allowed.sum(1)
        count = allowed.sum(-1, keepdim=True).clamp_min(1)
        uniform[tile.batch, seen] += (allowed / count).sum(1)
    return Received(total, readers, uniform)
