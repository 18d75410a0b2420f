"""Decoder rows of length 1: kept while training, and made once it is over."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from sae.coders.coder import Coder

AnyCoder = TypeVar("AnyCoder", bound="Coder")


@torch.no_grad()
def remove_parallel_gradient(coder: Coder) -> None:
    """Take the part of the decoder's gradient away that would only change lengths of rows.

    Before each step of the optimiser: Adam's second moments then do not see it. Does nothing for
    kinds whose rows may have any length.

    Source: Bricken et al. 2023 (Towards Monosemanticity), Kissane et al. 2024.
    """
    gradient = coder.decoder.grad
    if not coder.unit_decoder or gradient is None:
        return
    rows = coder.decoder
    square = rows.norm(dim=1).square().clamp_min(torch.finfo(rows.dtype).tiny)
    # Not as a product and a sum: that writes and reads a matrix of the decoder's size.
    along = torch.einsum("lw,lw->l", gradient, rows) / square
    gradient.addcmul_(along[:, None], rows, value=-1)


@torch.no_grad()
def make_rows_unit(coder: Coder) -> None:
    """Divide decoder rows by their length; after each step, so that saved rows are unit too.

    Does nothing for kinds whose rows may have any length. Rows of zeros stay.
    """
    if coder.unit_decoder:
        lengths = coder.decoder.norm(dim=1, keepdim=True)
        coder.decoder.div_(torch.where(lengths > 0, lengths, torch.ones_like(lengths)))


@torch.no_grad()
def with_unit_rows(coder: AnyCoder) -> AnyCoder:
    """A copy with decoder rows of length 1, their lengths moved into strengths.

    Reconstructions stay the same, and a strength says how long the written vector is. A latent
    whose row is zero keeps it. Kinds that choose between latents refuse (`scale_strengths`).
    """
    copied = deepcopy(coder)
    lengths = copied.decoder.norm(dim=1)
    copied.scale_strengths(torch.where(lengths > 0, lengths, torch.ones_like(lengths)))
    return copied
