"""A head's whole pattern as a map of queries and keys, pooled where it is long."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from dashboard.figure_look import ACCENT, figure_look

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analysis.kept_patterns import HeadPattern

MOST_CELLS = 128
"""Per axis; longer patterns are pooled."""
_TICKS = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
_MOST_LABELS = 24
_LONGEST_LABEL = 12


def pattern_matrix(
    pattern: HeadPattern,
    title: str,
    queries: Sequence[Sequence[str]],
    keys: Sequence[Sequence[str]],
    query: int | None = None,
) -> go.Figure:
    """Query down, key to the right; colours from 0 to 1 by the square root of the weight.

    Where there are more than `MOST_CELLS` positions, a cell is the mean over its queries of the
    weight on its keys together.

    Args:
        queries, keys: ``[text, role]`` of each position.
        query: a position that gets a frame.
    """
    import plotly.graph_objects as go

    weights = pattern.pooled(MOST_CELLS)
    rows = _cells(pattern.queries.tolist(), queries)
    columns = _cells(list(range(pattern.keys)), keys)
    figure = go.Figure(
        go.Heatmap(
            # Bytes of 32-bit numbers in the figure's JSON, not decimals.
            z=np.sqrt(weights.clip(0, 1)).astype(np.float32),
            customdata=weights,
            x=columns,
            y=rows,
            zmin=0,
            zmax=1,
            colorscale="Viridis",
            hovertemplate="query %{y}<br>key %{x}<br>%{customdata:.3g}<extra></extra>",
            colorbar={
                "title": {"text": "share", "side": "top", "font": {"size": 12}},
                "thickness": 12,
                "outlinewidth": 0,
                "tickvals": [tick**0.5 for tick in _TICKS],
                "ticktext": [f"{tick:g}" for tick in _TICKS],
                "tickfont": {"size": 11},
            },
        )
    )
    if query is not None and query in pattern.queries:
        _frame(figure, pattern.place(query) // _per_cell(len(pattern.queries)), len(columns))
    pooled = max(len(pattern.queries), pattern.keys) > MOST_CELLS
    size = f"{len(pattern.queries)} x {pattern.keys} positions"
    figure.update_layout(
        figure_look(),
        title={"text": title, "subtitle": {"text": size + (", pooled" if pooled else "")}},
        height=480,
        margin={"l": 88, "r": 16, "t": 64, "b": 80},
    )
    figure.update_xaxes(_axis("key", columns, keys), tickangle=-90)
    figure.update_yaxes(_axis("query", rows, queries), autorange="reversed")
    return figure


def _axis(name: str, cells: list[str], tokens: Sequence[Sequence[str]]) -> dict[str, object]:
    step = max(1, -(-len(cells) // _MOST_LABELS))
    chosen = list(range(0, len(cells), step))
    return {
        "title": {"text": name, "font": {"size": 12}, "standoff": 4},
        "type": "category",
        "tickmode": "array",
        "tickvals": chosen,
        "ticktext": [_short(cells[cell]) for cell in chosen],
        "tickfont": {"size": 10},
        "showgrid": False,
        "ticks": "",
    }


def _cells(positions: list[int], tokens: Sequence[Sequence[str]]) -> list[str]:
    """A name for each cell, each once: the position and its token, or the stretch of positions."""
    per = _per_cell(len(positions))
    if per > 1:
        starts = range(0, len(positions), per)
        return [f"{positions[i]}–{positions[min(i + per, len(positions)) - 1]}" for i in starts]
    return [f"{escape(_name(tokens, place))} · {place}" for place in positions]


def _name(tokens: Sequence[Sequence[str]], place: int) -> str:
    if place >= len(tokens):
        return "#"
    text, role = tokens[place]
    return text.replace("patch row ", "r").replace(", column ", " c") if role == "image" else text


def _short(name: str) -> str:
    text = name.rsplit(" · ", 1)[0]
    return text if len(text) <= _LONGEST_LABEL or "&" in text else text[: _LONGEST_LABEL - 1] + "…"


def _per_cell(count: int) -> int:
    return max(1, -(-count // MOST_CELLS))


def _frame(figure: go.Figure, row: int, columns: int) -> None:
    figure.add_shape(
        type="rect",
        x0=-0.5,
        x1=columns - 0.5,
        y0=row - 0.5,
        y1=row + 0.5,
        line={"color": ACCENT, "width": 2},
    )
