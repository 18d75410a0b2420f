"""Paired comparison: values by hand, intervals that know of pairs, controls, averages."""

import math

import numpy as np
import pytest

from analysis.hallucination.paired import compare
from analysis.hallucination.sheet import Sheet
from analysis.statistics import poisson_weights

A, B, MEAN = ("a", ""), ("b", "x"), ("b", "mean")


def sheet(numbers, metric=A, denominators=None):
    rows = {}
    for index, number in enumerate(numbers):
        bottom = 1 if denominators is None else denominators[index]
        rows[f"e{index}"] = {metric: (number, bottom)}
    return Sheet.of(rows)


def found(results, condition, metric=A):
    (one,) = [r for r in results if r.condition == condition and r.metric == metric]
    return one


def test_values_are_ratios_of_sums():
    one, two = sheet([1, 0, 3], denominators=[2, 0, 5]), sheet([1, 1, 1], denominators=[1, 2, 1])
    results = compare({"base": [one], "edit": [two]}, "base")
    assert found(results, "base").value.value == pytest.approx(4 / 7)
    assert found(results, "base").n == 2
    assert found(results, "edit").difference.value == pytest.approx(3 / 4 - 4 / 7)
    assert found(results, "base").difference.value == 0


def test_the_interval_of_a_difference_is_that_of_a_paired_bootstrap():
    rng = np.random.default_rng(3)
    base = rng.normal(size=41) * 10
    change = rng.normal(size=41)
    results = compare(
        {"base": [sheet(base)], "edit": [sheet(base + change)]}, "base", seed=7, replicates=500
    )
    one = found(results, "edit")
    draws = np.array([poisson_weights(f"e{i}", 500, 7) for i in range(41)])
    paired = (draws * change[:, None]).sum(0) / draws.sum(0)
    low, high = np.quantile(paired, [0.025, 0.975])
    assert (one.difference.low, one.difference.high) == pytest.approx((low, high))
    unpaired = one.value.high - one.value.low
    assert one.difference.high - one.difference.low < unpaired / 4


def test_a_constant_difference_has_no_width():
    base = np.arange(17.0)
    results = compare({"base": [sheet(base)], "edit": [sheet(base + 0.25)]}, "base")
    one = found(results, "edit")
    assert one.difference.low == pytest.approx(0.25)
    assert one.difference.high == pytest.approx(0.25)


def test_controls_are_pooled_and_compared_with():
    base, edit = sheet([4, 4, 4, 4]), sheet([1, 2, 1, 2])
    controls = [sheet([3, 3, 3, 3]), sheet([2, 3, 2, 3])]
    results = compare(
        {"base": [base], "edit": [edit], "random": controls}, "base", {"edit": "random"}
    )
    assert found(results, "random").value.value == pytest.approx((12 + 10) / 8)
    beyond = found(results, "edit").beyond
    assert beyond is not None
    assert beyond.value == pytest.approx(1.5 - 2.75)
    assert beyond.low <= beyond.value <= beyond.high
    assert found(results, "random").beyond is None


def test_averages_are_means_of_ratios():
    parts = [("b", "x"), ("b", "y")]
    rows = {"e0": {parts[0]: (1, 2), parts[1]: (1, 1)}, "e1": {parts[0]: (0, 2), parts[1]: (2, 9)}}
    results = compare({"base": [Sheet.of(rows)]}, "base", averages={MEAN: parts})
    assert found(results, "base", MEAN).value.value == pytest.approx((1 / 4 + 3 / 10) / 2)


def test_one_example_has_no_interval_and_no_data_no_value():
    results = compare({"base": [sheet([2])]}, "base")
    assert found(results, "base").value.value == 2
    assert math.isnan(found(results, "base").value.low)
    results = compare({"base": [sheet([0, 0], denominators=[0, 0])]}, "base")
    assert math.isnan(found(results, "base").value.value)
    assert found(results, "base").n == 0


def test_order_does_not_matter_and_other_examples_are_refused():
    base = Sheet.of({"p": {A: (1, 1)}, "q": {A: (5, 1)}, "r": {A: (2, 1)}})
    edit = Sheet.of({"r": {A: (2, 1)}, "p": {A: (1, 1)}, "q": {A: (5, 1)}})
    one = found(compare({"base": [base], "edit": [edit]}, "base"), "edit")
    assert (one.difference.value, one.difference.low, one.difference.high) == (0, 0, 0)
    other = Sheet.of({"p": {A: (1, 1)}, "q": {A: (5, 1)}})
    with pytest.raises(ValueError, match="'r' is in one of two only"):
        compare({"base": [base], "edit": [other]}, "base")
