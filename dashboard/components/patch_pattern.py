"""A picture with its patches in one hue, opacity by what is read; a click picks a patch."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dashboard.components.source import component
from dashboard.look import palette
from dashboard.pattern_payload import packed, pattern_payload

if TYPE_CHECKING:
    import pandas as pd

    from analysis.kept_patterns import HeadPattern

_picture = component("patch_pattern", "<div class='picture'></div>", before="pattern_rows")
_EDGES = ["left", "top", "right", "bottom"]


def patch_pattern(
    key: str,
    pattern: HeadPattern,
    picture: tuple[Path, int, int],
    patches: pd.DataFrame,
    positions: int,
    query: int,
    group: str,
    asks: bool,
    same: bool,
    on_pick: Callable[[], None],
) -> None:
    """Draw the picture; colours follow what is hovered in components of the same group.

    The position that was picked is ``st.session_state[key].query`` when ``on_pick`` is called.

    Args:
        picture: file and original size.
        patches: of this picture: index is the flat position, columns ``tile left top right
            bottom``, in pixels of the original.
        positions: of the tower that the queries lie in.
        asks: whether the patches are queries (and keys, where ``same``), not keys alone.
        same: whether queries and keys are one list.
    """
    file, width, height = picture
    known = patches[patches[_EDGES].notna().all(axis=1)]
    _picture(
        key=key,
        data={
            "pattern": pattern_payload(pattern, positions),
            "boxes": packed(known[_EDGES].to_numpy("<f4")),
            "places": packed(known.index.to_numpy("<i4")),
            "panels": _panels(known),
            "picture": _address(file),
            "width": width,
            "height": height,
            "query": query,
            "group": group,
            "name": key,
            "list": 0 if asks else 1,
            "same": same,
            "accent": palette().accent,
            "label": "picture with patches; arrow keys move, Enter picks one",
        },
        on_query_change=on_pick,
    )


def _panels(patches: pd.DataFrame) -> list[dict[str, object]]:
    """Patches by number; the whole image apart from the tiles that lie over it."""
    tiles = patches["tile"].to_numpy()
    whole, others = np.flatnonzero(tiles == 0), np.flatnonzero(tiles != 0)
    if not len(whole) or not len(others):
        return [{"name": "", "patches": list(range(len(patches)))}]
    return [
        {"name": "the whole image", "patches": whole.tolist()},
        {"name": "enlarged, in tiles", "patches": others.tolist()},
    ]


def _address(file: Path) -> str:
    """The thumbnail as a data address."""
    return f"data:image/png;base64,{b64encode(file.read_bytes()).decode('ascii')}"
