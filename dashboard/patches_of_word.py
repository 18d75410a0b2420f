"""The patches that a head reads while it predicts a word, over the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.precision import plain
from dashboard.figure_look import ACCENT, FAINT, GROUND, HATCH, INK, PAPER, figure_look
from dashboard.firing_words import TINT, shown
from dashboard.patches_read import Tile, panels_of
from dashboard.picture_marks import frame_object

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_SIDE = 384
"""Length of a picture's longer side on the figure, in pixels of the screen."""
_SEEN = (("on grey", 1.0, True), ("on colours", 1.0, False), ("picture", 0.0, False))
_DARKEST, _RANGE = 80, 0.65
"""A picture without colours is drawn lighter, so that the tint is seen on its dark parts too."""


def patches_of_word(
    picture: Path | str,
    size: tuple[int, int],
    patches: pd.DataFrame | None = None,
    *,
    word: str = "",
    head: str = "",
    objects: Sequence[tuple[str, Sequence[float]]] = (),
) -> go.Figure:
    """A picture in grey, each patch the bluer the more a head reads it while it predicts a word.

    The scale goes from 0 to the largest patch; the legend says how much that is. Of an image that
    is shown both whole and in tiles these are drawn side by side. A slider gives the picture its
    colours, and takes the patches away. Without patches: the picture in its colours.

    Args:
        picture: a file, perhaps smaller than the original.
        size: width and height of the original, in whose pixels patches and objects are.
        patches: of one image, as `analysis.vision.word_patches.word_patches` gives them.
        objects: names with ``left top right bottom``.

    Raises:
        ValueError, OSError: the file holds no picture.
    """
    from plotly.subplots import make_subplots

    panels = panels_of(list(_tiles(patches))) if patches is not None else [("", [])]
    titles = [name for name, _ in panels] if len(panels) > 1 else None
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.03)
    figure.update_annotations(font_size=12)
    top = float(patches["weight"].max()) if patches is not None else 0.0
    both = [
        _picture(picture, grey) for grey in ((True, False) if patches is not None else (False,))
    ]
    for number, (_, tiles) in enumerate(panels, start=1):
        for tile in tiles:
            figure.add_trace(_tinted(tile, top, last=number == len(panels)), 1, number)
        for name, box in objects:
            frame_object(figure, number, "", box, size)
            figure.add_annotation(_named(name, box), row=1, col=number)
        _lay_below(figure, number, both, size)
    scale = _SIDE / max(size)
    margin = {
        "l": 8,
        "r": 96 if patches is not None else 8,
        "t": 84,
        "b": 72 if patches is not None else 16,
    }
    figure.update_layout(
        figure_look(PAPER),
        title=_heading(patches, word, head),
        width=round(max(len(panels) * size[0] * scale + margin["l"] + margin["r"], 320)),
        height=round(max(size[1] * scale, 96) + margin["t"] + margin["b"]),
        margin=margin,
        showlegend=False,
        sliders=[_slider(figure, len(panels))] if patches is not None else [],
    )
    return figure


def _heading(patches: pd.DataFrame | None, word: str, head: str) -> dict[str, Any]:
    if patches is None:
        return {"text": "The picture", "subtitle": {"text": "dotted: its objects"}}
    total = float(patches["weight"].sum())
    return {
        "text": f"Where {shown(head)} looks for »{shown(word)}«",
        "subtitle": {
            "text": f"{plain(total)} of its weight lies on this picture",
            "font": {"size": 12, "color": FAINT},
        },
    }


def _named(name: str, box: Sequence[float]) -> dict[str, Any]:
    """A name inside of its frame, where no other frame's name lies."""
    return {
        "text": shown(name),
        "x": float(box[0]),
        "y": float(box[1]),
        "xanchor": "left",
        "yanchor": "top",
        "showarrow": False,
        "font": {"size": 11, "color": INK},
        "bgcolor": PAPER,
        "opacity": 0.85,
        "borderpad": 1,
    }


def _tiles(patches: pd.DataFrame) -> Iterator[Tile]:
    """Each tile as a grid; patches without a place (padding) are left out."""
    known = patches[np.isfinite(patches["left"])]
    for number, mine in known.groupby("tile", sort=True):
        rows, columns = np.unique(mine["row"]), np.unique(mine["column"])
        values = np.full((len(rows), len(columns)), np.nan)
        at = np.searchsorted(rows, mine["row"]), np.searchsorted(columns, mine["column"])
        values[at] = mine["weight"]
        across = [*mine.groupby("column")["left"].min(), mine["right"].max()]
        down = [*mine.groupby("row")["top"].min(), mine["bottom"].max()]
        yield Tile(
            int(str(number)), values, np.array(across), np.array(down), int(rows[0]),
            int(columns[0]),
        )  # fmt: skip


def _tinted(tile: Tile, top: float, last: bool) -> Any:
    import plotly.graph_objects as go

    texts = [
        [
            f"patch ({row}, {column})<br>{plain(value)} of the weight"
            for column, value in enumerate(line, start=tile.first_column)
        ]
        for row, line in enumerate(tile.values.tolist(), start=tile.first_row)
    ]
    return go.Heatmap(
        z=tile.values,
        x=tile.across,
        y=tile.down,
        zmin=0,
        zmax=top or 1.0,
        colorscale=TINT,
        showscale=last,
        colorbar={
            "title": {"text": "share of weight", "side": "top", "font": {"size": 12}},
            "thickness": 12,
            "lenmode": "pixels",
            "len": 208,
            "y": 1,
            "yanchor": "top",
            "outlinewidth": 0,
            "tickfont": {"size": 11},
            "nticks": 5,
        },
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
    )


def _lay_below(figure: go.Figure, panel: int, shades: Sequence[Any], size: tuple[int, int]) -> None:
    number = "" if panel == 1 else str(panel)
    for place, shade in enumerate(shades):
        figure.add_layout_image(
            source=shade, visible=place == 0, xref=f"x{number}", yref=f"y{number}", x=0, y=0,
            sizex=size[0], sizey=size[1], sizing="stretch", layer="below",
        )  # fmt: skip
    axes = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(axes, range=[0, size[0]], constraintoward="left", row=1, col=panel)
    figure.update_yaxes(
        axes, range=[size[1], 0], constraintoward="top", scaleanchor=f"x{number}", row=1, col=panel
    )


def _slider(figure: go.Figure, panels: int) -> dict[str, Any]:
    """Grey with the patches, in colours with them, and without them; it needs no server."""
    cells = [number for number, trace in enumerate(figure.data) if trace.type == "heatmap"]
    steps = [
        {
            "label": label,
            "method": "update",
            "args": [
                {"opacity": opacity},
                {f"images[{n}].visible": (n % 2 == 0) == grey for n in range(2 * panels)},
                cells,
            ],
        }
        for label, opacity, grey in _SEEN
    ]
    return {
        "active": 0,
        "steps": steps,
        "currentvalue": {"visible": False},
        "len": 0.86,
        "x": 0.07,
        "y": 0,
        "pad": {"t": 8, "b": 0},
        "font": {"size": 11},
        "ticklen": 3,
        "bgcolor": GROUND,
        "activebgcolor": ACCENT,
        "bordercolor": HATCH,
    }


def _picture(file: Path | str, grey: bool) -> Any:
    """At least as many pixels as the screen shows: small pictures would be blurred by it."""
    from PIL import Image as images

    from probes.inputs import open_image

    shade = open_image(file)
    if grey:
        shade = shade.convert("L").point([round(_DARKEST + _RANGE * v) for v in range(256)])
    times = -(-_SIDE // max(shade.size))
    if times > 1:
        size = (shade.width * times, shade.height * times)
        return shade.resize(size, images.Resampling.NEAREST)
    return shade
