"""Each head's mix of clusters, its entropy and what chance would give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.atlas.head_mix import entropy_nats, head_mix


def samples(heads: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"tower": "language", "layer": 1, "head": heads})


def test_entropy_is_that_of_scipy() -> None:
    counts = np.array([[7.0, 2, 0, 4], [0, 5, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(entropy_nats(counts), [stats.entropy(row) for row in counts])


def test_steady_changing_and_unjudged_heads() -> None:
    labels = np.array([0] * 9 + [1] + [0, 1, -1] * 4 + [1, 1])
    made = head_mix(labels, samples([0] * 10 + [1] * 12 + [2] * 2), seed=0).set_index("head")
    assert made["verdict"].tolist() == ["steady", "content-dependent", "too few patterns"]
    assert made["patterns"].tolist() == [10, 12, 2]
    assert made.loc[0, "cluster 0"] == pytest.approx(0.9)
    assert made.loc[1, "no cluster"] == pytest.approx(1 / 3)
    assert made.loc[0, "entropy_nats"] == pytest.approx(stats.entropy([0.9, 0.1]))
    assert made.loc[0, "most"] == 0 and made.loc[2, "most"] == 1
    shares = made[["cluster 0", "cluster 1", "no cluster"]].sum(axis=1)
    np.testing.assert_allclose(shares, 1)


def test_a_steady_head_is_below_chance_and_a_dealt_one_is_not() -> None:
    dice = np.random.default_rng(0)
    labels = np.concatenate([np.zeros(20), dice.integers(0, 3, 100)]).astype(int)
    made = head_mix(labels, samples(np.repeat(np.arange(6), 20).tolist()), seed=1)
    assert made["p"].iloc[0] < 0.01
    assert made["entropy_nats"].iloc[0] < made["null_low_nats"].iloc[0]
    assert (made["p"].iloc[1:] > 0.05).all()
    assert made.equals(head_mix(labels, samples(np.repeat(np.arange(6), 20).tolist()), seed=1))


def test_one_head_alone_is_its_own_chance() -> None:
    made = head_mix(np.array([0, 0, 1, 1, 1, 1]), samples([0] * 6), seed=0)
    assert made["p"].tolist() == [1.0]
    assert made["null_nats"].iloc[0] == pytest.approx(made["entropy_nats"].iloc[0])
