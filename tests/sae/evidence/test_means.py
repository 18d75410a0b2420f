"""Means over firings, firings of an example resampled together."""

import math

import pytest

from analysis.statistics import poisson_weights
from sae.evidence.means import Means


def test_a_mean_counts_firings_and_its_interval_resamples_examples():
    values = {"a": [1.0, 2.0, 6.0], "b": [-3.0], "c": [0.5, 0.5]}
    means = Means(seed=5)
    for example, some in values.items():
        for value in some:
            means.add(example, {"x": value})
    found = means.of("x")
    assert found.value == pytest.approx(7.0 / 6)
    assert (found.firings, found.examples) == (6, 3)
    weights = {example: poisson_weights(example, 200, 5) for example in values}
    ratios = []
    for draw in range(200):
        count = sum(weights[e][draw] * len(some) for e, some in values.items())
        total = sum(weights[e][draw] * sum(some) for e, some in values.items())
        if count:
            ratios.append(total / count)
    ratios.sort()
    assert ratios[0] <= found.low < found.value < found.high <= ratios[-1]
    below = sum(ratio < found.low for ratio in ratios) / len(ratios)
    above = sum(ratio > found.high for ratio in ratios) / len(ratios)
    assert below <= 0.03 and above <= 0.03


def test_names_are_apart_and_what_was_never_added_is_not_a_number():
    means = Means()
    means.add("a", {"x": 1.0})
    means.add("b", {"x": 2.0, "y": 5.0})
    assert means.of("y").value == 5.0
    assert math.isnan(means.of("y").low)  # one example has no interval
    nothing = means.of("z")
    assert math.isnan(nothing.value) and nothing.firings == 0
