"""Heads that measure alike, against a calculation by hand and a slow loop."""

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import HeadTable
from analysis.similar_heads import most_unusual, similar_heads, standardised


def table(values, tower="language"):
    """From ``{(measure, variant): [value of head 0, 1, ...]}``, three heads to a layer."""
    lines = [
        {
            "tower": tower, "layer": index // 3, "head": index % 3, "measure": measure,
            "variant": variant, "inputs": "x", "value": value, "ci_low": np.nan,
            "ci_high": np.nan, "n": 5, "null_low": np.nan, "null_high": np.nan, "unit": "u",
        }
        for (measure, variant), column in values.items()
        for index, value in enumerate(column)
    ]  # fmt: skip
    return HeadTable(pd.DataFrame(lines))


def of(heads, tower="language"):
    return standardised(heads, tower)


def test_by_hand():
    # Head 2 differs from head 0 in a alone, head 3 in both, the others by more.
    heads = table({("a", ""): [0, 2, 2, 2, 4], ("b", ""): [10, 40, 10, 0, 40]})
    found = similar_heads(of(heads), "language.L0H0", most=2)
    assert found[["layer", "head"]].to_numpy().tolist() == [[0, 2], [1, 0]]
    spread = np.std([10, 40, 10, 0, 40])
    near = np.sqrt((2 / np.std([0, 2, 2, 2, 4])) ** 2 / 2)
    assert found["distance"].iloc[0] == pytest.approx(near)
    third = np.sqrt(((2 / np.std([0, 2, 2, 2, 4])) ** 2 + (10 / spread) ** 2) / 2)
    assert found["distance"].iloc[1] == pytest.approx(third)
    assert found["apart"].tolist() == ["a", "a"]
    assert found["apart_by"].iloc[0] == pytest.approx(2 / np.std([0, 2, 2, 2, 4]))


def test_variants_of_one_measure_weigh_as_one():
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=7), rng.normal(size=7)
    plain = similar_heads(of(table({("a", ""): one, ("b", ""): other})), "language.L1H1")
    many = {("a", f"k={k}"): one for k in range(11)} | {("b", ""): other}
    again = similar_heads(of(table(many)), "language.L1H1")
    assert again["distance"].to_numpy() == pytest.approx(plain["distance"].to_numpy())
    assert again["head"].tolist() == plain["head"].tolist()


def test_units_and_what_is_the_same_for_all_do_not_matter():
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=7), rng.normal(size=7)
    plain = similar_heads(of(table({("a", ""): one, ("b", ""): other})), "language.L2H0")
    moved = {("a", ""): 1000 * one - 7, ("b", ""): other, ("c", ""): np.full(7, 0.1)}
    again = similar_heads(of(table(moved)), "language.L2H0")
    assert again["distance"].to_numpy() == pytest.approx(plain["distance"].to_numpy())
    assert again["measures"].tolist() == [2] * 6


def test_against_a_slow_loop_with_gaps():
    rng = np.random.default_rng(7)
    values = {(m, v): rng.normal(size=7) for m in "abc" for v in ("", "x")}
    values["a", ""][2] = np.nan
    values["b", ""][4] = values["b", "x"][4] = np.nan
    found = similar_heads(of(table(values)), "language.L0H1", most=6)
    for line in found.itertuples():
        index, parts = 3 * line.layer + line.head, []
        for measure in "abc":
            each = []
            for variant in ("", "x"):
                column = values[measure, variant]
                z = (column - np.nanmean(column)) / np.nanstd(column)
                if np.isfinite(z[index] - z[1]):
                    each.append((z[index] - z[1]) ** 2)
            if each:
                parts.append(np.mean(each))
        assert line.distance == pytest.approx(np.sqrt(np.mean(parts)))
        assert line.measures == len(parts)
    assert found["distance"].is_monotonic_increasing
    assert len(found) == 6


def test_only_the_same_tower_is_compared():
    both = table({("a", ""): [0, 1, 5]}).merge(table({("a", ""): [0, 0.1, 9]}, "vision"))
    found = similar_heads(of(both, "vision"), "vision.L0H0")
    assert set(found["tower"]) == {"vision"} and len(found) == 2


def test_the_furthest_variant_stands_for_a_measure():
    heads = table(
        {
            ("a", "near"): [0, 1, 2, 3, 4],
            ("a", "far"): [0, 0, 9, 0, 0],
            ("b", ""): [5, 1, 4, 2, 3],
            ("c", ""): [1, 1, 1, 1, 1],
        }
    )
    assert most_unusual(of(heads), "language.L0H2") == [("a", "far"), ("b", "")]
    assert abs(standardised(heads, "language").loc[(0, 2)]).max() == pytest.approx(2)


def test_what_is_not_there_is_a_sentence():
    heads = table({("a", ""): [0, 1, 5]})
    with pytest.raises(ValueError, match="must be in the table"):
        similar_heads(of(heads), "language.L9H9")
    with pytest.raises(ValueError, match="`tower` must be one of language"):
        standardised(heads, "vision")
    assert most_unusual(of(heads), "language.L9H9") == []
    alone = table({("a", ""): [0.5]})
    assert len(of(alone).columns) == 0
    assert len(similar_heads(of(alone), "language.L0H0")) == 0
    assert most_unusual(of(alone), "language.L0H0") == []
