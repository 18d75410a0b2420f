"""A JSON file of another tool that must hold an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae.exchange.refusals import CoderFolderError


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file; NaN and infinities, which are no JSON, become None.

    Raises:
        CoderFolderError: the file is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise CoderFolderError(f"{path} is missing. Take another copy of the folder.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise CoderFolderError(f"{path} is damaged ({error}). Take another copy of it.") from error
    if not isinstance(found, dict):
        raise CoderFolderError(
            f"{path} must hold a JSON object, got {type(found).__name__}. Take another copy of it."
        )
    return found


def whole_number(found: dict[str, Any], name: str, path: Path) -> int:
    """An entry that must be a whole number from 1.

    Raises:
        CoderFolderError: it is missing or something else.
    """
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CoderFolderError(
            f"`{name}` in {path} must be a whole number from 1, got {value!r}. Take another copy "
            "of it."
        )
    return value


def true_or_false(found: dict[str, Any], name: str, default: bool, path: Path) -> bool:
    """An entry that must be true or false where it is there.

    Raises:
        CoderFolderError: it is something else.
    """
    value = found.get(name, default)
    if not isinstance(value, bool):
        raise CoderFolderError(
            f"`{name}` in {path} must be true or false, got {value!r}. Take another copy of it."
        )
    return value
