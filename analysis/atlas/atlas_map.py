"""The whole map from kept patterns: autoencoder, space, clusters, names, plane. No model needed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.autoencoder import Autoencoder, AutoencoderOptions, Training
from analysis.atlas.clusters import NO_CLUSTER, Asked, TooFewPatterns, by_size, counted, find
from analysis.atlas.embedding import UmapOptions, least_samples, principal_plane, umap_plane
from analysis.atlas.features_space import (
    LATENT_WEIGHT,
    FeatureColumns,
    Kind,
    choose_columns,
    make_space,
)
from analysis.atlas.head_mix import head_mix
from analysis.atlas.naming import PatternName, name_clusters, name_heads
from analysis.atlas.prototypes import Prototype, prototypes
from analysis.atlas.sizes import Sizes, sizes_of
from analysis.atlas.stability import Choice, StabilityOptions, choose
from analysis.atlas.training import train_autoencoder
from analysis.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from analysis.atlas.pattern_set import PatternSet

Array = NDArray[np.float64]

LEAST_EXPLAINED = 0.05
"""Share of the differences between patterns that the autoencoder must explain to count."""


@dataclass(frozen=True)
class MapOptions:
    """How a map is made.

    Attributes:
        seed: of all that is drawn; with the same one, and as many threads, the map is the same.
        space: what patterns are compared by: ``both``, ``features`` or ``latent``.
        latent_weight: spread of the latent beside that of the features, which is 1.
        clusters: a number to be taken as it is; None to choose it by stability.
        umap: None for principal components alone.
    """

    seed: int = 0
    space: Kind = "both"
    latent_weight: float = LATENT_WEIGHT
    clusters: int | None = None
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    stability: StabilityOptions = field(default_factory=StabilityOptions)
    umap: UmapOptions | None = field(default_factory=UmapOptions)


@dataclass(frozen=True, eq=False)
class AtlasMap:
    """Patterns as points, in clusters with names.

    Attributes:
        points: a line per sample in the order of the patterns: ``tower layer head example part``,
            ``cluster`` (0 is the largest, -1 is in none), ``belonging`` (0 to 1), ``pca_x pca_y``
            and ``umap_x umap_y`` (NaN without UMAP).
        clusters: a line per cluster: ``cluster name size share medoid agreement sentence also``;
            ``agreement``: the share of its members on which the name's rule holds.
        names, prototypes: by cluster.
        heads: of `analysis.atlas.head_mix.head_mix`, with ``own_name own_sentence`` of
            `analysis.atlas.naming.name_heads`.
        choice: how the number of clusters was chosen; None where it was given.
        beside: adjusted Rand index between these clusters and those of the other methods, by name.
        columns: the features that count; None in a space of latents alone.
        space: ``[sample axis]``; ``latents``: ``[sample latent]``.
        explained: shares of variance of the two axes of the principal plane.
        notes: what should be known of this map, in sentences.
        seconds: per step.
    """

    points: pd.DataFrame
    clusters: pd.DataFrame
    names: dict[int, PatternName]
    prototypes: list[Prototype]
    heads: pd.DataFrame
    choice: Choice | None
    beside: dict[str, float]
    columns: FeatureColumns | None
    space: Array
    latents: NDArray[np.float32]
    model: Autoencoder
    training: Training
    explained: tuple[float, float]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    options: MapOptions

    @property
    def verdict(self) -> str:
        """One sentence: how many clusters there are and how sure that is, or why there are none."""
        labels = self.points["cluster"].to_numpy()
        if self.choice is not None:
            return self.choice.said_of(labels)
        return f"{_as_asked(labels, self.options)}; their stability is not known."


def make_map(
    patterns: PatternSet, how: MapOptions | None = None, progress: Progress | None = None
) -> AtlasMap:
    """The map of kept patterns.

    Where no structure is found all patterns are one cluster, 0, and `AtlasMap.verdict` says why.

    Raises:
        TooFewPatterns: for the map, or for so many clusters.
        ValueError: a space that cannot be made of what there is.
    """
    how, progress = how or MapOptions(), progress or Progress()
    _check(patterns, how)
    clock, notes = _Clock(), []
    images, samples = patterns.images, patterns.samples.reset_index(drop=True)
    with clock("autoencoder"):
        model, training = train_autoencoder(images, how.seed, how.autoencoder, progress)
        latents = model.encode(images)
    with clock("space"):
        columns, space = _space(patterns, latents, training, how, notes)
        sizes = sizes_of(samples)
    choice = None
    if how.clusters is None:
        with clock("stability"):
            choice = choose(space, how.seed, how.stability, progress, sizes)
            asked = _on_all(choice.asked, len(space), how.stability)
    else:
        asked = Asked(how.stability.method, how.clusters)
    with clock("clusters"):
        labels, belonging = _clusters(space, asked, how.seed, sizes)
        beside = _beside(space, labels, asked, how.seed, sizes)
    with clock("principal components"):
        plane, explained = principal_plane(space)
    with clock("umap"):
        drawn = _umap(space, how, notes)
    with clock("prototypes and names"):
        names = name_clusters(labels, patterns.features, patterns.nulls)
        made = prototypes(labels, space, latents, images, model)
        own = name_heads(samples, patterns.features, patterns.nulls)
        heads = head_mix(labels, samples, how.seed).merge(own, on=["tower", "layer", "head"])
    points = samples[["tower", "layer", "head", "example", "part"]].assign(
        cluster=labels, belonging=belonging, pca_x=plane[:, 0], pca_y=plane[:, 1],
        umap_x=drawn[:, 0], umap_y=drawn[:, 1],
    )  # fmt: skip
    return AtlasMap(
        points=points, clusters=_table(names, made, len(labels)), names=names, prototypes=made,
        heads=heads, choice=choice, beside=beside, columns=columns, space=space, latents=latents,
        model=model, training=training, explained=explained, notes=tuple(notes),
        seconds=clock.seconds, options=how,
    )  # fmt: skip


def _as_asked(labels: NDArray[np.int64], how: MapOptions) -> str:
    found = counted(labels)
    if how.stability.method == "hdbscan":
        return f"{found} of at least {how.clusters} patterns each"
    if len(np.unique(labels)) == how.clusters:
        return f"{found}, as many as were asked for"
    return f"{found} that have a pattern, of {how.clusters} that were asked for"


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - began


def least_patterns(how: MapOptions) -> int:
    """Fewer patterns than this make no map."""
    return max(10, least_samples(how.umap) if how.umap else 0)


def _check(patterns: PatternSet, how: MapOptions) -> None:
    needed, count = least_patterns(how), len(patterns.samples)
    if count < needed:
        why = f"UMAP with {how.umap.neighbours} neighbours" if how.umap and needed > 10 else "A map"
        raise TooFewPatterns(
            f"{why} needs at least {needed} patterns, got {count}. Run the atlas with more samples."
        )


def _space(
    patterns: PatternSet,
    latents: NDArray[np.float32],
    training: Training,
    how: MapOptions,
    notes: list[str],
) -> tuple[FeatureColumns | None, Array]:
    """The columns that count, and the space."""
    columns, features, kind = None, None, how.space
    if not training.finished:
        notes.append(f"Autoencoder: {training.stopped}")
    if kind != "latent":
        columns = choose_columns(patterns.features, patterns.nulls)
        features = columns.apply(patterns.features, patterns.nulls)
        if columns.partly:
            told = ", ".join(f"{n} ({s:.0%})" for n, s in sorted(columns.partly.items()))
            notes.append(
                "Not measured on some patterns, and counted there as under uniform attention: "
                f"{told}."
            )
        if not columns.names:
            notes.append("No feature differs between patterns, so that they are compared without.")
    if kind == "both" and training.explained < LEAST_EXPLAINED:
        kind = "features"
        notes.append(
            f"The autoencoder explains {training.explained:.0%} of what patterns differ by, less "
            f"than {LEAST_EXPLAINED:.0%}, so that they are compared by features alone."
        )
    space = make_space(features, latents, patterns.samples, kind, how.latent_weight)
    return columns, space


def _on_all(asked: Asked | None, count: int, how: StabilityOptions) -> Asked | None:
    """What was chosen on some of the patterns, for all of them: clusters are larger there."""
    if asked is None or asked.method != "hdbscan":
        return asked
    return Asked("hdbscan", round(asked.number * max(count / how.patterns, 1.0)))


def _clusters(
    space: Array, asked: Asked | None, seed: int, sizes: Sizes
) -> tuple[NDArray[np.int64], Array]:
    if asked is None:
        return np.zeros(len(space), np.int64), np.ones(len(space))
    found = find(space, asked, seed, sizes=sizes)
    return by_size(found.labels)[0], found.belonging


def _beside(
    space: Array, labels: NDArray[np.int64], asked: Asked | None, seed: int, sizes: Sizes
) -> dict[str, float]:
    """How far the other methods find the same clusters."""
    from sklearn.metrics import adjusted_rand_score

    if asked is None:
        return {}
    count = int(labels.max()) + 1
    others = [Asked(method, count) for method in ("mixture", "kmeans")] if count > 1 else []
    if asked.method != "hdbscan":
        others.append(Asked("hdbscan", max(round(0.05 * len(space)), 5)))
    return {
        other.method: float(
            adjusted_rand_score(labels, find(space, other, seed, sizes=sizes).labels)
        )
        for other in others
        if other.method != asked.method
    }


def _umap(space: Array, how: MapOptions, notes: list[str]) -> Array:
    nothing = np.full((len(space), 2), np.nan)
    if how.umap is None:
        return nothing
    if float(space.var(0).sum()) <= 1e-20:
        notes.append("There is no UMAP, because all patterns are the same.")
        return nothing
    return umap_plane(space, how.seed, how.umap)


def _table(names: dict[int, PatternName], made: list[Prototype], count: int) -> pd.DataFrame:
    import pandas as pd

    lines = [
        {
            "cluster": one.cluster,
            "name": names[one.cluster].name,
            "size": one.size,
            "share": one.size / count,
            "medoid": one.medoid,
            "agreement": names[one.cluster].members,
            "sentence": names[one.cluster].sentence,
            "also": ", ".join(names[one.cluster].also),
        }
        for one in sorted(made, key=lambda one: (one.cluster == NO_CLUSTER, one.cluster))
    ]
    return pd.DataFrame(lines)
