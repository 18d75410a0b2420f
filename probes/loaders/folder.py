"""Models that somebody saved in a folder with `save_pretrained`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.load_error import LoadError
from probes.loading import LoadOptions

if TYPE_CHECKING:
    from probes.subject import Subject


def matches(source: Any) -> bool:
    """Whether it is a path: an existing folder, or written like one."""
    if isinstance(source, PathLike):
        return True
    if not isinstance(source, str) or not source:
        return False
    return source.startswith((".", "/", "~")) or "\\" in source or Path(source).is_dir()


def load(source: str | PathLike[str], options: LoadOptions) -> Subject:
    """The model in this folder, by the class that its config names."""
    from probes.loaders.pretrained import load_pretrained

    options.refuse("a local folder", "revision")
    folder = Path(source).expanduser()
    if not folder.exists():
        raise LoadError(f"Folder {str(source)!r} does not exist. Check the path.")
    if not folder.is_dir():
        raise LoadError(
            f"{str(source)!r} is a file. Give the folder that holds config.json and the weights."
        )
    if not (folder / "config.json").is_file():
        raise LoadError(
            f"Folder {str(source)!r} has no config.json. Give a folder that "
            "`model.save_pretrained(FOLDER)` wrote."
        )
    return load_pretrained(str(folder), options, name=str(source))
