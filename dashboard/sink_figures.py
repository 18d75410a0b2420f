"""The weight that sinks receive, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.precision import plain, rounded
from analysis.sinks.said import place_words
from dashboard.figure_look import CATEGORIES, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.massive_figures import of_tower
from dashboard.plain_axes import BELOW, curve, plain_axis, whole_numbers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_PLACE = ["position", "role", "token", "row", "column"]
_PLACES = 6


def sinks_by_layer(tokens: pd.DataFrame, tower: str) -> go.Figure:
    """The weight that sinks receive, layer by layer: mean over heads, with its interval.

    Dotted: what the same place receives under uniform attention. Six places at most, those that
    receive most first; a place has a point in each layer in which it is a sink and is read.

    Args:
        tokens: table ``sink_tokens`` of the study.

    Raises:
        ValueError: the table says nothing of this tower, or nothing reads its sinks.
    """
    import plotly.graph_objects as go

    lines = of_tower(tokens, tower)
    lines = lines[np.isfinite(lines["received"].to_numpy(float))]
    if lines.empty:
        raise ValueError(f"Sinks of {tower} must be read by some attention, got none that are.")
    by_place = list(lines.groupby([*_PLACE, "kind"], sort=False))
    most = sorted(by_place, key=lambda part: -part[1]["received"].max())[:_PLACES]
    figure = go.Figure()
    for ink, (place, part) in zip(CATEGORIES, most, strict=False):
        mine = part.sort_values("layer")
        layers = mine["layer"].tolist()
        name = f"{shown(place_words(mine.iloc[0]))} ({shown(place[-1])})"
        hover = [
            f"<b>{name}, layer {line.layer}</b><br>receives "
            f"{rounded(line.received, line.received_low, line.received_high)}, uniform "
            f"{plain(line.received_null)}<br>most by one head: {plain(line.received_largest)}"
            f"<br>a sink in {line.share:.0%} of examples"
            f"<br>{'norm over median' if line.kind == 'artefact' else 'phi'} {plain(line.score)}"
            f"<br>n {line.n}"
            for line in mine.itertuples()
        ]
        figure.add_trace(curve(layers, mine["received_null"], name, ink, "dot", legend=False))
        figure.add_trace(curve(layers, mine["received"], name, ink, "solid", hover))
    last = int(lines["layer"].max())
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Weight that sinks receive · {shown(tower)}",
            "subtitle": {"text": f"n = {int(lines['n'].max())} · dotted: uniform attention"},
        },
        height=340 + 24 * len(most),
        margin={"b": 72 + 24 * len(most)},
        legend=BELOW | {"orientation": "v"},
    )
    figure.update_xaxes(
        plain_axis("layer", **whole_numbers(last + 1)) | {"range": [-0.3, last + 0.3]}
    )
    figure.update_yaxes(plain_axis("share of a query's weight", rangemode="tozero"))
    return figure
