"""Effect size, permutation p and false discovery, against formulas and scipy."""

import re
from itertools import combinations

import numpy as np
import pytest

from analysis.importance.behaviours.difference import effect_size, false_discovery, permutation_p


def test_effect_size_by_hand() -> None:
    one = np.array([[1.0], [2.0], [6.0]])
    other = np.array([[0.0], [1.0], [1.0], [2.0], [1.0]])
    # means 3 and 1; squares 14 and 2; pooled variance 16 / 6
    assert effect_size(one, other)[0] == pytest.approx(2 / np.sqrt(16 / 6))
    assert effect_size(other, one)[0] == pytest.approx(-2 / np.sqrt(16 / 6))


def test_a_head_that_never_varies_has_no_effect_size() -> None:
    one, other = np.array([[2.0, 1.0], [2.0, 3.0]]), np.array([[2.0, 5.0], [2.0, 9.0]])
    assert np.isnan(effect_size(one, other)[0])
    assert np.isfinite(effect_size(one, other)[1])


def test_p_is_exact_for_few_examples() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=(3, 2)), generator.normal(size=(5, 2)) + 0.7
    values = np.concatenate([one, other])
    p, splits = permutation_p(one, other)
    assert splits == 56
    for column in range(2):
        seen = abs(one[:, column].mean() - other[:, column].mean())
        reached = 0
        for members in combinations(range(8), 3):
            rest = [index for index in range(8) if index not in members]
            gap = values[list(members), column].mean() - values[rest, column].mean()
            reached += abs(gap) >= seen - 1e-12
        assert p[column] == pytest.approx(reached / 56)


def test_exact_p_equals_scipys() -> None:
    from scipy.stats import permutation_test

    generator = np.random.default_rng(5)
    one, other = generator.normal(size=(4, 1)), generator.normal(size=(4, 1)) + 0.5
    found = permutation_test(
        (one[:, 0], other[:, 0]), lambda a, b: abs(a.mean() - b.mean()), alternative="greater"
    )
    assert permutation_p(one, other)[0][0] == pytest.approx(found.pvalue)


def test_p_is_never_zero() -> None:
    one, other = np.full((20, 1), 9.0), np.zeros((20, 1))
    p, splits = permutation_p(one, other, permutations=99)
    assert (p[0], splits) == (0.01, 99)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    generator = np.random.default_rng(7)
    one, other = generator.exponential(size=(9, 400)), generator.exponential(size=(11, 400))
    p, splits = permutation_p(one, other, permutations=999)
    assert splits == 999
    from scipy.stats import kstest

    assert kstest(p, "uniform").pvalue > 0.01
    assert abs(np.mean(p <= 0.05) - 0.05) < 0.03


def test_the_order_of_examples_and_the_sign_change_nothing() -> None:
    generator = np.random.default_rng(9)
    one, other = generator.normal(size=(4, 3)), generator.normal(size=(6, 3))
    p = permutation_p(one, other)[0]
    assert np.allclose(permutation_p(one[::-1], other[::-1])[0], p)
    assert np.allclose(permutation_p(other, one)[0], p)
    assert np.allclose(permutation_p(3 - 2 * one, 3 - 2 * other)[0], p)


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
        permutation_p(np.zeros((1, 2)), np.zeros((3, 2)))
