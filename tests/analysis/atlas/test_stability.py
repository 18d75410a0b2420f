"""Clusters, gaps and the choice of their number, on points whose groups are known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from analysis.atlas.clusters import NO_CLUSTER, Asked, by_size, find
from analysis.atlas.dip import SURE, dip_score
from analysis.atlas.stability import STABLE, StabilityOptions, agreement_of_seeds, choose

QUICK = StabilityOptions(most=5, seeds=3, references=3)


def blobs(sizes: tuple[int, ...] = (90, 60, 40), apart: float = 4.0, seed: int = 0):
    dice = np.random.default_rng(seed)
    middles = np.array([[0, 0], [apart, 0], [0, apart], [apart, apart]])
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return middles[truth] + dice.normal(size=(len(truth), 2)) * 0.4, truth


@pytest.mark.parametrize("method", ["mixture", "kmeans", "hdbscan"])
def test_three_groups_are_found_without_being_told(method: str) -> None:
    space, truth = blobs()
    choice = choose(space, 0, StabilityOptions(method=method, most=5, seeds=3, references=3))
    assert choice.asked is not None
    found = find(space, choice.asked, 0)
    assert found.count == 3
    assert adjusted_rand_score(truth, found.labels) > 0.9
    assert choice.agreement > 0.9
    assert "3 clusters: halves of the patterns agree" in choice.said_of(found.labels)


@pytest.mark.parametrize("method", ["mixture", "kmeans", "hdbscan"])
@pytest.mark.parametrize("shape", ["ball", "long", "skewed", "arc"])
def test_one_group_of_any_shape_is_no_structure(method: str, shape: str) -> None:
    dice = np.random.default_rng(1)
    space = dice.normal(size=(240, 3))
    if shape == "long":
        space *= [6, 1, 1]
    elif shape == "skewed":
        space = np.exp(space * [1.0, 0.5, 0.5])
    elif shape == "arc":
        turn = dice.uniform(0, 3, 240)
        space = np.column_stack([np.cos(turn), np.sin(turn), turn * 0]) * 5 + space * 0.3
    choice = choose(space, 0, StabilityOptions(method=method, most=5, seeds=3, references=3))
    assert choice.asked is None
    assert choice.why.startswith("No structure: halves agree to")
    assert np.isnan(choice.agreement)


def test_halves_agree_on_how_to_cut_a_long_cloud_but_there_is_no_gap() -> None:
    space = np.random.default_rng(2).uniform(size=(240, 2)) * [9, 1]
    choice = choose(space, 0, StabilityOptions("kmeans", most=2, references=0))
    assert choice.table["agreement"].iloc[0] > 0.8
    assert choice.table["gap"].iloc[0] < SURE
    assert choice.asked is None
    assert "by degrees and not by kinds" in choice.why


def test_the_number_that_shows_most_clusters_apart_is_chosen() -> None:
    # Two pairs of groups, close together: halves agree on two as well as on four.
    space, truth = blobs((60, 60, 60, 60))
    space[truth % 2 == 1] += [14.0, 0.0]
    choice = choose(space, 0, QUICK)
    table = choice.table.set_index("number")
    assert table.loc[2, "agreement"] > 0.99 and table.loc[2, "isolated"] == 2
    assert choice.asked == Asked("mixture", 4) and table.loc[4, "isolated"] == 4


def test_what_cannot_hold_any_more_is_not_measured_further() -> None:
    space = np.random.default_rng(3).normal(size=(200, 3))
    table = choose(space, 0, StabilityOptions(most=6, references=2)).table
    given_up = table[table["halvings"] < 5]
    assert len(given_up) and (given_up["agreement"] < STABLE).all()
    assert given_up[["gap", "isolated", "reference"]].isna().all(axis=None)
    apart = choose(blobs()[0], 0, QUICK).table.set_index("number")
    assert apart.loc[3, "halvings"] == 3 and np.isfinite(apart.loc[3, "reference"])


def test_the_sentence_counts_the_clusters_that_there_are() -> None:
    choice = choose(blobs()[0], 0, QUICK)
    assert choice.said_of(np.array([0, 0, 1, 2])).startswith("3 clusters: halves of the patterns")
    told = choice.said_of(np.array([0, 2, 2, NO_CLUSTER]))
    assert told.startswith("2 clusters, and 25% of the patterns in none: halves of")
    assert "3 of 3 have a gap around them" in told


def test_too_few_and_all_the_same_are_told() -> None:
    assert "Too few patterns" in choose(blobs((20, 19))[0], 0).why
    same = choose(np.zeros((50, 2)), 0, QUICK)
    assert same.asked is None and "all patterns are the same" in same.why
    # Two different points: no half has three of them.
    twice = np.repeat(np.array([[0.0, 0.0], [1.0, 1.0]]), 40, axis=0)
    assert choose(twice, 0, QUICK).table["agreement"].iloc[1:].max() == 0


def test_the_choice_is_the_same_twice() -> None:
    space, _ = blobs()
    first, second = choose(space, 5, QUICK), choose(space, 5, QUICK)
    assert first.table.equals(second.table) and first.asked == second.asked
    assert agreement_of_seeds(space, Asked("mixture", 3), range(5)).min() > 0.99


def test_new_patterns_go_to_the_cluster_they_lie_in() -> None:
    space, truth = blobs()
    more, where = blobs(seed=9)
    for asked in (Asked("mixture", 3), Asked("kmeans", 3), Asked("hdbscan", 15)):
        found = find(space, asked, 0)
        name_of = {t: np.bincount(found.labels[truth == t] + 1).argmax() - 1 for t in range(3)}
        expected = np.array([name_of[t] for t in where])
        assert (found.place(more) == expected).mean() > 0.95


def test_more_clusters_than_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 for 3 clusters"):
        find(np.repeat([[0.0], [1.0]], 5, axis=0), Asked("kmeans", 3), 0)


def test_the_largest_cluster_is_first() -> None:
    labels, old = by_size(np.array([2, 2, 2, 0, 0, NO_CLUSTER, 5]))
    assert labels.tolist() == [0, 0, 0, 1, 1, NO_CLUSTER, 2]
    assert old.tolist() == [2, 0, 5]


def test_the_dip_is_that_of_the_definition() -> None:
    # Two equal atoms at distance 1: a quarter, whatever single heap is laid beside them.
    atoms = np.repeat([0.0, 1.0], 50) + np.linspace(0, 1e-6, 100)
    assert dip_score(atoms) / 10 == pytest.approx(0.25, abs=0.01)
    # Evenly spaced: 1 / 2n, the least there can be.
    assert dip_score(np.arange(50.0)) == pytest.approx(np.sqrt(50) / 100)
    dice = np.random.default_rng(0)
    values = dice.normal(size=101) + 3 * (dice.random(101) < 0.4)
    assert dip_score(values) == pytest.approx(dip_score(-5 * values + 2))
    assert dip_score(np.ones(9)) == 0


def test_one_heap_rarely_scores_as_two() -> None:
    dice = np.random.default_rng(0)
    scores = np.array([dip_score(dice.random(100)) for _ in range(400)])
    # Quantiles of Hartigan and Hartigan's table for 100 numbers: 50 % 0.0355, 95 % 0.0493.
    assert np.median(scores) == pytest.approx(0.355, abs=0.02)
    assert np.quantile(scores, 0.95) == pytest.approx(0.5, abs=0.04)
    assert (scores < SURE).all()
