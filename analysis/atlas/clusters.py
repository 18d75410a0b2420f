"""Groups of patterns, by three methods of scikit-learn, and to whom new patterns belong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.sizes import Sizes

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


class TooFewPatterns(ValueError):
    """There are fewer patterns than a map takes, or than clusters that were asked for."""


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
    _kinds: Labels | None = None

    @property
    def count(self) -> int:
        return int(self.labels.max(initial=NO_CLUSTER)) + 1

    def place(self, space: Array) -> Labels:
        """Long ``[sample]``: the cluster of each of other patterns in the same space.

        HDBSCAN cannot say, so there the five nearest known patterns vote.
        """
        from sklearn.neighbors import KNeighborsClassifier

        if self.asked.method != "hdbscan":
            placed = self._model.predict(space).astype(np.int64)  # pyright: ignore
            return placed if self._kinds is None else self._kinds[placed]
        voters = min(_VOTERS, len(self.space))
        vote = KNeighborsClassifier(voters).fit(self.space, self.labels)
        return vote.predict(space).astype(np.int64)


def find(
    space: Array, asked: Asked, seed: int, starts: int = STARTS, sizes: Sizes | None = None
) -> Found:
    """The clusters of patterns ``[sample axis]``.

    Args:
        sizes: of the patterns; clusters that are the same heads at other sizes are then one
            (`Sizes.kinds`), so that there may be fewer than were asked for.
        starts: from how many places k-means and the mixture begin, of which the best is kept.

    Raises:
        TooFewPatterns: more clusters are asked for than there are different patterns.
    """
    from threadpoolctl import threadpool_limits

    if asked.method != "hdbscan" and asked.number > len(np.unique(space, axis=0)):
        raise TooFewPatterns(
            f"There must be at least as many different patterns as clusters, got "
            f"{len(np.unique(space, axis=0))} for {asked.number} clusters. Ask for fewer."
        )
    # Many small fits: threads that wait for each other on busy cores made them ten times slower,
    # and their number would change the last digits, and so the clusters.
    with threadpool_limits(1):
        model, labels, certain, share = _fitted(space, asked, seed, starts)
    if sizes is None or labels.max(initial=NO_CLUSTER) < 1:
        return Found(asked, labels, certain, space, model)
    # A component may have no pattern of its own, and yet take one that is placed later.
    full = asked.number if asked.method != "hdbscan" else int(labels.max()) + 1
    kinds = sizes.kinds(labels, full)
    if share is not None:
        certain = (share @ np.eye(kinds.max() + 1)[kinds]).max(1)
    labels = np.where(labels >= 0, kinds[labels], NO_CLUSTER)
    return Found(asked, labels, certain, space, model, kinds)


def _fitted(
    space: Array, asked: Asked, seed: int, starts: int
) -> tuple[object, Labels, Array, Array | None]:
    """The model, labels and belonging ``[sample]``, and shares ``[sample cluster]`` if it has."""
    from sklearn.cluster import HDBSCAN, KMeans

    if asked.method == "kmeans":
        model = KMeans(asked.number, n_init=starts, random_state=seed).fit(space)
        return model, model.labels_.astype(np.int64), np.ones(len(space)), None
    if asked.method == "mixture":
        model = _mixture(space, asked.number, seed, starts)
        share = model.predict_proba(space)
        return model, share.argmax(1).astype(np.int64), share.max(1), share
    model = HDBSCAN(
        min_cluster_size=asked.number, min_samples=min(_DENSITY_NEIGHBOURS, len(space)), copy=True
    ).fit(space)
    return model, model.labels_.astype(np.int64), model.probabilities_, None


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


def counted(labels: Labels) -> str:
    """How many clusters there are among ``labels [sample]``, in words.

    >>> counted(np.array([0, 2, 2, NO_CLUSTER])), counted(np.array([NO_CLUSTER, 0]))
    ('2 clusters', '1 cluster')
    """
    count = len(np.unique(labels[labels != NO_CLUSTER]))
    return f"{count} cluster" if count == 1 else f"{count} clusters"


def by_size(labels: Labels) -> tuple[Labels, Labels]:
    """Labels renumbered so that 0 is the largest cluster, and the old number of each new one."""
    known, sizes = np.unique(labels[labels >= 0], return_counts=True)
    old = known[np.argsort(-sizes, kind="stable")]
    new = np.full(int(labels.max(initial=0)) + 1, NO_CLUSTER, np.int64)
    new[old] = np.arange(len(old))
    return np.where(labels >= 0, new[labels], NO_CLUSTER), old
