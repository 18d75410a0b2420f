"""What of an atlas's map is chosen: its plane, its colours, which points are lit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.precision import plain
from dashboard.atlas_figures import cluster_label
from dashboard.figures import pattern_map
from dashboard.opened_atlas import OpenedAtlas
from dashboard.pattern_map import PointValues, head_names
from dashboard.view import View

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

_ALL, _UMAP, _PCA = "all", "UMAP", "PCA"


@dataclass(frozen=True, eq=False)
class ChosenPoints:
    """The map of a tower as it is to be drawn.

    Attributes:
        points: table ``points`` of the tower; ``x y`` are those of the plane.
        meaning: a sentence on the colours.
        lit: bool ``[point]``: all but those that fade.
    """

    points: pd.DataFrame
    plane: str
    colour: str | PointValues
    meaning: str
    cluster: int | None
    head: str | None
    lit: NDArray[np.bool_]

    def figure(self, explained: list[float]) -> go.Figure:
        """The map.

        Args:
            explained: the shares of variance of the first two principal components.
        """
        plane = "near: alike; distances far apart mean little"
        if self.plane == _PCA:
            shares = " and ".join(f"{100 * share:.0f} %" for share in explained[:2])
            plane = f"first two principal components, {shares} of the variance"
        tower = str(self.points["tower"].iloc[0])
        return pattern_map(
            self.points, tower, self.colour, self.head, self.cluster, said=False, plane=plane
        )


def choose_points(view: View, atlas: OpenedAtlas, points: pd.DataFrame) -> ChosenPoints:
    """What the controls and the address say of the map of a tower, which ``points`` are."""
    tower = str(points["tower"].iloc[0])
    planes = [_PCA] if (points["x"] == points["pca_x"]).all() else [_UMAP, _PCA]
    plane = view.choose("plane", "drawn by", planes)
    if plane == _PCA:
        points = points.assign(x=points["pca_x"], y=points["pca_y"])
    colour, meaning = _colour(view, points, tower)
    cluster, head = _lit(view, atlas, points, tower)
    lit = points["cluster"].notna()
    if cluster is not None:
        lit &= points["cluster"] == cluster
    if head is not None:
        lit &= head_names(points) == head
    return ChosenPoints(points, plane, colour, meaning, cluster, head, lit.to_numpy())


def _colour(view: View, points: pd.DataFrame, tower: str) -> tuple[str | PointValues, str]:
    """What points are coloured by, and a sentence on it."""
    heads = view.run.heads
    known = heads.frame[heads.frame["tower"] == tower]
    options = ["cluster", "layer", "head", *(["measure"] if len(known) else [])]
    by = view.choose("colour", "colour by", options)
    if by == "cluster":
        return by, "Colours are clusters, named by the rule that holds of their measures."
    if by != "measure":
        return PointValues.of_column(points, by), f"The brighter, the higher the {by}'s number."
    measure = view.choose("measure", "measure", list(dict.fromkeys(known["measure"])))
    lines = known[known["measure"] == measure]
    variant = view.choose("variant", "variant", list(dict.fromkeys(lines["variant"])))
    lines = lines[lines["variant"] == variant]
    inputs = view.choose("inputs", "inputs", list(dict.fromkeys(lines["inputs"])))
    values = PointValues.of_heads(points, heads, measure, variant, inputs)
    n = lines.loc[lines["inputs"] == inputs, "n"]
    return values, (
        f"The colour is {values.title} ({values.unit}) of a point's head over all examples, n = "
        f"{plain(float(n.max()))}, on the scale of its own map; grey: not measured."
    )


def _lit(
    view: View, atlas: OpenedAtlas, points: pd.DataFrame, tower: str
) -> tuple[int | None, str | None]:
    """The cluster and the head to be lit while the others fade."""
    lines = atlas.of(atlas.clusters, tower)
    labels = {
        cluster_label(cluster, name): int(cluster)
        for cluster, name in zip(lines["cluster"], lines["name"], strict=True)
    }
    cluster = labels.get(view.choose("cluster", "cluster", [_ALL, *labels]))
    of_cluster = points if cluster is None else points[points["cluster"] == cluster]
    mix = atlas.of(atlas.head_mix, tower)
    known = set(head_names(of_cluster))
    head = view.choose("lit", "head", [_ALL, *(name for name in head_names(mix) if name in known)])
    return cluster, None if head == _ALL else head
