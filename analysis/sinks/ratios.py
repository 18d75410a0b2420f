"""Ratios of sums over examples with bootstrap intervals, collected under any key."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

from analysis.statistics import REPLICATES, RatioSums


@dataclass(frozen=True)
class Ratio:
    """``sum numerator / sum denominator`` with its 95 % interval over ``n`` examples."""

    value: float
    low: float
    high: float
    n: int

    def columns(self, name: str) -> dict[str, float]:
        """The value as ``name``, its interval as ``name_low`` and ``name_high``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


NOTHING = Ratio(float("nan"), float("nan"), float("nan"), 0)


@dataclass
class Ratios:
    """Sums of each key over examples; the same weights as those of the head table."""

    seed: int = 0
    replicates: int = REPLICATES
    _sums: dict[Hashable, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, key: Hashable, example: str, numerator: float, denominator: float = 1.0) -> None:
        """Count something of an example; an example may be counted several times."""
        sums = self._sums.setdefault(key, {}).setdefault(example, [0.0, 0.0])
        sums[0] += numerator
        sums[1] += denominator

    def examples(self, key: Hashable) -> set[str]:
        """The examples that were counted under a key."""
        return set(self._sums.get(key, ()))

    def results(self, wanted: Iterable[Hashable] | None = None) -> dict[Hashable, Ratio]:
        """The ratio of every key, or of those that are wanted; of an unknown key `NOTHING`."""
        keys = list(self._sums if wanted is None else dict.fromkeys(wanted))
        known = [key for key in keys if key in self._sums]
        found = dict.fromkeys(keys, NOTHING)
        if not known:
            return found
        names = dict.fromkeys(name for key in known for name in self._sums[key])
        rows = {name: row for row, name in enumerate(names)}
        top, bottom = np.zeros((len(rows), len(known))), np.zeros((len(rows), len(known)))
        for column, key in enumerate(known):
            for name, (numerator, denominator) in self._sums[key].items():
                top[rows[name], column] = numerator
                bottom[rows[name], column] = denominator
        sums = RatioSums.empty(len(known), replicates=self.replicates, seed=self.seed)
        sums.add(list(rows), top, bottom)
        low, high = sums.interval()
        for key, *numbers in zip(known, sums.value, low, high, sums.n, strict=True):
            value, least, most, count = numbers
            found[key] = Ratio(float(value), float(least), float(most), int(count))
        return found
