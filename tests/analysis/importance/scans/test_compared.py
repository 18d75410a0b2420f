"""Heads compared on two sets: what is planted is found, what is chance is found one time in 20."""

import numpy as np
import pytest

from analysis.importance.behaviours.activity import HeadValues
from analysis.importance.scans.compared import agreement_of_halves, compared
from analysis.importance.scans.options import ScanError, ScanOptions
from analysis.importance.scans.two_sets import Halved
from probes.heads import Head

HEADS = tuple(Head("language", layer, head) for layer in range(5) for head in range(7))
PLANTED = (3, 11, 19, 30)
NULL_SEEDS = 120


def given(values: np.ndarray, name: str) -> HeadValues:
    ids = tuple(f"{name}:{number}" for number in range(len(values)))
    heads = HEADS[: values.shape[1]]
    return HeadValues(values, ids, heads, ("contribution",) * len(heads))


def scanned(one: np.ndarray, other: np.ndarray, seed: int = 0, **options: object):
    how = ScanOptions(**({"replicates": 30} | options))  # type: ignore[arg-type]
    mine, theirs = given(one, "behaviour"), given(other, "control")
    sets = Halved.of(mine.examples, theirs.examples, how.paired, seed)
    return compared(mine, theirs, sets, how, seed)


def alike(generator: np.random.Generator, examples: int, heads: int) -> np.ndarray:
    """Skewed values, heads of an example correlated as those of a model are."""
    shared = generator.gamma(4.0, size=(examples, 1))
    return shared + generator.gamma(4.0, size=(examples, heads))


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.gamma(9.0, size=(23, 35)), generator.gamma(9.0, size=(19, 35))
    one[:, 11] += 5
    heads, test = scanned(one, other)
    first = heads.iloc[0]
    assert (first["layer"], first["head"]) == (1, 4)
    assert first["effect_size"] > 1 and first["p"] == 1 / 10_000 and test.splits == 10_000
    assert first["ci_low"] > first["null_high"] > 0 > first["null_low"]
    assert (heads["q"] <= 0.05).sum() == 1
    assert first["mean_behaviour"] == pytest.approx(one[:, 11].mean())
    assert abs(first["effect_size"]) > test.null_largest
    assert min(first["first_half"], first["second_half"]) > 0.8
    assert (np.diff(heads["effect_size"].abs()) <= 0).all()


def test_where_nothing_differs_something_is_found_one_time_in_twenty() -> None:
    """With no correction for the number of heads it is found two times in five."""
    generator = np.random.default_rng(2)
    found, uncorrected = [], []
    for seed in range(NULL_SEEDS):
        one, other = alike(generator, 13, 12), alike(generator, 17, 12)
        heads, _ = scanned(one, other, seed, permutations=499, replicates=2)
        found.append((heads["q"] <= 0.05).any())
        uncorrected.append((heads["p"] <= 0.05).any())
    assert 0.005 < np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / NULL_SEEDS)
    assert np.mean(uncorrected) > 0.3


def test_among_what_is_found_one_in_twenty_is_false() -> None:
    generator = np.random.default_rng(3)
    false, right = [], []
    for seed in range(40):
        one, other = alike(generator, 31, 35), alike(generator, 31, 35)
        one[:, PLANTED] += 5
        heads, _ = scanned(one, other, seed, permutations=999, replicates=2)
        lines = heads[heads["q"] <= 0.05]
        own = set((lines["layer"] * 7 + lines["head"]).tolist())
        false.append(len(own - set(PLANTED)) / max(len(own), 1))
        right.append(len(own & set(PLANTED)) / len(PLANTED))
    assert np.mean(false) <= 0.05 + 2 * np.std(false) / np.sqrt(40)
    assert np.mean(right) > 0.9


def test_pairs_are_compared_with_their_own() -> None:
    generator = np.random.default_rng(4)
    template = 5 * generator.normal(size=(21, 10))
    one = template + generator.normal(size=(21, 10))
    one[:, 7] += 1.5
    other = template + generator.normal(size=(21, 10))
    heads, _ = scanned(one, other, paired=True)
    assert (heads["q"] <= 0.05).sum() == 1
    assert heads.loc[heads["q"].idxmin(), ["layer", "head"]].tolist() == [1, 0]
    assert not (scanned(one, other)[0]["q"] <= 0.05).any()
    # In another order of the control, ids still say what belongs together.
    mine, theirs = given(one, "behaviour"), given(other, "control")
    order = generator.permutation(21)
    moved = HeadValues(
        other[order], tuple(theirs.examples[i] for i in order), theirs.heads, theirs.of
    )
    how = ScanOptions(paired=True, replicates=30)
    again, _ = compared(mine, moved, Halved.of(mine.examples, moved.examples, True, 0), how)
    assert again["p"].tolist() == heads["p"].tolist()
    assert again["ci_low"].tolist() == pytest.approx(heads["ci_low"].tolist())


def test_halves_agree_where_there_is_something_and_not_where_there_is_not() -> None:
    generator = np.random.default_rng(5)
    one, other = generator.normal(size=(60, 35)), generator.normal(size=(60, 35))
    chance = agreement_of_halves(scanned(one, other)[0])["language"]
    planted = agreement_of_halves(scanned(one + np.linspace(-2, 2, 35), other)[0])["language"]
    assert abs(chance) < 0.4 and planted > 0.9
    assert agreement_of_halves(scanned(one[:3], other[:3])[0]) == {}


def test_a_head_without_a_value_somewhere_is_not_compared() -> None:
    generator = np.random.default_rng(6)
    one, other = generator.normal(size=(9, 4)), generator.normal(size=(8, 4))
    other[5, 2] = np.nan
    heads, _ = scanned(one, other)
    assert len(heads) == 4 and heads["q"].isna().tolist() == [False, False, False, True]
    other[5] = np.nan
    with pytest.raises(ScanError, match=r"it concerns 7 of 8 of the control \(not '5', for one\)"):
        scanned(one, other)
    one[range(4), range(4)], other[5] = np.nan, 0.0
    with pytest.raises(ScanError, match="each head lacks one somewhere"):
        scanned(one, other)
