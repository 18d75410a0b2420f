"""Groups of patterns, by three methods of scikit-learn, and to whom new patterns belong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Method = Literal["mixture", "kmeans", "hdbscan"]

NO_CLUSTER = -1
"""Label of patterns that HDBSCAN puts in no cluster."""

_RIDGE = 1e-3
"""Added to variances of a mixture, in units of the space's total variance of about 1."""

_DENSITY_NEIGHBOURS = 10
_VOTERS = 5

STARTS = 8
"""From how many places k-means begins."""


@dataclass(frozen=True)
class Asked:
    """A method and what is asked of it.

    Attributes:
        method: ``mixture``: k-means, refined as Gaussians of which each has widths of its own;
            ``kmeans``;
            ``hdbscan``: dense groups, the rest in no cluster (Campello et al., 2013).
        number: of clusters; for ``hdbscan`` the smallest size of one.
    """

    method: Method
    number: int

    def __str__(self) -> str:
        what = "at least {} a cluster" if self.method == "hdbscan" else "{} clusters"
        return f"{self.method}, {what.format(self.number)}"

    def halved(self) -> Asked:
        """The same asked of half the samples."""
        if self.method != "hdbscan":
            return self
        return Asked(self.method, max(self.number // 2, 2))


@dataclass(frozen=True)
class Found:
    """A clustering, and the means to put new patterns into it.

    Attributes:
        labels: long ``[sample]``, from 0, or `NO_CLUSTER`.
        belonging: float ``[sample]``, 0 to 1: how surely each belongs where it is; 1 by k-means.
    """

    asked: Asked
    labels: Labels
    belonging: Array
    space: Array
    _model: object

    @property
    def count(self) -> int:
        return int(self.labels.max(initial=NO_CLUSTER)) + 1

    def place(self, space: Array) -> Labels:
        """Long ``[sample]``: the cluster of each of other patterns in the same space.

        HDBSCAN cannot say, so there the five nearest known patterns vote.
        """
        from sklearn.neighbors import KNeighborsClassifier

        if self.asked.method != "hdbscan":
            return self._model.predict(space).astype(np.int64)  # pyright: ignore
        voters = min(_VOTERS, len(self.space))
        vote = KNeighborsClassifier(voters).fit(self.space, self.labels)
        return vote.predict(space).astype(np.int64)


def find(space: Array, asked: Asked, seed: int, starts: int = STARTS) -> Found:
    """The clusters of patterns ``[sample axis]``, largest first.

    Args:
        starts: from how many places k-means and the mixture begin, of which the best is kept.

    Raises:
        ValueError: more clusters are asked for than there are different patterns.
    """
    from sklearn.cluster import HDBSCAN, KMeans

    if asked.method != "hdbscan" and asked.number > len(np.unique(space, axis=0)):
        raise ValueError(
            f"There must be at least as many different patterns as clusters, got "
            f"{len(np.unique(space, axis=0))} for {asked.number} clusters. Ask for fewer."
        )
    certain = np.ones(len(space))
    if asked.method == "kmeans":
        model = KMeans(asked.number, n_init=starts, random_state=seed).fit(space)
        labels = model.labels_
    elif asked.method == "mixture":
        model = _mixture(space, asked.number, seed, starts)
        share = model.predict_proba(space)
        labels, certain = share.argmax(1), share.max(1)
    else:
        model = HDBSCAN(
            min_cluster_size=asked.number,
            min_samples=min(_DENSITY_NEIGHBOURS, len(space)),
            copy=True,
        ).fit(space)
        labels, certain = model.labels_, model.probabilities_
    return Found(asked, labels.astype(np.int64), certain, space, model)


def _mixture(space: Array, number: int, seed: int, starts: int) -> GaussianMixture:
    """Gaussians that start where the best k-means ends, each with the widths that it had there.

    From k-means++ alone the same patterns often end in another optimum; so started, half of the
    planted patterns finds what the other half finds.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    first = KMeans(number, n_init=starts, random_state=seed).fit(space)
    ridge = _RIDGE * max(float(space.var(0).sum()), 1e-12)
    sharp = []
    for cluster in range(number):
        away = space[first.labels_ == cluster] - first.cluster_centers_[cluster]
        spread = away.T @ away / max(len(away), 1) + ridge * np.eye(space.shape[1])
        sharp.append(np.linalg.inv(spread))
    sizes = np.bincount(first.labels_, minlength=number) / len(space)
    return GaussianMixture(
        number, random_state=seed, reg_covar=ridge, weights_init=sizes,
        means_init=first.cluster_centers_, precisions_init=np.stack(sharp), max_iter=200,
    ).fit(space)  # fmt: skip


def by_size(labels: Labels) -> tuple[Labels, Labels]:
    """Labels renumbered so that 0 is the largest cluster, and the old number of each new one."""
    known, sizes = np.unique(labels[labels >= 0], return_counts=True)
    old = known[np.argsort(-sizes, kind="stable")]
    new = np.full(int(labels.max(initial=0)) + 1, NO_CLUSTER, np.int64)
    new[old] = np.arange(len(old))
    return np.where(labels >= 0, new[labels], NO_CLUSTER), old
