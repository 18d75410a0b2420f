"""Maps of heads: axes, colours, hatching and hover say what the table says."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import HeadTable
from dashboard.figures import heatmap, small_multiples
from dashboard.head_map import HELPS_OR_HURTS, Scale


def _table(values, measure="sink", unit="share", **more):
    """A table of one measure from ``[layer, head]`` values; ``None`` leaves the line out."""
    lines = [
        {
            "tower": "language",
            "layer": layer,
            "head": head,
            "measure": measure,
            "variant": "",
            "inputs": "prose",
            "value": value,
            "ci_low": value - 0.02,
            "ci_high": value + 0.02,
            "n": 7,
            "null_low": 0.1,
            "null_high": 0.15,
            "unit": unit,
            **more,
        }
        for layer, row in enumerate(values)
        for head, value in enumerate(row)
        if value is not None
    ]
    return HeadTable(pd.DataFrame(lines))


@pytest.fixture
def table():
    return _table([[0.25, 0.5, 0.125], [0.75, None, math.nan]])


def test_head_is_x_layer_is_y_and_layer_0_is_on_top(table):
    figure = heatmap(table, "sink")
    cells = figure.data[0]
    np.testing.assert_array_equal(np.array(cells.z), table.grid("sink"))
    assert list(cells.x) == [0, 1, 2]
    assert list(cells.y) == [0, 1]
    bottom, top = figure.layout.yaxis.range
    assert bottom > top
    assert figure.layout.xaxis.title.text == "head"
    assert figure.layout.yaxis.title.text == "layer"


def test_title_says_what_and_legend_says_the_unit(table):
    figure = heatmap(table, "sink")
    assert figure.layout.title.text == "sink · language"
    assert figure.layout.title.subtitle.text == (
        "n = 7 · prose · range 0.125 to 0.750 · hatched: not measured"
    )
    assert figure.data[0].colorbar.title.text == "share"


def test_hover_names_head_value_interval_null_and_n(table):
    texts = heatmap(table, "sink").data[0].customdata
    assert texts[1][0] == (
        "<b>language.L1H0</b><br>0.75 ± 0.02 share<br>95 % interval 0.730 to 0.770"
        "<br>null 0.100 to 0.150<br>n 7"
    )


def test_what_was_not_measured_is_hatched_and_nothing_else(table):
    _, strokes, targets = heatmap(table, "sink").data
    assert list(targets.text) == [
        "language.L1H1<br>not measured",
        "language.L1H2<br>not measured",
    ]
    x = [value for value in strokes.x if value is not None]
    y = [value for value in strokes.y if value is not None]
    assert min(x) >= 0.5 and max(x) <= 2.5
    assert min(y) >= 0.5 and max(y) <= 1.5
    assert len(heatmap(_table([[0.5, 0.25]]), "sink").data) == 1


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        ("share", [0.1, 0.2], ("Viridis", 0, 1)),
        ("probability", [np.nan], ("Viridis", 0, 1)),
        ("nats", [0.5, 3.0, np.nan], ("Cividis", 0, 3)),
        ("norm", [0.0], ("Cividis", 0, 1)),
        ("correlation", [0.2, 0.4], (HELPS_OR_HURTS, -1, 1)),
        ("cosine", [0.2, 0.4], (HELPS_OR_HURTS, -1, 1)),
        ("nats", [-0.5, 0.25], (HELPS_OR_HURTS, -0.5, 0.5)),
        ("difference", [0.25, 2.0], (HELPS_OR_HURTS, -2, 2)),
    ],
)
def test_colours_and_range_follow_the_unit(unit, values, expected):
    scale = Scale.of(unit, np.array(values))
    assert (scale.colours, scale.low, scale.high) == expected


def test_positive_is_blue_negative_is_red():
    first, last = HELPS_OR_HURTS[0][1], HELPS_OR_HURTS[-1][1]
    assert int(first[1:3], 16) > int(first[5:7], 16)
    assert int(last[1:3], 16) < int(last[5:7], 16)


def test_small_multiples_have_a_scale_and_a_title_each(table):
    both = table.merge(_table([[1.0, 4.0, 2.0], [3.0, 1.0, 2.0]], "entropy", "nats"))
    figure = small_multiples(both, ["sink", "entropy"], columns=3)
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [trace.zmax for trace in maps] == [1.0, 4.0]
    assert maps[0].colorbar.x < maps[1].colorbar.x
    assert [note.text for note in figure.layout.annotations] == ["sink · share", "entropy · nats"]
    with pytest.raises(ValueError, match="at least one measure"):
        small_multiples(both, [])


def test_unknown_measure_is_said(table):
    with pytest.raises(ValueError, match="got 'vhd'"):
        heatmap(table, "vhd")
