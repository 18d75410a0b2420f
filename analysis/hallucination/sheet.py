"""Examples against metrics: the numerators and denominators from which ratios are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.hallucination.chair import Ratio

Array = NDArray[np.float64]
Metric = tuple[str, str]
"""Name of a metric, and the part of the data it is taken over (empty: all)."""


@dataclass(frozen=True)
class Sheet:
    """Per example and metric, what it adds to the metric's numerator and denominator.

    Attributes:
        ids: of the examples, each once; bootstrap weights are keyed by them.
        numerator, denominator: float64 ``[example metric]``, both 0 where a metric does not
            concern an example.
    """

    ids: tuple[str, ...]
    metrics: tuple[Metric, ...]
    numerator: Array
    denominator: Array

    @classmethod
    def of(cls, rows: Mapping[str, Mapping[Metric, Ratio]]) -> Sheet:
        """From example -> metric -> numerator and denominator; metrics may lack in some rows."""
        metrics = tuple(dict.fromkeys(metric for row in rows.values() for metric in row))
        pairs = [[row.get(metric, (0.0, 0.0)) for metric in metrics] for row in rows.values()]
        values = np.array(pairs, dtype=np.float64).reshape(len(rows), len(metrics), 2)
        return cls(tuple(rows), metrics, values[..., 0], values[..., 1])

    def lined_up(self, ids: Sequence[str], metrics: Sequence[Metric]) -> tuple[Array, Array]:
        """Numerator and denominator for these examples and metrics; 0 where it has none.

        Raises:
            ValueError: an example is missing: then nothing could be paired.
        """
        place = {name: index for index, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in place]
        if missing or len(place) != len(ids):
            raise ValueError(
                "What is compared must have the same examples, "
                f"{missing[0] if missing else 'one'!r} is in one of two only. Use the same data."
            )
        rows = [place[name] for name in ids]
        shape = (len(ids), len(metrics))
        numerator, denominator = np.zeros(shape), np.zeros(shape)
        for column, metric in enumerate(metrics):
            if metric in self.metrics:
                own = self.metrics.index(metric)
                numerator[:, column] = self.numerator[rows, own]
                denominator[:, column] = self.denominator[rows, own]
        return numerator, denominator
