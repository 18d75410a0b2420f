"""Curves of heads: what they do over distance, and how that changes from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.head_table import HeadTable
from analysis.precision import plain, rounded
from dashboard.figure_look import ACCENT, FAINT, GROUND, INK, PAPER, figure_look
from dashboard.head_map import Scale
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_GRID = {"gridcolor": GROUND, "zeroline": False, "tickfont": {"size": 11}}
_SMALL = {"size": 12}


def profile(profiles: pd.DataFrame, head: str | Head, measure: str) -> go.Figure:
    """A head's curve (by hop, by distance in tokens) over that of uniform attention.

    Args:
        profiles: ``run.profiles``.
        head: such as ``"language.L3H5"``.
        measure: one that has a curve, such as ``"hop_mass"``.

    Raises:
        ValueError: the head has no such curve in these profiles.
    """
    import plotly.graph_objects as go

    lines = _lines(profiles, measure)
    named = head if isinstance(head, Head) else Head.parse(head)
    mine = lines[
        (lines["tower"] == named.tower)
        & (lines["layer"] == named.layer)
        & (lines["head"] == named.head)
    ].sort_values("point")
    if mine.empty:
        raise ValueError(
            f"{named} must have a curve of {measure!r}, these profiles have none of it. "
            f"There are curves of {', '.join(sorted(set(lines['tower'])))}."
        )
    axis = str(mine["axis"].iloc[0])
    lift = (mine["value"] / mine["null"].where(mine["null"] > 0)).to_numpy()
    hover = [
        f"<b>{named}</b><br>{axis} {x:g}: {plain(y)}<br>uniform attention {plain(null)}"
        + (f"<br>{plain(over)} times as much" if np.isfinite(over) else "")
        for x, y, null, over in zip(mine["point"], mine["value"], mine["null"], lift, strict=True)
    ]
    figure = go.Figure(
        [
            go.Scatter(
                x=mine["point"],
                y=mine["null"],
                name="uniform attention",
                mode="lines",
                line={"color": FAINT, "dash": "dot", "width": 1.5},
                hoverinfo="skip",
            ),
            go.Scatter(
                x=mine["point"],
                y=mine["value"],
                name=str(named),
                mode="lines+markers",
                line={"color": ACCENT, "width": 2},
                marker={"size": 6},
                text=hover,
                hovertemplate="%{text}<extra></extra>",
            ),
        ]
    )
    figure.update_layout(
        figure_look(PAPER),
        title={"text": f"{measure.replace('_', ' ')} · {named}"},
        width=560,
        height=340,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(title=_axis_title(axis), **_GRID)
    figure.update_yaxes(title=_axis_title(measure.replace("_", " ")), rangemode="tozero", **_GRID)
    return figure


def layer_trend(
    heads: HeadTable,
    measure: str,
    tower: str | None = None,
    variant: str | None = None,
    inputs: str | None = None,
) -> go.Figure:
    """Every head of a tower as a point over its layer, and the median of each layer as a line.

    Hovering shows the head's name, value and interval; the band is the heads' null.

    Raises:
        ValueError: the measure is not in the table, or several towers, variants or inputs are.
    """
    import plotly.graph_objects as go

    lines = heads.lines(measure, tower, variant, inputs)
    lines = lines[np.isfinite(lines["value"])]
    tower, variant = str(lines["tower"].iloc[0]), str(lines["variant"].iloc[0])
    unit = heads.unit(measure, variant)
    by_layer = lines.groupby("layer")
    layers = list(by_layer.groups)
    spread = by_layer["head"].transform(lambda column: column - column.median())
    width = max(float(spread.abs().max()), 1.0)
    traces: list[Any] = []
    if lines["null_low"].notna().all():
        low, high = by_layer["null_low"].median(), by_layer["null_high"].median()
        traces.append(
            go.Scatter(
                x=[*layers, *layers[::-1]],
                y=[*high, *low[::-1]],
                fill="toself",
                mode="lines",
                line={"width": 1, "color": FAINT, "dash": "dot"},
                fillcolor="rgba(91, 98, 107, 0.18)",
                name="null",
                hoverinfo="skip",
            )
        )
    traces += [
        go.Scatter(
            x=layers,
            y=by_layer["value"].median(),
            name="median of the layer",
            mode="lines",
            line={"color": INK, "width": 1.5},
            hoverinfo="skip",
        ),
        go.Scatter(
            x=lines["layer"] + 0.28 * spread / width,
            y=lines["value"],
            name="head",
            mode="markers",
            marker={"size": 7, "color": ACCENT, "opacity": 0.75},
            text=[
                f"<b>{line.tower}.L{line.layer}H{line.head}</b><br>"
                f"{rounded(line.value, line.ci_low, line.ci_high)} {unit}"
                for line in lines.itertuples()
            ],
            hovertemplate="%{text}<extra></extra>",
        ),
    ]
    figure = go.Figure(traces)
    named = f"{measure.replace('_', ' ')}{f' ({variant})' if variant else ''}"
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"{named} by layer · {tower}",
            "subtitle": {"text": f"n = {int(lines['n'].max())} · one point per head"},
        },
        width=max(420, 90 + 60 * len(layers)),
        height=380,
        legend={"orientation": "h", "y": 1.08, "x": 1, "xanchor": "right"},
    )
    figure.update_xaxes(title=_axis_title("layer"), dtick=max(1, len(layers) // 16), **_GRID)
    figure.update_yaxes(title=_axis_title(unit), rangemode="tozero", **_GRID)
    return figure


def profile_by_layer(profiles: pd.DataFrame, measure: str, tower: str) -> go.Figure:
    """A curve's mean over the heads of each layer, as a map: x the distance, y the layer.

    The colour is the lift over uniform attention in octaves (log2): 0 as much, 1 twice as much.

    Raises:
        ValueError: the tower has no such curve in these profiles.
    """
    import plotly.graph_objects as go

    lines = _lines(profiles, measure)
    lines = lines[lines["tower"] == tower]
    if lines.empty:
        raise ValueError(f"{tower!r} must have curves of {measure!r}, these profiles have none.")
    mean = lines.groupby(["layer", "point"])[["value", "null"]].mean().reset_index()
    values = mean.pivot(index="layer", columns="point", values="value")
    null = mean.pivot(index="layer", columns="point", values="null")
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.log2((values / null.where(null > 0)).to_numpy())
    octaves[~np.isfinite(octaves)] = np.nan
    scale = Scale.of("difference", octaves)
    axis = str(lines["axis"].iloc[0])
    points = [f"{point:g}" for point in values.columns]
    hover = [
        [
            f"<b>{tower}.L{layer}</b>, {axis} {point}<br>{plain(value)}, uniform {plain(expected)}"
            for point, value, expected in zip(points, row, nulls, strict=True)
        ]
        for layer, row, nulls in zip(values.index, values.to_numpy(), null.to_numpy(), strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=octaves,
            x=points,
            y=[str(layer) for layer in values.index],
            colorscale=[(at, colour) for at, colour in scale.colours],
            zmin=scale.low,
            zmax=scale.high,
            xgap=1,
            ygap=1,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            colorbar={"title": {"text": "log2 lift", "side": "top"}, "outlinewidth": 0},
        )
    )
    figure.update_layout(
        figure_look(),
        title={
            "text": f"{measure.replace('_', ' ')} by layer · {tower}",
            "subtitle": {"text": "mean over heads · 0: as much as uniform attention, 1: twice"},
        },
        width=max(460, 150 + 34 * len(points)),
        height=170 + 30 * len(values),
    )
    figure.update_xaxes(title=_axis_title(axis), type="category", tickfont={"size": 11})
    figure.update_yaxes(title=_axis_title("layer"), type="category", autorange="reversed")
    return figure


def _axis_title(text: str) -> dict[str, Any]:
    return {"text": text, "font": _SMALL}


def _lines(profiles: pd.DataFrame, measure: str) -> pd.DataFrame:
    lines = profiles[profiles["measure"] == measure]
    if lines.empty:
        known = ", ".join(sorted(set(profiles["measure"]))) or "none"
        raise ValueError(f"{measure!r} must be a measure with a curve, got one of: {known}.")
    return lines
