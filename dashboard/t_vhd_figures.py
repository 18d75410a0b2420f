"""T-VHD at object words that are true and at those that are made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.precision import plain, rounded
from dashboard.figure_look import CATEGORIES, FAINT, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.plain_axes import BELOW, plain_axis, whiskers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_UNIT = "norm of z"
HALLUCINATED, TRUE = CATEGORIES[3], CATEGORIES[0]
_WAYS = {
    "mentions": "all mentions",
    "mentions of one text": "of the same text",
    "mentions of one kind": "of the same kind",
    "mentions at one place": "at the same place",
    "texts": "whole texts",
}


def t_vhd_by_group(tokens: pd.DataFrame) -> go.Figure:
    """How T-VHD is distributed at true and at hallucinated object words; a mention counts once.

    Args:
        tokens: table ``tokens`` of the study.

    Raises:
        ValueError: no object is named, or none that is not there.
    """
    import plotly.graph_objects as go

    said = tokens[tokens["mention"] >= 0]
    mentions = said.groupby(["example", "mention"])[["t_vhd", "group"]].agg(
        {"t_vhd": "mean", "group": "first"}
    )
    parts = [
        (name, ink, mentions["t_vhd"][mentions["group"] == group].to_numpy(float))
        for group, name, ink in (
            ("true_object", "object that is there", TRUE),
            ("hallucinated_object", "hallucinated object", HALLUCINATED),
        )
    ]
    if any(not len(values) for *_, values in parts):
        raise ValueError(
            "Answers must name objects that are in the image and some that are not, got "
            f"{len(parts[0][2])} and {len(parts[1][2])} mentions. Score more examples."
        )
    highest = max(float(values.max()) for *_, values in parts)
    edges = np.linspace(0, highest * 1.0001, 25)
    figure = go.Figure()
    for name, ink, values in parts:
        counts, _ = np.histogram(values, edges)
        figure.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts / len(values),
                width=np.diff(edges),
                name=f"{name} (n = {len(values)}, mean {plain(float(values.mean()))})",
                marker={"color": ink, "opacity": 0.6, "line": {"width": 0}},
                hovertemplate="T-VHD %{x:.3g}: %{y:.0%}<extra></extra>",
            )
        )
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": "T-VHD of object words",
            "subtitle": {"text": f"{said['example'].nunique()} answers · a mention counts once"},
        },
        barmode="overlay",
        height=400,
        margin={"b": 108},
        legend=BELOW | {"orientation": "v"},
    )
    figure.update_xaxes(plain_axis(f"T-VHD ({_UNIT})", rangemode="tozero"))
    figure.update_yaxes(plain_axis("share of mentions", rangemode="tozero"))
    return figure


def t_vhd_compared(groups: pd.DataFrame, measure: str = "t_vhd") -> go.Figure:
    """T-VHD at hallucinated object words less that at true ones, by what they are compared with.

    Args:
        groups: table ``token_groups`` of the study.

    Raises:
        ValueError: the table holds no such T-VHD.
    """
    import plotly.graph_objects as go

    lines = groups[groups["measure"] == measure]
    if lines.empty:
        raise ValueError(f"`measure` must be a T-VHD of the table, got {measure!r}.")
    hover = [
        f"<b>hallucinated against true, {_WAYS.get(line.compared, shown(line.compared))}</b>"
        f"<br>{rounded(line.difference, line.difference_low, line.difference_high)} "
        f"({plain(line.hallucinated)} against {plain(line.true)})"
        f"<br>lower in {line.lower:.0%} of pairs ({line.lower_low:.0%} to {line.lower_high:.0%})"
        f"<br>{line.n_hallucinated} against {line.n_true}, of {line.texts} answers"
        for line in lines.itertuples()
    ]
    ends = lines["difference"], lines["difference_low"], lines["difference_high"]
    figure = go.Figure(
        go.Scatter(
            x=lines["difference"],
            y=[_WAYS.get(way, shown(way)) for way in lines["compared"]],
            mode="markers",
            marker={"size": 10, "color": HALLUCINATED},
            error_x=whiskers(*ends, HALLUCINATED) | {"thickness": 2},
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        )
    )
    figure.add_vline(0, line={"color": FAINT, "dash": "dot", "width": 1.5})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": "Hallucinated against true object words",
            "subtitle": {"text": "95 % bootstrap interval over answers · left: lower"},
        },
        height=400,
    )
    figure.update_xaxes(plain_axis(f"difference in T-VHD ({_UNIT})"))
    figure.update_yaxes(plain_axis("") | {"autorange": "reversed"})
    return figure
