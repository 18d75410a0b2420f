"""The map: every pattern as a point in the plane, by principal components and by UMAP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEIGHBOURS = 15


@dataclass(frozen=True)
class UmapOptions:
    """How UMAP (McInnes, Healy and Melville, 2018, arXiv 1802.03426) draws the map.

    Attributes:
        neighbours: how many nearest patterns each is held to; more shows the large, fewer the
            small.
        least_distance: how close points may lie on the map.
    """

    neighbours: int = NEIGHBOURS
    least_distance: float = 0.1


def principal_plane(space: Array) -> tuple[Array, tuple[float, float]]:
    """``[sample 2]``: the first two principal components, and the share of variance of each.

    A space of one axis has a second component of zeros.
    """
    rest = space - space.mean(0)
    _, spread, axes = np.linalg.svd(rest, full_matrices=False)
    plane = np.zeros((len(space), 2))
    count = min(2, len(spread))
    axes = axes[:count] * np.sign(axes[np.arange(count), np.abs(axes[:count]).argmax(1)])[:, None]
    plane[:, :count] = rest @ axes.T
    total = float((spread**2).sum())
    shares = np.zeros(2) if total == 0 else np.pad(spread[:2] ** 2 / total, (0, 2 - count))
    return plane, (float(shares[0]), float(shares[1]))


def umap_plane(space: Array, seed: int, options: UmapOptions | None = None) -> Array:
    """``[sample 2]``: UMAP's map; with one seed and one machine always the same.

    A seed makes UMAP work on one core. Distances between far groups, and sizes of groups, mean
    nothing on such a map: it shows who is whose neighbour.

    Args:
        space: ``[sample axis]`` of `analysis.atlas.features_space.make_space`.

    Raises:
        ValueError: there are too few samples, or they are all the same.
    """
    options = options or UmapOptions()
    needed = least_samples(options)
    if len(space) < needed:
        raise ValueError(
            f"UMAP with {options.neighbours} neighbours needs at least {needed} patterns, got "
            f"{len(space)}. Take more samples, or fewer neighbours."
        )
    if not np.isfinite(space).all():
        raise ValueError("The space of a map must be finite, got NaN or infinity in it.")
    if float(space.var(0).sum()) <= 1e-20:
        raise ValueError("UMAP needs patterns that differ, got patterns that are all the same.")
    from umap import UMAP

    map_of = UMAP(
        n_neighbors=options.neighbours,
        min_dist=options.least_distance,
        random_state=seed,
        n_jobs=1,  # With a seed it is 1 in any case, after a warning.
        init=_start(space, seed),
    )
    threads = torch.get_num_threads()
    try:
        return np.asarray(map_of.fit_transform(space.astype(np.float32)), np.float64)
    finally:
        # numba shares its OpenMP with torch and leaves it with all cores, after which torch rounds
        # otherwise: a second map in one process would not be the first (umap-learn 0.5.12).
        torch.set_num_threads(threads)


def _start(space: Array, seed: int) -> NDArray[np.float32]:
    """``[sample 2]``: the principal plane, 10 wide, with a little noise that parts equal patterns.

    Where groups of patterns have no path between them, UMAP's own start sets them down without
    regard to where they lie; from the principal plane the map keeps the large (Kobak and
    Linderman, Nature Biotechnology 39, 2021).
    """
    plane, _ = principal_plane(space)
    wide = plane * (10 / np.abs(plane).max())
    noise = np.random.default_rng(seed).normal(scale=1e-4, size=wide.shape)
    return (wide + noise).astype(np.float32)


def least_samples(options: UmapOptions) -> int:
    """How many patterns UMAP needs: one more than neighbours, or it would take fewer of them."""
    return max(options.neighbours + 1, 5)
