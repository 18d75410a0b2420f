"""Figures of the Vision page against the tables they are drawn from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.head_table import COLUMNS, HeadTable
from analysis.vision.depth import over_depth
from dashboard.figures import (
    dominance_by_layer,
    edit_effects,
    modality_flow_by_layer,
    patches_of_word,
    t_vhd_by_group,
    t_vhd_compared,
    word_map,
)

LAYERS, HEADS = 3, 5


def _lines(measure, variant, unit, values, null=np.nan):
    layer, head = np.indices(values.shape)
    frame = pd.DataFrame({"layer": layer.ravel(), "head": head.ravel(), "value": values.ravel()})
    given = {"tower": "language", "measure": measure, "variant": variant, "unit": unit}
    given |= {"inputs": "set", "n": 7, "ci_low": np.nan, "ci_high": np.nan}
    frame = frame.assign(**given, null_low=null, null_high=null)
    return frame.reindex(columns=list(COLUMNS))


def _table(*parts):
    return HeadTable(pd.concat(parts, ignore_index=True), {"language": LAYERS})


def _values(seed):
    return np.random.default_rng(seed).uniform(0.1, 0.9, (LAYERS, HEADS))


def _flow(*variants):
    return [
        _lines("modality_flow", variant, "share", _values(seed))
        for seed, variant in enumerate(variants)
    ] + [_lines("text_share", "T=all", "share", _values(99), null=0.4)]


def test_a_word_map_has_the_scale_of_all_words_and_hatches_what_is_missing():
    vhd = np.arange(15.0).reshape(LAYERS, HEADS)
    vhd[1, 2] = np.nan
    figure = word_map(vhd, "<b>cat", 12.5, 40.0)
    cells, *marks = figure.data
    np.testing.assert_array_equal(cells.z, vhd)
    assert (cells.zmin, cells.zmax) == (0.0, 40.0)
    assert figure.layout.yaxis.range == (2.5, -0.5) and figure.layout.xaxis.title.text == "head"
    assert "&lt;b&gt;cat" in figure.layout.title.text
    assert "T-VHD 12.5 · heads 0 to 14" in figure.layout.title.subtitle.text
    assert len(marks) == 2 and "L1H2" in marks[1].text[0]
    assert "L2H4" in cells.customdata[2][4] and "14" in cells.customdata[2][4]


def test_flow_is_the_mean_over_heads_of_what_answers_read():
    heads = _table(*_flow("T->V", "T->T", "output->image", "output->after", "output->output"))
    depth = over_depth(heads)
    figure = modality_flow_by_layer(depth, 7)
    assert [trace.name for trace in figure.data] == [
        "image", "text behind the image", "the answer so far"
    ]  # fmt: skip
    np.testing.assert_allclose(figure.data[0].y, _values(2).mean(1))
    assert list(figure.data[0].x) == [0, 1, 2]
    assert figure.layout.title.text.startswith("What the answer reads")
    without = modality_flow_by_layer(over_depth(_table(*_flow("T->V", "T->T", "V->V"))), 7)
    assert [trace.name for trace in without.data] == [
        "text reads image", "text reads text", "image reads image"
    ]  # fmt: skip
    np.testing.assert_allclose(without.data[1].y, _values(1).mean(1))


def test_dominance_leaves_out_what_has_no_logarithm_and_says_so():
    values = _values(5) * 10
    values[0, 1], values[2, 3] = 0.0, np.nan
    mdi = _lines("modality_dominance", "T=all", "ratio", values)
    heads = _table(*_flow("T->V"), mdi)
    depth = over_depth(heads)
    figure = dominance_by_layer(heads, depth)
    points, line = figure.data
    np.testing.assert_allclose(sorted(points.y), sorted(values[values > 0]))
    assert list(line.y) == depth.layers["dominance"].tolist()
    assert figure.layout.yaxis.type == "log"
    assert "2 heads cannot be drawn" in figure.layout.title.subtitle.text
    with pytest.raises(ValueError, match="modality_dominance"):
        dominance_by_layer(_table(*_flow("T->V")), depth)


TOKENS = pd.DataFrame(
    {
        "example": ["a", "a", "a", "a", "b", "b"],
        "mention": [0, 0, 1, -1, 0, 1],
        "group": ["true_object"] * 2 + ["hallucinated_object", "other"] + ["true_object"] * 2,
        "t_vhd": [2.0, 4.0, 1.0, 50.0, 5.0, 6.0],
    }
)


def test_a_mention_counts_once_in_the_histogram():
    figure = t_vhd_by_group(TOKENS)
    true, wrong = figure.data
    assert true.name == "object that is there (n = 3, mean 4.67)"
    assert wrong.name == "hallucinated object (n = 1, mean 1.00)"
    assert sum(true.y) == pytest.approx(1) and sum(wrong.y) == pytest.approx(1)
    at = {round(float(x), 2): y for x, y in zip(true.x, true.y, strict=True) if y}
    assert len(at) == 3 and min(at) == pytest.approx(3.0, abs=0.2)  # 2 and 4 are one mention
    with pytest.raises(ValueError, match="got 3 and 0 mentions"):
        t_vhd_by_group(TOKENS[TOKENS["group"] != "hallucinated_object"])


def test_differences_keep_their_intervals():
    line = {
        "compared": "mentions of one kind", "measure": "t_vhd", "hallucinated": 4.0, "true": 7.0,
        "difference": -3.0, "difference_low": -5.0, "difference_high": -0.5, "lower": 0.8,
        "lower_low": 0.6, "lower_high": 0.9, "n_hallucinated": 11, "n_true": 23, "texts": 17,
    }  # fmt: skip
    other = line | {"measure": "t_vhd_top1", "difference": 9.0}
    (points,) = t_vhd_compared(pd.DataFrame([line, other])).data
    assert list(points.x) == [-3.0] and list(points.y) == ["of the same kind"]
    assert points.error_x.array[0] == 2.5 and points.error_x.arrayminus[0] == 2.0
    assert "80%" in points.text[0] and "11 against 23, of 17 answers" in points.text[0]
    with pytest.raises(ValueError, match="got 't_vhd_top2'"):
        t_vhd_compared(pd.DataFrame([line]), "t_vhd_top2")


def _patch(tile, row, column, weight, size=4.0):
    left, top = column * size, row * size
    return {
        "image": 0, "tile": tile, "row": row, "column": column, "left": left, "top": top,
        "right": left + size, "bottom": top + size, "weight": weight,
    }  # fmt: skip


def test_patches_lie_where_they_are_in_the_picture(tmp_path):
    Image.new("RGB", (12, 8), (200, 10, 10)).save(tmp_path / "p.png")
    cells = [(row, column) for row in (0, 1) for column in range(3)]
    patches = [_patch(0, row, column, 0.1 * row + 0.01 * column) for row, column in cells]
    hidden = _patch(0, 2, 0, 0.5) | dict.fromkeys(("left", "top", "right", "bottom"), np.nan)
    figure = patches_of_word(
        tmp_path / "p.png", (24, 16), pd.DataFrame([*patches, hidden]), word="red", head="L1H2"
    )
    (cells,) = [trace for trace in figure.data if trace.type == "heatmap"]
    assert cells.z.shape == (2, 3)
    np.testing.assert_allclose(cells.z[1], [0.1, 0.11, 0.12])
    assert list(cells.x) == [0, 4, 8, 12] and list(cells.y) == [0, 4, 8]
    assert figure.layout.title.text == "Where L1H2 looks for »red«"
    assert "0.860 of its weight" in figure.layout.title.subtitle.text
    grey, coloured = figure.layout.images
    assert (grey.sizex, grey.sizey) == (24, 16) and grey.visible and not coloured.visible
    assert [step.label for step in figure.layout.sliders[0].steps] == [
        "on grey", "on colours", "picture"
    ]  # fmt: skip


def test_a_whole_picture_and_its_tiles_stand_side_by_side(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    patches = [_patch(0, 0, 0, 0.25, 8.0), _patch(1, 0, 0, 0.5), _patch(1, 0, 1, 0.125)]
    figure = patches_of_word(tmp_path / "p.png", (8, 8), pd.DataFrame(patches))
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [trace.z.tolist() for trace in maps] == [[[0.25]], [[0.5, 0.125]]]
    assert {trace.zmax for trace in maps} == {0.5}
    assert [trace.showscale for trace in maps] == [False, True]


def test_without_patches_it_is_the_picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    figure = patches_of_word(
        tmp_path / "p.png", (8, 8), objects=[("<i>star", (1.0, 1.0, 4.0, 4.0))]
    )
    assert not [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(figure.layout.images) == 1 and not figure.layout.sliders
    assert figure.layout.annotations[0].text == "&lt;i&gt;star"
    (tmp_path / "q.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="q.png"):
        patches_of_word(tmp_path / "q.png", (8, 8))


def _condition(kind, seed, metric, value, unit="share of captions", edit="vhr", **more):
    line = {
        "edit": edit, "kind": kind, "seed": seed, "metric": metric, "split": "", "unit": unit,
        "value": value, "ci_low": value - 0.05, "ci_high": value + 0.1, "difference": -0.2,
        "difference_ci_low": -0.3, "difference_ci_high": -0.1, "beyond_control": np.nan,
        "beyond_control_ci_low": np.nan, "beyond_control_ci_high": np.nan, "n": 12,
    }  # fmt: skip
    return line | more


def test_an_edit_stands_between_the_plain_model_and_pooled_random_heads():
    beyond = {"beyond_control": -0.04, "beyond_control_ci_low": -0.1, "beyond_control_ci_high": 0.1}
    frame = pd.DataFrame(
        [
            _condition("baseline", -1, "chair_s", 0.5, edit="baseline"),
            _condition("baseline", -1, "words", 14.0, "words per caption", edit="baseline"),
            _condition("edit", -1, "chair_s", 0.3, **beyond),
            _condition("edit", -1, "chair_s", 0.9, edit="other"),
            _condition("control", 0, "chair_s", 0.7),
            _condition("control", -1, "chair_s", 0.4),
        ]
    )
    figure = edit_effects(frame, "vhr")
    assert [list(trace.x) for trace in figure.data] == [[0.5], [0.3], [0.4]]
    assert list(figure.layout.yaxis.ticktext) == ["CHAIR_S"]
    plain, edited, control = figure.data
    assert plain.y[0] < edited.y[0] < control.y[0]
    assert edited.error_x.array[0] == pytest.approx(0.1)
    assert edited.error_x.arrayminus[0] == pytest.approx(0.05)
    assert "beyond control: -0.04" in edited.text[0] and "beyond" not in control.text[0]
    assert "against without" not in plain.text[0]
    with pytest.raises(ValueError, match="got 'none'"):
        edit_effects(frame, "none")
