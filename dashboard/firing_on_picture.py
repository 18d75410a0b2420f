"""A firing drawn on its picture: each patch tinted by what it brings to the feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.precision import plain
from dashboard.figure_look import ACCENT, GROUND, HATCH, PAPER, figure_look
from dashboard.firing_words import TINT, brought, heading, tint_legend
from dashboard.patches_read import Tile, images_read, panels_of, tiles_read
from dashboard.picture_marks import Box, frame_destination, frame_object, objects_of

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from PIL.Image import Image

    from sae.reading.windows import FiringView

_SIDE = 480
"""Length of a picture's longer side on the figure, in pixels of the screen."""
_MOST = 2 * _SIDE
_DARKEST, _RANGE = 80, 0.65
"""A picture without colours is drawn lighter, so that tints are seen on its dark parts too."""


def feature_on_picture(
    view: FiringView,
    image: int | None = None,
    *,
    head: int | None = None,
    boxes: Sequence[tuple[str, Box]] | None = None,
    grey: bool = True,
) -> go.Figure:
    """A picture with the patches that a feature reads where it fires: the bluer, the more of it.

    What a patch brings is its direct attribution, summed over heads. Patches that bring less than
    nothing are not tinted; hovering tells every value. Of an image that is shown both whole and
    enlarged in tiles, the whole and the tiles are drawn side by side, on one scale. A frame marks
    the destination if that is a patch of the picture. Sliders fade the tint and give the
    picture its colours.

    Args:
        view: of `sae.firing_views` or of ``hs.read_feature``.
        image: which image of the example; default: the one that brings most.
        head: only what this head brings.
        boxes: of objects, each a name and ``(left, top, right, bottom)`` in pixels of the picture;
            default: those that the example knows. Pass ``()`` for none.
        grey: without colours at first, so that the tint is the only one.

    Raises:
        ValueError: no patch of known place was read of that image, or there is no such head.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from probes.inputs import open_image

    image = _chosen(view, image)
    tiles = [tile for (each, _), tile in tiles_read(view, head).items() if each == image]
    panels = panels_of(tiles)
    picture = open_image(view.example.pictures[image], f"image of {view.example.id}")
    top = max(float(np.nanmax(tile.values, initial=0.0)) for tile in tiles) or 1.0
    titles = [name for name, _ in panels] if len(panels) > 1 else None
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.03)
    figure.update_annotations(font_size=12)
    for number, (_, mine) in enumerate(panels, start=1):
        for tile in mine:
            figure.add_trace(_tinted(tile, top), 1, number)
        for name, box in objects_of(view, boxes):
            frame_object(figure, number, name, box, picture.size)
        frame_destination(figure, number, view, mine if len(panels) > 1 else None, image)
        _lay_below(figure, number, picture, grey)
    cells = [number for number, trace in enumerate(figure.data) if isinstance(trace, go.Heatmap)]
    figure.data[cells[-1]].update(showscale=True, colorbar=tint_legend())
    scale = _SIDE / max(picture.size)
    across, down = (max(side * scale, _SIDE / 4) for side in picture.size)
    margin = {"l": 24, "r": 96, "t": 132 if len(panels) > 1 else 108, "b": 76}
    said = _sum_of(brought(view.attribution, head), tiles, len(view.example.pictures), image)
    figure.update_layout(
        figure_look(PAPER),
        title=heading(view, head, said),
        margin=margin,
        width=round(max(len(panels) * across + margin["l"] + margin["r"], 640)),
        height=round(down + margin["t"] + margin["b"]),
        showlegend=False,
        sliders=[_fading(cells), _with_or_without_colours(len(panels), grey)],
    )
    return figure


def _chosen(view: FiringView, image: int | None) -> int:
    known = images_read(view)
    if not known:
        raise ValueError(
            f"The firing in {view.example.id!r} must have read patches whose place is known, it "
            "has read none. Draw it with `feature_on_text`."
        )
    if image is None:
        return known[0]
    if image not in known:
        raise ValueError(
            f"`image` must be one of {', '.join(map(str, sorted(known)))}, whose patches were "
            f"read, got {image}."
        )
    return image


def _tinted(tile: Tile, top: float) -> Any:
    import plotly.graph_objects as go

    which = f"tile {tile.number}, " if tile.number > 0 else ""
    texts = [
        [
            f"{which}patch ({row}, {column})<br>{_said(value)}"
            for column, value in enumerate(line, start=tile.first_column)
        ]
        for row, line in enumerate(tile.values.tolist(), start=tile.first_row)
    ]
    return go.Heatmap(
        z=tile.values,
        x=tile.across,
        y=tile.down,
        zmin=0,
        zmax=top,
        colorscale=TINT,
        showscale=False,
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
    )


def _said(value: float) -> str:
    return "not read" if value != value else f"brings {plain(value)}"


def _lay_below(figure: go.Figure, panel: int, picture: Image, grey: bool) -> None:
    """The picture under a panel's patches, grey and in colours; the axes count its pixels."""
    number, (wide, high) = "" if panel == 1 else str(panel), picture.size
    for without in (True, False):
        figure.add_layout_image(
            source=_drawn(picture, without), visible=without == grey,
            xref=f"x{number}", yref=f"y{number}", x=0, y=0, sizex=wide, sizey=high,
            sizing="stretch", layer="below",
        )  # fmt: skip
    axes = {"visible": False, "constrain": "domain"}
    figure.update_xaxes(axes, range=[0, wide], constraintoward="left", row=1, col=panel)
    figure.update_yaxes(
        axes, range=[high, 0], constraintoward="top", scaleanchor=f"x{number}", row=1, col=panel
    )


def _drawn(picture: Image, grey: bool) -> Image:
    """As many pixels as the screen shows: small pictures would else be blurred by the browser."""
    from PIL import Image as images

    shade = picture
    if grey:
        shade = in_grey(picture)
    longest = max(shade.size)
    if longest < _SIDE:
        times = -(-_SIDE // longest)
        size = (shade.width * times, shade.height * times)
        return shade.resize(size, images.Resampling.NEAREST)
    shade = shade.copy()
    shade.thumbnail((_MOST, _MOST))
    return shade


def in_grey(picture: Image) -> Image:
    """Without colours and lighter, so that a tint is seen on dark parts too."""
    return picture.convert("L").point([round(_DARKEST + _RANGE * v) for v in range(256)])


def _sum_of(values: Any, tiles: Sequence[Tile], images: int, image: int) -> str:
    cells = np.concatenate([tile.values[np.isfinite(tile.values)] for tile in tiles])
    which = f"image {image + 1} of {images}" if images > 1 else "this picture"
    here = float(cells.sum())
    parts = [f"patches of {which} bring {plain(here)}"]
    against = float(cells[cells < 0].sum())
    if against < 0:
        parts[0] += f" (of it {plain(against, 2)} by those below 0, not tinted)"
    parts.append(f"other sources {plain(float(values.sum()) - here, 2)}")
    return " · ".join(parts)


def _fading(cells: Sequence[int]) -> dict[str, Any]:
    """A slider of the tint's opacity; it needs no server."""
    steps = [
        {"label": f"{share:.0%}", "method": "restyle", "args": [{"opacity": share}, list(cells)]}
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return _slider("tint ", steps, len(steps) - 1, 0.0, 0.4)


def _with_or_without_colours(panels: int, grey: bool) -> dict[str, Any]:
    """A slider of two steps; `_lay_below` laid a grey picture and one in colours in each panel."""

    def shows(without: bool) -> dict[str, Any]:
        return {
            f"images[{number}].visible": (number % 2 == 0) == without
            for number in range(2 * panels)
        }

    steps = [
        {"label": label, "method": "relayout", "args": [shows(without)]}
        for label, without in (("grey", True), ("in colours", False))
    ]
    # Plotly's buttons would do, but light up in one pale blue, on dark paper too.
    return _slider("picture ", steps, 0 if grey else 1, 0.55, 0.25)


def _slider(
    named: str, steps: list[dict[str, Any]], active: int, left: float, length: float
) -> dict[str, Any]:
    return {
        "active": active,
        "steps": steps,
        "currentvalue": {"prefix": named, "font": {"size": 12}, "xanchor": "left"},
        "len": length,
        "x": left,
        "y": 0,
        "pad": {"t": 4, "b": 0},
        "font": {"size": 10},
        "ticklen": 3,
        "bgcolor": GROUND,
        "activebgcolor": ACCENT,
        "bordercolor": HATCH,
    }
