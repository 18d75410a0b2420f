"""Figures of effects, estimates and sets of heads say what their tables say."""

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import HeadTable
from dashboard.figures import (
    agreement_of_estimates,
    effect_by_example,
    effects_by_class,
    estimate_against_exact,
    joint_sets,
    pruning_curve,
    ranked_effects,
    whole_layers,
)

EXACT, ESTIMATE = ("importance_logit", "ablation=mean"), ("atp_logit", "ablation=mean")


def _lines(measure, values, variant="ablation=mean", tower="language"):
    return [
        {"tower": tower, "layer": layer, "head": head, "measure": measure, "variant": variant,
         "inputs": "prose", "value": value, "ci_low": value - 0.1, "ci_high": value + 0.2, "n": 7,
         "null_low": -0.3, "null_high": 0.1, "unit": "logits"}
        for layer, row in enumerate(values)
        for head, value in enumerate(row)
    ]  # fmt: skip


@pytest.fixture
def heads():
    """Two layers of three heads; one was not estimated; a vision tower with one head."""
    return HeadTable(
        pd.DataFrame(
            _lines("importance_logit", [[0.5, -0.25, 2.0], [1.0, np.nan, 0.0]])
            + _lines("atp_logit", [[0.25, -0.5, 1.0], [np.nan, 3.0, 0.125]])
            + _lines("layer_off_logit", [[5.0] * 3, [0.5] * 3])
            + _lines("importance_logit", [[4.0]], tower="vision")
            + _lines("atp_logit", [[3.0]], tower="vision")
        )
    )


def test_a_point_per_head_that_has_both(heads):
    marks, line = estimate_against_exact(heads, EXACT, ESTIMATE, "language", "language.L0H2").data
    assert list(marks.customdata) == [
        f"language.{name}" for name in ("L0H0", "L0H1", "L0H2", "L1H2")
    ]
    assert list(marks.x) == [0.25, -0.5, 1.0, 0.125]
    assert list(marks.y) == [0.5, -0.25, 2.0, 0.0]
    assert list(marks.error_y.array) == pytest.approx([0.2] * 4)
    assert list(marks.error_y.arrayminus) == pytest.approx([0.1] * 4)
    assert list(marks.marker.line.width) == [0, 0, 3, 0]
    assert list(line.x) == list(line.y) == [-0.25, 1.0]
    towers = estimate_against_exact(heads, EXACT, ESTIMATE).data
    assert [trace.name for trace in towers] == ["language", "vision", "the same"]
    with pytest.raises(ValueError, match="none of audio has"):
        estimate_against_exact(heads, EXACT, ESTIMATE, "audio")


def test_agreement_is_sorted_and_shows_its_ceiling():
    table = pd.DataFrame(
        {"tower": "language", "exact": "importance_logit", "estimate": ["atp_logit", "hisp_logit"],
         "variant": ["ablation=mean", "z"], "heads": 6, "spearman": [0.25, 0.75],
         "ci_low": [0.0, 0.5], "ci_high": [0.5, 1.0], "spearman_absolute": [0.5, 0.625],
         "ceiling": 0.875, "top": 3, "overlap": 2 / 3, "overlap_chance": 0.5,
         "overlap_chance_high": 1.0}
    )  # fmt: skip
    figure = agreement_of_estimates(table, ("atp_logit", "ablation=mean"))
    sizes, ranking = figure.data
    assert list(ranking.y) == ["atp logit (mean)", "hisp logit (z)"]
    assert list(ranking.x) == [0.25, 0.75] and list(sizes.x) == [0.5, 0.625]
    assert list(ranking.error_x.array) == [0.25, 0.25]
    assert ranking.marker.size[0] > ranking.marker.size[1]
    assert figure.layout.shapes[0].x0 == 0.875
    assert "67% of the 3 highest" in ranking.text[0]


def test_effects_are_ranked_beside_their_null(heads):
    null, marks = ranked_effects(heads, *EXACT[:1], "language", EXACT[1], most=3).data
    assert list(marks.y) == ["L0H2", "L1H0", "L0H0"]
    assert list(marks.x) == [2.0, 1.0, 0.5]
    assert list(null.base) == [-0.3] * 3 and list(null.x) == pytest.approx([0.4] * 3)
    assert marks.customdata[0] == "language.L0H2"


def test_a_layer_stands_beside_the_sum_of_its_heads(heads):
    whole, alone = whole_layers(
        heads, "layer_off_logit", "importance_logit", "language", "ablation=mean"
    ).data
    assert list(whole.y) == [5.0, 0.5]
    assert list(alone.y) == [2.25, 1.0]


def test_classes_are_columns_and_what_is_missing_is_bare():
    table = pd.DataFrame(_lines("importance_logit", [[0.5, -2.0]]))
    classes = pd.concat([table.assign(**{"class": "ring"}),
                         table[:1].assign(value=1.0, **{"class": "<b>"})])  # fmt: skip
    (cells,) = effects_by_class(classes, "importance_logit", "language", "logits").data
    assert list(cells.x) == ["&lt;b&gt;", "ring"] and list(cells.y) == ["L0H0", "L0H1"]
    np.testing.assert_array_equal(np.array(cells.z, float), [[1.0, 0.5], [np.nan, -2.0]])
    assert (cells.zmin, cells.zmax) == (-2.0, 2.0)
    with pytest.raises(ValueError, match="table of classes"):
        effects_by_class(classes, "importance_logit", "vision", "logits")


def test_examples_are_sorted_and_their_names_are_no_marks():
    column = "importance_logit ablation=mean language.L0H0"
    table = pd.DataFrame({"example": ["a", "<b>", "c"], column: [0.5, 2.0, np.nan]})
    figure = effect_by_example(table, column, "language.L0H0", "logits")
    (marks,) = figure.data
    assert list(marks.y) == [2.0, 0.5] and list(marks.x) == [1, 2]
    assert marks.text[0].startswith("<b>&lt;b&gt;</b>")
    assert figure.layout.shapes[0].y0 == 1.25


def _sets(kind, values, **more):
    return [
        {"kind": kind, "draw": draw, "heads": "language.L0H0 language.L1H2", "value": value,
         "ci_low": value - 0.5, "ci_high": value + 0.5, "n": 5, "accuracy": 1 - value / 4,
         "accuracy_intact": 0.9, "p": 0.05, "top": 2, "chosen_by": "leave one out"} | more
        for draw, value in enumerate(values)
    ]  # fmt: skip


def test_chosen_sets_stand_among_random_ones():
    other = _sets("chosen", [3.0], top=4) + _sets("random", [0.0, 1.0], top=4)
    table = pd.DataFrame(_sets("chosen", [2.0]) + _sets("random", [1.0, 0.5, 0.25]) + other)
    figure = joint_sets(table, "logit (logits)")
    random, chosen, *more = figure.data
    assert list(random.y) == [1.0, 0.5, 0.25] and list(chosen.y) == [2.0]
    assert [list(trace.y) for trace in more] == [[0.0, 1.0], [3.0]]
    assert list(figure.layout.xaxis.ticktext) == [
        "leave one out<br>2 heads", "leave one out<br>4 heads",
    ]  # fmt: skip
    assert "p = 0.05" in chosen.text[0] and "language.L1H2" in chosen.text[0]
    accuracy = joint_sets(table, "logit (logits)", "accuracy")
    assert list(accuracy.data[1].y) == [0.5]
    assert accuracy.layout.shapes[0].y0 == 0.9


def test_the_band_spans_the_random_orders():
    def orders(kind, draw, values):
        return [
            line | {"kind": kind, "draw": draw, "fraction": share, "removed": 4}
            for share, line in zip((0.5, 0.9), _sets(kind, values), strict=True)
        ]

    table = pd.DataFrame(
        orders("order", 0, [0.25, 1.0]) + orders("random", 0, [1.0, 3.0])
        + orders("random", 1, [2.0, 1.5])
    )  # fmt: skip
    band, mean, mine = pruning_curve(table, "logit (logits)").data
    assert list(band.y) == [2.0, 3.0, 1.5, 1.0]
    assert list(mean.y) == [1.5, 2.25]
    assert list(mine.x) == [0.5, 0.9] and list(mine.y) == [0.25, 1.0]
    assert list(mine.error_y.array) == [0.5, 0.5]
    assert band.name == "2 random orders"
