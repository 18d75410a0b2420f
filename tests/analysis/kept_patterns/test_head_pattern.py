"""One head's pattern by hand: four queries, five keys, whole and as its two strongest keys."""

import numpy as np
import pytest

from analysis.kept_patterns import HeadPattern

FULL = np.array(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.25, 0.75, 0.0, 0.0, 0.0],
        [0.5, 0.125, 0.375, 0.0, 0.0],
        [0.0625, 0.125, 0.0625, 0.5, 0.25],
    ],
    np.float16,
)
QUERIES = np.array([0, 2, 3, 6], np.int32)


def whole():
    return HeadPattern(QUERIES, 5, "language", FULL, None, True, "one")


def strongest():
    key = np.array([[0, 0], [1, 0], [0, 2], [3, 4]])
    weight = np.take_along_axis(FULL, key, 1)
    weight[0, 1] = 0  # filling: key 0 is counted once
    return HeadPattern(QUERIES, 5, "language", weight, key, False, "one")


def test_a_row_is_what_a_query_reads():
    assert whole().row(3).tolist() == [0.5, 0.125, 0.375, 0, 0]
    assert strongest().row(3).tolist() == [0.5, 0, 0.375, 0, 0]
    assert strongest().row(0).tolist() == [1, 0, 0, 0, 0]


def test_a_column_is_who_reads_a_key():
    assert whole().column(1).tolist() == [0, 0.75, 0.125, 0.125]
    assert strongest().column(1).tolist() == [0, 0.75, 0, 0]


def test_what_is_missing_is_said():
    assert whole().missing().tolist() == [0, 0, 0, 0]
    assert strongest().missing().tolist() == [0, 0, 0.125, 0.25]
    sinking = HeadPattern(QUERIES, 5, "language", FULL / 2, None, True, "below one")
    assert sinking.missing().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_pooling_is_the_mean_of_queries_and_the_sum_of_keys(most):
    for pattern in (whole(), strongest()):
        rows = np.stack([pattern.row(int(query)) for query in QUERIES])
        down, across = -(-4 // min(most, 4)), -(-5 // min(most, 5))
        expected = [
            [rows[i : i + down, j : j + across].sum() / len(rows[i : i + down])
             for j in range(0, 5, across)]
            for i in range(0, 4, down)
        ]  # fmt: skip
        assert pattern.pooled(most) == pytest.approx(np.array(expected))
        assert max(pattern.pooled(most).shape) <= most


def test_pairs_name_each_weight_once():
    for pattern in (whole(), strongest()):
        rebuilt = np.zeros((4, 5), np.float32)
        for row, key, weight in zip(*pattern.pairs(), strict=True):
            assert rebuilt[row, key] == 0
            rebuilt[row, key] = weight
        assert rebuilt.tolist() == [pattern.row(int(query)).tolist() for query in QUERIES]


def test_a_position_that_reads_nothing_is_refused():
    with pytest.raises(ValueError, match="must be a position that this head reads from, got 4"):
        whole().row(4)
