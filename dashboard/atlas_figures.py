"""Clusters of a pattern atlas as pictures: their prototypes, and what each head's patterns are."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dashboard.figure_look import CATEGORIES, HATCH, INK, PAPER, figure_look
from dashboard.head_map import head_axis, layer_axis

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_OUTSIDE = -1
_BLACK = "#000000"


def prototypes(clusters: pd.DataFrame, medoids: NDArray[Any], columns: int = 4) -> go.Figure:
    """A real pattern from the middle of each cluster: query down, key right.

    Each is drawn on its own scale from 0 to its largest weight but the strongest 1 %.

    Args:
        clusters: table ``clusters`` of an atlas: ``cluster name share``, and ``agreement``: of what
            share of its patterns the name's rule holds one by one.
        medoids: ``[cluster side side]``, in the order of the table.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns = min(columns, len(clusters))
    rows = -(-len(clusters) // columns)
    titles = [_prototype_title(line) for _, line in clusters.iterrows()]
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.03, vertical_spacing=0.24 / rows
    )
    for number, picture in enumerate(np.asarray(medoids, dtype=np.float32)):
        row, column = divmod(number, columns)
        top = max(float(np.quantile(picture, 0.99)), 1e-6)
        figure.add_trace(
            go.Heatmap(
                z=picture,
                zmin=0,
                zmax=top,
                colorscale="Viridis",
                showscale=False,
                hovertemplate="query %{y}, key %{x}: %{z:.3g}<extra></extra>",
            ),
            row + 1,
            column + 1,
        )
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x", constrain="domain")
    for number in range(len(clusters)):
        anchor = "x" if number == 0 else f"x{number + 1}"
        axis = "yaxis" if number == 0 else f"yaxis{number + 1}"
        figure.layout[axis].scaleanchor = anchor
    figure.update_annotations(font_size=12)
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": "Prototypes",
            "subtitle": {"text": "a real pattern of each cluster · query down, key right"},
        },
        width=columns * 210 + 24,
        height=rows * 225 + 128,
        margin={"t": 128, "l": 8, "r": 8, "b": 16},
    )
    return figure


def head_mix(mix: pd.DataFrame, shares: pd.DataFrame, tower: str) -> go.Figure:
    """Each head in the colour of the cluster that most of its patterns lie in.

    A full cell is a steady head; the more a head shares its time, the fainter its cell.
    `customdata` of each cell is its head's name.

    Args:
        mix: table ``head_mix`` of an atlas, a line per head.
        shares: its table ``head_shares``.

    Raises:
        ValueError: the tower has no head there.
    """
    import plotly.graph_objects as go

    mine = mix[mix["tower"] == tower]
    if mine.empty:
        known = ", ".join(sorted(set(mix["tower"])))
        raise ValueError(f"`tower` must be one of {known}, got {tower!r}.")
    of_tower = shares[shares["tower"] == tower]
    named = {
        int(cluster): cluster_label(cluster, name)
        for cluster, name in zip(of_tower["cluster"], of_tower["name"], strict=True)
    }
    ranked = of_tower.sort_values("share", ascending=False).groupby(["layer", "head"])
    heads, layers = int(mine["head"].max()) + 1, int(mine["layer"].max()) + 1
    cell = int(np.clip(576 // max(heads, layers), 12, 30))
    figure = go.Figure()
    for cluster, lines in mine.groupby("most", sort=True):
        figure.add_trace(
            go.Scatter(
                x=lines["head"],
                y=lines["layer"],
                name=escape(named[int(cluster)]),
                customdata=[
                    f"{tower}.L{layer}H{head}"
                    for layer, head in zip(lines["layer"], lines["head"], strict=True)
                ],
                mode="markers",
                marker={
                    "symbol": "square",
                    "size": 3 * cell // 4,
                    "color": cluster_ink(int(cluster)),
                    "opacity": (0.15 + 0.85 * lines["most_share"]).tolist(),
                },
                text=[
                    _mix_text(line, ranked.get_group((line["layer"], line["head"])), named)
                    for _, line in lines.iterrows()
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"What each head's patterns are · {tower}",
            "subtitle": {"text": "colour: its commonest cluster · fainter: it shares its time"},
        },
        width=max(cell * heads + 320, 460),
        height=max(cell * layers + 170, 150 + 20 * mine["most"].nunique(), 260),
        showlegend=True,
        legend={"font": {"size": 12}, "itemsizing": "constant"},
    )
    figure.update_xaxes(head_axis(heads))
    figure.update_yaxes(layer_axis(layers))
    return figure


def cluster_label(cluster: Any, name: str) -> str:
    """How pictures call a cluster; two of them may have one name.

    >>> cluster_label(3, "stripe"), cluster_label(-1, "mixed")
    ('3 · stripe', 'none · mixed')
    """
    return f"{'none' if cluster == _OUTSIDE else int(cluster)} · {name}"


def _prototype_title(line: Any) -> str:
    title = f"{escape(cluster_label(line['cluster'], line['name']))} · {100 * line['share']:.0f} %"
    agreed = line.get("agreement", np.nan)
    return title + (f"<br>name holds for {100 * agreed:.0f} %" if np.isfinite(agreed) else "")


def _mix_text(line: Any, shares: pd.DataFrame, named: dict[int, str]) -> str:
    head = f"{line['tower']}.L{line['layer']}H{line['head']}"
    parts = [f"<b>{escape(head)}</b>, {escape(line['verdict'])}"]
    most = zip(shares["cluster"][:4], shares["share"][:4], strict=True)
    parts += [f"{escape(named[int(cluster)])} {100 * share:.0f} %" for cluster, share in most]
    return "<br>".join(parts)


def cluster_ink(cluster: int) -> str:
    """The colour of a cluster, wherever it is drawn."""
    if cluster == _OUTSIDE:
        return HATCH
    ink = CATEGORIES[cluster % len(CATEGORIES)]
    return INK if ink == _BLACK else ink  # on dark paper it must turn bright
