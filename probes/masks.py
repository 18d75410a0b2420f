"""Which query may read which key in one attention call, asked for one block of rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

FORBIDDEN = -1e4
"""An additive mask value at or below this forbids the pair: exp(-1e4) is 0 in every dtype."""

MASKED_SCORE = -1e30
"""Written into the scores of forbidden pairs: finite, so that ``0 * score`` stays 0."""


@dataclass
class AttentionMask:
    """The mask of one call: causal or not, and an optional tensor, boolean or additive.

    Args:
        queries, keys: lengths of the two axes.
        causal: key ``j`` is allowed for query ``i`` only if ``j <= i`` (PyTorch's ``is_causal``).
        tensor: broadcastable to ``[batch head query key]``; bool means allowed, float is added.
    """

    queries: int
    keys: int
    causal: bool = False
    tensor: Tensor | None = None
    _key_ends: list[int] | None = field(default=None, repr=False)

    def key_end(self, rows: slice) -> int:
        """Keys from this index on are forbidden for all these rows, so tiles leave them out."""
        if self.causal:
            return min(self.keys, rows.stop)
        if self.tensor is None:
            return self.keys
        if self._key_ends is None:
            self._key_ends = self._last_allowed(self.tensor)
        return max(self._key_ends[rows], default=self.keys) or 1

    def apply_(self, scores: Tensor, batch: slice, rows: slice) -> Tensor:
        """Add the mask to ``scores [batch head row key]`` in place; keys start at 0."""
        keys = scores.shape[-1]
        if self.causal:
            first = rows.start
            ahead = torch.ones(
                rows.stop - first, max(keys - first, 0), dtype=torch.bool, device=scores.device
            ).triu_(1)
            scores[..., first:].masked_fill_(ahead, MASKED_SCORE)
        if self.tensor is None:
            return scores
        part = self._part(self.tensor, batch, rows, keys)
        if part.dtype == torch.bool:
            return scores.masked_fill_(~part, MASKED_SCORE)
        return scores.add_(part.to(scores.dtype)).clamp_(min=MASKED_SCORE)

    def allowed(self, batch: slice, rows: slice, keys: int | None = None) -> Tensor:
        """Bool ``[batch or 1, head or 1, row, key]``: the pairs that may attend."""
        keys = self.keys if keys is None else keys
        device = None if self.tensor is None else self.tensor.device
        allowed = torch.ones(1, 1, rows.stop - rows.start, keys, dtype=torch.bool, device=device)
        if self.causal:
            allowed = allowed.tril(rows.start)
        if self.tensor is not None:
            part = self._part(self.tensor, batch, rows, keys)
            allowed = allowed & (part if part.dtype == torch.bool else part > FORBIDDEN)
        return allowed

    def counts(self) -> Tensor:
        """Long ``[batch or 1, query]``: number of allowed keys of each query (of head 0)."""
        every = slice(None)
        blocks = [
            self.allowed(every, slice(first, min(first + 128, self.queries)))[:, 0].sum(-1)
            for first in range(0, self.queries, 128)
        ]
        return torch.cat(blocks, dim=-1)

    @staticmethod
    def _part(tensor: Tensor, batch: slice, rows: slice, keys: int) -> Tensor:
        while tensor.ndim < 4:
            tensor = tensor.unsqueeze(0)
        if tensor.shape[0] > 1:
            tensor = tensor[batch]
        if tensor.shape[-2] > 1:
            tensor = tensor[..., rows, :]
        return tensor[..., :keys] if tensor.shape[-1] > 1 else tensor

    def _last_allowed(self, tensor: Tensor) -> list[int]:
        ends: list[int] = []
        index = torch.arange(1, self.keys + 1, device=tensor.device)
        for first in range(0, self.queries, 128):
            rows = slice(first, min(first + 128, self.queries))
            part = self._part(tensor, slice(None), rows, self.keys)
            seen = (part if part.dtype == torch.bool else part > FORBIDDEN).flatten(0, 1).any(0)
            last = (seen * index).amax(-1)
            ends.extend(last.expand(rows.stop - rows.start).tolist())
        return ends
