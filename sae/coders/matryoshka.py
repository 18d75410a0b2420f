"""Matryoshka BatchTopK: the first latents alone must reconstruct too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Losses, Moment

_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32)
_TOLERANCE = 1e-6


class Matryoshka(BatchTopK):
    """BatchTopK whose loss is the *mean*, over nested prefixes of the dictionary, of the error.

    Early latents stand in every prefix and learn what is general; later ones add what is special.
    Latents are chosen once, over the batch and the whole dictionary.

    The mean keeps the size of BatchTopK's loss, so `auxiliary` weighs the same. SAELens sums over
    prefixes; dictionary_learning divides by their number twice. AuxK explains the error of the
    whole dictionary. In ``parts``, ``reconstruction`` is the error of the whole dictionary and
    ``prefixes`` the mean that is minimised in its place.

    Source: Bussmann et al. 2025 (arXiv 2503.17547); shares of SAEBench's coders.

    Args:
        group_shares: share of the latents by which each prefix is longer than the one before;
            they sum to 1.
    """

    architecture: ClassVar[str] = "matryoshka"

    def __init__(
        self,
        width: int,
        latents: int,
        *,
        centred: bool = True,
        seed: int = 0,
        k: int = 32,
        auxiliary: float = 1 / 32,
        auxiliary_k: int | None = None,
        threshold_rate: float = 0.01,
        group_shares: Sequence[float] = _SHARES,
    ) -> None:
        super().__init__(
            width,
            latents,
            centred=centred,
            seed=seed,
            k=k,
            auxiliary=auxiliary,
            auxiliary_k=auxiliary_k,
            threshold_rate=threshold_rate,
        )
        self.group_shares = tuple(float(share) for share in group_shares)
        self.prefixes = _prefixes(self.group_shares, latents)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "group_shares": list(self.group_shares)}

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        pre = self.pre_activations(x)
        strengths = self.trained_strengths(pre)
        left = x - self.decoder_bias
        errors, start = [], 0
        for end in self.prefixes:
            left = left - strengths[:, start:end] @ self.decoder[start:end]
            errors.append(left.pow(2).sum(1).mean())
            start = end
        prefixes = torch.stack(errors).mean()
        auxiliary = self._auxiliary(pre, left, moment)
        return Losses(
            prefixes + auxiliary,
            {
                "reconstruction": errors[-1].detach(),
                "prefixes": prefixes.detach(),
                "auxiliary": auxiliary.detach(),
            },
            (strengths > 0).sum(0),
            (x - left).detach(),
        )


def _prefixes(shares: tuple[float, ...], latents: int) -> tuple[int, ...]:
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > _TOLERANCE:
        raise ValueError(
            f"`group_shares` must be positive and sum to 1, got {list(shares)}. Give the share of "
            "latents that each prefix adds."
        )
    # Of sums and not of shares: rounding does not add up, and the last prefix is everything.
    ends = [round(sum(shares[: i + 1]) * latents) for i in range(len(shares))]
    ends[-1] = latents
    if ends[0] < 1 or any(b <= a for a, b in pairwise(ends)):
        raise ValueError(
            f"`group_shares` must give every prefix a latent of its own, got {list(shares)} of "
            f"{latents} latents: prefixes of {ends}. Give fewer groups or more latents."
        )
    return tuple(ends)
