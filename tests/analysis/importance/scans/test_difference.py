"""Effect size, its interval and the false discovery rate, against formulas and scipy."""

import re

import numpy as np
import pytest

from analysis.importance.scans.difference import (
    effect_size,
    effect_size_interval,
    false_discovery,
)


def test_effect_size_by_hand() -> None:
    one = np.array([[1.0], [2.0], [6.0]])
    other = np.array([[0.0], [1.0], [1.0], [2.0], [1.0]])
    # means 3 and 1; squares 14 and 2; pooled variance 16 / 6
    assert effect_size(one, other)[0] == pytest.approx(2 / np.sqrt(16 / 6))
    assert effect_size(other, one)[0] == pytest.approx(-2 / np.sqrt(16 / 6))


def test_what_never_varies() -> None:
    """All one value: no effect size. One value in each set: infinitely far apart."""
    one = np.array([[2.0, 1.0, 5.0, np.nan], [2.0, 3.0, 5.0, 1.0]])
    other = np.array([[2.0, 5.0, 7.0, 1.0], [2.0, 9.0, 7.0, 2.0]])
    found = effect_size(one, other)
    assert np.isnan(found[[0, 3]]).all()
    assert np.isfinite(found[1]) and found[2] == -np.inf


def test_rounding_is_no_difference() -> None:
    """The same number in float32, summed in another order, is one value."""
    one = np.array([[0.7], [0.7 + 4e-8]])
    other = np.array([[0.7 - 6e-8], [0.7]])
    assert np.isnan(effect_size(one, other)[0])
    assert np.isfinite(effect_size(np.array([[0.7], [0.701]]), other)[0])


def _weights(generator: np.random.Generator, *counts: int, replicates: int = 200) -> tuple:
    return tuple(generator.poisson(1.0, (replicates, count)) for count in counts)


def test_intervals_cover_the_truth() -> None:
    """The true d of 1.3 lies in 95 % intervals of 23 and 17 examples in about 95 % of 400 cases."""
    generator = np.random.default_rng(4)
    one, other = generator.normal(size=(23, 400)) + 1.3, generator.normal(size=(17, 400))
    low, high = effect_size_interval(one, other, _weights(generator, 23, 17))
    covered = np.mean((low <= 1.3) & (high >= 1.3))
    assert 0.91 <= covered <= 0.98
    # The percentile interval, which leans away from 0 with d, covers less.
    d = effect_size(one, other)
    percentile = np.mean((2 * d - high <= 1.3) & (2 * d - low >= 1.3))
    assert percentile < covered


def test_pairs_vary_less_when_they_are_drawn_together() -> None:
    generator = np.random.default_rng(5)
    template = 4 * generator.normal(size=(31, 3))
    one = template + generator.normal(size=(31, 3)) + 0.5
    other = template + generator.normal(size=(31, 3))
    mine, theirs = _weights(generator, 31, 31)
    together = np.subtract(*effect_size_interval(one, other, (mine, mine))[::-1])
    apart = np.subtract(*effect_size_interval(one, other, (mine, theirs))[::-1])
    assert (together < 0.6 * apart).all()


def test_no_interval_without_an_effect_size() -> None:
    one, other = np.full((5, 2), 2.0), np.full((4, 2), 2.0)
    other[:, 1] = 3.0
    low, high = effect_size_interval(one, other, _weights(np.random.default_rng(0), 5, 4))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_false_discovery_by_hand() -> None:
    p = np.array([0.6, 0.005, np.nan, 0.011, 0.04])
    # sorted .005 .011 .04 .6 times 4 / rank: .02 .022 .0533 .6
    expected = [0.6, 0.02, np.nan, 0.022, 4 * 0.04 / 3]
    assert np.allclose(false_discovery(p), expected, equal_nan=True)


def test_false_discovery_equals_scipys() -> None:
    from scipy.stats import false_discovery_control

    p = np.random.default_rng(11).uniform(size=37) ** 2
    assert np.allclose(false_discovery(p), false_discovery_control(p, method="bh"))


def test_one_example_is_too_few() -> None:
    with pytest.raises(ValueError, match=re.escape("at least 2 examples to be compared, got 1")):
        effect_size(np.zeros((1, 2)), np.zeros((3, 2)))
