"""What a model loses without sets of heads: pruning curves, and chosen sets among random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.precision import plain, rounded
from dashboard.figure_look import ACCENT, CATEGORIES, FAINT, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.plain_axes import BELOW, between, curve, number, plain_axis, whiskers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

EFFECT, ACCURACY = "value", "accuracy"
"""Columns that may be drawn."""
_MOST_NAMED = 12


def pruning_curve(pruning: pd.DataFrame, effect: str, column: str = EFFECT) -> go.Figure:
    """Heads taken away from the least important on, beside random orders of the same heads.

    The band spans the random orders; whiskers are intervals over examples.

    Args:
        pruning: table ``pruning`` of a run.
        effect: name and unit of the effect, for the axis.
        column: ``value`` or ``accuracy``.
    """
    import plotly.graph_objects as go

    ordered = pruning[pruning["kind"] == "order"].sort_values("fraction")
    random = pruning[pruning["kind"] == "random"].groupby("fraction")[column]
    shares = ordered["fraction"].tolist()
    figure = go.Figure()
    if len(random):
        draws = int(pruning.loc[pruning["kind"] == "random", "draw"].nunique())
        low, high, mean = random.min(), random.max(), random.mean()
        x = mean.index.tolist()
        figure.add_trace(between(x, low, high, f"{draws} random orders"))
        hover = [
            f"<b>random orders, {share:.0%} gone</b><br>mean {plain(value)}, "
            f"{plain(least)} to {plain(most)}"
            for share, value, least, most in zip(x, mean, low, high, strict=True)
        ]
        figure.add_trace(curve(x, mean, "their mean", FAINT, "dot", hover))
    hover = [
        f"<b>{line.removed} heads gone, the least important first</b>"
        f"<br>{shown(effect)} {rounded(line.value, line.ci_low, line.ci_high)}"
        + _accuracy(line)
        + f"<br>n {line.n}"
        for line in ordered.itertuples()
    ]
    mine = curve(shares, ordered[column], "least important first", ACCENT, "solid", hover)
    if column == EFFECT:
        mine.error_y = whiskers(ordered["value"], ordered["ci_low"], ordered["ci_high"], ACCENT)
    figure.add_trace(mine)
    if column == ACCURACY:
        intact = float(ordered["accuracy_intact"].iloc[0])
        figure.add_hline(intact, line={"color": FAINT, "dash": "dash", "width": 1})
    said = "dashed: intact model" if column == ACCURACY else "0: as the intact model"
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": "Pruning by importance",
            "subtitle": {"text": f"{said} · n = {int(ordered['n'].max())}"},
        },
        height=420,
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(
        plain_axis("share of heads taken away", tickformat=".0%", rangemode="tozero")
    )
    top = {"range": [-0.03, 1.03]} if column == ACCURACY else {"zeroline": True}
    name = "accuracy" if column == ACCURACY else shown(f"loss: {effect}")
    figure.update_yaxes(plain_axis(name, **top))
    return figure


def joint_sets(joint: pd.DataFrame, effect: str, column: str = EFFECT) -> go.Figure:
    """Chosen sets of heads, each among random sets with as many heads in each layer.

    Args:
        joint: table ``joint`` of a run.
        effect: name and unit of the effect, for the axis.
        column: ``value`` or ``accuracy``.
    """
    import plotly.graph_objects as go

    sets = list(joint.groupby(["chosen_by", "top"], sort=False))
    figure = go.Figure()
    labels = [f"{shown(str(how))}<br>{int(top)} heads" for (how, top), _ in sets]
    for place, (_, lines) in enumerate(sets):
        random = lines[lines["kind"] == "random"]
        chosen = lines[lines["kind"] == "chosen"].iloc[0]
        # Side by side by a fixed rule, so that equal values do not hide one another.
        spread = (np.arange(len(random)) % 5 - 2) * 0.05
        figure.add_trace(
            go.Scatter(
                x=place + spread,
                y=random[column],
                mode="markers",
                name="random sets",
                marker={"size": 7, "color": FAINT, "opacity": 0.6},
                text=[_set_text(line, effect) for line in random.itertuples()],
                hovertemplate="%{text}<extra></extra>",
                legendgroup="random",
                showlegend=place == 0,
            )
        )
        line = next(lines[lines["kind"] == "chosen"].itertuples())
        ends = (chosen["ci_low"], chosen["ci_high"]) if column == EFFECT else (np.nan, np.nan)
        figure.add_trace(
            go.Scatter(
                x=[place],
                y=[chosen[column]],
                error_y=whiskers([chosen[column]], [ends[0]], [ends[1]], CATEGORIES[3]),
                mode="markers",
                name="chosen heads",
                marker={"size": 12, "symbol": "diamond", "color": CATEGORIES[3]},
                text=[f"{_set_text(line, effect)}<br>p = {plain(float(chosen['p']))}"],
                hovertemplate="%{text}<extra></extra>",
                legendgroup="chosen",
                showlegend=place == 0,
            )
        )
        figure.add_annotation(
            x=place,
            y=1.0,
            yref="paper",
            yanchor="bottom",
            text=f"p = {plain(float(chosen['p']), 2)}",
            showarrow=False,
            font={"size": 12},
        )
    if column == ACCURACY and len(joint):
        intact = float(joint["accuracy_intact"].iloc[0])
        figure.add_hline(intact, line={"color": FAINT, "dash": "dash", "width": 1})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": "Heads taken away together",
            "subtitle": {"text": f"judged on the other half · n = {int(joint['n'].max())}"},
        },
        height=440,
        margin={"b": 88, "t": 100},
        legend=BELOW,
    )
    figure.update_xaxes(
        plain_axis("", tickvals=list(range(len(labels))), ticktext=labels)
        | {"range": [-0.5, len(labels) - 0.5], "showgrid": False}
    )
    name = "accuracy" if column == ACCURACY else shown(f"loss: {effect}")
    figure.update_yaxes(plain_axis(name, zeroline=column == EFFECT))
    return figure


def _set_text(line: object, effect: str) -> str:
    names = str(getattr(line, "heads", "")).split()
    named = [" ".join(names[at : at + 3]) for at in range(0, min(len(names), _MOST_NAMED), 3)]
    more = f"<br>and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    value = rounded(number(line, "value"), number(line, "ci_low"), number(line, "ci_high"))
    heads = "<br>".join(shown(part, 80) for part in named)
    return f"<b>{getattr(line, 'kind', '')} set</b><br>{heads}{more}<br>{shown(effect)} {value}" + (
        _accuracy(line)
    )


def _accuracy(line: object) -> str:
    value = number(line, "accuracy")
    if not np.isfinite(value):
        return ""
    return f"<br>accuracy {plain(value)}, intact {plain(number(line, 'accuracy_intact'))}"
