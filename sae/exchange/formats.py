"""Which tool wrote a folder of a coder, reading any of them, and from one to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sae.coders.coder import Coder
from sae.exchange import dictionary_learning, headscope_folder, sparsify
from sae.exchange.bundled_coder import coder_folder
from sae.exchange.refusals import CoderFolderError
from sae.exchange.saelens import layout as saelens_layout
from sae.exchange.saelens import read_density, read_saelens, write_saelens

Format = Literal["headscope", "saelens", "sparsify", "dictionary_learning"]
Written = Literal["headscope", "saelens"]
_SIGNS: dict[Format, str] = {
    "headscope": headscope_folder.DESCRIPTION,
    "saelens": saelens_layout.WEIGHTS,
    "sparsify": sparsify.WEIGHTS,
    "dictionary_learning": dictionary_learning.WEIGHTS,
}
_MOST_NAMED = 5


def format_of(folder: str | Path) -> Format:
    """Which tool's coder a folder holds, told from its files.

    Raises:
        CoderFolderError: none or several; where folders in it hold coders, the sentence names
            some.
    """
    folder = coder_folder(folder)
    found = _formats_in(folder)
    if len(found) == 1:
        return found[0]
    if found:
        raise CoderFolderError(
            f"{folder} must hold one coder, got files of {' and '.join(found)}. Move one of them "
            "to a folder of its own."
        )
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CoderFolderError(f"A coder must be a folder, {folder} {what}. Check the path.")
    inside = sorted(item.name for item in folder.iterdir() if item.is_dir() and _formats_in(item))
    if inside:
        named = ", ".join(inside[:_MOST_NAMED]) + " ..." * (len(inside) > _MOST_NAMED)
        raise CoderFolderError(
            f"{folder} must hold one coder, got folders of {len(inside)}. Name one of {named}."
        )
    raise CoderFolderError(
        f"{folder} must hold a coder: "
        + ", ".join(f"{sign} ({name})" for name, sign in _SIGNS.items())
        + ". It has none of these files. Check the path."
    )


def load_coder(
    folder: str | Path, device: str | torch.device = "cpu", *, trust_layout: bool = False
) -> Coder:
    """The coder in a folder of ours, SAELens, sparsify or dictionary_learning, ready to use.

    In eval mode and without gradients; `Coder.about` says where it is from. Nothing in a file
    is run. Matrices are turned by their shapes; which axis is which cannot be told where there
    are as many latents as the width.

    Args:
        folder: or the name of a bundled coder.
        trust_layout: read such square matrices as their format documents.

    Raises:
        CoderFolderError: no coder, several, or one that is damaged or computes what none of our
            kinds does.
    """
    folder = coder_folder(folder)
    found = format_of(folder)
    if found == "headscope":
        return headscope_folder.load_coder(folder, device)
    if found == "saelens":
        return read_saelens(folder, device, trust_layout=trust_layout)
    if found == "sparsify":
        return sparsify.read_sparsify(folder, device, trust_layout=trust_layout)
    return dictionary_learning.read_dictionary_learning(folder, device, trust_layout=trust_layout)


def export(
    folder: str | Path,
    to: Written,
    out: str | Path,
    *,
    density: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
    trust_layout: bool = False,
    replace: bool = False,
) -> Path:
    """Write the coder in a folder of any format to a new folder of ours or of SAELens.

    Args:
        folder: or the name of a bundled coder.
        out: the new folder.
        density: for SAELens, ``[latent]``: the share of rows at which each latent fires. None:
            that of the folder, where it is one of SAELens.
        metadata: for SAELens, as of `write_saelens`.
        trust_layout: as of `load_coder`.
        replace: whether a coder that stands in ``out`` may be replaced.

    Returns:
        ``out``.

    Raises:
        CoderFolderError: the coder cannot be read or not be written so, or ``out`` is taken.
        ValueError: ``to`` is no format that is written, or does not take what is given.
    """
    if to not in get_args(Written):
        raise ValueError(
            f"`to` must be one of {', '.join(get_args(Written))}, got {to!r}. Choose one."
        )
    if to == "headscope" and (density is not None or metadata is not None):
        raise ValueError(
            "`density` and `metadata` must be left out for headscope, whose folders have no place "
            "for them. Leave them out, or export to saelens."
        )
    coder = load_coder(folder, trust_layout=trust_layout)
    if to == "headscope":
        return headscope_folder.save_coder(coder, out, replace=replace)
    if density is None and format_of(folder) == "saelens":
        density = read_density(folder)
    return write_saelens(coder, out, density=density, metadata=metadata, replace=replace)


def _formats_in(folder: Path) -> list[Format]:
    return [name for name, sign in _SIGNS.items() if (folder / sign).is_file()]
