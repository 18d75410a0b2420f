"""Heads of two models, matched by what they do: a planted order is found, chance is chance."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from analysis.atlas.matching import head_profiles, match_heads


def profiles(values: np.ndarray, tower: str = "language") -> tuple[pd.DataFrame, pd.DataFrame]:
    index = pd.MultiIndex.from_tuples(
        [(tower, n // 4, n % 4) for n in range(len(values))], names=["tower", "layer", "head"]
    )
    made = pd.DataFrame(values, index=index, columns=[f"f{n}" for n in range(values.shape[1])])
    return made, made * 0


def kinds(count: int, seed: int, mixing: int = 0) -> np.ndarray:
    """Shares that go together: 5 features from 3 causes."""
    dice = np.random.default_rng(seed)
    causes = dice.random((count, 3))
    return (causes @ np.random.default_rng(mixing).dirichlet(np.ones(5), 3) * 2).clip(0, 1)


def test_a_planted_order_of_heads_is_found() -> None:
    dice = np.random.default_rng(0)
    one = kinds(17, seed=1)
    order = dice.permutation(17)
    two = (one + dice.normal(size=one.shape) * 0.01).clip(0, 1)[order]
    found = match_heads(profiles(one), profiles(two), seed=0)
    partner = found.pairs["layer_b"] * 4 + found.pairs["head_b"]
    assert order[partner.to_numpy()].tolist() == list(range(17))
    assert found.score > 0.95 and found.p < 0.01
    assert found.score > found.null.max()
    assert (found.pairs["closer"] == 0).all()


def test_unrelated_heads_are_no_closer_than_by_chance() -> None:
    ps = [
        match_heads(profiles(kinds(13, s)), profiles(kinds(13, 100 + s)), seed=s, draws=60).p
        for s in range(20)
    ]
    assert np.mean(np.array(ps) <= 0.05) <= 0.1
    assert 0.3 < np.mean(ps) < 0.75
    worst = match_heads(profiles(kinds(13, 3)), profiles(kinds(13, 103)), seed=3)
    assert (worst.p > 0.05) == ("no closer than heads matched by chance" in worst.sentence)


def test_the_assignment_is_the_best_of_all() -> None:
    one, two = kinds(5, 1), kinds(5, 2)
    found = match_heads(profiles(one), profiles(two), seed=0, draws=5)
    far = np.square(one[:, None] - two[None]).sum(-1)
    best = min(sum(far[i, j] for i, j in enumerate(order)) for order in permutations(range(5)))
    assert found.score == pytest.approx(1 - best / 5 / far.mean())


def test_spare_heads_are_left_without_partner() -> None:
    one, two = kinds(7, 1), kinds(5, 2)
    found = match_heads(profiles(one), profiles(two), seed=0, draws=5)
    assert len(found.pairs) == 5 and len(found.unmatched_a) == 2 and not found.unmatched_b
    paired = set(
        zip(found.pairs["tower_a"], found.pairs["layer_a"], found.pairs["head_a"], strict=True)
    )
    assert not paired & set(found.unmatched_a)
    other = match_heads(profiles(two), profiles(one), seed=0, draws=5)
    assert len(other.unmatched_b) == 2 and not other.unmatched_a


def test_what_cannot_be_matched_is_refused() -> None:
    one, two = profiles(kinds(4, 1)), profiles(kinds(4, 2))
    renamed = tuple(frame.add_prefix("other ") for frame in two)
    with pytest.raises(ValueError, match="No feature tells the heads"):
        match_heads(one, renamed, seed=0)
    with pytest.raises(ValueError, match="got 1 and 1"):
        match_heads(profiles(kinds(1, 1)), profiles(kinds(1, 2)), seed=0)


def test_profiles_are_means_over_the_examples_of_a_head() -> None:
    samples = pd.DataFrame({"tower": "v", "layer": [0, 0, 1], "head": [2, 2, 0]})
    made = head_profiles(pd.DataFrame({"a": [0.2, 0.6, np.nan]}), samples)
    assert made.loc[("v", 0, 2), "a"] == pytest.approx(0.4)
    assert np.isnan(made.loc[("v", 1, 0), "a"])


def together(**towers: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    made = [profiles(values, tower) for tower, values in towers.items()]
    return pd.concat([one for one, _ in made]), pd.concat([null for _, null in made])


def test_heads_are_matched_within_towers_that_both_models_have() -> None:
    here, there = kinds(5, 1), kinds(7, 2)
    # Each head has its twin in the other tower, where it must not be looked for.
    one = together(vision=here, language=there)
    two = together(language=here[:4], vision=there[:3])
    found = match_heads(one, two, seed=0, draws=20)
    assert (found.pairs["tower_a"] == found.pairs["tower_b"]).all()
    assert found.pairs["tower_a"].value_counts().to_dict() == {"language": 4, "vision": 3}
    assert len(found.unmatched_a) == 5 and not found.unmatched_b and not found.notes
    total, count, every = 0.0, 0, []
    for a, b in ((here, there[:3]), (there, here[:4])):
        far = np.square(a[:, None] - b[None]).sum(-1)
        best = min(
            sum(far[i, j] for j, i in enumerate(p)) for p in permutations(range(len(a)), len(b))
        )
        total, count = total + best, count + len(b)
        every += far.ravel().tolist()
    assert found.score == pytest.approx(1 - total / count / np.mean(every))
    # A match over all heads would find the twins.
    assert found.score < 0.95 and (found.pairs["distance"] > 1e-6).any()


def test_the_null_deals_heads_out_within_their_tower() -> None:
    """Towers that lie far apart: a null that mixed them would have pairs over the border."""
    near, far = kinds(5, 1) * 0.1, kinds(5, 2) * 0.1 + 0.9
    other = kinds(5, 3) * 0.1, kinds(5, 4) * 0.1 + 0.9
    both = match_heads(
        together(vision=near, language=far), together(vision=other[0], language=other[1]),
        seed=0, draws=100,
    )  # fmt: skip
    assert both.null.max() < 0.95 and both.p > 0.03


def test_towers_of_other_names_are_matched_and_it_is_said() -> None:
    one = together(vision=kinds(4, 1), language=kinds(5, 2))
    two = together(vision=kinds(4, 1), text=kinds(5, 2))
    found = match_heads(one, two, seed=0, draws=5)
    assert set(zip(found.pairs["tower_a"], found.pairs["tower_b"], strict=True)) == {
        ("vision", "vision"), ("language", "text")
    }  # fmt: skip
    assert found.score == pytest.approx(1)
    (note,) = found.notes
    assert note.endswith("heads of language are matched with heads of text.")
    assert note in found.sentence
    alone = match_heads(one, together(vision=kinds(4, 1)), seed=0, draws=5)
    assert set(alone.pairs["tower_a"]) == {"vision"} and len(alone.unmatched_a) == 5
    assert alone.notes == ("One model alone has language, whose heads have no partner.",)


def test_a_tower_of_which_nothing_is_measured_is_left_out_and_it_is_said() -> None:
    one = together(vision=kinds(4, 1), language=np.full((5, 5), 0.5))
    found = match_heads(one, one, seed=0, draws=5)
    assert set(found.pairs["tower_a"]) == {"vision"} and len(found.unmatched_b) == 5
    assert found.notes == (
        "No feature tells the heads of language apart, so they are not matched.",
    )
