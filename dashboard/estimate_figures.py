"""Estimates of a head's effect against the exact one: a point per head, and their agreement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.head_table import HeadTable
from analysis.precision import plain
from dashboard.figure_look import ACCENT, CATEGORIES, FAINT, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.plain_axes import BELOW, plain_axis, told, whiskers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ALL = "all"
"""Of the agreement table: all towers together."""
_KEY = ["tower", "layer", "head"]
_WEBGL = 400
"""Points from which intervals would hide them."""


def estimate_against_exact(
    heads: HeadTable,
    exact: tuple[str, str],
    estimate: tuple[str, str],
    tower: str = ALL,
    marked: str = "",
) -> go.Figure:
    """A point per head: x the estimate, y the exact effect, with its interval.

    The dotted line is where both are the same; it is drawn where both have the same unit.

    Args:
        exact, estimate: measure and variant.
        tower: one, or ``all`` in different colours.
        marked: a head that gets a frame.

    Raises:
        ValueError: no head has both.
    """
    import plotly.graph_objects as go

    both = _both(heads, exact, estimate, tower)
    if both.empty:
        raise ValueError(f"Some head must have {exact[0]} and {estimate[0]}, none of {tower} has.")
    unit, other = heads.unit(*exact), heads.unit(*estimate)
    figure = go.Figure()
    for name, ink in zip(dict.fromkeys(both["tower"]), CATEGORIES, strict=False):
        mine = both[both["tower"] == name]
        heads_here = [f"{name}.L{line.layer}H{line.head}" for line in mine.itertuples()]
        text = [
            f"{told(head, line, unit)}<br>estimate {plain(line.value_estimate)} {shown(other)}"
            for head, line in zip(heads_here, mine.itertuples(), strict=True)
        ]
        figure.add_trace(
            go.Scatter(
                x=mine["value_estimate"],
                y=mine["value"],
                error_y=whiskers(mine["value"], mine["ci_low"], mine["ci_high"])
                if len(both) <= _WEBGL
                else None,
                mode="markers",
                name=shown(name),
                customdata=heads_here,
                marker={
                    "size": 8,
                    "color": ink,
                    "opacity": 0.85,
                    "line": {"color": ACCENT, "width": [3.0 * (h == marked) for h in heads_here]},
                },
                text=text,
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if unit == other:
        ends = both[["value", "value_estimate"]].to_numpy(float)
        low, high = max(ends[:, 0].min(), ends[:, 1].min()), min(ends.max(0))
        if low < high:
            figure.add_trace(
                go.Scatter(
                    x=[low, high],
                    y=[low, high],
                    mode="lines",
                    line={"color": FAINT, "dash": "dot", "width": 1.5},
                    name="the same",
                    hoverinfo="skip",
                )
            )
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"{named(*estimate)} against exact",
            "subtitle": {"text": f"{len(both)} heads · n = {int(both['n'].max())}"},
        },
        height=440,
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis(f"estimate ({shown(other)})", zeroline=True))
    figure.update_yaxes(plain_axis(f"exact effect ({shown(unit)})", zeroline=True))
    return figure


def agreement_of_estimates(
    agreement: pd.DataFrame, marked: tuple[str, str] = ("", "")
) -> go.Figure:
    """Spearman's correlation of each estimate with the exact effect, with its interval over heads.

    Open marks: of the sizes, without signs. The band begins at the ceiling: how well the exact
    effect of one half of the examples agrees with that of the other half.

    Args:
        agreement: table ``agreement``, of one tower and one exact effect.
        marked: measure and variant whose name is in the colour of what is chosen.
    """
    import plotly.graph_objects as go

    lines = agreement.sort_values("spearman")
    names = [named(line.estimate, line.variant) for line in lines.itertuples()]
    text = [
        f"<b>{name}</b><br>Spearman {plain(line.spearman)} "
        f"({plain(line.ci_low)} to {plain(line.ci_high)})"
        f"<br>sizes without sign {plain(line.spearman_absolute)}"
        f"<br>ceiling (half against half) {plain(line.ceiling)}"
        f"<br>{line.overlap:.0%} of the {line.top} highest heads are the same; by chance "
        f"{line.overlap_chance:.0%}, at most {line.overlap_chance_high:.0%}"
        f"<br>{line.heads} heads"
        for name, line in zip(names, lines.itertuples(), strict=True)
    ]
    inks = [
        ACCENT if (line.estimate, line.variant) == marked else CATEGORIES[0]
        for line in lines.itertuples()
    ]
    sizes = [13 if ink == ACCENT else 9 for ink in inks]
    more = {"y": names, "mode": "markers", "text": text, "hovertemplate": "%{text}<extra></extra>"}
    figure = go.Figure(
        [
            go.Scatter(
                x=lines["spearman_absolute"],
                name="sizes without sign",
                marker={"size": 9, "symbol": "circle-open", "color": FAINT},
                **more,
            ),
            go.Scatter(
                x=lines["spearman"],
                name="ranking",
                error_x=whiskers(lines["spearman"], lines["ci_low"], lines["ci_high"]),
                marker={"size": sizes, "color": inks},
                **more,
            ),
        ]
    )
    ceiling = float(lines["ceiling"].max())
    if np.isfinite(ceiling):
        figure.add_vline(ceiling, line={"color": FAINT, "dash": "dash", "width": 1.5})
    said = f" · dashed: half against half {plain(ceiling)}" if np.isfinite(ceiling) else ""
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Agreement with the exact effect · {shown(str(lines['tower'].iloc[0]))}",
            "subtitle": {"text": f"{int(lines['heads'].max())} heads{said}"},
        },
        height=180 + 26 * len(lines),
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis("Spearman's correlation", range=[-1.02, 1.02], zeroline=True))
    figure.update_yaxes(plain_axis("", tickmode="linear"))
    return figure


def named(measure: str, variant: str = "") -> str:
    """How figures call a measure, safe.

    >>> named("atp_key_cross_entropy", "ablation=mean,plain")
    'atp key cross entropy (mean, plain)'
    """
    words = shown(measure.replace("_", " "), 60)
    parts = ", ".join(part.removeprefix("ablation=") for part in variant.split(",") if part)
    return f"{words} ({shown(parts, 60)})" if parts else words


def _both(
    heads: HeadTable, exact: tuple[str, str], estimate: tuple[str, str], tower: str
) -> pd.DataFrame:
    frame = heads.frame if tower == ALL else heads.frame[heads.frame["tower"] == tower]
    parts = [
        frame[(frame["measure"] == measure) & (frame["variant"] == variant)]
        for measure, variant in (exact, estimate)
    ]
    both = parts[0].merge(parts[1], on=_KEY, suffixes=("", "_estimate"))
    return both[np.isfinite(both["value"]) & np.isfinite(both["value_estimate"])]
