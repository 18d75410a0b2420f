"""Comparisons of drawn runs and of tables written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawn_runs import drawn_run

from analysis.compare import compare
from analysis.head_table import HeadTable
from analysis.statistics import poisson_weights


def table(lines: list[tuple], **more: Any) -> HeadTable:
    """Lines of tower, layer, head, measure, value and half width."""
    frame = pd.DataFrame(lines, columns=["tower", "layer", "head", "measure", "value", "half"])
    half = frame.pop("half")
    given = {"variant": "", "inputs": "words", "n": 1000.0, "unit": "nats"} | more
    ends = {"ci_low": frame["value"] - half, "ci_high": frame["value"] + half}
    return HeadTable(frame.assign(null_low=np.nan, null_high=np.nan, **ends, **given))


@pytest.fixture
def before() -> HeadTable:
    values = [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 3.0), (1, 1, 4.0), (2, 0, 6.0)]
    return table([("text", layer, head, "entropy", v, 0.3) for layer, head, v in values])


@pytest.fixture
def after() -> HeadTable:
    values = [(0, 0, 1.1), (0, 1, 2.0), (1, 0, 2.9), (1, 1, 1.5), (2, 1, 6.0)]
    return table([("text", layer, head, "entropy", v, 0.4) for layer, head, v in values])


def test_differences_ranks_and_what_is_left_out(before: HeadTable, after: HeadTable) -> None:
    found = compare(before, after)
    assert found.heads["difference"].round(9).tolist() == [0.1, 0.0, -0.1, -2.5]
    half = (found.heads["ci_high"] - found.heads["ci_low"]) / 2
    np.testing.assert_allclose(half, 0.5, rtol=2e-3)  # sqrt(0.3^2 + 0.4^2), n = 1000
    moved = found.moved()
    assert moved[["layer", "head"]].to_numpy().tolist() == [[1, 1]]
    ranks = found.ranks.iloc[0]
    # Ranks 1 2 3 4 against 1 3 4 2: 1 - 6 * (0 + 1 + 1 + 4) / (4 * 15)
    assert ranks["rank_correlation"] == pytest.approx(0.4)
    assert (ranks["heads"], ranks["moved"], ranks["told"]) == (4, 1, 4)
    assert ranks["mean_difference"] == pytest.approx(-0.625)
    assert ranks["largest_difference"] == pytest.approx(-2.5)
    reasons = [entry["reason"] for entry in found.left_out]
    assert reasons == [
        "1 heads are in the left table alone",
        "1 heads are in the right table alone",
    ]
    assert found.unpaired == "a table has no scores of single examples"


def test_swapping_the_sides_turns_the_sign(before: HeadTable, after: HeadTable) -> None:
    one, other = compare(before, after).heads, compare(after, before).heads
    np.testing.assert_allclose(one["difference"], -other["difference"])
    np.testing.assert_allclose(one["ci_low"], -other["ci_high"])
    np.testing.assert_allclose(one["q"], other["q"])


def test_towers_and_variants_against_each_other(before: HeadTable) -> None:
    sight = table([("sight", 0, 1, "entropy", 2.75, 0.1)])
    both = before.merge(sight)
    found = compare(both, both, towers=("text", "sight"))
    assert found.heads[["tower", "layer", "head", "difference"]].to_numpy().tolist() == [
        ["text", 0, 1, 0.75]
    ]
    soft = table([("text", 1, 0, "mass", 2.0, 0.1)], variant="soft")
    hard = table([("text", 1, 0, "mass", 1.5, 0.1)], variant="hard")
    two = soft.merge(hard)
    found = compare(two, two, "mass", variants=("soft", "hard"))
    assert found.heads["difference"].tolist() == [-0.5]
    assert found.heads["variant"].tolist() == ["soft"]


def test_several_inputs_are_asked_for(before: HeadTable) -> None:
    other = table([("text", 0, 0, "entropy", 9.0, 0.3)], inputs="noise")
    both = before.merge(other)
    found = compare(both, before)
    assert "several inputs (words, noise)" in found.left_out[0]["reason"]
    assert len(found.heads) == 4
    found = compare(both, before, inputs=("noise", "words"))
    assert found.heads.query("layer == 0 and head == 0")["difference"].item() == -8.0


def test_other_units_and_missing_intervals(before: HeadTable) -> None:
    share = table([("text", 1, 0, "entropy", 0.5, 0.1)], unit="share")
    with pytest.raises(ValueError, match="its units differ: nats against share"):
        compare(before, share)
    bare = table([("text", 1, 0, "entropy", 0.5, np.nan), ("text", 1, 1, "entropy", 2, 0.1)])
    found = compare(before, bare)
    assert found.heads["difference"].tolist() == [-2.5, -2.0]
    assert np.isnan(found.heads["q"].iloc[0])
    assert found.ranks["told"].tolist() == [1]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"measures": "vhd"}, "`measures` must be in both tables, the left one has no 'vhd'"),
        ({"towers": "sight"}, "`towers` must be in both tables, the left one has no 'sight'"),
        ({"variants": ("", "x")}, "`variants` must be in both tables, the right one has no 'x'"),
        ({"paired": True}, "Examples cannot be paired: a table has no scores"),
    ],
)
def test_what_cannot_be_compared(
    before: HeadTable, after: HeadTable, asked: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        compare(before, after, **asked)


def test_rounding_is_no_change() -> None:
    lines = [("text", 0, head, "entropy", 3.0 + head, 0.0) for head in range(4)]
    found = compare(table(lines), table([(*one[:4], one[4] + 1e-6, 0.0) for one in lines]))
    assert found.heads["p"].tolist() == [1.0] * 4
    planted = [(*one[:4], one[4] + 0.5 * (one[2] == 2), 0.0) for one in lines]
    assert compare(table(lines), table(planted)).moved()["head"].tolist() == [2]


def test_pairs_equal_a_bootstrap_written_out(tmp_path: Path) -> None:
    """Ratios of sums, examples weighted alike in both runs, other shards and another order."""
    rng = np.random.default_rng(7)
    names = [f"e{number}" for number in range(13)]
    a, b = rng.normal(3, 1, (13, 5)), rng.normal(3, 1, (13, 5))
    weights = rng.integers(0, 4, (13, 5)).astype(float)
    left = drawn_run(tmp_path / "a", a, examples=names, weights=weights)
    order = rng.permutation(13)
    right = drawn_run(
        tmp_path / "b", b[order], examples=[names[i] for i in order], weights=weights[order],
        shard=3,
    )  # fmt: skip
    found = compare(left, right, paired=True)
    assert found.unpaired == "" and found.heads["paired"].all()
    drawn = np.stack([poisson_weights(name, 200, 0) for name in names]).astype(float)
    for head in range(5):
        total = drawn.T @ weights[:, head]
        change = (drawn.T @ (weights * b)[:, head] - drawn.T @ (weights * a)[:, head]) / total
        line = found.heads.iloc[head]
        value = line["difference"]
        n = np.count_nonzero(weights[:, head])
        low, high = np.quantile(change, [0.025, 0.975])
        t = {9: 2.3060, 10: 2.2622, 11: 2.2281, 12: 2.2010, 13: 2.1788, 8: 2.3646, 7: 2.4469}[n]
        factor = (n / (n - 1)) ** 0.5 * t / 1.959964
        assert line["ci_low"] == pytest.approx(value - factor * (value - low), rel=1e-4)
        assert line["ci_high"] == pytest.approx(value + factor * (high - value), rel=1e-4)


def test_pairs_see_what_separate_samples_cannot(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    common = rng.normal(0, 5, (30, 1))
    a = 10 + common + rng.normal(0, 0.3, (30, 8))
    b = 10 + common + rng.normal(0, 0.3, (30, 8))
    b[:, 3] += 0.5
    left, right = drawn_run(tmp_path / "a", a), drawn_run(tmp_path / "b", b)
    assert compare(left, right).moved()[["layer", "head"]].to_numpy().tolist() == [[0, 3]]
    assert len(compare(left, right, paired=False).moved()) == 0


def test_other_data_or_examples_are_not_paired(tmp_path: Path) -> None:
    scores = np.random.default_rng(9).normal(3, 1, (6, 4))
    left = drawn_run(tmp_path / "a", scores)
    other = drawn_run(tmp_path / "b", scores, digest="other")
    fewer = drawn_run(tmp_path / "c", scores[:5])
    assert compare(left, other).unpaired == "the data are not the same"
    assert compare(left, fewer).unpaired == "not the same examples were scored"
    with pytest.raises(ValueError, match="cannot be paired: the data are not the same"):
        compare(left, other, paired=True)
    for shard in (fewer.path / "journal").glob("shard-*"):
        shard.unlink()
    assert "keeps no scores of single examples" in compare(left, fewer.path).unpaired


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("skewed", [False, True])
def test_heads_that_did_not_change_are_rarely_called_so(
    tmp_path: Path, pairs: bool, skewed: bool
) -> None:
    """Of 20 x 40 heads without a difference 2 to 8 % have an interval without 0; of 20
    comparisons few name any head as moved."""
    rng = np.random.default_rng(10)
    outside, families = [], 0
    for trial in range(20):
        draw = rng.exponential if skewed else rng.standard_normal
        blocks = [3 + draw(size=(16, 40)) for _ in range(2)]
        runs = [
            drawn_run(tmp_path / f"{trial}-{side}", block, shard=16)
            for side, block in zip("ab", blocks, strict=True)
        ]
        found = compare(*runs, paired=pairs)
        heads = found.heads
        outside += ((heads["ci_low"] > 0) | (heads["ci_high"] < 0)).tolist()
        families += len(found.moved()) > 0
    assert 0.02 < np.mean(outside) < 0.08
    assert families <= 3
