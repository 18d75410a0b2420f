"""The pattern atlas as pictures: the map, the prototypes, what each head's patterns are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dashboard.figure_look import CATEGORIES, FAINT, GROUND, HATCH, PAPER, figure_look
from dashboard.head_map import head_axis, layer_axis

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_OUTSIDE = -1
_COLOURED_BY = ("cluster", "layer")


def pattern_map(
    points: pd.DataFrame,
    tower: str | None = None,
    colour: str = "cluster",
    head: str | None = None,
) -> go.Figure:
    """Every sampled pattern of a tower as a point; patterns that look alike lie together.

    Args:
        points: table ``points`` of an atlas: ``x y cluster name tower layer head example``.
        tower: which one's map; needed where there are several.
        colour: ``cluster`` or ``layer``.
        head: one head, such as ``"language.L3H5"``, to be lit while the others fade.

    Raises:
        ValueError: another colour, a tower without a map, several and none named, or a head
            without a point.
    """
    import plotly.graph_objects as go

    if colour not in _COLOURED_BY:
        raise ValueError(f"`colour` must be one of {', '.join(_COLOURED_BY)}, got {colour!r}.")
    points = _of_tower(points, tower)
    names = points["tower"] + ".L" + points["layer"].astype(str) + "H" + points["head"].astype(str)
    lit = np.ones(len(points), bool) if head is None else (names == head).to_numpy()
    if not lit.any():
        raise ValueError(
            f"{head!r} must be a head of this map, got none of its patterns. "
            f"There are, for example, {', '.join(sorted(set(names))[:3])}."
        )
    labels = [cluster_label(c, n) for c, n in zip(points["cluster"], points["name"], strict=True)]
    text = np.array(
        [
            f"<b>{name}</b><br>{label}<br>{example}"
            for name, label, example in zip(names, labels, points["example"], strict=True)
        ]
    )
    figure = go.Figure()
    if head is not None:
        figure.add_trace(_cloud(points[~lit], None, "others", GROUND, 4))
    shown, said = points[lit], text[lit]
    if colour == "layer":
        trace = _cloud(shown, said, "layer", shown["layer"], 5)
        trace.marker.update(colorscale="Cividis", showscale=True, colorbar=_bar("layer"))
        figure.add_trace(trace)
    else:
        groups = shown.groupby("cluster", sort=True).indices
        for number, (group, rows) in enumerate(groups.items()):
            label, ink = cluster_label(group, shown["name"].iloc[rows[0]]), _ink(int(group))
            trace = _cloud(shown.iloc[rows], said[rows], f"{label} ({len(rows):,})", ink, 5)
            if number >= len(CATEGORIES):
                trace.marker.symbol = "diamond"
            figure.add_trace(trace)
    count = points[["tower", "layer", "head"]].drop_duplicates().shape[0]
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Pattern atlas · {points['tower'].iloc[0]}",
            "subtitle": {
                "text": f"{len(points):,} patterns of {count:,} heads · near: alike; "
                "distances far apart mean little"
            },
        },
        width=900,
        height=640,
        legend={"itemsizing": "constant", "font": {"size": 12}},
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def _of_tower(points: pd.DataFrame, tower: str | None) -> pd.DataFrame:
    known = list(dict.fromkeys(points["tower"]))
    if tower is None and len(known) == 1:
        tower = known[0]
    if tower not in known:
        raise ValueError(f"`tower` must be one of {', '.join(known)}, got {tower!r}.")
    return points[points["tower"] == tower]


def prototypes(clusters: pd.DataFrame, medoids: NDArray[Any], columns: int = 4) -> go.Figure:
    """A real pattern from the middle of each cluster: query down, key right.

    Each is drawn on its own scale from 0 to its largest weight but the strongest 1 %.

    Args:
        clusters: table ``clusters`` of an atlas: ``cluster name share rule``.
        medoids: ``[cluster side side]``, in the order of the table.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns = min(columns, len(clusters))
    rows = -(-len(clusters) // columns)
    titles = [
        f"{cluster_label(cluster, name)} · {100 * share:.0f} %"
        for cluster, name, share in zip(
            clusters["cluster"], clusters["name"], clusters["share"], strict=True
        )
    ]
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
        width=columns * 210 + 60,
        height=rows * 225 + 110,
        margin={"t": 104},
    )
    return figure


def head_mix(mix: pd.DataFrame, shares: pd.DataFrame, tower: str) -> go.Figure:
    """Each head in the colour of the cluster that most of its patterns lie in.

    A full cell is a steady head; the more a head shares its time, the fainter its cell.

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
    figure = go.Figure()
    for cluster, lines in mine.groupby("most", sort=True):
        figure.add_trace(
            go.Scatter(
                x=lines["head"],
                y=lines["layer"],
                name=named[int(cluster)],
                mode="markers",
                marker={
                    "symbol": "square",
                    "size": 22,
                    "color": _ink(int(cluster)),
                    "opacity": (0.15 + 0.85 * lines["most_share"]).tolist(),
                },
                text=[
                    _mix_text(line, ranked.get_group((line["layer"], line["head"])), named)
                    for _, line in lines.iterrows()
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    heads, layers = int(mine["head"].max()) + 1, int(mine["layer"].max()) + 1
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"What each head's patterns are · {tower}",
            "subtitle": {"text": "colour: its commonest cluster · fainter: it shares its time"},
        },
        width=max(30 * heads + 320, 460),
        height=max(30 * layers + 170, 150 + 20 * mine["most"].nunique(), 260),
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


def _mix_text(line: Any, shares: pd.DataFrame, named: dict[int, str]) -> str:
    parts = [f"<b>{line['tower']}.L{line['layer']}H{line['head']}</b>, {line['verdict']}"]
    most = zip(shares["cluster"][:4], shares["share"][:4], strict=True)
    parts += [f"{named[int(cluster)]} {100 * share:.0f} %" for cluster, share in most]
    return "<br>".join(parts)


def _ink(cluster: int) -> str:
    return HATCH if cluster == _OUTSIDE else CATEGORIES[cluster % len(CATEGORIES)]


def _cloud(points: pd.DataFrame, text: Any, name: str, ink: Any, size: int) -> Any:
    import plotly.graph_objects as go

    # WebGL: tens of thousands of points stay quick.
    return go.Scattergl(
        x=points["x"],
        y=points["y"],
        mode="markers",
        name=name,
        marker={"size": size, "color": ink, "opacity": 0.7},
        text=text,
        hovertemplate="%{text}<extra></extra>" if text is not None else None,
        hoverinfo="skip" if text is None else None,
    )


def _bar(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "top", "font": {"color": FAINT}},
        "thickness": 12,
        "outlinewidth": 0,
    }
