"""Figures of sinks say what their tables say."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.head_table import HeadTable
from dashboard.figures import (
    massive_by_layer,
    massive_dimensions,
    rate_by_threshold,
    sink_dimensions,
    sinks_by_layer,
    sinks_on_picture,
    sinks_on_text,
    var_choice,
)
from dashboard.sink_heads import thresholds

PLACE = {"position": 0, "role": "bos", "token": "<b>bos", "row": -1, "column": -1}


def _entry(layer, dimension, ratio, **more):
    numbers = {"value": -3.0, "value_low": -3.1, "value_high": -2.9, "ratio": ratio,
               "ratio_low": ratio - 1, "ratio_high": ratio + 1, "ratio_null": 6.0}  # fmt: skip
    place = {"tower": "language", "layer": layer, "dimension": dimension, "share": 0.5, "n": 7}
    return PLACE | numbers | place | more


def test_dimensions_are_ordered_by_size_and_the_largest_place_counts():
    table = pd.DataFrame(
        [_entry(0, 41, 10.0), _entry(0, 41, 1000.0), _entry(1, 41, 100.0), _entry(1, 97, 10_000.0),
         _entry(0, 5, 0.5, tower="vision")]
    )  # fmt: skip
    (cells,) = massive_dimensions(table, "language").data
    assert list(cells.x) == ["97", "41"] and list(cells.y) == ["0", "1"]
    np.testing.assert_allclose(np.array(cells.z), [[np.nan, 3.0], [4.0, 2.0]])
    assert "&lt;b&gt;bos" in cells.customdata[0][1]
    with pytest.raises(ValueError, match="one of language, vision, got 'audio'"):
        massive_dimensions(table, "audio")


def test_largest_by_layer_has_its_null_and_the_published_rule_only_where_it_is_near():
    lines = [_entry(layer, 41, ratio, largest=400.0) for layer, ratio in ((1, 300.0), (0, 20.0))]
    table = pd.DataFrame(lines)
    by_name = {trace.name: trace for trace in massive_by_layer(table, "language").data}
    assert list(by_name["largest |x|"].x) == [0, 1]
    assert list(by_name["largest |x|"].y) == [20.0, 300.0]
    assert set(by_name["rule of Sun et al."].y) == {1000.0}
    small = massive_by_layer(table[table["layer"] == 0], "language")
    assert "rule of Sun et al." not in {trace.name for trace in small.data}


def _sink(layer, received, **more):
    numbers = dict.fromkeys(("received", "received_low", "received_high"), received)
    numbers |= {"share": 1.0, "score": 11.0, "received_null": 0.1, "received_largest": 0.9}
    return PLACE | numbers | {"tower": "language", "layer": layer, "kind": "text", "n": 7} | more


def test_received_weight_has_a_line_per_place_and_only_where_it_is_read():
    patch = {"position": 4, "role": "image", "token": "", "row": 0, "column": 3, "kind": "visual"}
    table = pd.DataFrame([_sink(1, 0.5), _sink(0, 0.25), _sink(2, np.nan), _sink(1, 0.75, **patch)])
    null, most, _, other = sinks_by_layer(table, "language").data
    assert most.name == "patch row 0, column 3 (visual)" and list(most.y) == [0.75]
    assert list(other.x) == [0, 1] and list(other.y) == [0.25, 0.5]
    assert list(null.y) == [0.1]
    with pytest.raises(ValueError, match="read by some attention"):
        sinks_by_layer(table[table["layer"] == 2], "language")


def test_chosen_dimensions_come_first():
    table = pd.DataFrame(
        {"dimension": [3, 97, 41], "first": [7.0, 5.0, 10.0], "other": np.nan, "elsewhere": 0.5,
         "massive_first": 1.0, "massive_other": np.nan, "chosen": [False, True, True],
         "tower": "language", "width": 136, "n": 7, "published": False, "backbone": ""}
    )  # fmt: skip
    figure = sink_dimensions(table)
    assert list(figure.data[0].x) == ["41 ✓", "97 ✓", "3"]
    assert list(figure.data[0].y) == [10.0, 5.0, 7.0]
    assert [trace.name for trace in figure.data] == [
        "at the first token", "at tokens that are no sinks",
    ]  # fmt: skip


def _heads(measure, variant, values, unit="share", null=0.0):
    return [
        {"tower": "language", "layer": 0, "head": head, "measure": measure, "variant": variant,
         "inputs": "prose", "value": value, "ci_low": value, "ci_high": value, "n": 7,
         "null_low": null, "null_high": null, "unit": unit}
        for head, value in enumerate(values)
    ]  # fmt: skip


def test_the_rate_is_the_mean_over_heads_at_each_measured_threshold():
    lines = _heads("sink_rate", "any,eps=0.5", [0.0, 0.0, 0.25])
    lines += _heads("sink_rate", "any,eps=0.1", [1.0, 0.5, 0.0], null=0.125)
    table = HeadTable(pd.DataFrame(lines))
    assert thresholds(table, "language", "any") == [0.1, 0.5]
    assert thresholds(table, "language", "k=1") == []
    null, rate = rate_by_threshold(table, "language", 0.5).data
    assert list(rate.x) == [0.1, 0.5]
    assert list(rate.y) == pytest.approx([0.5, 0.25 / 3])
    assert list(null.y) == [0.125, 0.0]
    assert "most: L0H2 0.25" in rate.text[1]
    with pytest.raises(ValueError, match="must have been measured"):
        rate_by_threshold(table, "language", keys=["k=1"])


def test_var_sees_each_head_by_its_name():
    lines = _heads("sink_mass", "visual", [0.1, 0.2]) + _heads("non_sink_ratio", "", [0.9, 0.4])
    lines += _heads("image_centric", "mass=0.2,rho=0.5", [1.0, 0.0])
    (marks,) = var_choice(HeadTable(pd.DataFrame(lines)), "language").data
    assert list(marks.x) == [0.1, 0.2] and list(marks.y) == [0.9, 0.4]
    assert list(marks.customdata) == ["language.L0H0", "language.L0H1"]
    assert list(marks.marker.color) == [1.0, 0.0]


@pytest.fixture
def marked():
    """BOS and the second of two patches are sinks, the words between and behind are none."""
    lines = [("bos", "<bos>", 1.0, np.nan), ("image", "<image>", 0.0, 0.0),
             ("image", "<image>", 0.5, 8.0), ("text", "a<i>", 0.0, np.nan)]  # fmt: skip
    return pd.DataFrame(
        [
            {"role": role, "text": text, "share": share, "position": place, "kind": "text",
             "score": 11.0, "received": 0.25, "received_null": 0.125, "row": 0, "column": place,
             "left": left, "right": left + 8, "top": 0.0, "bottom": 8.0}
            for place, (role, text, share, left) in enumerate(lines)
        ]
    )  # fmt: skip


def test_words_are_tinted_by_share_and_patches_are_one_box(marked):
    boxes, _ = sinks_on_text(marked).data
    assert list(boxes.text) == ["&lt;bos&gt;", "[2 patches, 1 sinks]", "a&lt;i&gt;"]
    assert list(boxes.marker.color) == [1.0, 0.5, 0.0]
    assert "a sink in 100% of the examples" in boxes.customdata[0]
    assert boxes.customdata[2].endswith("no sink")
    with pytest.raises(ValueError, match="must have a word"):
        sinks_on_text(marked.assign(text=""))


def test_long_texts_are_cut_to_their_ends_and_what_is_near_a_sink(marked):
    plain = marked.iloc[[3] * 4000].assign(position=range(4000))
    many = pd.concat([marked[:1], plain, marked[:1], plain])
    boxes, _ = sinks_on_text(many).data
    assert len(boxes.text) < 80
    assert sum(text.startswith("…") for text in boxes.text) == 2
    assert list(boxes.text).count("&lt;bos&gt;") == 2


def test_patches_lie_where_they_are_in_the_original_picture(marked):
    figure = sinks_on_picture(Image.new("RGB", (4, 2)), (16, 8), marked)
    filled = [trace for trace in figure.data if trace.fill == "toself"]
    assert [list(trace.x) for trace in filled] == [[8, 16, 16, 8, 8]]
    assert figure.layout.title.subtitle.text == "1 of 2 patches"
    assert list(figure.layout.xaxis.range) == [0, 16]
    assert list(figure.layout.yaxis.range) == [8, 0]
    with pytest.raises(ValueError, match="known place"):
        sinks_on_picture(Image.new("RGB", (4, 2)), (16, 8), marked[:1])
