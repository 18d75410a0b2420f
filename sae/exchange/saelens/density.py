"""How often each latent fires, as SAELens keeps it: the logarithm to base ten of a share."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sae.exchange.assembled import require_names
from sae.exchange.refusals import CoderFolderError
from sae.exchange.saelens.layout import SPARSITY
from sae.exchange.tensor_file import TensorFileError, read_tensors

_TINY = 1e-10
"""SAELens adds it, so that a latent that never fired has a logarithm."""


def log_density(density: Tensor, latents: int) -> Tensor:
    """What `sparsity.safetensors` holds of shares ``[latent]`` from 0 to 1.

    Raises:
        ValueError: another number of latents, or something that is no share.
    """
    if density.shape != (latents,):
        raise ValueError(
            f"`density` must have an entry for each of {latents} latents, got "
            f"{list(density.shape)}. Give the shares of this coder."
        )
    if not bool(((density >= 0) & (density <= 1)).all()):
        raise ValueError(
            f"`density` must be shares from 0 to 1, got {float(density.min())} to "
            f"{float(density.max())}. Divide counts by the number of rows."
        )
    return (density.double() + _TINY).log10().float()


def read_density(folder: str | Path) -> Tensor | None:
    """The share ``[latent]`` of rows at which each latent fires, where the folder tells it.

    Raises:
        CoderFolderError: the file is damaged.
    """
    path = Path(folder).expanduser() / SPARSITY
    if not path.exists():
        return None
    try:
        tensors, _ = read_tensors(path)
    except TensorFileError as error:
        raise CoderFolderError(f"{error} Take another copy of it.") from error
    require_names(tensors, {"sparsity"}, str(path))
    return (10 ** tensors["sparsity"].double() - _TINY).clamp(0, 1).float()
