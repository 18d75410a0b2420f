"""What an edit changes in an evaluation, beside its control of random heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.precision import plain, rounded
from dashboard.figure_look import CATEGORIES, FAINT, INK, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.plain_axes import BELOW, plain_axis, whiskers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_CONDITIONS = (
    ("baseline", "without an edit", INK, "diamond"),
    ("edit", "with the edit", CATEGORIES[0], "circle"),
    ("control", "random heads, as strong", CATEGORIES[1], "square"),
)
_SHARES = ("share", "probability")
_APART = 0.22


def shares_of(evaluation: pd.DataFrame, edit: str) -> pd.DataFrame:
    """The lines of an evaluation that `edit_effects` draws: metrics from 0 to 1.

    Of the controls the line in which all draws are pooled.
    """
    unit = evaluation["unit"].astype(str)
    pooled = (evaluation["kind"] != "control") | (evaluation["seed"] == -1)
    mine = (evaluation["edit"] == edit) | (evaluation["kind"] == "baseline")
    return evaluation[unit.str.startswith(_SHARES) & pooled & mine]


def edit_effects(evaluation: pd.DataFrame, edit: str) -> go.Figure:
    """Every share of an evaluation without an edit, with it, and with random heads as strong.

    Whiskers are 95 % intervals over images. Hovering tells the difference within the same images,
    and how far the edit goes beyond its control.

    Args:
        evaluation: the table of ``headscope evaluate``.

    Raises:
        ValueError: the table holds no such edit.
    """
    import plotly.graph_objects as go

    lines = shares_of(evaluation, edit)
    if not (lines["edit"] == edit).any():
        raise ValueError(f"`edit` must be one of the evaluation's, got {edit!r}.")
    rows = list(dict.fromkeys(zip(lines["metric"], lines["split"].fillna(""), strict=True)))
    names = [_named(*row) for row in rows]
    figure = go.Figure()
    for number, (kind, called, ink, symbol) in enumerate(_CONDITIONS):
        mine = lines[lines["kind"] == kind]
        if mine.empty:
            continue
        places = [
            rows.index((metric, split)) + (number - 1) * _APART
            for metric, split in zip(mine["metric"], mine["split"].fillna(""), strict=True)
        ]
        hover = [_told(line, called, kind) for line in mine.itertuples()]
        figure.add_trace(
            go.Scatter(
                x=mine["value"],
                y=places,
                name=called,
                mode="markers",
                marker={"size": 9, "color": ink, "symbol": symbol},
                error_x=whiskers(mine["value"], mine["ci_low"], mine["ci_high"], ink),
                text=hover,
                hovertemplate="%{text}<extra></extra>",
            )
        )
    images = int(np.nanmax(lines["n"].to_numpy(float)))
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"What {shown(edit)} changes",
            "subtitle": {
                "text": f"n = {images} at most · whiskers: 95 % intervals",
                "font": {"size": 12, "color": FAINT},
            },
        },
        height=180 + 44 * len(rows),
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis("share or probability", range=[-0.02, 1.02]))
    figure.update_yaxes(
        plain_axis("")
        | {
            "tickmode": "array",
            "tickvals": list(range(len(rows))),
            "ticktext": names,
            "range": [len(rows) - 0.5, -0.5],
        }
    )
    return figure


def _named(metric: str, split: str) -> str:
    words = metric.replace("_", " ")
    words = words.upper().replace("CHAIR ", "CHAIR_") if words.startswith("chair") else words
    return shown(f"{words} ({split})" if split else words)


def _told(line: object, called: str, kind: str) -> str:
    at = {name: getattr(line, name) for name in line._fields}  # type: ignore[attr-defined]
    parts = [
        f"<b>{_named(at['metric'], at['split'] or '')}</b>, {called}",
        f"{rounded(at['value'], at['ci_low'], at['ci_high'])} {shown(at['unit'])}",
        f"95 % interval {plain(at['ci_low'])} to {plain(at['ci_high'])}",
    ]
    for name, words in (("difference", "against without"), ("beyond_control", "beyond control")):
        if kind != "baseline" and np.isfinite(at[name]):
            low, high = at[f"{name}_ci_low"], at[f"{name}_ci_high"]
            parts.append(f"{words}: {at[name]:+.2g} ({plain(low)} to {plain(high)})")
    return "<br>".join([*parts, f"n {int(at['n'])}"])
