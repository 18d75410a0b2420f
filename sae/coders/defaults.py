"""How the sources of coders train them: learning rates, betas of Adam, weights of sparsity."""

from __future__ import annotations

from dataclasses import dataclass

_REFERENCE_LATENTS = 2**14


@dataclass(frozen=True)
class Defaults:
    """What a kind of coder is trained with where the user says nothing.

    Attributes:
        learning_rate: peak.
        betas: of Adam.
        sparsity: weight of the sparsity loss, for rows whose mean norm is the root of the width
            (``normalise="mean_norm"``); None for kinds without one.
        raw_sparsity: the same for rows as the model computes them; None where the source never
            trained on such.
        source: where the numbers are from.
    """

    learning_rate: float
    betas: tuple[float, float]
    sparsity: float | None = None
    raw_sparsity: float | None = None
    source: str = ""

    @classmethod
    def of_topk(cls, latents: int) -> Defaults:
        """Of kinds that choose the k strongest: 2e-4 at 16,384 latents, with their root."""
        return cls(
            learning_rate=2e-4 / (latents / _REFERENCE_LATENTS) ** 0.5,
            betas=(0.9, 0.999),
            source="Gao et al. 2024 (arXiv 2406.04093), figure 3, as in dictionary_learning",
        )
