"""Bootstrap weights, ratio intervals, halves and nulls against oracles and by simulation."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    RatioSums,
    exceedance,
    half_of,
    null_interval,
    poisson_weights,
    ranks,
    spearman,
    split_half_reliability,
)

IDS = [f"example-{index}" for index in range(31)]


def _scores(columns=7, seed=0):
    rng = np.random.default_rng(seed)
    denominator = rng.integers(1, 9, (len(IDS), columns)).astype(float)
    return rng.gamma(2.0, size=denominator.shape) * denominator, denominator


def _filled(order, columns=7, chunk=5, **options):
    numerator, denominator = _scores(columns)
    sums = RatioSums.empty(columns, replicates=53, **options)
    for start in range(0, len(order), chunk):
        rows = order[start : start + chunk]
        sums.add([IDS[row] for row in rows], numerator[rows], denominator[rows])
    return sums


def test_weights_are_a_function_of_id_and_seed_alone():
    again = poisson_weights("scene-000", 8, 0)
    assert again.tolist() == [2, 3, 1, 1, 1, 1, 5, 1]
    assert poisson_weights("scene-000", 5, 0).tolist() == again[:5].tolist()
    assert poisson_weights("scene-001", 8, 0).tolist() != again.tolist()
    assert poisson_weights("scene-000", 8, 1).tolist() != again.tolist()
    poisson_weights("a lone surrogate \ud800 is an id too", 2, 0)


def test_weights_are_poisson_with_mean_one():
    drawn = np.concatenate([poisson_weights(str(i), 200, 3) for i in range(300)])
    counts = np.bincount(drawn, minlength=7)[:7]
    expected = stats.poisson.pmf(np.arange(7), 1.0) * drawn.size
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001
    # A uniform or a Bernoulli draw with the same mean must not pass.
    assert abs(drawn.var() - 1.0) < 0.03


def test_weights_of_two_examples_and_of_two_replicates_are_independent():
    table = np.stack([poisson_weights(str(i), 97, 0) for i in range(400)])
    between_examples = np.corrcoef(table[:60])
    between_replicates = np.corrcoef(table.T)
    for matrix, samples in ((between_examples, 97), (between_replicates, 400)):
        off = matrix[~np.eye(len(matrix), dtype=bool)]
        assert abs(off.mean()) < 0.02
        assert off.std() == pytest.approx(samples**-0.5, rel=0.2)


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    sums = RatioSums.empty(2, replicates=3)
    sums.add(["a", "b"], np.array([[1.0, 5.0], [6.0, 0.0]]), np.array([[1.0, 2.0], [9.0, 0.0]]))
    assert sums.value.tolist() == [0.7, 2.5]
    assert sums.n.tolist() == [2, 1]


def test_interval_equals_numpy_quantiles_of_reweighted_ratios():
    numerator, denominator = _scores()
    weights = np.stack([poisson_weights(name, 53, 11) for name in IDS])
    ratios = (weights.T @ numerator) / (weights.T @ denominator)
    low, high = _filled(list(range(31)), seed=11).interval(0.8)
    np.testing.assert_allclose(low, np.quantile(ratios, 0.1, axis=0), rtol=1e-12)
    np.testing.assert_allclose(high, np.quantile(ratios, 0.9, axis=0), rtol=1e-12)


def test_order_chunks_and_shards_change_nothing():
    whole = _filled(list(range(31)))
    shuffled = _filled(list(np.random.default_rng(1).permutation(31)), chunk=2)
    shards = _filled(list(range(13)), chunk=13).merge(_filled(list(range(13, 31)), chunk=3))
    for other in (shuffled, shards):
        np.testing.assert_allclose(other.interval(), whole.interval(), rtol=1e-12)
        np.testing.assert_allclose(other.halves, whole.halves, rtol=1e-12)
        assert other.n.tolist() == whole.n.tolist()


def test_merge_refuses_other_seeds_and_columns():
    with pytest.raises(ValueError, match="must agree in columns, replicates and seed"):
        RatioSums.empty(3, seed=0).merge(RatioSums.empty(3, seed=1))
    with pytest.raises(ValueError, match=r"must be \[example, column\] = \[1, 3\]"):
        RatioSums.empty(3).add(["a"], np.zeros((3, 1)), np.zeros((3, 1)))


def test_intervals_cover_the_truth():
    """200 heads x 25 runs of 40 examples; rows per example vary, as text lengths do."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(25):
        denominator = rng.integers(5, 40, (40, 200)).astype(float)
        numerator = rng.beta(2, 6, denominator.shape) * denominator
        sums = RatioSums.empty(200, seed=seed)
        sums.add([f"{seed}-{i}" for i in range(40)], numerator, denominator)
        low, high = sums.interval()
        covered.append(((low <= 0.25) & (high >= 0.25)).mean())
    assert 0.91 < np.mean(covered) < 0.96


def test_one_example_has_no_interval_and_nothing_counted_is_nan():
    sums = RatioSums.empty(2)
    sums.add(["only"], np.array([[3.0, 0.0]]), np.array([[4.0, 0.0]]))
    assert sums.value[0] == 0.75
    assert np.isnan(sums.value[1])
    assert np.isnan(sums.interval()).all()


def test_halves_split_by_id_and_cover_everything():
    first = [half_of(name, 0) for name in IDS]
    assert 5 < sum(first) < 26
    assert first != [half_of(name, 1) for name in IDS]
    numerator, denominator = _scores()
    rows = [index for index, half in enumerate(first) if half == 1]
    np.testing.assert_allclose(
        _filled(list(range(31))).halves[1],
        numerator[rows].sum(0) / denominator[rows].sum(0),
        rtol=1e-12,
    )


def test_half_is_independent_of_the_weights():
    halves = np.array([half_of(str(i), 0) for i in range(2000)])
    first = np.array([poisson_weights(str(i), 1, 0)[0] for i in range(2000)])
    assert abs(np.corrcoef(halves, first)[0, 1]) < 0.07


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_spearman_equal_scipy_with_ties(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 6, 23).astype(float), rng.normal(size=23)
    right[:11] += left[:11]
    np.testing.assert_array_equal(ranks(left), stats.rankdata(left))
    assert spearman(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)


def test_spearman_leaves_out_what_was_not_measured():
    left = np.array([1.0, 2.0, np.nan, 3.0, 9.0])
    right = np.array([1.0, 3.0, 99.0, 2.0, np.nan])
    assert spearman(left, right) == pytest.approx(0.5)
    assert np.isnan(spearman(left[:2], right[:2]))
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


def test_reliability_is_per_group():
    halves = np.array([[1.0, 2, 3, 1, 2, 3], [5.0, 6, 7, 9, 8, 7]])
    result = split_half_reliability(halves, ["sink"] * 3 + ["entropy"] * 3)
    assert result == {"sink": pytest.approx(1.0), "entropy": pytest.approx(-1.0)}


def test_null_interval_and_exceedance():
    null = np.arange(1.0, 101.0)
    assert null_interval(null, 0.9) == (pytest.approx(5.95), pytest.approx(95.05))
    assert exceedance(99.5, null) == pytest.approx(2 / 101)
    assert exceedance(1000.0, null) == pytest.approx(1 / 101)
    assert exceedance(1.0, null) == 1.0
    assert all(np.isnan(null_interval(np.array([np.nan]))))
