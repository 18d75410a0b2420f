"""How many different roles a head has: the effective number of distinct features among its top.

The effective number is the Vendi score (Friedman and Dieng 2022, arXiv 2210.02410) of a similarity
``K`` of the features, positive semidefinite with 1 on its diagonal: ``exp(-sum_i p_i log p_i)``
with ``p`` the eigenvalues of ``K / count``. It is 1 where all features are one, and ``count`` where
no two are alike. Two kinds of similarity are here:

- `slice_similarity`: cosine of what features write (or read) *at this head*, their decoder (or
  encoder) slices. Of weights alone. Opposite directions count as one role with two signs.
- `CoFiring`: cosine of where features fire, ``n_ij / sqrt(n_i n_j)`` with ``n_ij`` the rows at
  which both do. Of data. Features that fire at the same rows are one role, whatever they write.

Kissane et al. 2024 (arXiv 2406.17759) counted roles by hand among the ten features with the largest
decoder share; that this number agrees with their reading was not tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.source import Activations
from sae.coders.coder import Coder
from sae.reading.head_shares import refuse_heads, refuse_site

Similarity = Callable[[int, Tensor], Tensor]
"""Takes a head and features ``[feature]``; gives their similarity ``[feature feature]``."""

DRAWS = 200
_BLOCK = 1 << 24


def effective_number(similarity: Float[Tensor, "feature feature"]) -> float:
    """The Vendi score of a similarity, 1 to the number of features; NaN for none.

    >>> pair_and_one = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> round(effective_number(pair_and_one), 4)  # entropy of 2/3 and 1/3
    1.8899
    """
    if not similarity.shape[0]:
        return float("nan")
    values = torch.linalg.eigvalsh(similarity.double() / similarity.shape[0]).clamp_min(0)
    values = values / values.sum()
    return float(torch.special.entr(values).sum().exp())


@dataclass(frozen=True)
class Polysemanticity:
    """The effective number of roles of each head, beside that of random features.

    Attributes:
        roles: of the head's top features.
        null_mean: mean over draws of as many random features.
        null_low, null_high: the 2.5 and 97.5 percentiles of the draws.
        draws: how many.
    """

    roles: Float[Tensor, "head"]
    null_mean: Float[Tensor, "head"]
    null_low: Float[Tensor, "head"]
    null_high: Float[Tensor, "head"]
    features: Int[Tensor, "head feature"] = field(repr=False)
    draws: int = DRAWS


def polysemanticity(
    top: Int[Tensor, "head feature"],
    similarity: Similarity,
    candidates: Int[Tensor, "candidate"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Polysemanticity:
    """The effective number of roles among each head's top features, with a null.

    A head is less polysemantic than chance where ``roles`` lies below ``null_low``.

    Args:
        top: features of each head, as `sae.reading.head_shares.top_features` gives them.
        candidates: what random features are drawn from without replacement: those that fire.
        seed: the same draws for every head.

    Raises:
        ValueError: there are fewer candidates than top features.
    """
    count = top.shape[1]
    if len(candidates) < count or draws < 1:
        raise ValueError(
            f"There must be at least {count} candidates and one draw, got {len(candidates)} and "
            f"{draws}. Take fewer top features."
        )
    dice = torch.Generator().manual_seed(seed)
    sets = [
        candidates[torch.randperm(len(candidates), generator=dice)[:count]] for _ in range(draws)
    ]
    roles, null = [], []
    for head, features in enumerate(top):
        roles.append(effective_number(similarity(head, features)))
        null.append([effective_number(similarity(head, drawn)) for drawn in sets])
    spread = torch.tensor(null, dtype=torch.float64)
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)
    return Polysemanticity(
        torch.tensor(roles, dtype=torch.float64), spread.mean(1), low, high, top, draws
    )


def slice_similarity(coder: Coder, heads: int, of: str = "decoder") -> Similarity:
    """Cosine of features' slices at a head; a slice of zeros is like nothing else.

    Args:
        of: ``decoder`` (what they write) or ``encoder`` (what they read).
    """
    refuse_heads(coder, heads)
    if of not in ("decoder", "encoder"):
        raise ValueError(f"`of` must be 'decoder' or 'encoder', got {of!r}. Choose one of them.")
    rows = (coder.decoder if of == "decoder" else coder.encoder).detach().unflatten(1, (heads, -1))

    def similarity(head: int, features: Tensor) -> Tensor:
        slices = rows[features.to(rows.device), head].double().cpu()
        unit = torch.nn.functional.normalize(slices, dim=1)
        return (unit @ unit.T).fill_diagonal_(1.0)

    return similarity


@dataclass(frozen=True)
class CoFiring:
    """At how many rows each two of some features fire together: a `Similarity` of them.

    Attributes:
        features: which, ascending.
        together: rows at which both fire; on the diagonal, those at which one does.
    """

    features: Int[Tensor, "feature"]
    together: Float[Tensor, "feature feature"]

    def __call__(
        self, head: int, features: Int[Tensor, "chosen"]
    ) -> Float[Tensor, "chosen chosen"]:
        """Cosine of where features fire; one that never does is like nothing else."""
        at = torch.searchsorted(self.features, features.cpu().contiguous())
        at = at.clamp_max(len(self.features) - 1)
        if not torch.equal(self.features[at], features.cpu()):
            raise ValueError(
                "Firings must have been counted for every feature that is compared. Give all of "
                "them to `co_firing`, candidates too."
            )
        counts = self.together[at][:, at]
        size = counts.diagonal().sqrt()
        return (counts / (size[:, None] * size).clamp_min(1e-12)).fill_diagonal_(1.0)


@torch.no_grad()
def co_firing(
    activations: Activations, coder: Coder, site: str, features: Int[Tensor, "feature"]
) -> CoFiring:
    """Count at how many rows of a stream each two features fire together.

    Args:
        features: all that will be compared: top features and candidates. Memory is their number
            squared.
    """
    refuse_site(activations, coder, site)
    chosen = features.unique().to(coder.encoder.device)
    together = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
    for chunk in activations.chunks(0):
        for block in chunk[site].split(max(1, _BLOCK // coder.latents)):
            x = block.to(coder.encoder.device, coder.encoder.dtype)
            fires = (coder.encode(x)[:, chosen] != 0).float()
            together += (fires.T @ fires).double().cpu()
    return CoFiring(chosen.cpu(), together)
