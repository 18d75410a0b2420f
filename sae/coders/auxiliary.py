"""AuxK: dead latents learn to explain what the live ones leave."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SPARSE_SHARE = 8


def auxiliary_loss(
    pre: Float[Tensor, "batch latent"],
    decoder: Float[Tensor, "latent width"],
    left: Float[Tensor, "batch width"],
    dead: Bool[Tensor, " latent"] | None,
    auxiliary_k: int,
) -> Float[Tensor, ""]:
    """How badly the strongest dead latents of each row explain the error of the live ones.

    ``min(dead / k, 1) · E|e - ê|² / E|e - E e|²`` with ``ê`` decoded, without bias, from the dead
    latents of largest *raw* pre-activation, negative ones too: k of them, or an eighth of all
    dead ones where that is less (`chosen_of_dead`). Where implementations select after a ReLU, a
    latent that is negative at every row gets no gradient in its encoder and stays dead. 1 where
    dead latents say nothing; 0 without dead latents or without an error.

    Args:
        left: ``x - reconstruction``; no gradient flows into it.
        dead: which latents are dead; None: none.
        auxiliary_k: how many explain the error together.

    Source: Gao et al. 2024 (arXiv 2406.04093), section 2.4 and appendix A.2; scale of SAELens,
    normalisation of OpenAI's code.
    """
    which = None if dead is None else dead.nonzero().squeeze(1)
    if which is None or not which.numel():
        return pre.new_zeros(())
    candidates = pre[:, which]
    k = chosen_of_dead(auxiliary_k, which.numel())
    if k < which.numel():
        found = candidates.topk(k, dim=1, sorted=False)
        candidates = torch.zeros_like(candidates).scatter(1, found.indices, found.values)
    return unexplained(left, candidates @ decoder[which], which.numel(), auxiliary_k)


def chosen_of_dead(auxiliary_k: int, dead: int) -> int:
    """How many dead latents explain the error of a row together.

    Chosen among few, raw pre-activations are a linear code: it learns the error's principal
    directions in place of features, and nobody comes back to life. No source has this bound. On
    rows of one known sparse dictionary (TopK, 1,800 steps, k of 16), 16 of 128 latents were dead
    at the end where all of them were chosen, 12 where half and 10 where an eighth was; after a
    ReLU it was 10 too.
    """
    return min(auxiliary_k, max(dead // _SPARSE_SHARE, 1))


def unexplained(
    left: Float[Tensor, "batch width"],
    explained: Float[Tensor, "batch width"],
    dead: int,
    auxiliary_k: int,
) -> Float[Tensor, ""]:
    """What the dead latents' ``explained`` leaves of the error, as `auxiliary_loss` counts it."""
    left = left.detach()
    spread = (left - left.mean(0)).pow(2).sum(1).mean()
    if not spread > 0:
        return left.new_zeros(())
    missed = (left - explained).pow(2).sum(1).mean() / spread
    return missed * min(dead / auxiliary_k, 1.0)
