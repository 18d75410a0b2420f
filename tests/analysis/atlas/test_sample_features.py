"""Features of sampled pairs: the example's own value of the head's own column."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.atlas.sample_features import sample_features
from analysis.scores import BatchScores, Column


def scores() -> BatchScores:
    columns = (
        Column("vision", 0, 0, "entropy", "", "nats"),
        Column("vision", 0, 1, "entropy", "", "nats"),
        Column("language", 2, 1, "entropy", "", "nats"),
        Column("vision", 0, 1, "hop_mass", "k=1", "share"),
        Column("vision", 0, 0, "hop_mass", "k=1", "share"),
    )
    numerator = torch.tensor([[2.0, 3, 5, 7, 11], [13, 17, 0, 19, 23]])
    denominator = torch.tensor([[4.0, 5, 2, 10, 20], [10, 20, 0, 40, 25]])
    return BatchScores(
        columns, numerator, denominator, numerator * 3, denominator * 2, examples=("a", "b")
    )


def pairs(lines: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=["tower", "layer", "head", "example"])


def test_each_pair_gets_its_own_numbers() -> None:
    asked = pairs(
        [
            ("vision", 0, 1, "b"), ("vision", 0, 0, "elsewhere"), ("vision", 0, 0, "a"),
            ("language", 2, 1, "a"), ("language", 2, 1, "b"), ("language", 2, 0, "a"),
        ]
    )  # fmt: skip
    values, nulls = sample_features(scores(), asked)
    assert values.index.tolist() == nulls.index.tolist() == [0, 2, 3, 4, 5]
    assert list(values) == list(nulls) == ["entropy", "hop_mass[k=1]"]
    nan = math.nan
    expected = np.array([[17 / 20, 19 / 40], [0.5, 11 / 20], [2.5, nan], [nan, nan], [nan, nan]])
    np.testing.assert_array_equal(values.to_numpy(), expected)
    np.testing.assert_allclose(nulls.to_numpy(), expected * 1.5)


def test_batches_put_together_equal_the_merged_scores() -> None:
    whole = scores()
    asked = pairs([("vision", 0, h, e) for h in (1, 0) for e in ("b", "a")])
    parts = [sample_features(whole.only(examples=[row]), asked) for row in (1, 0)]
    for kind in (0, 1):
        together = pd.concat([part[kind] for part in parts]).sort_index()
        pd.testing.assert_frame_equal(together, sample_features(whole, asked)[kind])


@pytest.mark.parametrize("lines", [[], [("vision", 0, 0, "elsewhere")]])
def test_no_pair_among_the_examples_gives_no_line(lines: list[tuple]) -> None:
    values, nulls = sample_features(scores(), pairs(lines))
    assert values.shape == nulls.shape == (0, 2)


def test_scores_without_columns_give_lines_without_columns() -> None:
    values, nulls = sample_features(BatchScores.nothing(["a"]), pairs([("vision", 0, 0, "a")]))
    assert values.shape == nulls.shape == (1, 0)
