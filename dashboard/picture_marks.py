"""Marks on a picture: objects with their names, and the patch where a feature fires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dashboard.figure_look import INK, PAPER
from dashboard.firing_words import shown
from dashboard.patches_read import Tile

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sae.reading.windows import FiringView

Box = Sequence[float]
# Accent and ink, written otherwise: `in_dark` must leave them, for the picture below stays too.
_HERE, _OBJECT, _HALO = "rgb(47,111,143)", "rgb(27,31,36)", "#ffffff"
_NEAR_EDGE = 0.06
"""Share of the height below which a name would not fit above its box."""


def frame_destination(
    figure: go.Figure, panel: int, view: FiringView, tiles: Sequence[Tile] | None, image: int
) -> None:
    """A frame around the patch where the feature fires, if it is one of these tiles."""
    patch = view.destination.patch
    if patch is None or patch.image != image:
        return
    if tiles is None or patch.tile in [tile.number for tile in tiles]:
        for line in _outline(patch.box, _HERE, 3, "solid"):
            figure.add_trace(line, 1, panel)


def frame_object(figure: go.Figure, panel: int, name: str, box: Box, size: tuple[int, int]) -> None:
    """A dotted frame around an object, with its name where there is room for it."""
    for line in _outline(box, _OBJECT, 1.5, "4px,3px"):
        figure.add_trace(line, 1, panel)
    left, top, right, bottom = (float(edge) for edge in box)
    if not name:
        return
    near_left, near_top = left + right < size[0], top < _NEAR_EDGE * size[1]
    figure.add_annotation(
        text=shown(name),
        x=left if near_left else right,
        y=bottom if near_top else top,
        xanchor="left" if near_left else "right",
        yanchor="top" if near_top else "bottom",
        showarrow=False,
        font={"size": 11, "color": INK},
        bgcolor=PAPER,
        opacity=0.85,
        borderpad=1,
        row=1,
        col=panel,
    )


def objects_of(view: FiringView, boxes: Sequence[tuple[str, Box]] | None) -> list[tuple[str, Box]]:
    if boxes is not None:
        return list(boxes)
    example = view.example
    if len(example.pictures) != 1:  # it is not said of which one the boxes are
        return []
    names = [*example.objects, *[""] * len(example.boxes)]
    return list(zip(names[: len(example.boxes)], example.boxes, strict=True))


def _outline(box: Box, ink: str, width: float, dash: str) -> list[Any]:
    import plotly.graph_objects as go

    left, top, right, bottom = (float(edge) for edge in box)
    x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
    # White below: seen on dark and on light pictures.
    lines = ((_HALO, width + 2, "solid"), (ink, width, dash))
    return [
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": colour, "width": size, "dash": how},
            hoverinfo="skip",
        )
        for colour, size, how in lines
    ]
