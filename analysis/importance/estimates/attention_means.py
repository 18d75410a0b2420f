"""Mean query, key, value and output of every head over the data: what stands in for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.targets import Data
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.listening import listen
from probes.replay import logits_unread
from probes.tokens.map import ROLES, TokenMap

if TYPE_CHECKING:
    from probes.subject import Subject

_PAD = ROLES.index("pad")
PARTS = ("query", "key", "value", "z")
PASS_NAME = "means of queries and keys"
"""What their pass over the data is called where progress is shown."""


class AttentionMeans:
    """Means over all real positions of the data, per head, as the attention call reads them.

    That is after normalisation and rotation: the mean of a rotated key over positions is not a
    rotated mean. Padding is left out where positions are known.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[Site, str], Tensor] = {}
        self._counts: dict[tuple[Site, str], int] = {}

    def begin(self, subject: Subject, data: Data) -> None:
        """Take the means in one pass over the data."""
        self._sums.clear()
        self._counts.clear()
        for batch in data():

            def hear(call: AttentionCall, tokens: TokenMap = batch.tokens) -> None:
                self._add(call, tokens)

            settings = logits_unread(subject, batch)
            with listen(subject, batch, hear):
                subject.forward(batch, **settings)

    def of(self, call: AttentionCall, part: str) -> Tensor:
        """Float32 ``[head 1 width]`` of ``query``, ``key`` or ``value``, of the heads they have."""
        shared = call.heads // getattr(call, part).shape[1]
        return self._mean(call.site, part)[::shared, None].to(call.device)

    def of_z(self, site: Site, z: Tensor) -> Tensor:
        """Float32 ``[head value_width]``."""
        return self._mean(site, "z").to(z.device)

    def _mean(self, site: Site, part: str) -> Tensor:
        return (self._sums[site, part] / max(self._counts[site, part], 1)).float()

    def _add(self, call: AttentionCall, tokens: TokenMap) -> None:
        for part in PARTS:
            tensor = getattr(call, part)
            if tensor is None:
                continue
            of_query = part in ("query", "z")
            tower = call.site.tower if of_query else call.key_tower or call.site.tower
            index = call.query_index if of_query else call.key_index
            real = _real(tokens, tower, index, tensor)
            # One model shows its keys once per group or once per head, whichever call it chooses.
            shared = call.heads // tensor.shape[1]
            chosen = tensor.detach().transpose(1, 2)[real].double().repeat_interleave(shared, 1)
            key = (call.site, part)
            self._sums[key] = self._sums.get(key, 0.0) + chosen.sum(0)
            self._counts[key] = self._counts.get(key, 0) + len(chosen)


def _real(tokens: TokenMap, tower: str, index: Tensor | None, tensor: Tensor) -> Tensor:
    """Bool ``[batch position]``: positions that are not padding."""
    shape = (tensor.shape[0], tensor.shape[2])
    if index is None or tower not in tokens or index.shape != shape:
        return torch.ones(shape, dtype=torch.bool, device=tensor.device)
    role = torch.cat([tokens[tower].role, torch.tensor([_PAD])])[index.cpu()]
    return (role != _PAD).to(tensor.device)
