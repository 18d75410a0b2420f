"""Means over firings with their intervals over examples, for what a feature is shown to do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.statistics import LEVEL, RatioSums


@dataclass(frozen=True)
class Mean:
    """A mean over firings.

    Attributes:
        value: NaN where nothing was counted.
        low, high: of a 95 % bootstrap interval over examples; NaN with fewer than 2 of them.
        firings: how many it is a mean of.
        examples: how many of them have one.
    """

    value: float
    low: float
    high: float
    firings: int
    examples: int


class Means:
    """Values by name and example; firings of one example are resampled together."""

    def __init__(self, seed: int = 0) -> None:
        """Nothing was seen yet."""
        self._seed = seed
        self._values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, example: str, values: Mapping[str, float]) -> None:
        """Count a firing."""
        for name, value in values.items():
            self._values[name][example].append(value)

    def of(self, name: str) -> Mean:
        """The mean of all values of a name."""
        found = self._values.get(name, {})
        sums = RatioSums.empty(1, seed=self._seed)
        if not found:
            return Mean(math.nan, math.nan, math.nan, 0, 0)
        ids = list(found)
        total = np.array([[math.fsum(found[example])] for example in ids])
        count = np.array([[float(len(found[example]))] for example in ids])
        sums.add(ids, total, count)
        low, high = sums.interval(LEVEL)
        return Mean(float(sums.value[0]), float(low[0]), float(high[0]), int(count.sum()), len(ids))
