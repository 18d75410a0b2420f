"""What the patterns of a cluster look like: decoded middle, a real one, and the mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.autoencoder import Autoencoder

Array = NDArray[np.float64]

_COMPARED = 2000


@dataclass(frozen=True)
class Prototype:
    """The pictures of a cluster, each ``[side side]``, rows sum to one.

    Attributes:
        cluster: its number; -1 for the patterns in no cluster.
        size: number of its patterns.
        medoid: number of the sample that is closest to the others on average; a real pattern.
        decoded: the mean latent, decoded: what the autoencoder takes to be in common.
        mean: the mean of the patterns: blurred where they differ, but nothing made up.
        fit: mean over rows of the squared Hellinger distance of ``decoded`` from ``mean``, 0 to 1.
    """

    cluster: int
    size: int
    medoid: int
    decoded: NDArray[np.float32]
    mean: NDArray[np.float32]
    fit: float


def prototypes(
    labels: NDArray[np.int64],
    space: Array,
    latents: NDArray[np.floating],
    images: NDArray[np.floating],
    model: Autoencoder,
) -> list[Prototype]:
    """A prototype for each cluster of ``labels [sample]``, in order of their numbers.

    Args:
        space: ``[sample axis]``, in which the medoid is found.
        latents: ``[sample latent]``.
        images: ``[sample side side]``.
    """
    made = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        decoded = model.decode(latents[members].mean(0, keepdims=True))[0]
        mean = images[members].mean(0, dtype=np.float32)
        apart = 0.5 * np.square(np.sqrt(decoded) - np.sqrt(mean)).sum(-1).mean()
        medoid = int(members[_medoid(space[members])])
        made.append(Prototype(label, len(members), medoid, decoded, mean, float(apart)))
    return made


def _medoid(points: Array) -> int:
    """The point with the least mean distance to the others; of many, to evenly drawn ones."""
    others = points
    if len(points) > _COMPARED:
        others = points[np.linspace(0, len(points) - 1, _COMPARED).round().astype(int)]
    total = np.zeros(len(points))
    norms = np.square(points).sum(1)
    for start in range(0, len(others), 256):
        some = others[start : start + 256]
        squared = norms[:, None] - 2 * points @ some.T + np.square(some).sum(1)
        total += np.sqrt(np.maximum(squared, 0)).sum(1)
    # Rounding must not decide between points that are the same.
    return int(np.argmin(total.round(9)))
