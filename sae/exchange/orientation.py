"""Which way round a matrix of a coder is stored, told from its shape."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sae.exchange.refusals import CoderFolderError

Layout = Literal["latent width", "width latent"]


def by_latent(
    matrix: Tensor,
    width: int,
    documented: Layout,
    name: str,
    *,
    trust_layout: bool = False,
) -> Float[Tensor, "latent width"]:
    """The matrix with a row per latent, whichever way round it was stored.

    Tools store one matrix under one name in both ways, and loaders that go by the name transpose
    the wrong one (SAELens 6.54 so reads ``W_dec`` of sparsify 1.3). The width says which axis is
    which, but where there are as many latents.

    >>> import torch
    >>> by_latent(torch.zeros(2, 7), 2, "latent width", "W_dec").shape
    torch.Size([7, 2])

    Args:
        width: heads x head width, from the folder's description.
        documented: the axes as the format documents them.
        name: of the matrix, for the sentence.
        trust_layout: read a square matrix as documented.

    Raises:
        CoderFolderError: no axis has the width, or both have and ``trust_layout`` is not given.
    """
    if matrix.ndim != 2 or width not in matrix.shape:
        raise CoderFolderError(
            f"{name} must be a matrix with an axis of the width, {width}, got "
            f"{list(matrix.shape)}. Take another copy of the folder."
        )
    rows, columns = matrix.shape
    if rows == columns:
        if not trust_layout:
            raise CoderFolderError(
                f"{name} must have another number of latents than the width to tell its axes "
                f"apart, got {list(matrix.shape)}. Give `trust_layout=True` to read it as "
                f"[{documented.replace(' ', ', ')}], which the format documents."
            )
        return matrix if documented == "latent width" else matrix.T
    return matrix if columns == width else matrix.T
