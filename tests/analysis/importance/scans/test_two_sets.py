"""Names, pairs and halves of two sets of examples."""

from typing import Any

import numpy as np
import pytest

from analysis.importance.scans.options import ScanError
from analysis.importance.scans.two_sets import Halved, as_data, halves
from analysis.statistics import poisson_weights
from probes.subject import Subject
from tests import tiny_models as tiny

ONE = tuple(f"behaviour:{name}" for name in "abcdefg")
OTHER = tuple(f"control:{name}" for name in "gfedcba")


def test_halves_are_even_and_do_not_depend_on_the_order() -> None:
    ids = [f"example-{number}" for number in range(23)]
    first = halves(ids, seed=0)
    assert first.sum() == 12
    assert halves(ids[::-1], seed=0).tolist() == first[::-1].tolist()
    assert halves(ids, seed=1).tolist() != first.tolist()


def test_unpaired_sets_keep_their_order() -> None:
    sets = Halved.of(ONE, OTHER[:5], paired=False, seed=0)
    assert [rows.tolist() for rows in sets.rows] == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4]]
    mine, theirs = sets.weights(30)
    assert (mine.shape, theirs.shape) == ((30, 7), (30, 5))
    assert mine[:, 2].tolist() == poisson_weights("behaviour:c", 30, 0).tolist()
    # One id in both sets is chance here: its examples are drawn apart.
    assert theirs[:, 4].tolist() != mine[:, 2].tolist()
    assert theirs[:, 4].tolist() == poisson_weights("control:c", 30, 0).tolist()


def test_pairs_are_matched_by_id_and_stay_together() -> None:
    sets = Halved.of(ONE, OTHER, paired=True, seed=3)
    assert sets.rows[1].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert sets.first[0].tolist() == sets.first[1].tolist()
    mine, theirs = sets.weights(30)
    assert np.array_equal(mine, theirs)
    judged = [
        {name[-1] for name in ids if sets.judged(which)(name)}
        for which, ids in ((0, ONE), (1, OTHER))
    ]
    assert judged[0] == judged[1] and len(judged[0]) == 3


def test_the_second_half_is_judged_and_nothing_else() -> None:
    sets = Halved.of(ONE, OTHER[:4], paired=False, seed=0)
    for which, ids in enumerate(sets.ids):
        counted = [sets.judged(which)(name) for name in ids]
        assert counted == (~sets.first[which]).tolist()
        assert not any(sets.judged(1 - which)(name) for name in ids)


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        (ONE, OTHER[1:], "'g' stands in the behaviour only \\(1 such\\)"),
        (ONE[2:], OTHER, "'a' stands in the control only \\(2 such\\)"),
        ((*ONE, ONE[3]), OTHER, "Examples of the behaviour must have ids of their own, 'd' stands"),
        (ONE, (*OTHER, OTHER[0]), "Examples of the control must have ids of their own, 'g' stands"),
    ],
)
def test_what_cannot_be_paired_is_said(one: Any, other: Any, sentence: str) -> None:
    with pytest.raises(ScanError, match=sentence):
        Halved.of(one, other, paired=True, seed=0)


def test_batches_of_texts_get_names_of_their_own() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    given = [subject.prepare(text=["a b", "c d e"]), subject.prepare(text=["f", "g h"])]
    before = [example.id for batch in given for example in batch.examples]
    data = as_data(given, "control")
    names = [example.id for batch in data() for example in batch.examples]
    assert names == ["control:0:0", "control:0:1", "control:1:0", "control:1:1"]
    assert [example.id for batch in given for example in batch.examples] == before
    alone = as_data(given[0], "behaviour")
    for _ in range(2):  # anew each time
        assert [e.id for batch in alone() for e in batch.examples] == ["behaviour:0", "behaviour:1"]
    called = as_data(lambda: iter(given[:1]), "control")
    assert [e.id for batch in called() for e in batch.examples] == ["control:0", "control:1"]
