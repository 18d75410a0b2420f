"""Clusters of one half of the patterns against those of the other: agreement, and gaps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.clusters import Asked, Found, Labels, TooFewPatterns, find
from analysis.atlas.gaps import gaps
from analysis.atlas.sizes import Sizes

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Halving:
    """Clusters of one half of the patterns, and where the other half falls in them.

    Attributes:
        agreed: adjusted Rand index between these and the other half's own clusters.
        clusters: in the first half.
        gaps: float ``[cluster]``, how isolated each is (`analysis.atlas.gaps.gaps`); reckoned when
            it is asked for.
    """

    agreed: float
    _first: Found | None = None
    _second: Array | None = None
    _placed: Labels | None = None

    @property
    def clusters(self) -> int:
        return 0 if self._first is None else self._first.count

    @cached_property
    def gaps(self) -> Array:
        if self._first is None or self._second is None or self._placed is None:
            return np.zeros(0)
        return gaps(self._first, self._second, self._placed)


def halved(space: Array, asked: Asked, seed: int, sizes: Sizes | None = None) -> Halving:
    """Patterns ``[sample axis]`` in two halves, how well they agree on the second.

    Halves that find fewer than two clusters agree to 0: they agree on no clusters.
    """
    from sklearn.metrics import adjusted_rand_score

    order = np.random.default_rng(seed).permutation(len(space))
    first, rest = order[: len(space) // 2], order[len(space) // 2 :]
    of_first, of_rest = (None if sizes is None else sizes.of(rows) for rows in (first, rest))
    try:
        mine = find(space[first], asked.halved(), seed, sizes=of_first)
        theirs = find(space[rest], asked.halved(), seed + 1, sizes=of_rest)
    except TooFewPatterns:
        # A half has fewer different patterns than clusters, so there are not so many.
        return Halving(0.0)
    placed = mine.place(space[rest])
    if max(mine.count, theirs.count) < 2:
        return Halving(0.0)
    agreed = float(adjusted_rand_score(placed, theirs.labels))
    return Halving(agreed, mine, space[rest], placed)
