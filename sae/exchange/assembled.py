"""A coder of ours from the tensors of another tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sae.coders.coder import Coder
from sae.exchange.refusals import CoderFolderError, require_finite


def assembled(
    kind: type[Coder],
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    centred: bool,
    **settings: Any,
) -> Coder:
    """A coder with these parameters, ready to use: eval mode, no gradients.

    Kept in float64 where the decoder is, else in float32, which holds all shorter types.

    Args:
        tensors: parameters and buffers by our names; matrices have a row per latent.
        where: the file they are from, for sentences.
        settings: further arguments of the constructor.

    Raises:
        CoderFolderError: shapes do not fit each other, numbers are not finite, or the settings
            are none of this kind.
    """
    latents, width = tensors["decoder"].shape
    try:
        coder = kind(width, latents, centred=centred, **settings)
    except (TypeError, ValueError) as error:
        raise CoderFolderError(f"{where} describes no coder: {error}") from error
    if tensors["decoder"].dtype == torch.float64:
        coder = coder.double()
    for name, mine in coder.state_dict().items():
        if tensors[name].shape != mine.shape:
            raise CoderFolderError(
                f"The {name.replace('_', ' ')} in {where} must be {list(mine.shape)} beside a "
                f"decoder of {latents} latents and width {width}, got "
                f"{list(tensors[name].shape)}. Take another copy of the folder."
            )
    require_finite(tensors, where)
    coder.load_state_dict(dict(tensors))
    return coder.eval().requires_grad_(False)


def require_names(
    found: Iterable[str], wanted: Iterable[str], where: str, optional: Iterable[str] = ()
) -> None:
    """Refuse tensors that are missing or that nobody asked for.

    Raises:
        CoderFolderError: naming the first one.
    """
    found, wanted = set(found), set(wanted)
    for name in sorted(wanted - found):
        raise CoderFolderError(
            f"{where} must hold {', '.join(sorted(wanted))}; `{name}` is missing. Take another "
            "copy of the folder."
        )
    for name in sorted(found - wanted - set(optional)):
        raise CoderFolderError(
            f"{where} must hold {', '.join(sorted(wanted))} and nothing else, it also has "
            f"`{name}`, without which the coder would compute something else. Read it with the "
            "tool that wrote it."
        )
