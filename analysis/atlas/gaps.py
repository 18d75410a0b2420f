"""How isolated clusters are: whether patterns that were not used to find them lie in two heaps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.clusters import Found, Labels
from analysis.atlas.dip import dip_score

Array = NDArray[np.float64]

FEWEST = 8
"""Clusters of fewer patterns are not judged: their gap is 0."""

_LOPSIDED = 3
_RIDGE = 1e-3


def gaps(mine: Found, second: Array, placed: Labels) -> Array:
    """Float ``[cluster]``: the least `dip_score` of other patterns on lines to other clusters.

    The line between two clusters is drawn (Fisher's discriminant) with the patterns that the
    clusters were found on. A large cluster is thinned: else its own heap hides a small one beside
    it.

    Args:
        second: other patterns, ``[sample axis]``, and the cluster of each in ``placed [sample]``.
    """
    count = mine.count
    least = np.full(count, np.inf)
    for one in range(count):
        for other in range(one):
            score = _pair_gap(mine, second, placed, one, other)
            least[[one, other]] = np.minimum(least[[one, other]], score)
    return np.where(np.isfinite(least), least, 0.0)


def mean_gaps(found: list[Array]) -> Array:
    """The mean over halvings of the widest gap, of the second, and so on, as far as most have it.

    Clusters of two halvings have no names in common, so they are compared by rank.
    """
    count = int(np.median([len(widths) for widths in found]))
    ranked = np.zeros((len(found), count))
    for turn, widths in enumerate(found):
        widest = np.sort(widths)[::-1][:count]
        ranked[turn, : len(widest)] = widest
    return ranked.mean(0)


def _pair_gap(mine: Found, second: Array, placed: Labels, one: int, other: int) -> float:
    here, there = mine.space[mine.labels == one], mine.space[mine.labels == other]
    left, right = second[placed == one], second[placed == other]
    if min(len(here), len(there), len(left), len(right)) < FEWEST:
        return 0.0
    middle = here.mean(0), there.mean(0)
    within = np.concatenate([here - middle[0], there - middle[1]])
    spread = within.T @ within / len(within)
    spread += _RIDGE * max(float(mine.space.var(0).sum()), 1e-12) * np.eye(len(spread))
    line = np.linalg.solve(spread, middle[0] - middle[1])
    most = _LOPSIDED * min(len(left), len(right))
    return dip_score(np.concatenate([_thinned(left, most), _thinned(right, most)]) @ line)


def _thinned(values: Array, most: int) -> Array:
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]
