"""Files that are either whole or not there: written beside, synced, renamed."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT}
_HALF = re.compile(r"^\.(?P<name>.+)\.\d+\.part$")


class DiskFull(OSError):
    """There is no room for a file; what stood there before still does."""


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving the block it becomes ``path``.

    After an exception inside the block, Ctrl-C included, the temporary file is gone and ``path``
    is as it was. Contents reach the disk before the name does, so a power cut leaves no half file.

    Raises:
        DiskFull: no space left, or the quota is used up.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        _sync(path.parent, os.O_RDONLY)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFull(f"No space is left on the disk for {path}. Free some space.") from error
        raise


def half_written_name(path: Path) -> str:
    """Of which file this is a half that a killed process left; empty if it is none.

    >>> half_written_name(Path("run/.plan.json.4711.part"))
    'plan.json'
    """
    match = _HALF.match(path.name)
    return match["name"] if match else ""


def drop_half_written(folder: Path) -> None:
    """Delete the halves that killed processes left in a folder; nobody else may be writing it."""
    for path in folder.rglob(".*.part"):
        if half_written_name(path):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN is refused, it is not JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    with written_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full, in an errno or only in its words.

    safetensors and Arrow raise errors of their own that carry the system's message as text.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    words = str(error).lower()
    return "no space left" in words or "os error 28" in words or "disk quota exceeded" in words


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
