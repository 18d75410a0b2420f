"""Intervals of differences: hand values, an independent formula, and error rates of simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.compare import intervals


def test_widened_by_the_factor_of_a_t_interval() -> None:
    n = np.array([10.0, 100.0, 1.0])
    low, high = intervals.expanded(np.zeros(3), np.full(3, -2.0), np.full(3, 1.0), n)
    # sqrt(10/9) * 2.2622 / 1.9600 and sqrt(100/99) * 1.9842 / 1.9600, from printed tables
    np.testing.assert_allclose(low[:2], [-2 * 1.2166, -2 * 1.0175], rtol=1e-3)
    np.testing.assert_allclose(high[:2], [1.2166, 1.0175], rtol=1e-3)
    assert np.isnan(low[2]) and np.isnan(high[2])


def test_difference_of_two_skewed_intervals_by_hand() -> None:
    # left 2 in (1, 5), right 10 in (6, 13): down sqrt(4^2 + 3^2) = 5, up sqrt(3^2 + 1^2)
    low, high = intervals.of_difference(
        np.array([2.0]), (np.array([1.0]), np.array([5.0])),
        np.array([10.0]), (np.array([6.0]), np.array([13.0])),
    )  # fmt: skip
    assert low[0] == pytest.approx(3.0)
    assert high[0] == pytest.approx(8 + 10**0.5)


def test_p_is_that_of_welch_where_intervals_are_symmetric() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 11), rng.normal(0.9, 2, 7)
    ends = []
    for sample in (a, b):
        half = stats.norm.ppf(0.975) * sample.std(ddof=1) / len(sample) ** 0.5
        half *= ((len(sample) - 1) / len(sample)) ** 0.5  # as the bootstrap has it
        ends.append((sample.mean(), sample.mean() - half, sample.mean() + half, len(sample)))
    values = [np.array([end[0]]) for end in ends]
    wide = [intervals.expanded(*(np.array([float(x)]) for x in end)) for end in ends]
    n = [np.array([float(end[3])]) for end in ends]
    low, high = intervals.of_difference(values[0], wide[0], values[1], wide[1])
    free = intervals.freedom(values[0], wide[0], values[1], wide[1], *n)
    p = intervals.p_values(values[1] - values[0], low, high, free)
    assert p[0] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=0.15)


def test_p_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(4)
    difference = rng.normal(size=500)
    low, high = difference - rng.exponential(size=500), difference + rng.exponential(size=500)
    p = intervals.p_values(difference, low, high, np.full(500, 5.0))
    assert ((p < 0.05) == ((low > 0) | (high < 0))).all()


def test_p_without_width_and_without_interval() -> None:
    zero, one = np.zeros(1), np.ones(1)
    free = np.array([6.0])
    assert intervals.p_values(zero, zero, zero, free)[0] == 1
    assert intervals.p_values(one, one, one, free)[0] == 0
    assert np.isnan(intervals.p_values(one, np.array([np.nan]), one, free)[0])


def test_false_discoveries_equal_scipy() -> None:
    p = np.random.default_rng(5).random(97) ** 3
    expected = stats.false_discovery_control(p)
    with_gap = np.insert(p, 13, np.nan)
    found = intervals.false_discoveries(with_gap)
    np.testing.assert_allclose(np.delete(found, 13), expected)
    assert np.isnan(found[13])


def test_rank_correlation_interval() -> None:
    low, high = intervals.of_rank_correlation(0.5, 28)
    # artanh 0.5 = 0.5493; half 1.96 * sqrt(1.125 / 25) = 0.41577
    assert (low, high) == (
        pytest.approx(np.tanh(0.13354), rel=1e-3),
        pytest.approx(np.tanh(0.96508), rel=1e-3),
    )
    assert np.isnan(intervals.of_rank_correlation(0.5, 3)).all()
    assert intervals.of_rank_correlation(1.0, 9) == (1.0, 1.0)
