"""The files of an atlas: their names, and what to do about one that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.run_files import RunError, read_json, read_table

if TYPE_CHECKING:
    import pandas as pd

SECTION = "atlas"
ABOUT, PROTOTYPES, NOT_DRAWN = "atlas.json", "prototypes.safetensors", "not_drawn"
FRAMES = ("points", "clusters", "head_mix", "head_shares", "stability", NOT_DRAWN)

DRAW_AGAIN = "Draw the patterns again: run `headscope atlas` on the model, into another folder."
MAP_AGAIN = (
    "If the patterns beside it are whole, make another map of them: `headscope atlas RUN --section "
    "NAME`."
)
_TOLD = ("verdict", "towers", "refused", "options")


def read_about(folder: Path) -> dict[str, Any]:
    """What is told of an atlas.

    Raises:
        RunError: it cannot be read, or lacks something.
    """
    found = read_json(folder / ABOUT, DRAW_AGAIN)
    absent = [name for name in _TOLD if name not in found]
    if absent:
        raise RunError(f"{folder / ABOUT} must tell of {', '.join(absent)}. {DRAW_AGAIN}")
    return found


def read_frame(folder: Path, name: str) -> pd.DataFrame:
    """A table of the map.

    Raises:
        RunError: it is not there or cannot be read.
    """
    return read_table(folder / f"{name}.parquet", DRAW_AGAIN if name == NOT_DRAWN else MAP_AGAIN)


def read_prototypes(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Pictures ``[cluster side side]`` by name.

    Raises:
        RunError: they are not there or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = folder / PROTOTYPES
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}). {MAP_AGAIN}") from error
