"""The permutation test: exact p, its calibration, pairs, the null beside it."""

from itertools import combinations, product

import numpy as np
import pytest

from analysis.importance.scans.difference import effect_size
from analysis.importance.scans.permutation import permutation_test


def welch(one: np.ndarray, other: np.ndarray) -> float:
    error = one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)
    return abs(one.mean() - other.mean()) / np.sqrt(error)


def test_p_is_exact_for_few_examples() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=(3, 2)), generator.normal(size=(5, 2)) + 0.7
    values = np.concatenate([one, other])
    found = permutation_test(one, other)
    assert found.splits == 56
    for column in range(2):
        seen, reached, sizes = welch(one[:, column], other[:, column]), 0, []
        for members in combinations(range(8), 3):
            rest = [index for index in range(8) if index not in members]
            mine, theirs = values[list(members)], values[rest]
            reached += welch(mine[:, column], theirs[:, column]) >= seen - 1e-12
            sizes.append(effect_size(mine, theirs)[column])
        assert found.p[column] == pytest.approx(reached / 56)
        low, high = np.quantile(sizes, [0.025, 0.975], method="nearest")
        assert (found.null_low[column], found.null_high[column]) == pytest.approx((low, high))


def test_p_of_pairs_is_exact_for_few() -> None:
    generator = np.random.default_rng(4)
    one, other = generator.normal(size=(7, 1)) + 0.4, generator.normal(size=(7, 1))
    difference = (one - other)[:, 0]
    signs = np.array(list(product([1, -1], repeat=7)))
    # The paired t of scipy orders the splits as the mean difference does.
    sizes = np.abs((signs * difference).mean(1) / (signs * difference).std(1, ddof=1))
    expected = np.mean(sizes >= sizes[0] - 1e-12)
    found = permutation_test(one, other, paired=True)
    assert found.splits == 128 and found.p[0] == pytest.approx(expected)


def test_exact_p_equals_scipys() -> None:
    from scipy.stats import permutation_test as scipys
    from scipy.stats import ttest_ind

    generator = np.random.default_rng(5)
    one, other = generator.normal(size=(4, 1)), 2 * generator.normal(size=(6, 1)) + 0.5

    def statistic(a: np.ndarray, b: np.ndarray) -> float:
        return abs(ttest_ind(a, b, equal_var=False).statistic)

    found = scipys((one[:, 0], other[:, 0]), statistic, alternative="greater", vectorized=False)
    assert permutation_test(one, other).p[0] == pytest.approx(found.pvalue)


def test_p_is_never_zero() -> None:
    one, other = np.full((20, 1), 9.0), np.zeros((20, 1))
    one[0] += 1e-3
    for paired, splits in ((False, 100), (True, 100)):
        found = permutation_test(one, other, permutations=99, paired=paired)
        assert (found.p[0], found.splits) == (0.01, splits)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    from scipy.stats import kstest

    generator = np.random.default_rng(7)
    one, other = generator.exponential(size=(9, 400)), generator.exponential(size=(11, 400))
    found = permutation_test(one, other, permutations=999)
    assert found.splits == 1000
    assert kstest(found.p, "uniform").pvalue > 0.01
    assert abs(np.mean(found.p <= 0.05) - 0.05) < 0.03


def test_equal_means_of_unequal_spread_are_no_difference() -> None:
    """The plain difference of means calls 28 % of these heads different at 5 %."""
    generator = np.random.default_rng(8)
    one, other = 3 * generator.normal(size=(12, 500)), generator.normal(size=(60, 500))
    assert np.mean(permutation_test(one, other, permutations=499).p <= 0.05) < 0.1
    values = np.concatenate([one, other])
    seen, reached = np.abs(one.mean(0) - other.mean(0)), np.ones(500)
    for _ in range(199):
        values = values[generator.permutation(72)]
        reached += np.abs(values[:12].mean(0) - values[12:].mean(0)) >= seen
    assert np.mean(reached / 200 <= 0.05) > 0.2


def test_pairs_find_what_templates_hide() -> None:
    generator = np.random.default_rng(9)
    template = 3 * generator.normal(size=(19, 200))
    one = template + generator.normal(size=(19, 200)) + 1
    other = template + generator.normal(size=(19, 200))
    apart = permutation_test(one, other, permutations=499)
    together = permutation_test(one, other, permutations=499, paired=True)
    assert np.mean(apart.p <= 0.05) < 0.1 and np.mean(together.p <= 0.05) > 0.7
    same = permutation_test(one - 1, other, permutations=499, paired=True)
    assert abs(np.mean(same.p <= 0.05) - 0.05) < 0.04


def test_the_order_of_examples_and_the_sign_change_nothing() -> None:
    generator = np.random.default_rng(9)
    one, other = generator.normal(size=(4, 3)), generator.normal(size=(6, 3))
    p = permutation_test(one, other).p
    assert np.allclose(permutation_test(one[::-1], other[::-1]).p, p)
    assert np.allclose(permutation_test(other, one).p, p)
    assert np.allclose(permutation_test(3 - 2 * one, 3 - 2 * other).p, p)


def test_constant_and_unknown_columns() -> None:
    generator = np.random.default_rng(10)
    one, other = generator.normal(size=(6, 4)), generator.normal(size=(7, 4))
    alone = permutation_test(one[:, 3:], other[:, 3:])
    one[:, 0], other[:, 0] = 0.1, 0.1
    one[:, 1], other[:, 1] = 2.0, 1.0
    one[2, 2] = np.nan
    found = permutation_test(one, other)
    assert found.p[0] == 1
    assert found.p[1] == pytest.approx(1 / 1716)  # no other split of 6 and 7 is as clean
    assert np.isnan(found.p[2]) and np.isnan(found.null_low[2])
    assert found.p[3] == alone.p[0]


def test_the_largest_of_all_is_larger_than_any_alone() -> None:
    generator = np.random.default_rng(12)
    one, other = generator.normal(size=(15, 40)), generator.normal(size=(15, 40))
    found = permutation_test(one, other, permutations=499)
    assert found.null_high.max() < found.null_largest < 2
    few = permutation_test(one[:, :1], other[:, :1], permutations=499)
    assert few.null_largest < found.null_largest


def test_pairs_must_have_two_halves() -> None:
    with pytest.raises(ValueError, match="Pairs must have two halves, got 3 and 4"):
        permutation_test(np.zeros((3, 1)), np.zeros((4, 1)), paired=True)
    with pytest.raises(ValueError, match="at least 2 examples to be compared, got 1 and 4"):
        permutation_test(np.zeros((1, 1)), np.zeros((4, 1)))
