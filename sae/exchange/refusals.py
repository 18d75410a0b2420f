"""What a folder of a coder must not be: taken, of numbers that are not finite, of other heads."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from torch import Tensor


class CoderFolderError(ValueError):
    """A folder cannot be read or written as a coder; the message is one or two plain sentences."""


def refuse_taken(folder: Path, description: str, own: Set[str], replace: bool) -> None:
    """Refuse to write a coder over something else.

    Args:
        description: the file that is written last; where it stands, a coder does.
        own: names of all files that a coder of this format may have.
        replace: whether a coder that stands there may be replaced.

    Raises:
        CoderFolderError: the folder is a file, holds other files, or a coder.
    """
    if folder.exists() and not folder.is_dir():
        raise CoderFolderError(f"A coder needs a folder, {folder} is a file. Choose another name.")
    names = {item.name for item in folder.iterdir()} if folder.is_dir() else set()
    # A process that was killed while it wrote leaves a part behind.
    strangers = sorted(n for n in names - own if not n.endswith(".part"))
    if strangers:
        raise CoderFolderError(
            f"A coder needs a new or empty folder, {folder} holds something else "
            f"({strangers[0]}). Choose another name; nothing was touched."
        )
    if description in names and not replace:
        raise CoderFolderError(f"{folder} holds a coder. Choose another name; nothing was touched.")


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors with NaN or infinite entries.

    Raises:
        CoderFolderError: naming the first such tensor.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CoderFolderError(
                f"{what} must hold finite numbers, `{name}` has others. Train it again."
            )


def require_heads(about: Mapping[str, Any], width: int, what: str) -> None:
    """Refuse heads that do not make up the width; where they are not said there is nothing to do.

    Raises:
        CoderFolderError: ``heads`` x ``head_width`` is not the width.
    """
    if "heads" not in about:
        return
    heads, head_width = about["heads"], about.get("head_width")
    if not isinstance(heads, int) or not isinstance(head_width, int) or heads * head_width != width:
        raise CoderFolderError(
            f"`heads` x `head_width` must be the width of the coder, {width}, got {heads} x "
            f"{head_width} in {what}. Correct them."
        )
