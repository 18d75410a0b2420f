"""Pattern atlases opened once and kept; patterns stay in their file until they are asked for."""

from __future__ import annotations

import io
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.atlas.atlas_files import ABOUT, read_about, read_frame, read_prototypes
from analysis.atlas.pattern_pictures import neighbourhoods, read_pictures
from analysis.precision import plain
from analysis.run_folder import Run
from dashboard.atlas_figures import cluster_label
from dashboard.pattern_map import head_names

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

_KEPT = 4
_TABLES = ("points", "clusters", "head_mix", "head_shares", "not_drawn")
_NEIGHBOURS = 32


@dataclass(frozen=True, eq=False)
class OpenedAtlas:
    """The tables of an atlas, as `analysis.atlas.atlas.Atlas` describes them; only to be read."""

    folder: Path
    stamp: float
    about: dict[str, Any]
    points: pd.DataFrame
    clusters: pd.DataFrame
    head_mix: pd.DataFrame
    head_shares: pd.DataFrame
    not_drawn: pd.DataFrame
    medoids: NDArray[np.float32]

    @property
    def towers(self) -> list[str]:
        """Those with a map, then those without."""
        told = [*self.about["towers"], *self.about["refused"]]
        return list(dict.fromkeys(str(tower) for tower in told))

    def of(self, table: pd.DataFrame, tower: str) -> pd.DataFrame:
        """The lines of a tower."""
        return table[table["tower"] == tower]


def atlases_of(run: Run) -> dict[str, bool]:
    """The sections of a run that hold an atlas, or will: by name, whether it is finished."""
    return {
        name: section.finished
        for name, section in run.sections.items()
        if (section.path / ABOUT).is_file() or (not section.finished and name.startswith("atlas"))
    }


def opened_atlas(run: Run, section: str) -> OpenedAtlas:
    """The atlas in a finished section.

    Raises:
        RunError: a file is missing or cannot be read.
    """
    folder = run.path / section
    return _opened(str(folder), (folder / ABOUT).stat().st_mtime)


@st.cache_resource(max_entries=_KEPT, show_spinner=False)
def _opened(folder: str, stamp: float) -> OpenedAtlas:
    path = Path(folder)
    tables = {name: read_frame(path, name) for name in _TABLES}
    medoids = read_prototypes(path)["medoid"]
    return OpenedAtlas(path, stamp, read_about(path), **tables, medoids=medoids)


def sheet_around(atlas: OpenedAtlas, tower: str, sample: int) -> dict[str, Any]:
    """Patterns of a sample of a tower and of those around it on the map, and what they are.

    Returns:
        ``url``, of a picture with the patterns below each other, in the colours of shares; and for
        each of them ``samples``, ``titles`` (its head) and ``facts``.

    Raises:
        RunError: they cannot be read.
    """
    mine = atlas.of(atlas.points, tower)
    groups = _groups(str(atlas.folder), atlas.stamp, tower)
    lines = mine[groups == groups[(mine["sample"] == sample).to_numpy()][0]]
    pictures = read_pictures(atlas.folder, lines["sample"].tolist())
    facts = [
        f"{cluster_label(cluster, str(name))}\n{example}{f', part {part}' if part else ''}\n"
        f"query down, key right; yellow: {plain(float(top))} of a query's weight or more"
        for cluster, name, example, part, top in zip(
            lines["cluster"],
            lines["name"],
            lines["example"],
            lines["part"],
            pictures.brightest,
            strict=True,
        )
    ]
    return {
        "url": _url(pictures.levels),
        "samples": lines["sample"].tolist(),
        "titles": head_names(lines).tolist(),
        "facts": facts,
    }


@st.cache_resource(max_entries=_KEPT * 2, show_spinner=False)
def _groups(folder: str, stamp: float, tower: str) -> NDArray[np.int64]:
    atlas = _opened(folder, stamp)
    mine = atlas.of(atlas.points, tower)
    return neighbourhoods(mine["x"].to_numpy(), mine["y"].to_numpy(), _NEIGHBOURS)


def _url(levels: NDArray[np.uint8]) -> str:
    from PIL import Image

    sheet = Image.fromarray(levels.reshape(-1, levels.shape[-1]))
    sheet.putpalette(_viridis())
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


@cache
def _viridis() -> bytes:
    from plotly.colors import sample_colorscale, unlabel_rgb

    colours = sample_colorscale("Viridis", [level / 255 for level in range(256)])
    return bytes(round(part) for colour in colours for part in unlabel_rgb(colour))
