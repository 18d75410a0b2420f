"""Axes, legend and hover texts of figures that are no maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.precision import plain, rounded
from dashboard.figure_look import FAINT, GROUND
from dashboard.firing_words import shown

_SMALL = {"size": 12}
BELOW = {
    "orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "xanchor": "left",
    "font": {"size": 12}, "itemsizing": "constant",
}  # fmt: skip
"""A legend below the data."""
BAND = "rgba(128, 134, 142, 0.3)"
"""Fill of a null or of random draws; seen on light and on dark paper."""


def plain_axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its name, if it has one, and faint lines."""
    return {
        "title": {"text": title, "font": _SMALL, "standoff": 8} if title else None,
        "gridcolor": GROUND,
        "zerolinecolor": FAINT,
        "zeroline": False,
        "tickfont": {"size": 11},
        "automargin": True,
    } | more


def told(name: str, line: Any, unit: str) -> str:
    """What hovering says of a line of the head table: name, value, interval, null, n.

    Args:
        line: has ``value``, and perhaps ``ci_low ci_high null_low null_high n``.
    """
    low, high = number(line, "ci_low"), number(line, "ci_high")
    parts = [f"<b>{shown(name)}</b>", f"{rounded(number(line, 'value'), low, high)} {shown(unit)}"]
    if np.isfinite(low):
        parts.append(f"95 % interval {plain(low)} to {plain(high)}")
    if np.isfinite(number(line, "null_low")):
        null = number(line, "null_low"), number(line, "null_high")
        parts.append(f"null {plain(null[0])} to {plain(null[1])}")
    if np.isfinite(number(line, "n")):
        parts.append(f"n {int(number(line, 'n'))}")
    return "<br>".join(parts)


def number(line: Any, name: str) -> float:
    """One number of a line, NaN where it has none."""
    return float(getattr(line, name, np.nan))


def whiskers(values: Any, low: Any, high: Any, ink: str = FAINT) -> dict[str, Any]:
    """Error bars from two ends of intervals; none where an end is not known."""
    value, down, up = (np.asarray(part, float) for part in (values, low, high))
    return {
        "type": "data",
        "symmetric": False,
        "array": np.clip(up - value, 0, None),
        "arrayminus": np.clip(value - down, 0, None),
        "color": ink,
        "thickness": 1,
        "width": 0,
    }


def whole_numbers(count: int) -> dict[str, Any]:
    """Ticks at whole numbers from 0, 16 at most."""
    return {"dtick": max(1, -(-count // 16)), "tick0": 0}


def curve(
    x: Any, y: Any, name: str, ink: str, dash: str, hover: Any = None, legend: bool = True
) -> Any:
    """A line; with points where there is something to hover."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=x,
        y=y,
        name=name,
        mode="lines" if hover is None else "lines+markers",
        line={"color": ink, "dash": dash, "width": 1.5 if hover is None else 2},
        marker={"size": 7},
        text=hover,
        hovertemplate=None if hover is None else "%{text}<extra></extra>",
        hoverinfo="skip" if hover is None else None,
        legendgroup=name,
        showlegend=legend,
    )


def between(x: Any, low: Any, high: Any, name: str) -> Any:
    """A band between two lines."""
    import plotly.graph_objects as go

    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *list(low)[::-1]],
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor=BAND,
        name=name,
        hoverinfo="skip",
    )
