"""How much of an attribution is followed, and what is left of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOP_K, LEAST_SHARE, DEPTH = 3, 0.05, 2


@dataclass(frozen=True)
class Pruning:
    """How much of each node is followed.

    Attributes:
        top_k: at most so many links of a piece and pieces of a link; None: all.
        least_share: only those with at least this share of their node's ``|score|`` (0 to 1).
        depth: how many attention layers are gone through; 0 splits the root into links only.
    """

    top_k: int | None = TOP_K
    least_share: float = LEAST_SHARE
    depth: int = DEPTH

    def kept(self, scores: Sequence[float], whole: float) -> list[int]:
        """Indices of what stays, largest first; ties in the order given."""
        order = sorted(range(len(scores)), key=lambda i: (-abs(scores[i]), i))
        kept = [i for i in order if scores[i] and abs(scores[i]) >= self.least_share * abs(whole)]
        return kept if self.top_k is None else kept[: self.top_k]


def without(scores: Sequence[float], kept: Sequence[int]) -> tuple[float, float]:
    """``sum |score|`` of what is not kept, and its share of all."""
    pruned = sum(map(abs, scores)) - sum(abs(scores[i]) for i in kept)
    total = sum(map(abs, scores))
    return max(pruned, 0.0), max(pruned, 0.0) / total if total else 0.0
