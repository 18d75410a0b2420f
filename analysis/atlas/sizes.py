"""What the length of a sequence alone does to a pattern, told from what its head does.

An effect that all heads share is taken out of the space. But a picture changes with the grid in its
own way: weight on the row below lies in other cells at 8 x 8 than at 14 x 14. So clusters that are
the same heads at other sizes are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Longs = NDArray[np.int64]

SIZE_GROUPS = 8
"""Sequences of many lengths are put into so many groups of about equal number."""


SAME_HEADS = 0.5
OTHER_SIZES = 0.1
"""Two clusters are one kind at two sizes if at least half of the smaller is the work of heads that
do the other as well, and if the sizes at which these heads do the one and the other overlap by at
most a tenth. Heads that now do this and now that, whatever the size, overlap by far more."""


@dataclass(frozen=True)
class Sizes:
    """How large each pattern is, and whose it is.

    Attributes:
        group: long ``[sample]``: view, mask and size, sizes in at most `SIZE_GROUPS` groups each.
        head: long ``[sample]``: the head in its view; in two views it is two, because how views
            differ is no matter of size.
    """

    group: Longs
    head: Longs

    def of(self, rows: Longs) -> Sizes:
        """Those of some samples."""
        return Sizes(self.group[rows], self.head[rows])

    def kinds(self, labels: Longs, count: int) -> Longs:
        """Long ``[cluster]``: the kind of each of ``count`` clusters of ``labels [sample]``.

        Clusters that are the same heads at other sizes are of one kind. Negative labels are none.
        """
        kind = np.arange(count)
        known = labels >= 0
        shape = (count, int(self.head.max(initial=0)) + 1, int(self.group.max(initial=0)) + 1)
        cells = np.zeros(shape)
        np.add.at(cells, (labels[known], self.head[known], self.group[known]), 1)
        for one in range(count):
            for other in range(one):
                if _one_kind(cells[one], cells[other]):
                    kind[kind == kind[one]] = kind[other]
        return np.unique(kind, return_inverse=True)[1]


def _one_kind(one: Array, other: Array) -> bool:
    """Whether two clusters, counts ``[head size]``, are the same heads at other sizes."""
    heads = (one.sum(1) > 0) & (other.sum(1) > 0)
    both = np.minimum(one.sum(1), other.sum(1)).sum()
    if both < SAME_HEADS * min(one.sum(), other.sum()) or both == 0:
        return False
    here, there = one[heads].sum(0), other[heads].sum(0)
    return bool(np.minimum(here / here.sum(), there / there.sum()).sum() <= OTHER_SIZES)


def sizes_of(samples: pd.DataFrame) -> Sizes:
    """The sizes of ``samples``, a line each: ``tower layer head view causal queries keys``."""
    return Sizes(_groups(samples), _codes(samples, ["tower", "layer", "head", "view", "causal"]))


def size_effect(values: Array, samples: pd.DataFrame) -> Array:
    """What of values ``[sample column]`` is due to the size of the pattern, head by head.

    Samples of a view fall into groups by numbers of queries and keys. The effect of a group is how
    the values of a head change from one group to another, over all heads; its mean over the
    samples of a view is 0. So heads that work in another tower keep what sets them apart. Where
    each head is seen at one size alone, nothing can be told and nothing is taken out.
    """
    group = _groups(samples)
    if group.max() == 0:
        return np.zeros_like(values)
    # A head may be drawn in two views, and how those differ is no matter of size.
    head = _codes(samples, ["tower", "layer", "head", "view", "causal"])
    dummies = np.eye(group.max() + 1)[group]
    effect = np.linalg.lstsq(_within(dummies, head), _within(values, head), rcond=1e-6)[0]
    made = dummies @ effect
    return _within(made, _codes(samples, ["view", "causal"]))


def _groups(samples: pd.DataFrame) -> Longs:
    made = np.zeros(len(samples), np.int64)
    last = 0
    for _, rows in samples.groupby(["view", "causal"], sort=True).indices.items():
        size = samples["queries"].to_numpy()[rows] * samples["keys"].to_numpy()[rows]
        sizes, code = np.unique(size, return_inverse=True)
        if len(sizes) > SIZE_GROUPS:
            edges = np.quantile(size, np.linspace(0, 1, SIZE_GROUPS + 1)[1:-1])
            _, code = np.unique(np.searchsorted(edges, size, side="left"), return_inverse=True)
        made[rows] = last + code
        last += int(code.max()) + 1
    return made


def _codes(samples: pd.DataFrame, columns: list[str]) -> Longs:
    return samples.groupby(columns, sort=False).ngroup().to_numpy()


def _within(values: Array, group: Longs) -> Array:
    """Values minus the mean of their group."""
    total = np.zeros((int(group.max()) + 1, values.shape[1]))
    np.add.at(total, group, values)
    return values - (total / np.bincount(group)[:, None])[group]
