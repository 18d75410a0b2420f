"""Agreement of estimates with exact effects, and effects by class, on tables made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from analysis.head_table import COLUMNS, HeadTable
from analysis.importance.agreement import agreement
from analysis.importance.by_class import class_table, example_table
from analysis.scores import BatchScores, Column


def _table(**measures):
    lines = []
    for measure, values in measures.items():
        for (layer, head), value in np.ndenumerate(np.asarray(values, float)):
            line = dict.fromkeys(COLUMNS, np.nan)
            line |= {"tower": "language", "layer": layer, "head": head, "measure": measure}
            line |= {"variant": "", "inputs": "x", "value": value, "n": 7, "unit": "nats"}
            lines.append(line)
    return HeadTable(pd.DataFrame(lines))


def test_spearman_is_scipys_and_the_interval_holds_it():
    draw = np.random.default_rng(5)
    exact = draw.normal(size=(5, 7))
    guess = exact + draw.normal(size=(5, 7))
    table = _table(importance_cross_entropy=exact, atp_cross_entropy=guess)
    (line,) = agreement(table, ["atp_cross_entropy"]).to_dict("records")
    assert line["spearman"] == pytest.approx(spearmanr(exact.ravel(), guess.ravel()).statistic)
    assert line["ci_low"] < line["spearman"] < line["ci_high"]
    assert line["heads"] == 35
    assert line["spearman_absolute"] == pytest.approx(
        spearmanr(np.abs(exact).ravel(), np.abs(guess).ravel()).statistic
    )


def test_top_heads_in_common_are_counted_by_hand():
    exact = [[9, 8, 7, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    guess = [[9, 0, 7, 8, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]
    table = _table(importance_jsd=exact, relevancy_jsd=guess)
    (line,) = agreement(table, ["relevancy_jsd"], top=3).to_dict("records")
    assert (line["top"], line["overlap"]) == (3, pytest.approx(2 / 3))
    assert line["overlap_chance"] == pytest.approx(0.3)


def test_estimates_of_another_effect_are_left_out_and_direct_ones_stay():
    values = np.arange(6.0).reshape(2, 3)
    table = _table(
        importance_jsd=values, atp_logit=values, atp_jsd=-values, direct_logit=values, other=values
    )
    found = agreement(table, ["atp_logit", "atp_jsd", "direct_logit"])
    assert found["estimate"].tolist() == ["atp_jsd", "direct_logit"]
    assert found["spearman"].tolist() == pytest.approx([-1, 1])


def test_the_ceiling_is_the_agreement_of_two_halves():
    values = np.arange(6.0).reshape(2, 3)
    table = _table(importance_jsd=values, atp_jsd=values)
    draw = np.random.default_rng(2)
    halves = {
        Column("language", layer, head, "importance_jsd", "", "nats"): tuple(draw.normal(size=2))
        for layer in range(2)
        for head in range(3)
    }
    (line,) = agreement(table, ["atp_jsd"], halves).to_dict("records")
    first, second = np.array(list(halves.values())).T
    assert line["ceiling"] == pytest.approx(spearmanr(first, second).statistic)


def _scores():
    columns = (
        Column("vision", 0, 0, "importance_jsd", "", "bits"),
        Column("vision", 0, 1, "importance_jsd", "", "bits"),
        Column("vision", 0, 0, "entropy", "", "nats"),
    )
    numerator = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0], [5.0, 6.0, 9.0], [7.0, 8.0, 9.0]])
    reads = torch.tensor([[1.0], [1.0], [2.0], [1.0]]).expand(4, 3).double()
    return BatchScores(
        columns, numerator.double(), reads, torch.zeros(4, 3), reads, examples=tuple("abcd")
    )


def test_a_class_is_the_mean_over_its_examples_alone():
    classes = {"a": "cat", "b": "dog", "c": "cat", "d": "bird"}
    table = class_table(lambda: [_scores()], classes, ["importance_jsd"])
    assert set(table["class"]) == {"cat"}  # one example makes no class


def test_classes_over_several_batches():
    classes = {"a": "cat", "b": "dog", "c": "cat", "d": "dog"}
    whole = _scores()
    parts = [whole.only(examples=[0, 1]), whole.only(examples=[2, 3])]
    for scores in ([whole], parts):
        table = class_table(lambda s=scores: s, classes, ["importance_jsd"])
        assert table["measure"].unique().tolist() == ["importance_jsd"]
        cat = table[table["class"] == "cat"]["value"].tolist()
        assert cat == pytest.approx([(1 + 5) / 3, (2 + 6) / 3])
        assert table["n"].tolist() == [2] * 4


def test_effects_by_example_are_means_over_reads():
    table = example_table(lambda: [_scores()], ["importance_jsd"])
    assert table["example"].tolist() == list("abcd")
    assert table["importance_jsd  vision.L0H1"].tolist() == [2.0, 4.0, 3.0, 8.0]
