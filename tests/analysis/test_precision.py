"""Numbers to the precision of their interval."""

import math

import pytest

from analysis.precision import plain, rounded


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.4213948, 0.391, 0.452, "0.42 ± 0.03"),
        (0.4213948, 0.42129, 0.42151, "0.4214 ± 0.0001"),
        (-1.26, -1.5, -0.9, "-1.3 ± 0.3"),
        (153.7, 141.2, 166.0, "154 ± 12"),
        (0.096, 0.0, 0.192, "0.10 ± 0.10"),
        (2.5, 2.5, 2.5, "2.50"),
        (1.0, 1.0 - 1e-8, 1.0 + 1e-8, "1.00"),
        (0.5, math.nan, math.nan, "0.500"),
        (math.nan, 0.0, 1.0, "n/a"),
        (0.0, 0.0, 0.0, "0"),
    ],
)
def test_a_value_with_its_interval(value, low, high, text):
    assert rounded(value, low, high) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.42139, "0.421"), (-12.345, "-12.3"), (99.96, "100.0"), (1e6, "1,000,000"), (0, "0")],
)
def test_a_plain_value(value, text):
    assert plain(value) == text
