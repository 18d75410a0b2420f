"""Causal effects of heads: ranked with their intervals, by layer, by class, by example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.head_table import HeadTable
from analysis.precision import plain, rounded
from dashboard.estimate_figures import named
from dashboard.figure_look import ACCENT, CATEGORIES, FAINT, PAPER, figure_look
from dashboard.firing_words import shown
from dashboard.head_map import Scale, legend
from dashboard.plain_axes import BAND, BELOW, plain_axis, told, whiskers, whole_numbers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RANKED, BY_CLASS = 20, 24
"""Heads that are shown."""
_WEBGL = 1000
"""Points from which the browser needs it."""


def ranked_effects(
    heads: HeadTable, measure: str, tower: str, variant: str, most: int = RANKED
) -> go.Figure:
    """The heads with the largest effect, highest first, with interval and null.

    Raises:
        ValueError: the measure is not in the table, or nothing of it was measured.
    """
    import plotly.graph_objects as go

    lines = heads.lines(measure, tower, variant)
    lines = lines[np.isfinite(lines["value"])].sort_values("value", ascending=False)
    if lines.empty:
        raise ValueError(f"{measure} of {tower} must have been measured of some head, it was not.")
    unit, count = heads.unit(measure, variant), len(lines)
    lines = lines[:most]
    names = [f"{tower}.L{line.layer}H{line.head}" for line in lines.itertuples()]
    short = [name.removeprefix(f"{tower}.") for name in names]
    text = [told(name, line, unit) for name, line in zip(names, lines.itertuples(), strict=True)]
    figure = go.Figure(
        [
            go.Bar(
                x=lines["null_high"] - lines["null_low"],
                base=lines["null_low"],
                y=short,
                orientation="h",
                width=0.7,
                marker={"color": BAND, "line": {"width": 0}},
                name="null",
                hoverinfo="skip",
            ),
            go.Scatter(
                x=lines["value"],
                y=short,
                error_x=whiskers(lines["value"], lines["ci_low"], lines["ci_high"], ACCENT),
                mode="markers",
                name="effect and 95 % interval",
                customdata=names,
                marker={"size": 9, "color": ACCENT},
                text=text,
                hovertemplate="%{text}<extra></extra>",
            ),
        ]
    )
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Largest effects · {shown(tower)}",
            "subtitle": {"text": f"{len(lines)} of {count} heads · n = {int(lines['n'].max())}"},
        },
        height=180 + 18 * len(lines),
        margin={"b": 88},
        legend=BELOW,
    )
    figure.update_xaxes(plain_axis(shown(unit), zeroline=True))
    figure.update_yaxes(plain_axis("", autorange="reversed", tickmode="linear"))
    return figure


def whole_layers(heads: HeadTable, whole: str, single: str, tower: str, variant: str) -> go.Figure:
    """What is lost with all heads of a layer gone, beside the sum of its heads one at a time.

    A layer that costs far more than the sum has heads that stand in for one another.

    Args:
        whole, single: measures, such as ``layer_off_logit`` and ``importance_logit``.

    Raises:
        ValueError: a measure is not in the table.
    """
    import plotly.graph_objects as go

    off = heads.lines(whole, tower, variant).groupby("layer").first()
    alone = heads.lines(single, tower, variant).groupby("layer")["value"]
    unit, layers = heads.unit(whole, variant), off.index.tolist()
    total = alone.sum(min_count=1).reindex(layers)
    text = [
        f"{told(f'{tower}.L{line.Index}, all heads', line, unit)}<br>sum of its heads {plain(sum_)}"
        for line, sum_ in zip(off.itertuples(), total, strict=True)
    ]
    figure = go.Figure(
        [
            go.Bar(
                x=layers,
                y=off["value"],
                error_y=whiskers(off["value"], off["ci_low"], off["ci_high"]),
                name="all heads at once",
                marker={"color": ACCENT},
                text=text,
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            ),
            go.Bar(
                x=layers,
                y=total,
                name="sum of its heads, one at a time",
                marker={"color": CATEGORIES[1]},
                text=text,
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            ),
        ]
    )
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Layers taken whole · {shown(tower)}",
            "subtitle": {"text": f"n = {int(off['n'].max())}"},
        },
        height=400,
        margin={"b": 88},
        legend=BELOW,
        bargap=0.3,
    )
    figure.update_xaxes(plain_axis("layer", **whole_numbers(len(layers))))
    figure.update_yaxes(plain_axis(shown(unit), zeroline=True))
    return figure


def effects_by_class(classes: pd.DataFrame, measure: str, tower: str, unit: str) -> go.Figure:
    """Head x class: the effect on the examples of each class alone.

    The 24 heads with the largest effect on any class; blue where the model is better with the head.

    Args:
        classes: table ``classes`` of a run.

    Raises:
        ValueError: the table says nothing of this measure and tower.
    """
    import plotly.graph_objects as go

    lines = classes[(classes["measure"] == measure) & (classes["tower"] == tower)]
    lines = lines.rename(columns={"class": "kind"})  # a word that Python keeps for itself
    if lines.empty:
        raise ValueError(f"{measure} of {tower} must be in the table of classes, it is not.")
    lines = lines[lines["variant"] == lines["variant"].iloc[0]]
    largest = lines.assign(size=lines["value"].abs()).groupby(["layer", "head"])["size"].max()
    heads = sorted(largest.nlargest(BY_CLASS).index)
    named_heads = [f"{tower}.L{layer}H{head}" for layer, head in heads]
    kinds = sorted(set(lines["kind"].astype(str)))
    grid = np.full((len(heads), len(kinds)), np.nan)
    text = [[""] * len(kinds) for _ in heads]
    for line in lines.itertuples():
        if (line.layer, line.head) in heads:
            row, column = heads.index((line.layer, line.head)), kinds.index(str(line.kind))
            grid[row, column] = line.value
            text[row][column] = f"{told(named_heads[row], line, unit)}<br>{shown(str(line.kind))}"
    scale = Scale.of("difference", grid)
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=[shown(kind, 24) for kind in kinds],
            y=[name.removeprefix(f"{tower}.") for name in named_heads],
            colorscale=scale.colours,
            zmin=scale.low,
            zmax=scale.high,
            xgap=1,
            ygap=1,
            customdata=text,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorbar=legend(shown(unit)),
        )
    )
    figure.update_layout(
        figure_look(),
        title={
            "text": f"{named(measure)} by class · {shown(tower)}",
            "subtitle": {"text": f"{len(heads)} heads · n = {_span(lines['n'])} a class"},
        },
        width=max(200 + 56 * len(kinds), 420),
        height=180 + 20 * len(heads),
    )
    figure.update_xaxes(plain_axis("class", type="category", showgrid=False))
    figure.update_yaxes(plain_axis("", autorange="reversed", tickmode="linear", showgrid=False))
    return figure


def effect_by_example(examples: pd.DataFrame, column: str, head: str, unit: str) -> go.Figure:
    """The effect of one head on each example, highest first: what the mean hides.

    Args:
        examples: table ``examples`` of a run, or its columns ``example`` and this one.
        column: such as ``importance_logit ablation=mean language.L3H5``.
    """
    import plotly.graph_objects as go

    lines = examples[["example", column]].dropna().sort_values(column, ascending=False)
    values = lines[column].to_numpy(float)
    mean = float(values.mean()) if len(values) else float("nan")
    marks = go.Scattergl if len(values) > _WEBGL else go.Scatter
    figure = go.Figure(
        marks(
            x=np.arange(1, len(values) + 1),
            y=values,
            mode="markers",
            marker={"size": 6, "color": ACCENT},
            text=[
                f"<b>{shown(str(name), 60)}</b><br>{plain(value)} {shown(unit)}"
                for name, value in zip(lines["example"], values, strict=True)
            ],
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
        )
    )
    if np.isfinite(mean):
        figure.add_hline(mean, line={"color": FAINT, "dash": "dash", "width": 1})
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Example by example · {shown(head)}",
            "subtitle": {"text": f"{len(values)} examples · dashed: mean {rounded(mean)}"},
        },
        height=400,
    )
    figure.update_xaxes(plain_axis("examples, largest effect first", rangemode="tozero"))
    figure.update_yaxes(plain_axis(shown(unit), zeroline=True))
    return figure


def _span(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low} to {high}"
