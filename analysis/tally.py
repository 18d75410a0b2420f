"""From per-example sums to the head table: the running account of a scoring."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from analysis.head_table import HeadTable
from analysis.scores import BatchScores, Column, Curve
from analysis.statistics import REPLICATES, RatioSums, half_of, split_half_reliability
from analysis.touched import Place, Touched, merged

if TYPE_CHECKING:
    import pandas as pd

    from analysis.journal import Journal

PROFILE_COLUMNS = ("tower", "layer", "head", "measure", "axis", "point", "value", "null")


class Tally:
    """Adds up the scores of batches or shards; its size does not grow with their number.

    Adding the same examples in other batches, shards or order gives the same table up to
    rounding.

    Attributes:
        examples: how many were counted.
        in_half: how many of them lie in each of the two random halves (`half_of`).
        touched: what measures that change head outputs changed.
    """

    def __init__(self, *, replicates: int = REPLICATES, seed: int = 0) -> None:
        self.examples = 0
        self.in_half = [0, 0]
        self.seed = seed
        self.reasons: dict[tuple[str, str], str] = {}
        self.touched: dict[Place, Touched] = {}
        self._place: dict[Column, int] = {}
        self._sums = RatioSums.empty(0, replicates=replicates, seed=seed)
        self._null = RatioSums.empty(0, replicates=replicates, seed=seed)
        self._curves: dict[tuple[str, int, str], Curve] = {}

    def add(self, scores: BatchScores) -> None:
        """Count the examples of a batch or shard; columns seen for the first time are new."""
        for column in scores.columns:
            self._place.setdefault(column, len(self._place))
        if len(self._place) > self._sums.n.size:
            self._sums.widen(len(self._place))
            self._null.widen(len(self._place))
        index = np.array([self._place[column] for column in scores.columns], dtype=np.int64)
        names = scores.examples
        self._sums.add(
            names, self._wide(scores.numerator, index), self._wide(scores.denominator, index)
        )
        self._null.add(
            names,
            self._wide(scores.null_numerator, index),
            self._wide(scores.null_denominator, index),
        )
        for key, curve in scores.curves.items():
            self._curves[key] = self._curves[key] + curve if key in self._curves else curve
        self.reasons.update(scores.reasons)
        self.touched = merged([self.touched, scores.touched])
        self.examples += len(names)
        for name in names:
            self.in_half[half_of(name, self.seed)] += 1

    def heads(
        self,
        inputs: str = "",
        layers: Mapping[str, int] | None = None,
        measures: Iterable[str] = (),
        only: Container[str] | None = None,
    ) -> HeadTable:
        """The head table of everything counted so far.

        Args:
            inputs: what the column of that name says.
            layers: blocks of each tower; its order is that of the towers.
            measures: their order, where it is not that of their first appearance.
            only: measures that the table is to hold; all by default.
        """
        import pandas as pd

        low, high = self._sums.interval()
        null = self._null.value
        null_low, null_high = self._null.interval()
        # One example has no interval, but the null of its own size is known.
        unknown = np.isnan(null_low)
        null_low, null_high = np.where(unknown, null, null_low), np.where(unknown, null, null_high)
        columns = list(self._place)
        names = ("tower", "layer", "head", "measure", "variant", "unit")
        frame = pd.DataFrame(
            {name: [getattr(column, name) for column in columns] for name in names}
            | {"inputs": inputs, "value": self._sums.value, "ci_low": low, "ci_high": high}
            | {"n": self._sums.n, "null_low": null_low, "null_high": null_high}
        )
        order = self._order(columns, layers or (), measures)
        if only is not None:
            order = [index for index in order if columns[index].measure in only]
        return HeadTable(frame.iloc[order], layers or {})

    def profiles(self) -> pd.DataFrame:
        """Curves, one line per point: tower, layer, head, measure, axis, point, value, null."""
        import pandas as pd

        frames = [_curve_frame(curve) for curve in self._curves.values()]
        if not frames:
            return pd.DataFrame(columns=list(PROFILE_COLUMNS))
        return pd.concat(frames, ignore_index=True)

    def reliability(self) -> list[dict[str, Any]]:
        """Do two halves of the examples rank the heads alike? One entry per measure and tower.

        ``reliability`` is Spearman's correlation between halves, ``None`` where it has no
        meaning (too few heads or examples, all heads alike).
        """
        groups = [(column.tower, column.measure, column.variant) for column in self._place]
        found: dict[Any, float] = split_half_reliability(self._sums.halves, groups)
        return [
            {
                "tower": tower,
                "measure": measure,
                "variant": variant,
                "reliability": None if np.isnan(value) else round(value, 4),
            }
            for (tower, measure, variant), value in found.items()
        ]

    @property
    def halves(self) -> dict[Column, tuple[float, float]]:
        """The value of every column in each of two random halves of the examples."""
        values = self._sums.halves
        return {
            column: (float(values[0, place]), float(values[1, place]))
            for column, place in self._place.items()
        }

    @property
    def measures(self) -> set[str]:
        """Names of the measures that were taken in some tower."""
        return {column.measure for column in self._place}

    @property
    def not_measured(self) -> list[dict[str, str]]:
        """Measures that do not apply in a tower, and why."""
        there = {(column.tower, column.measure) for column in self._place}
        return [
            {"tower": tower, "measure": measure, "reason": why}
            for (tower, measure), why in self.reasons.items()
            if (tower, measure) not in there
        ]

    def _wide(self, block: Tensor, index: np.ndarray) -> np.ndarray:
        values = block.to(torch.float64).cpu().numpy()
        if index.size == len(self._place) and np.array_equal(index, np.arange(index.size)):
            return values
        wide = np.zeros((values.shape[0], len(self._place)))
        wide[:, index] = values
        return wide

    def _order(
        self, columns: list[Column], towers: Iterable[str], measures: Iterable[str]
    ) -> list[int]:
        """Tower by tower, measures as they came, the variants of a measure together."""
        tower_rank = _ranks([*towers, *(c.tower for c in columns)])
        measure_rank = _ranks([*measures, *(c.measure for c in columns)])
        variant_rank = _ranks((c.measure, c.variant) for c in columns)

        def rank(index: int) -> tuple[int, ...]:
            c = columns[index]
            variant = variant_rank[c.measure, c.variant]
            return tower_rank[c.tower], measure_rank[c.measure], variant, c.layer, c.head

        return sorted(range(len(columns)), key=rank)


def _ranks(values: Iterable[Any]) -> dict[Any, int]:
    return {value: rank for rank, value in enumerate(dict.fromkeys(values))}


def tally_of(journal: Journal, plan: Mapping[str, Any]) -> Tally:
    """The account of all shards that a journal holds."""
    tally = Tally(replicates=int(plan["replicates"]), seed=int(plan["seed"]))
    for shard in journal.finished():
        arrays, about = journal.read(shard)
        if about["scores"] is not None:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            tally.add(BatchScores.from_tensors(tensors, about["scores"]))
    return tally


def _curve_frame(curve: Curve) -> pd.DataFrame:
    import pandas as pd

    value = curve.value.cpu().numpy()
    heads, points = value.shape
    return pd.DataFrame(
        {
            "tower": curve.tower,
            "layer": curve.layer,
            "head": np.repeat(np.arange(heads), points),
            "measure": curve.measure,
            "axis": curve.axis,
            "point": np.tile(np.arange(points), heads),
            "value": value.ravel(),
            "null": np.tile(curve.null.cpu().numpy(), heads),
        }
    )
