"""Pairs and groups of heads, from a matrix of their similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

GROUP_AT = 0.8
"""Mean similarity that heads of one group have to those that join them."""


def pair_lines(heads: Sequence[Head], similarity: Tensor, kind: str) -> pd.DataFrame:
    """One line per pair, each once: tower layer_a head_a layer_b head_b kind value."""
    import pandas as pd

    matrix = similarity.double().cpu().numpy()
    first, second = np.triu_indices(len(heads), k=1)
    layers = np.array([head.layer for head in heads])
    numbers = np.array([head.head for head in heads])
    return pd.DataFrame(
        {
            "tower": heads[0].tower,
            "layer_a": layers[first],
            "head_a": numbers[first],
            "layer_b": layers[second],
            "head_b": numbers[second],
            "kind": kind,
            "value": matrix[first, second],
        }
    )


def group_lines(
    heads: Sequence[Head], similarity: Tensor, kind: str, group_at: float = GROUP_AT
) -> pd.DataFrame:
    """One line per head: tower layer head kind group size group_at; group 0 is the largest."""
    import pandas as pd

    labels = groups_of(similarity.double().cpu().numpy(), group_at)
    names, sizes = np.unique(labels, return_counts=True)
    rank = {name: place for place, name in enumerate(names[np.argsort(-sizes, kind="stable")])}
    size = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    return pd.DataFrame(
        {
            "tower": heads[0].tower,
            "layer": [head.layer for head in heads],
            "head": [head.head for head in heads],
            "kind": kind,
            "group": [rank[label] for label in labels],
            "size": [size[label] for label in labels.tolist()],
            "group_at": group_at,
        }
    )


def groups_of(similarity: NDArray[np.float64], group_at: float) -> NDArray[np.int64]:
    """Int ``[head]``: groups by average linkage, cut where mean similarity falls below a value.

    Unknown similarities count as 0.
    """
    from sklearn.cluster import AgglomerativeClustering

    if len(similarity) < 2:
        return np.zeros(len(similarity), dtype=np.int64)
    apart = 1 - np.nan_to_num(similarity, nan=0.0)
    np.fill_diagonal(apart, 0.0)
    made = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=1 - group_at
    )
    return made.fit(np.clip(apart, 0.0, None)).labels_.astype(np.int64)
