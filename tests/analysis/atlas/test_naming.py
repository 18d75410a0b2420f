"""Names by rules, each with its numbers; "mixed" where none holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.atlas.naming import RULES, Rule, name_clusters, name_heads, name_patterns


def named(rows: int = 3, null: float = 0.06, **values: float):
    columns = {name.replace("__", "[") + "]" * ("__" in name): v for name, v in values.items()}
    features = pd.DataFrame({name: [value] * rows for name, value in columns.items()})
    return name_patterns(features, features * 0 + null)


def test_a_name_tells_its_rule_and_its_numbers() -> None:
    found = named(previous_token=0.91, induction=0.02)
    assert found.name == "previous token"
    expected = "previous token: previous_token 0.91 against 0.06 under uniform attention"
    assert found.sentence == expected
    assert found.strength == pytest.approx((0.91 - 0.06) / 0.94)
    assert "stripe" in found.not_judged and "induction" not in found.not_judged


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"induction": 0.5, "previous_token": 0.1}, "induction"),
        ({"duplicate_token": 0.7, "self_attention": 0.45}, "duplicate token"),
        ({"first_key": 0.8, "stripe": 0.9}, "first key"),
        ({"row_band__up": 0.47, "row_band__down": 0.46}, "rows above and below"),
        ({"row_band__up": 0.85, "row_band__down": 0.02}, "patch above"),
        ({"row_band__left": 0.85, "previous_token": 0.84}, "previous token"),
        ({"block": 0.5, "local_share": 0.7}, "block"),
        ({"local_share": 0.7, "block": 0.1}, "near patches"),
        ({"stripe": 0.2, "block": 0.2, "induction": 0.2}, "mixed"),
    ],
)
def test_the_more_particular_and_then_the_stronger_rule_names(values: dict, name: str) -> None:
    assert named(**values).name == name


def test_even_attention_is_judged_against_the_most_there_can_be() -> None:
    assert named(null=1.0, entropy_normalised=0.98).name == "uniform"
    assert named(null=1.0, entropy_normalised=0.9).name == "mixed"


def test_mixed_tells_what_came_nearest() -> None:
    sentence = named(stripe=0.25, block=0.08).sentence
    assert sentence.startswith("mixed: no rule holds; the nearest is stripe: stripe 0.25 against")
    assert "none of their measures is there" in named(unknown=0.9).sentence


def test_what_few_members_have_is_not_judged() -> None:
    features = pd.DataFrame({"induction": [0.9, np.nan, np.nan], "stripe": [0.6, 0.1, 0.5]})
    found = name_patterns(features, features * 0)
    assert found.name == "stripe"
    assert found.members == pytest.approx(2 / 3)
    assert "induction" in found.not_judged


def test_each_cluster_is_named_by_its_own_members() -> None:
    features = pd.DataFrame({"induction": [0.9, 0.0, 0.8, 0.1], "stripe": [0.0, 0.9, 0.1, 0.8]})
    names = name_clusters(np.array([0, 1, 0, -1]), features, features * 0)
    assert {label: one.name for label, one in names.items()} == {
        0: "induction", 1: "stripe", -1: "stripe",
    }  # fmt: skip


def test_a_head_has_a_name_of_its_own_beside_that_of_its_cluster() -> None:
    samples = pd.DataFrame({"tower": "language", "layer": [1, 0, 1, 0], "head": [2, 5, 2, 5]})
    features = pd.DataFrame({"previous_token": [0.1, 0.9, 0.2, 0.7], "stripe": [0.8, 0, 0.6, 0]})
    assert name_patterns(features, features * 0).name == "previous token"
    own = name_heads(samples, features, features * 0)
    assert own[["layer", "head", "own_name"]].to_numpy().tolist() == [
        [0, 5, "previous token"], [1, 2, "stripe"],
    ]  # fmt: skip
    assert own["own_sentence"].iloc[1].startswith("stripe: stripe 0.70 against 0.00 under")


def test_rules_can_hold() -> None:
    for rule in RULES:
        assert rule.judge(1.0 if not rule.even else 0.97, 0.05 if not rule.even else 1.0)[1]
    assert not Rule("x", ("x",), 0.4).judge(0.4, 0.05)[1]
