"""A layer x head map whose cells can be clicked, with heads framed that were looked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from dashboard.head_map import click_targets

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LARGEST = 44
_BESIDE = 110
"""Pixels of a map's width that are neither margins nor cells: the legend."""


def clickable(figure: go.Figure, tower: str, marked: Collection[str] = ()) -> go.Figure:
    """A `heatmap` under squares that report clicks; `customdata` of each is its head's name.

    Hovering says what it said before: the texts go from the cells to the squares above them. The
    figure that is given stays as it is.

    Args:
        marked: heads that get a frame.
    """
    import plotly.graph_objects as go

    found = go.Figure(figure.data, figure.layout)
    cells = found.data[0]
    texts, (rows, columns) = cells.customdata, cells.z.shape
    silent = {"hovertemplate": None, "hoverinfo": "skip"}
    cells.update(customdata=None, **silent)
    for trace in found.data[1:]:
        trace.update(text=None, **silent)
    margin = figure.layout.margin
    size = int(figure.layout.width - margin.l - margin.r - _BESIDE) // columns
    square = max(min(size, _LARGEST), 8)
    found.add_trace(click_targets((rows, columns), tower, marked, texts, square))
    return found
