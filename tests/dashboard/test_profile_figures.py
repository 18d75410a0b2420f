"""Curves of heads: what is drawn is what the tables say, beside uniform attention."""

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import HeadTable
from dashboard.figures import layer_trend, profile, profile_by_layer


@pytest.fixture
def profiles():
    """Two layers of two heads; uniform attention gives .5, .25, 0 of hops 0, 1, 2."""
    values = {
        (0, 0): [0.5, 0.5, 0.0],
        (0, 1): [0.1, 0.2, 0.7],
        (1, 0): [1, 0, 0],
        (1, 1): [1, 0, 0],
    }
    return pd.DataFrame(
        [
            {"tower": "vision", "layer": layer, "head": head, "measure": "hop_mass", "axis": "hop",
             "point": float(point), "value": value, "null": null}
            for (layer, head), curve in values.items()
            for point, (value, null) in enumerate(zip(curve, [0.5, 0.25, 0.0], strict=True))
        ]
    ).sample(frac=1, random_state=1)  # fmt: skip


def test_profile_is_the_head_s_and_the_null_is_beside_it(profiles):
    null, mine = profile(profiles, "vision.L0H1", "hop_mass").data
    assert list(mine.x) == [0, 1, 2] and list(mine.y) == [0.1, 0.2, 0.7]
    assert list(null.y) == [0.5, 0.25, 0.0] and null.name == "uniform attention"
    assert "vision.L0H1" in mine.text[0] and "0.200 times" in mine.text[0]
    assert "times" not in mine.text[2]  # uniform attention never gets there


def test_lift_by_layer_is_the_mean_of_heads_in_octaves(profiles):
    (cells,) = profile_by_layer(profiles, "hop_mass", "vision").data
    expected = np.array([[np.log2(0.3 / 0.5), np.log2(0.35 / 0.25)], [1.0, np.nan]])
    np.testing.assert_allclose(np.array(cells.z)[:, :2], expected)
    assert np.isnan(np.array(cells.z)[:, 2]).all()
    assert cells.zmin == -cells.zmax
    assert list(cells.x) == ["0", "1", "2"] and list(cells.y) == ["0", "1"]


def test_unknown_curves_are_sentences(profiles):
    with pytest.raises(ValueError, match="got one of: hop_mass"):
        profile(profiles, "vision.L0H1", "distance_profile")
    with pytest.raises(ValueError, match="curves of vision"):
        profile(profiles, "language.L0H1", "hop_mass")
    with pytest.raises(ValueError, match="'language' must have curves"):
        profile_by_layer(profiles, "hop_mass", "language")


def test_trend_has_a_point_per_head_and_the_layers_medians():
    values = {(0, 0): 1.0, (0, 1): 2.0, (0, 2): 6.0, (2, 0): 3.0, (2, 1): np.nan, (2, 2): 4.0}
    table = HeadTable(
        pd.DataFrame(
            [
                {"tower": "vision", "layer": layer, "head": head, "measure": "mean_hop",
                 "variant": "", "inputs": "shapes", "value": value, "ci_low": value - 0.1,
                 "ci_high": value + 0.1, "n": 7, "null_low": 2.0, "null_high": 2.5, "unit": "hops"}
                for (layer, head), value in values.items()
            ]
        )
    )  # fmt: skip
    null, median, heads = layer_trend(table, "mean_hop").data
    assert list(median.x) == [0, 2] and list(median.y) == [2.0, 3.5]
    assert sorted(heads.y) == [1.0, 2.0, 3.0, 4.0, 6.0]
    assert [round(x) for x in heads.x] == [0, 0, 0, 2, 2]
    assert "vision.L0H0" in heads.text[0]
    assert (min(null.y), max(null.y)) == (2.0, 2.5)
