"""The map of one tower, as a part of an atlas in which clusters are numbered through."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.clusters import NO_CLUSTER

if TYPE_CHECKING:
    import pandas as pd

    from analysis.atlas.atlas_map import AtlasMap
    from analysis.atlas.pattern_set import PatternSet

PICTURES = ("medoid", "mean", "decoded")
_SHARE, _OUTSIDE = "cluster ", "no cluster"


@dataclass(frozen=True, eq=False)
class TowerPart:
    """A tower's map.

    Attributes:
        lines: long ``[sample]``: where its patterns stand among those of all towers.
        first: number of its first cluster.
    """

    tower: str
    found: AtlasMap
    lines: NDArray[np.int64]
    first: int = 0

    def numbered_from(self, first: int) -> TowerPart:
        """The same with its clusters counted from another number."""
        return replace(self, first=first)

    @property
    def named(self) -> list[int]:
        """Numbers of its clusters before they are shifted; patterns in none are no cluster."""
        return [number for number in self.found.clusters["cluster"] if number != NO_CLUSTER]

    @property
    def verdict(self) -> str:
        return f"{self.tower}: {self.found.verdict}"

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """``points clusters head_mix head_shares stability``."""
        import pandas as pd

        found = self.found
        names = dict(zip(found.clusters["cluster"], found.clusters["name"], strict=True))
        drawn = bool(found.points["umap_x"].notna().all())
        x, y = ("umap_x", "umap_y") if drawn else ("pca_x", "pca_y")
        points = found.points.drop(columns=["umap_x", "umap_y"]).assign(
            x=found.points[x],
            y=found.points[y],
            name=found.points["cluster"].map(names),
            cluster=self._shifted(found.points["cluster"]),
        )
        points.insert(0, "sample", self.lines)
        clusters = found.clusters.assign(
            cluster=self._shifted(found.clusters["cluster"]),
            medoid=self.lines[found.clusters["medoid"].to_numpy()],
        )
        clusters.insert(0, "tower", self.tower)
        shares = self._shares(names)
        wide = [name for name in found.heads if name.startswith((_SHARE, _OUTSIDE))]
        mix = found.heads.drop(columns=wide).assign(most=self._shifted(found.heads["most"]))
        stability = pd.DataFrame() if found.choice is None else found.choice.table.copy()
        if len(stability):
            stability.insert(0, "tower", self.tower)
        return {
            "points": points, "clusters": clusters, "head_mix": mix, "head_shares": shares,
            "stability": stability,
        }  # fmt: skip

    def _shares(self, names: dict[int, str]) -> pd.DataFrame:
        """A line per head and cluster in which it has a pattern."""
        import pandas as pd

        heads = self.found.heads
        parts = []
        for number, name in names.items():
            column = _OUTSIDE if number == NO_CLUSTER else f"{_SHARE}{number}"
            mine = heads.loc[heads[column] > 0, ["tower", "layer", "head"]]
            cluster = number if number == NO_CLUSTER else number + self.first
            share = heads.loc[mine.index, column]
            parts.append(mine.assign(cluster=cluster, name=name, share=share))
        joined = pd.concat(parts)
        return joined.sort_values(["layer", "head", "share"], ascending=[True, True, False])

    def pictures(self, patterns: PatternSet) -> dict[str, NDArray[np.float32]]:
        """``medoid mean decoded``: ``[cluster side side]``, in the order of the table."""
        by_cluster = {one.cluster: one for one in self.found.prototypes}
        ordered = [by_cluster[int(number)] for number in self.found.clusters["cluster"]]
        medoids = patterns.images[self.lines[[one.medoid for one in ordered]]]
        made = (medoids, [one.mean for one in ordered], [one.decoded for one in ordered])
        return {
            name: np.asarray(several, dtype=np.float32)
            for name, several in zip(PICTURES, made, strict=True)
        }

    @property
    def about(self) -> dict[str, Any]:
        """What is told of the map, for JSON."""
        found, columns = self.found, self.found.columns
        agreement = None if found.choice is None else found.choice.agreement
        return {
            "verdict": found.verdict,
            "agreement": agreement if agreement == agreement else None,
            "notes": list(found.notes),
            "beside": found.beside,
            "seconds": {step: round(seconds, 3) for step, seconds in found.seconds.items()},
            "columns": [] if columns is None else list(columns.names),
            "left_out": {} if columns is None else columns.left_out,
            "explained": list(found.explained),
            "autoencoder": asdict(found.training),
        }

    def _shifted(self, numbers: pd.Series) -> pd.Series:
        return numbers.where(numbers == NO_CLUSTER, numbers + self.first)
