"""The tally: one table whatever the batches, shards and order; nulls, halves, curves."""

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.scores import BatchScores, Column, Curve
from analysis.tally import Tally

IDS = [f"e{index}" for index in range(11)]
COLUMNS = tuple(
    Column(tower, layer, head, measure, variant, unit)
    for measure, variant, unit in (("entropy", "", "nats"), ("sink", "k=1", "share"))
    for tower, layer in (("vision", 0), ("language", 2))
    for head in range(5)
)


def _scores(rows, columns=COLUMNS):
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(len(IDS), len(COLUMNS), generator=generator, dtype=torch.float64)
    counts = 1 + torch.arange(len(IDS), dtype=torch.float64)[:, None].expand_as(values)
    chosen = [COLUMNS.index(column) for column in columns]
    part = [x[rows][:, chosen] for x in (values * counts, counts, counts / 4, counts)]
    curve = Curve(
        "language",
        2,
        "hops",
        "hop",
        torch.full((5, 3), float(len(rows)), dtype=torch.float64),
        torch.full((5, 3), 2.0 * len(rows), dtype=torch.float64),
        torch.full((3,), 1.0 * len(rows), dtype=torch.float64),
        torch.full((3,), 4.0 * len(rows), dtype=torch.float64),
    )
    return BatchScores(
        tuple(columns), *part, curves={curve.key: curve}, examples=tuple(IDS[row] for row in rows)
    )


def _table(*parts):
    tally = Tally(replicates=40, seed=5)
    for part in parts:
        tally.add(part)
    return tally


def test_batches_shards_and_order_change_nothing():
    whole = _table(_scores(list(range(11)))).heads("x")
    pieces = _table(_scores([7, 8]), _scores([10, 9, 0]), _scores([1, 2, 3, 4, 5, 6])).heads("x")
    pd.testing.assert_frame_equal(whole.frame, pieces.frame, rtol=1e-12)


def test_value_is_weighted_by_denominators():
    scores = _scores([0, 3])
    first = scores.numerator[:, 0].sum() / scores.denominator[:, 0].sum()
    table = _table(scores).heads()
    assert table.grid("entropy", "vision")[0, 0] == pytest.approx(float(first))
    assert table.grid("entropy", "vision", column="n")[0, 0] == 2


def test_columns_that_come_later_count_only_where_they_were_seen():
    early, late = COLUMNS[:10], COLUMNS
    table = _table(_scores([0, 1, 2], early), _scores([3, 4], late)).heads()
    alone = _table(_scores([3, 4], late)).heads()
    np.testing.assert_array_equal(
        table.grid("sink", "vision", column="n"), alone.grid("sink", "vision", column="n")
    )
    np.testing.assert_allclose(table.grid("sink", "vision"), alone.grid("sink", "vision"))
    assert table.grid("entropy", "vision", column="n")[0, 0] == 5


def test_order_is_tower_measure_layer_head_and_towers_follow_the_model():
    table = _table(_scores([0, 1])).heads("x", {"language": 4, "vision": 1})
    assert table.towers == ["language", "vision"]
    language = table.frame[table.frame["tower"] == "language"]
    assert language["measure"].tolist() == ["entropy"] * 5 + ["sink"] * 5
    assert language["head"].tolist() == [0, 1, 2, 3, 4] * 2
    assert table.grid("sink", "language").shape == (4, 5)


def test_one_example_has_a_null_but_no_interval():
    frame = _table(_scores([4])).heads().frame
    assert frame["ci_low"].isna().all()
    assert (frame["null_low"] == 0.25).all()


def test_reliability_is_one_entry_per_tower_measure_and_variant():
    found = _table(_scores(list(range(11)))).reliability()
    assert [(item["tower"], item["measure"], item["variant"]) for item in found] == [
        ("vision", "entropy", ""),
        ("language", "entropy", ""),
        ("vision", "sink", "k=1"),
        ("language", "sink", "k=1"),
    ]
    assert all(-1 <= item["reliability"] <= 1 for item in found)
    assert _table(_scores([0])).reliability()[0]["reliability"] is None


def test_profiles_are_ratios_of_sums():
    frame = _table(_scores([0, 1]), _scores([2])).profiles()
    assert len(frame) == 15
    assert (frame["value"] == 0.5).all()
    assert (frame["null"] == 0.25).all()
    assert frame["point"].tolist()[:4] == [0, 1, 2, 0]


def test_a_reason_disappears_once_the_measure_was_taken():
    without = _scores([0])
    without.reasons[("vision", "sink")] = "no keys"
    without.reasons[("vision", "induction")] = "no text"
    tally = _table(without)
    assert tally.not_measured == [{"tower": "vision", "measure": "induction", "reason": "no text"}]
    assert tally.measures == {"entropy", "sink"}
