"""Two runs beside each other as pictures: maps with their difference, and rank agreement."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.precision import plain, rounded
from dashboard.figure_look import ACCENT, FAINT, GROUND, PAPER, figure_look
from dashboard.head_map import (
    HELPS_OR_HURTS,
    Grid,
    Scale,
    click_targets,
    hatching,
    head_axis,
    layer_axis,
    legend,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_PANEL_PIXELS = 352
_MOVED = 0.05
_BESIDE = 124
"""Pixels beside a panel's cells: its legend and the next panel's axis."""


def comparison_maps(
    lines: pd.DataFrame, left: str = "A", right: str = "B", layers: int | None = None
) -> go.Figure:
    """Both sides of a comparison on one scale, then right minus left centred on 0.

    Red is lower on the right, blue higher. Heads that moved (q at most 0.05) have a frame.
    Hatched cells are not in both. Hovering says both values, the difference with its interval,
    and q; `customdata` of the squares over the difference is the head's name.

    Args:
        lines: `Comparison.heads` of one measure, tower and variant.
        left, right: what the sides are called.
        layers: of the tower; read off the lines where it is not given.

    Raises:
        ValueError: there are no lines, or those of several measures, towers or variants.
    """
    from plotly.subplots import make_subplots

    names = lines[["tower", "measure", "variant"]].drop_duplicates()
    if len(names) != 1:
        raise ValueError(
            f"`lines` must be of one measure, tower and variant, got {len(names)}. Filter them."
        )
    tower, measure, variant = (str(name) for name in names.iloc[0])
    unit = str(lines["unit"].iloc[0])
    shape = (max(layers or 0, int(lines["layer"].max()) + 1), int(lines["head"].max()) + 1)
    grids = [_grid(lines, name, shape) for name in ("left", "right", "difference")]
    texts = _texts(lines, shape, (left, right))
    scale = Scale.of(unit, np.stack(grids[:2]))
    known = np.abs(grids[2][np.isfinite(grids[2])])
    reach = float(known.max()) if known.size and known.max() > 0 else 1.0
    cell = max(_PANEL_PIXELS // max(shape), 9)
    cell = min(cell, 40)
    panel = shape[1] * cell
    width = 3 * (panel + _BESIDE) + 24
    figure = make_subplots(
        1,
        3,
        subplot_titles=[escape(left), escape(right), "right minus left"],
        horizontal_spacing=_BESIDE / (width - 88),
    )
    scales = [scale, scale, Scale(HELPS_OR_HURTS, -reach, reach)]
    for number, (grid, one) in enumerate(zip(grids, scales, strict=True), start=1):
        hover = {"text": texts, "hovertemplate": "%{text}<extra></extra>"}
        figure.add_trace(
            _cells(grid, one, {"hoverinfo": "skip"} if number == 3 else hover), 1, number
        )
        for trace in hatching(np.isnan(grid), tower):
            figure.add_trace(trace.update(hoverinfo="skip", hovertemplate=None), 1, number)
        x_axis, y_axis = head_axis(shape[1]), layer_axis(shape[0])
        y_axis["scaleanchor"] = "x" if number == 1 else f"x{number}"
        if number > 1:
            y_axis["title"] = None
        figure.update_xaxes(x_axis, row=1, col=number)
        figure.update_yaxes(y_axis, row=1, col=number)
    marked = [
        f"{tower}.L{layer}H{head}"
        for layer, head, q in zip(lines["layer"], lines["head"], lines["q"], strict=True)
        if q <= _MOVED
    ]
    figure.add_trace(click_targets(shape, tower, marked, texts, cell - 1), 1, 3)
    _add_legends(figure, unit)
    figure.update_annotations(font_size=13)
    words = escape(measure.replace("_", " ")) + (f" ({escape(variant)})" if variant else "")
    figure.update_layout(
        figure_look(),
        title={
            "text": f"{words} · {escape(tower)}",
            "subtitle": {"text": f"{len(marked)} of {int(lines['q'].notna().sum())} heads moved"},
        },
        width=max(width, 480),
        height=shape[0] * cell + 84 + 28 + 56,
    )
    figure.update_layout(margin_t=112)
    return figure


def rank_agreement(ranks: pd.DataFrame, most: int = 24) -> go.Figure:
    """Rank correlation of two sides for each measure, the least alike on top, with its interval.

    Args:
        ranks: `Comparison.ranks` of one tower.
        most: how many are drawn.

    Raises:
        ValueError: no measure has a rank correlation.
    """
    import plotly.graph_objects as go

    known = ranks[ranks["rank_correlation"].notna()]
    if known.empty:
        raise ValueError("`ranks` must have a measure with a rank correlation, got none.")
    lowest = known.nsmallest(most, "rank_correlation").iloc[::-1]
    names = [
        f"{escape(measure)} {escape(variant)}".strip()
        for measure, variant in zip(lowest["measure"], lowest["variant"], strict=True)
    ]
    value = lowest["rank_correlation"].to_numpy(float)
    low, high = lowest["ci_low"].to_numpy(float), lowest["ci_high"].to_numpy(float)
    texts = [
        f"<b>{name}</b><br>rank correlation {plain(rho)}"
        + (f"<br>95 % interval {plain(a)} to {plain(b)}" if np.isfinite(a) else "")
        + f"<br>{moved} of {told} heads moved"
        for name, rho, a, b, moved, told in zip(
            names, value, low, high, lowest["moved"], lowest["told"], strict=True
        )
    ]
    figure = go.Figure(
        go.Scatter(
            x=value,
            y=names,
            mode="markers",
            marker={"color": ACCENT, "size": 9},
            error_x={
                "type": "data",
                "array": np.nan_to_num(high - value),
                "arrayminus": np.nan_to_num(value - low),
                "color": FAINT,
                "thickness": 1,
                "width": 3,
            },
            text=texts,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    few = "" if len(known) == len(lowest) else f"the {len(lowest)} lowest of {len(known)} · "
    lowest_end = min(float(np.nanmin(np.append(low, value))), 0.0)
    figure.update_xaxes(
        title={"text": "rank correlation over heads (Spearman)", "font": {"size": 12}},
        tickfont={"size": 11},
        range=[lowest_end - 0.05, 1.05],
        gridcolor=GROUND,
        zeroline=False,
    )
    figure.update_yaxes(type="category", tickfont={"size": 11}, automargin=True, gridcolor=GROUND)
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Do both rank heads alike? · {escape(str(lowest['tower'].iloc[0]))}",
            "subtitle": {"text": f"{few}bars: 95 % interval over heads"},
        },
        width=760,
        height=20 * len(lowest) + 160,
    )
    return figure


def _grid(lines: pd.DataFrame, column: str, shape: tuple[int, int]) -> Grid:
    grid = np.full(shape, np.nan)
    grid[lines["layer"].to_numpy(), lines["head"].to_numpy()] = lines[column].to_numpy(float)
    return grid


def _texts(lines: pd.DataFrame, shape: tuple[int, int], names: tuple[str, str]) -> list[list[str]]:
    tower = escape(str(lines["tower"].iloc[0]))
    unit = escape(str(lines["unit"].iloc[0]))
    texts = [
        [f"<b>{tower}.L{layer}H{head}</b><br>not in both" for head in range(shape[1])]
        for layer in range(shape[0])
    ]
    columns = ["layer", "head", "left", "right", "difference", "ci_low", "ci_high", "q"]
    for layer, head, left, right, difference, low, high, q in zip(
        *(lines[name].tolist() for name in columns), strict=True
    ):
        parts = [f"<b>{tower}.L{layer}H{head}</b>"]
        sides = zip(names, (left, right), strict=True)
        parts += [f"{escape(name)} {plain(value)}" for name, value in sides]
        parts.append(f"difference {rounded(difference, low, high)} {unit}")
        if np.isfinite(low):
            parts.append(f"95 % interval {plain(low)} to {plain(high)}")
        if np.isfinite(q):
            parts.append(f"q {plain(q, 2)}")
        texts[layer][head] = "<br>".join(parts)
    return texts


def _cells(grid: Grid, scale: Scale, hover: dict[str, Any]) -> Any:
    import plotly.graph_objects as go

    return go.Heatmap(
        z=grid,
        colorscale=scale.colours,
        zmin=scale.low,
        zmax=scale.high,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        showscale=False,
        **hover,
    )


def _add_legends(figure: go.Figure, unit: str) -> None:
    """One beside the right side's map, which holds for the left one too, one beside the last."""
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    for number in (2, 3):
        area = figure.get_subplot(1, number)
        maps[number - 1].update(
            showscale=True,
            colorbar=legend(unit) | {"x": area.xaxis.domain[1] + 0.008, "thickness": 10},
        )
