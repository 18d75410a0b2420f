"""Clusters that are the same heads at other sizes are one; heads with two ways are not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.atlas.clusters import Asked, find
from analysis.atlas.sizes import Sizes, sizes_of


def crossed(cells: dict[tuple[int, int, int], int]) -> tuple[np.ndarray, Sizes]:
    """Labels and sizes of counts by (cluster, head, size)."""
    rows = np.repeat(np.array(list(cells)), list(cells.values()), axis=0)
    return rows[:, 0], Sizes(group=rows[:, 2], head=rows[:, 1])


def test_the_same_heads_at_other_sizes_are_one_kind() -> None:
    # Cluster 1 is what heads 0 and 1 do at size 0, cluster 2 what they do at sizes 1 and 2.
    labels, sizes = crossed(
        {(0, 2, 0): 5, (0, 2, 1): 7, (1, 0, 0): 6, (1, 1, 0): 5, (2, 0, 1): 7, (2, 1, 2): 8}
    )
    assert sizes.kinds(labels, 3).tolist() == [0, 1, 1]
    assert sizes.kinds(np.where(labels == 2, -1, labels), 2).tolist() == [0, 1]


def test_three_sizes_in_three_clusters_are_one_kind_and_an_empty_cluster_another() -> None:
    labels, sizes = crossed({(0, 0, 0): 5, (1, 0, 1): 5, (3, 0, 2): 5})
    assert sizes.kinds(labels, 4).tolist() == [0, 0, 1, 0]


def test_heads_that_do_both_at_each_size_have_two_ways() -> None:
    labels, sizes = crossed({(0, 0, 0): 5, (0, 0, 1): 2, (1, 0, 0): 2, (1, 0, 1): 9})
    assert sizes.kinds(labels, 2).tolist() == [0, 1]


def test_other_heads_at_other_sizes_are_not_joined() -> None:
    labels, sizes = crossed({(0, 0, 0): 20, (1, 1, 1): 20})
    assert sizes.kinds(labels, 2).tolist() == [0, 1]
    # One pattern of head 1 in cluster 0 is less than half of the smaller cluster.
    labels, sizes = crossed({(0, 0, 0): 19, (0, 1, 0): 1, (1, 1, 1): 20})
    assert sizes.kinds(labels, 2).tolist() == [0, 1]


def test_a_head_in_two_views_is_two() -> None:
    samples = pd.DataFrame(
        {
            "tower": "language", "layer": 0, "head": 3, "view": ["tokens"] * 4 + ["patches"] * 4,
            "queries": 9, "keys": [9, 9, 9, 16] + [4] * 4, "causal": [True] * 4 + [False] * 4,
        }
    )  # fmt: skip
    sizes = sizes_of(samples)
    assert len(set(sizes.head)) == 2
    assert len(set(sizes.group)) == 3
    assert sizes.kinds(np.repeat([0, 1], 4), 2).tolist() == [0, 1]


def test_clusters_of_one_kind_are_joined_where_they_are_found_and_where_others_are_placed() -> None:
    dice = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0]])
    where = np.tile([0, 1, 2], 20)
    space = middles[where] + 0.2 * dice.standard_normal((60, 2))
    # One head does places 0 and 1, at one size each; place 2 is the work of another.
    sizes = Sizes(group=(where == 1).astype(int), head=(where == 2).astype(int))
    for method in ("mixture", "kmeans"):
        found = find(space, Asked(method, 3), 0, sizes=sizes)
        assert found.count == 2
        kinds = [set(found.labels[where == place].tolist()) for place in range(3)]
        assert kinds[0] == kinds[1] != kinds[2] and len(kinds[2]) == 1
        assert (found.place(space) == found.labels).all()
        np.testing.assert_allclose(found.belonging, 1, atol=1e-6)
    assert find(space, Asked("mixture", 3), 0).count == 3
