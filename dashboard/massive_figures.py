"""Massive activations as pictures: by layer, by dimension, and which dimensions mark sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.precision import plain, rounded
from analysis.sinks.said import place_words
from dashboard.figure_look import ACCENT, CATEGORIES, FAINT, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.plain_axes import BELOW, between, curve, plain_axis, whole_numbers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_DIMENSIONS = 24
_PUBLISHED_RATIO = 1000.0
"""Of Sun et al. 2024, beside |x| > 100."""


def massive_by_layer(massive: pd.DataFrame, tower: str) -> go.Figure:
    """How many times the median |x| the largest is, layer by layer, on a logarithmic axis.

    Layer n is the residual stream as it enters block n; one more than the last, as it leaves it.

    Args:
        massive: table ``massive`` of the study.

    Raises:
        ValueError: the table says nothing of this tower.
    """
    import plotly.graph_objects as go

    lines = of_tower(massive, tower).sort_values("layer")
    layers = lines["layer"].tolist()
    hover = [
        f"<b>{shown(tower)}, layer {line.layer}</b><br>"
        f"{rounded(line.ratio, line.ratio_low, line.ratio_high)} times the median |x|"
        f"<br>largest |x| {plain(line.largest)}, most often in dimension {line.dimension}"
        f"<br>at {shown(place_words(line._asdict()))} ({line.share:.0%} of examples)"
        f"<br>n {line.n}"
        for line in lines.itertuples()
    ]
    traces = [
        between(layers, lines["ratio_low"], lines["ratio_high"], "95 % interval"),
        curve(layers, lines["ratio_null"], "as many normal entries", FAINT, "dot"),
        curve(layers, lines["ratio"], "largest |x|", ACCENT, "solid", hover),
    ]
    if float(lines["ratio"].max()) > _PUBLISHED_RATIO / 5:
        limit = [_PUBLISHED_RATIO] * len(layers)
        traces.insert(2, curve(layers, limit, "rule of Sun et al.", FAINT, "dash"))
    figure = go.Figure(traces)
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Largest activation by layer · {shown(tower)}",
            "subtitle": {"text": f"n = {int(lines['n'].max())}"},
        },
        height=400,
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis("layer that the stream enters", **whole_numbers(len(layers))))
    figure.update_yaxes(
        plain_axis("times the median |x|", type="log", tickvals=[1, 10, 100, 1e3, 1e4, 1e5])
    )
    return figure


def massive_dimensions(entries: pd.DataFrame, tower: str) -> go.Figure:
    """Layer x dimension: the largest |x| over the median at any place, on a logarithmic scale.

    The dimensions that are largest anywhere stand on the left, 24 at most. A bare cell is not
    among the largest entries that the table keeps of its layer.

    Args:
        entries: table ``massive_entries`` of the study.

    Raises:
        ValueError: the table says nothing of this tower.
    """
    import plotly.graph_objects as go

    lines = of_tower(entries, tower)
    strongest = lines.loc[lines.groupby(["layer", "dimension"])["ratio"].idxmax()]
    order = strongest.groupby("dimension")["ratio"].max().sort_values(ascending=False)
    dimensions = order.index[:_DIMENSIONS].tolist()
    layers = sorted(set(lines["layer"]))
    sizes = np.full((len(layers), len(dimensions)), np.nan)
    texts = [[""] * len(dimensions) for _ in layers]
    for line in strongest.itertuples():
        if line.dimension not in dimensions:
            continue
        row, column = layers.index(line.layer), dimensions.index(line.dimension)
        sizes[row, column] = np.log10(max(float(line.ratio), 1.0))
        texts[row][column] = (
            f"<b>layer {line.layer}, dimension {line.dimension}</b>"
            f"<br>{rounded(line.ratio, line.ratio_low, line.ratio_high)} times the median |x|"
            f"<br>x = {rounded(line.value, line.value_low, line.value_high)}"
            f"<br>at {shown(place_words(line._asdict()))}"
            f"<br>among the largest in {line.share:.0%} of examples"
            f"<br>normal entries {plain(line.ratio_null)} · n {line.n}"
        )
    top = max(float(np.nanmax(sizes)), 1.0)
    figure = go.Figure(
        go.Heatmap(
            z=sizes,
            x=[str(dimension) for dimension in dimensions],
            y=[str(layer) for layer in layers],
            zmin=0,
            zmax=top,
            colorscale="Cividis",
            xgap=1,
            ygap=1,
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorbar={
                "title": {"text": "× median |x|", "side": "top", "font": {"size": 12}},
                "tickvals": list(range(int(top) + 1)),
                "ticktext": [f"{10**power:,}" for power in range(int(top) + 1)],
                "thickness": 12,
                "outlinewidth": 0,
                "tickfont": {"size": 11},
            },
        )
    )
    more = len(order) - len(dimensions)
    said = f"{len(dimensions)} dimensions, largest on the left" + (
        f" · {more} more in the table" if more else ""
    )
    figure.update_layout(
        figure_look(),
        title={"text": f"Massive dimensions · {shown(tower)}", "subtitle": {"text": said}},
        width=max(120 + 30 * len(dimensions) + 110, 420),
        height=max(min(34, 640 // len(layers)) * len(layers) + 170, 280),
    )
    axis = plain_axis("dimension of the residual stream", type="category", showgrid=False)
    figure.update_xaxes(axis | {"tickangle": -60 if len(dimensions) > 12 else 0})
    figure.update_yaxes(plain_axis("layer", type="category", autorange="reversed", showgrid=False))
    return figure


def sink_dimensions(ranking: pd.DataFrame) -> go.Figure:
    """How large each candidate dimension is at sinks and elsewhere, over the token's RMS.

    Args:
        ranking: table ``sink_dimensions`` of the study; chosen dimensions are those of sinks.
    """
    import plotly.graph_objects as go

    tower, width = str(ranking["tower"].iloc[0]), int(ranking["width"].iloc[0])
    lines = ranking.assign(size=ranking[["first", "other"]].max(axis=1))
    lines = lines.sort_values(["chosen", "size"], ascending=False)
    names = [f"{line.dimension}{' ✓' if line.chosen else ''}" for line in lines.itertuples()]
    marks = (
        ("first", "at the first token", ACCENT, "circle"),
        ("other", "at other sinks", CATEGORIES[1], "diamond"),
        ("elsewhere", "at tokens that are no sinks", FAINT, "circle-open"),
    )
    traces = [
        go.Scatter(
            x=names,
            y=lines[column],
            mode="markers",
            name=name,
            marker={"size": 10, "color": ink, "symbol": symbol, "line": {"width": 2, "color": ink}},
            text=[
                f"<b>dimension {line.dimension}</b><br>{name}: {plain(getattr(line, column))}"
                f"<br>massive at {line.massive_first:.0%} of first tokens"
                + ("<br>chosen" if line.chosen else "")
                + (f"<br>published for {shown(line.backbone)}" if line.published else "")
                for line in lines.itertuples()
            ],
            hovertemplate="%{text}<extra></extra>",
        )
        for column, name, ink, symbol in marks
        if np.isfinite(lines[column].to_numpy(float)).any()
    ]
    figure = go.Figure(traces)
    chosen = int(lines["chosen"].sum())
    found = f"{chosen} of {width} found (✓)" if chosen else f"none of {width} is one"
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Sink dimensions · {shown(tower)}",
            "subtitle": {"text": f"{found} · n = {int(lines['n'].max())}"},
        },
        height=400,
        margin={"b": 112},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis("dimension of the residual stream", type="category"))
    figure.update_yaxes(plain_axis("|x| over the token's RMS", rangemode="tozero"))
    return figure


def of_tower(table: pd.DataFrame, tower: str) -> pd.DataFrame:
    """The lines of one tower.

    Raises:
        ValueError: there are none; the sentence says of which there are.
    """
    lines = table[table["tower"] == tower]
    if lines.empty:
        known = ", ".join(dict.fromkeys(table["tower"])) or "none"
        raise ValueError(f"`tower` must be one of {known}, got {tower!r}.")
    return lines
