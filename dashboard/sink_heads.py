"""Which heads have sinks: by threshold, and which of them VAR would take weight from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.head_table import HeadTable
from analysis.precision import plain
from dashboard.figure_look import ACCENT, CATEGORIES, FAINT, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.head_map import legend
from dashboard.plain_axes import BELOW, plain_axis, told

if TYPE_CHECKING:
    import plotly.graph_objects as go

RATE = "sink_rate"
KEYS = {"any": "any key", "k=1": "the first key"}
"""Of which a rate is told, as variants of `sink_rate` begin, and in words."""
_RHO = 0.5
"""From which share of its weight on the image outside of sinks VAR chooses a head."""


def thresholds(heads: HeadTable, tower: str, key: str) -> list[float]:
    """The thresholds at which the sink rate of a tower was measured, smallest first."""
    found = []
    for variant in heads.variants(RATE, tower):
        start, _, epsilon = variant.partition(",eps=")
        if start == key and epsilon:
            found.append(float(epsilon))
    return sorted(found)


def rate_variant(key: str, epsilon: float) -> str:
    """The variant of `sink_rate` at a threshold.

    >>> rate_variant("any", 0.3)
    'any,eps=0.3'
    """
    return f"{key},eps={epsilon:g}"


def rate_by_threshold(
    heads: HeadTable, tower: str, marked: float | None = None, keys: Sequence[str] = tuple(KEYS)
) -> go.Figure:
    """The sink rate over its threshold, mean over the heads of a tower: Sink^eps of Gu et al.

    Dotted: the same of uniform attention on the same inputs.

    Args:
        marked: a threshold that gets a line.

    Raises:
        ValueError: the sink rate of this tower was not measured.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for key, ink in zip(keys, CATEGORIES, strict=False):
        known = thresholds(heads, tower, key)
        if not known:
            continue
        lines = [heads.lines(RATE, tower, rate_variant(key, epsilon)) for epsilon in known]
        mean = [float(one["value"].mean()) for one in lines]
        null = [float(one["null_high"].mean()) for one in lines]
        hover = []
        for epsilon, one, value, uniform in zip(known, lines, mean, null, strict=True):
            most = one.loc[one["value"].idxmax()] if one["value"].notna().any() else None
            hover.append(
                f"<b>{KEYS[key]} above {epsilon:g}</b><br>mean over {len(one)} heads {plain(value)}"
                f"<br>uniform attention {plain(uniform)}"
                + (
                    ""
                    if most is None
                    else f"<br>most: L{most['layer']}H{most['head']} {plain(most['value'])}"
                )
            )
        more: dict[str, Any] = {"legendgroup": key, "x": known}
        figure.add_trace(
            go.Scatter(
                y=null,
                mode="lines",
                line={"color": ink, "dash": "dot", "width": 1.5},
                hoverinfo="skip",
                showlegend=False,
                **more,
            )
        )
        figure.add_trace(
            go.Scatter(
                y=mean,
                mode="lines+markers",
                name=KEYS[key],
                line={"color": ink, "width": 2},
                marker={"size": 8},
                text=hover,
                hovertemplate="%{text}<extra></extra>",
                **more,
            )
        )
    if not figure.data:
        raise ValueError(f"The sink rate of {tower} must have been measured, it was not.")
    if marked is not None:
        figure.add_vline(marked, line={"color": FAINT, "width": 1, "dash": "dash"})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Sink rate by threshold · {shown(tower)}",
            "subtitle": {"text": "mean over heads · dotted: uniform attention"},
        },
        height=360,
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis("threshold ε on the weight a key receives", rangemode="tozero"))
    figure.update_yaxes(plain_axis("share of sequences", range=[-0.03, 1.03]))
    return figure


def var_choice(heads: HeadTable, tower: str) -> go.Figure:
    """What VAR sees of each head: weight on image sinks, and how much of the image it sees beside.

    The darker, the fewer queries at which it would be chosen. VAR asks for r of at least 0.5.

    Raises:
        ValueError: the tower has no image sinks.
    """
    import plotly.graph_objects as go

    key = ["layer", "head"]
    mass = heads.lines("sink_mass", tower, "visual")
    ratio = heads.lines("non_sink_ratio", tower)
    chosen = heads.lines("image_centric", tower, heads.variants("image_centric", tower)[0])
    both = mass.merge(ratio, on=key, suffixes=("", "_ratio")).merge(
        chosen[[*key, "value"]].rename(columns={"value": "chosen"}), on=key
    )
    names = [f"{tower}.L{line.layer}H{line.head}" for line in both.itertuples()]
    text = [
        f"{told(name, line, 'of a query on image sinks')}"
        f"<br>r = {plain(line.value_ratio)}<br>chosen at {line.chosen:.0%} of queries"
        for name, line in zip(names, both.itertuples(), strict=True)
    ]
    figure = go.Figure(
        go.Scatter(
            x=both["value"],
            y=both["value_ratio"],
            mode="markers",
            customdata=names,
            marker={
                "size": 10,
                "color": both["chosen"],
                "colorscale": "Viridis",
                "cmin": 0,
                "cmax": 1,
                "colorbar": legend("chosen"),
                "line": {"width": 1, "color": FAINT},
            },
            text=text,
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_hline(_RHO, line={"color": ACCENT, "width": 1, "dash": "dash"})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Choice of VAR · {shown(tower)}",
            "subtitle": {"text": f"{len(both)} heads · n = {int(np.nanmax(both['n']))}"},
        },
        height=400,
    )
    figure.update_xaxes(plain_axis("weight on image sinks (share)", rangemode="tozero"))
    figure.update_yaxes(plain_axis("r: share of image weight on no sink", range=[-0.03, 1.03]))
    return figure
