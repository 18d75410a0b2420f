"""Latents that write nearly the same: pairs of decoder rows with a large cosine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

THRESHOLD = 0.9
_BLOCK_ROWS = 2_048
_MOST_SHOWN = 1_000


@dataclass(frozen=True)
class Duplicates:
    """Pairs of latents whose decoder rows have a cosine above a threshold.

    Attributes:
        threshold: that cosine.
        pairs: how many there are, each counted once.
        shown: the pairs of largest cosine, at most 1,000, smaller index first.
        cosines: theirs, falling.
        nearest: of each latent, the largest cosine with another; -1 where there is none.
    """

    threshold: float
    pairs: int
    shown: Int[Tensor, "pair 2"] = field(repr=False)
    cosines: Float[Tensor, " pair"] = field(repr=False)
    nearest: Float[Tensor, " latent"] = field(repr=False)

    @property
    def share(self) -> float:
        """Share of the latents that have a duplicate, 0 to 1."""
        return float((self.nearest > self.threshold).double().mean())

    def record(self) -> dict[str, Any]:
        """For JSON; the ten closest pairs."""
        return {
            "threshold": self.threshold,
            "pairs": self.pairs,
            "share": self.share,
            "closest": [
                [*pair, cosine]
                for pair, cosine in zip(
                    self.shown[:10].tolist(), self.cosines[:10].tolist(), strict=True
                )
            ],
        }


@torch.no_grad()
def duplicates(
    decoder: Float[Tensor, "latent width"],
    threshold: float = THRESHOLD,
    *,
    block_rows: int = _BLOCK_ROWS,
) -> Duplicates:
    """All pairs of decoder rows whose cosine is above ``threshold``: exact, in blocks.

    Rows of zeros have no direction and are no duplicates. In float32; memory: two blocks and
    their cosines, however many pairs there are.

    Args:
        threshold: between 0 and 1.
        block_rows: rows that are compared with as many others at a time.

    Raises:
        ValueError: another threshold.

    >>> duplicates(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.3]])).shown.tolist()
    [[0, 2]]
    """
    if not 0 < threshold < 1:
        raise ValueError(f"`threshold` must be between 0 and 1, got {threshold}. Take 0.9.")
    rows = decoder.detach().float()
    lengths = rows.norm(dim=1, keepdim=True)
    rows = rows / torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    count = rows.shape[0]
    nearest = torch.full((count,), -1.0, device=rows.device)
    pairs, shown, cosines = 0, rows.new_zeros(0, 2, dtype=torch.long), rows.new_zeros(0)
    for first in range(0, count, block_rows):
        for second in range(first, count, block_rows):
            left, right = rows[first : first + block_rows], rows[second : second + block_rows]
            found = left @ right.T
            if first == second:
                found.fill_diagonal_(-1.0)
            mine, theirs = slice(first, first + len(left)), slice(second, second + len(right))
            nearest[mine] = torch.maximum(nearest[mine], found.amax(1))
            nearest[theirs] = torch.maximum(nearest[theirs], found.amax(0))
            above = (found.triu(1) if first == second else found) > threshold
            pairs += int(above.sum())
            where = above.nonzero()
            values = found[above]
            if len(values) > _MOST_SHOWN:
                values, kept = values.topk(_MOST_SHOWN)
                where = where[kept]
            offset = torch.tensor([first, second], device=rows.device)
            cosines = torch.cat([cosines, values])
            shown = torch.cat([shown, where + offset])
            best = cosines.argsort(descending=True, stable=True)[:_MOST_SHOWN]
            cosines, shown = cosines[best], shown[best]
    return Duplicates(threshold, pairs, shown.cpu(), cosines.double().cpu(), nearest.double().cpu())
