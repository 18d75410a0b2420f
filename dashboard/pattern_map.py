"""The map of a pattern atlas: thousands of patterns as points, drawn by WebGL."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.head_table import HeadTable
from dashboard.atlas_figures import cluster_ink, cluster_label
from dashboard.figure_look import ACCENT, CATEGORIES, GROUND, HATCH, PAPER, figure_look
from dashboard.head_map import Scale

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLOURED_BY = ("cluster", "layer")
_MANY = 5000


@dataclass(frozen=True, eq=False)
class PointValues:
    """A number for each point of a map, to colour it by.

    Attributes:
        values: float ``[point]``; NaN is drawn grey.
        scale: colours and range.
    """

    title: str
    unit: str
    values: NDArray[np.float64]
    scale: Scale

    @classmethod
    def of_column(cls, points: pd.DataFrame, column: str) -> PointValues:
        """``layer`` or ``head`` of each point."""
        values = points[column].to_numpy(np.float64)
        top = float(values.max(initial=1.0))
        return cls(column, column, values, Scale("Cividis", 0.0, max(top, 1.0)))

    @classmethod
    def of_heads(
        cls,
        points: pd.DataFrame,
        heads: HeadTable,
        measure: str,
        variant: str | None = None,
        inputs: str | None = None,
    ) -> PointValues:
        """What a measure says of the head of each point, in the colours of the measure's own map.

        Raises:
            ValueError: points of several towers, or a measure that the tower does not have.
        """
        (tower,) = dict.fromkeys(points["tower"])
        grid = heads.grid(measure, tower, variant, inputs)
        unit = heads.unit(measure, variant)
        layers, places = points["layer"].to_numpy(), points["head"].to_numpy()
        known = (layers < grid.shape[0]) & (places < grid.shape[1])
        values = np.full(len(points), np.nan)
        values[known] = grid[layers[known], places[known]]
        title = measure.replace("_", " ") + (f" ({variant})" if variant else "")
        return cls(title, unit, values, Scale.of(unit, grid))


def pattern_map(
    points: pd.DataFrame,
    tower: str | None = None,
    colour: str | PointValues = "cluster",
    head: str | None = None,
    cluster: int | None = None,
    said: bool = True,
    plane: str = "near: alike; distances far apart mean little",
) -> go.Figure:
    """Every sampled pattern of a tower as a point; patterns that look alike lie together.

    Args:
        points: table ``points`` of an atlas: ``x y cluster name tower layer head example``.
        tower: which one's map; needed where there are several.
        colour: ``cluster`` or ``layer``, or numbers for all points of the tower.
        head: one head, such as ``"language.L3H5"``, to be lit while the others fade.
        cluster: one cluster to be lit; with a head: its patterns there.
        said: every point carries the text of its hover. Without, texts are made of numbers, which
            for thousands of points is a small part; ``customdata`` of a point is then its
            ``sample``, layer and head.
        plane: what the axes are, for the line below the title.

    Raises:
        ValueError: another colour, a tower without a map, several and none named, or a head or
            cluster without a point.
    """
    import plotly.graph_objects as go

    if isinstance(colour, str) and colour not in _COLOURED_BY:
        raise ValueError(f"`colour` must be one of {', '.join(_COLOURED_BY)}, got {colour!r}.")
    points = _of_tower(points, tower)
    if colour == "layer":
        colour = PointValues.of_column(points, "layer")
    lit = _lit(points, head, cluster)
    figure = go.Figure()
    if not lit.all():
        figure.add_trace(_cloud(points[~lit], "others", GROUND, said=False, silent=True))
    shown = points[lit]
    if isinstance(colour, PointValues):
        _add_valued(figure, shown, colour, colour.values[lit], said)
    else:
        groups = shown.groupby("cluster", sort=True).indices
        for number, (group, rows) in enumerate(groups.items()):
            label = cluster_label(group, shown["name"].iloc[rows[0]])
            some = shown.iloc[rows]
            trace = _cloud(some, f"{label} ({len(rows):,})", cluster_ink(int(group)), said, label)
            if number >= len(CATEGORIES):
                trace.marker.symbol = "diamond"
            figure.add_trace(trace)
    if isinstance(colour, PointValues):
        plane += f" · colour: {escape(colour.title)}"
    count = points[["tower", "layer", "head"]].drop_duplicates().shape[0]
    figure.update_layout(
        figure_look(PAPER),
        title={
            "text": f"Pattern atlas · {points['tower'].iloc[0]}",
            "subtitle": {"text": f"{len(points):,} patterns of {count:,} heads · {plane}"},
        },
        width=900,
        height=640,
        legend={"itemsizing": "constant", "font": {"size": 12}},
        newselection={"line": {"color": ACCENT, "width": 1.5, "dash": "solid"}},
        activeselection={"fillcolor": ACCENT, "opacity": 0.08},
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


def _lit(points: pd.DataFrame, head: str | None, cluster: int | None) -> NDArray[np.bool_]:
    lit = np.ones(len(points), bool)
    if head is not None:
        names = head_names(points)
        lit &= names == head
        if not lit.any():
            raise ValueError(
                f"{head!r} must be a head of this map, got none of its patterns. "
                f"There are, for example, {', '.join(sorted(set(names))[:3])}."
            )
    if cluster is not None:
        of_cluster = (points["cluster"] == cluster).to_numpy()
        if not of_cluster.any():
            known = ", ".join(map(str, sorted(set(points["cluster"]))))
            raise ValueError(f"`cluster` must be one of {known}, got {cluster}.")
        lit &= of_cluster
    return lit


def head_names(points: pd.DataFrame) -> NDArray[Any]:
    """Of lines with ``tower layer head``: ``language.L3H5``."""
    layers, heads = points["layer"].astype(str), points["head"].astype(str)
    return (points["tower"] + ".L" + layers + "H" + heads).to_numpy()


def _add_valued(
    figure: go.Figure, shown: pd.DataFrame, of: PointValues, values: NDArray[Any], said: bool
) -> None:
    known = np.isfinite(values)
    if not known.all():
        grey = _cloud(shown[~known], "not measured", HATCH, said, "not measured")
        figure.add_trace(grey)
    trace = _cloud(shown[known], of.title, values[known].astype(np.float32), said)
    if not said:
        trace.hovertemplate = trace.hovertemplate.replace(
            "<extra>", f"<br>{escape(of.title)} %{{marker.color:.3g}}<extra>"
        )
    trace.marker.update(
        colorscale=of.scale.colours,
        cmin=of.scale.low,
        cmax=of.scale.high,
        showscale=True,
        colorbar=_bar(of.unit),
    )
    trace.showlegend = not known.all()
    figure.add_trace(trace)


def _cloud(
    points: pd.DataFrame, name: str, ink: Any, said: bool, label: str = "", silent: bool = False
) -> Any:
    import plotly.graph_objects as go

    size = 5 if len(points) < _MANY else 4
    cloud = go.Scattergl(  # WebGL: tens of thousands of points stay quick.
        x=points["x"].to_numpy(np.float32),
        y=points["y"].to_numpy(np.float32),
        mode="markers",
        name=escape(name),
        marker={"size": size, "color": ink, "opacity": 0.7},
        unselected={"marker": {"opacity": 0.1}},
    )
    if silent:
        cloud.update(hoverinfo="skip", showlegend=True)
    elif said:
        labels = [
            cluster_label(c, n) for c, n in zip(points["cluster"], points["name"], strict=True)
        ]
        cloud.text = [
            f"<b>{escape(head)}</b><br>{escape(cluster)}<br>{escape(str(example))}"
            for head, cluster, example in zip(
                head_names(points), labels, points["example"], strict=True
            )
        ]
        cloud.hovertemplate = "%{text}<extra></extra>"
    else:
        cloud.customdata = points[["sample", "layer", "head"]].to_numpy(np.int32)
        tower = escape(str(points["tower"].iloc[0])) if len(points) else ""
        cloud.hovertemplate = (
            f"<b>{tower}.L%{{customdata[1]}}H%{{customdata[2]}}</b>"
            f"{f'<br>{escape(label)}' if label else ''}<extra></extra>"
        )
    return cloud


def _bar(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "side": "top", "font": {"size": 12}},
        "thickness": 12,
        "outlinewidth": 0,
    }
