"""The folder that is meant by a name: a bundled coder's, else the path itself."""

from __future__ import annotations

from pathlib import Path

from probes.bundled import bundled_coders
from sae.exchange.refusals import CoderFolderError


def coder_folder(given: str | Path) -> Path:
    """Where a coder lies.

    A bundled name wins over a folder of the same name, as for models: write ``./NAME`` for the
    folder. What is there is not looked at.

    Raises:
        CoderFolderError: a bundled coder whose folder is missing.

    >>> coder_folder("./repeat-lm") == Path("repeat-lm")
    True
    """
    known = bundled_coders() if isinstance(given, str) else {}
    if given not in known:
        return Path(given).expanduser()
    path = known[str(given)].path
    if not path.is_dir():
        raise CoderFolderError(
            f"The bundled coder {given!r} is listed but its folder is missing. Install headscope "
            "again, or run `make data` in a checkout."
        )
    return path
