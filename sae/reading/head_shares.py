"""How much of each feature is each head's: by its decoder row, and by what makes it fire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.source import Activations
from sae.coders.coder import Coder
from sae.reading.latent_reading import wide_dtype

TOP_FEATURES = 10
_ELEMENTS = 1 << 24
"""Numbers that a block of rows may take while products of features and rows are formed."""


def decoder_shares(coder: Coder, heads: int) -> Float[Tensor, "latent head"]:
    """Each head's share of a feature's decoder row, by length of its slice; rows sum to 1.

    ``|decoder[f, slice h]| / sum_h' |decoder[f, slice h']|`` (Kissane et al. 2024, arXiv
    2406.17759). Of weights alone: what a feature writes, not what makes it fire. NaN for a row of
    zeros.

    Raises:
        ValueError: the coder's width is not a multiple of ``heads``.
    """
    refuse_heads(coder, heads)
    sizes = coder.decoder.detach().float().unflatten(1, (heads, -1)).norm(dim=2)
    return sizes / sizes.sum(1, keepdim=True)


@dataclass(frozen=True)
class FiringShares:
    """What each head adds to each feature's pre-activation where the feature fires.

    Attributes:
        mean: mean over firings of ``z_h . encoder_h``, float64; NaN where it never fired.
        mean_size: mean of its absolute value.
        firings: rows at which each latent fired.
        rows: rows that were read.
    """

    mean: Float[Tensor, "latent head"]
    mean_size: Float[Tensor, "latent head"]
    firings: Int[Tensor, "latent"]
    rows: int

    @property
    def shares(self) -> Float[Tensor, "latent head"]:
        """`mean_size` with rows that sum to 1; NaN where a latent never fired."""
        return self.mean_size / self.mean_size.sum(1, keepdim=True)


@torch.no_grad()
def firing_shares(
    activations: Activations, coder: Coder, site: str, heads: int | None = None
) -> FiringShares:
    """Mean direct attribution by head over every firing in a stream of head outputs.

    Memory does not grow with the data: two numbers per latent and head.

    Args:
        heads: of the site; by default what the stream says.

    Raises:
        ValueError: the stream does not have the site, or its width is not the coder's.
    """
    refuse_site(activations, coder, site)
    heads = activations.heads[site] if heads is None else heads
    refuse_heads(coder, heads)
    sums = ShareSums(coder, heads)
    for chunk in activations.chunks(0):
        for block in chunk[site].split(max(1, _ELEMENTS // coder.latents)):
            x = block.to(coder.encoder.device, coder.encoder.dtype)
            sums.add(x, coder.encode(x))
    return sums.shares()


class ShareSums:
    """Looks at rows with their strengths, block by block, and sums what `FiringShares` has."""

    def __init__(self, coder: Coder, heads: int) -> None:
        refuse_heads(coder, heads)
        device = coder.encoder.device
        self._sums = torch.zeros(2, coder.latents, heads, dtype=wide_dtype(device), device=device)
        self._firings = torch.zeros(coder.latents, dtype=torch.long, device=device)
        self._encoder = coder.encoder.detach().unflatten(1, (heads, -1))
        self._step, self._rows = max(1, _ELEMENTS // coder.width), 0

    def add(self, x: Float[Tensor, "row width"], strengths: Float[Tensor, "row latent"]) -> None:
        """Take some rows, in the coder's dtype and on its device, with their strengths."""
        self._rows += len(x)
        heads = self._encoder.shape[1]
        where, latents = strengths.nonzero(as_tuple=True)
        self._firings += torch.bincount(latents, minlength=len(self._firings))
        for row, latent in zip(where.split(self._step), latents.split(self._step), strict=True):
            z = x[row].unflatten(1, (heads, -1))
            added = (z * self._encoder[latent]).sum(2).to(self._sums.dtype)
            self._sums[0].index_add_(0, latent, added)
            self._sums[1].index_add_(0, latent, added.abs())

    def shares(self) -> FiringShares:
        """What was summed."""
        firings = self._firings[:, None]
        means = (self._sums / firings.where(firings > 0, torch.nan)).cpu()
        return FiringShares(means[0], means[1], self._firings.cpu(), self._rows)


def top_features(
    shares: Float[Tensor, "latent head"],
    count: int = TOP_FEATURES,
    alive: Bool[Tensor, "latent"] | None = None,
) -> Int[Tensor, "head feature"]:
    """The features with the largest share of each head, largest first.

    Fewer columns where there are fewer features. Shares that are NaN come last; a tie goes to the
    lower index.

    Args:
        alive: only these.
    """
    known = torch.where(shares.isnan(), -1.0, shares)
    if alive is not None:
        known = known.masked_fill(~alive[:, None].to(known.device), -2.0)
        count = min(count, int(alive.sum()))
    order = known.sort(dim=0, descending=True, stable=True).indices
    return order[: min(count, len(shares))].T


def refuse_heads(coder: Coder, heads: int) -> None:
    """Nothing, if the coder's rows can be split into so many heads.

    Raises:
        ValueError: they cannot.
    """
    if heads < 1 or coder.width % heads:
        raise ValueError(
            f"`heads` must divide the coder's width {coder.width}, got {heads}. Give the number of "
            "heads of its site."
        )


def refuse_site(activations: Activations, coder: Coder, site: str) -> None:
    """Nothing, if a stream has a site as wide as the coder.

    Raises:
        ValueError: it has not.
    """
    widths: Mapping[str, int] = activations.widths
    if widths.get(site) != coder.width:
        have = ", ".join(f"{name} ({width})" for name, width in widths.items()) or "nothing"
        raise ValueError(
            f"The activations must have site {site} with width {coder.width}, they have {have}. "
            "Choose the site that the coder was trained on."
        )
