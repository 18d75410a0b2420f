"""What was changed, counted over batches, shards and towers."""

import json

from analysis.scores import BatchScores
from analysis.touched import EQUAL, Touched, by_tower, from_json, merged, nothing_in, to_json

PLACE = ("language", 1, "importance_jsd", "ablation=mean")


def test_examples_add_up_head_by_head():
    one = Touched(2, 6, {0: (11, 11), 1: (11, 3), 2: (11, 0)})
    other = Touched(3, 6, {1: (7, 5), 2: (7, 0)})
    total = one + other
    assert (total.examples, total.ablations) == (5, 12)
    assert total.rows == {0: (11, 11), 1: (18, 8), 2: (18, 0)}
    assert total.unchanged == [2]
    assert other + one == Touched(5, 12, {1: (18, 8), 2: (18, 0), 0: (11, 11)})


def test_a_shard_gives_back_what_it_was_given():
    place = ("vision", 0, "patch_noising_logit_difference", "at=image")
    touched = {PLACE: Touched(2, 6, {0: (11, 11), 13: (11, 3)}), place: Touched(1, 1, {5: (4, 0)})}
    assert from_json(json.loads(json.dumps(to_json(touched)))) == touched
    scores = BatchScores.nothing(["a", "b"])
    scores.touched.update(touched)
    tensors, about = scores.to_tensors()
    assert BatchScores.from_tensors(tensors, json.loads(json.dumps(about))).touched == touched
    about.pop("touched")  # a shard of an earlier version
    assert BatchScores.from_tensors(tensors, about).touched == {}


def test_scores_of_other_examples_add_up_and_those_of_the_same_stand_side_by_side():
    parts = [BatchScores.nothing([name]) for name in "ab"]
    parts[0].touched[PLACE] = Touched(1, 2, {0: (5, 5), 1: (5, 4)})
    parts[1].touched[PLACE] = Touched(1, 2, {0: (3, 3), 1: (3, 0)})
    both = BatchScores.merge(parts).touched
    assert both == {PLACE: Touched(2, 4, {0: (8, 8), 1: (8, 4)})}
    assert both == merged([parts[0].touched, parts[1].touched])
    keep_one = BatchScores.nothing(["a"])
    keep_one.touched["language", 1, "keep_one_jsd", "ablation=mean"] = Touched(1, 2, {0: (5, 4)})
    assert len(BatchScores.beside([parts[0], keep_one]).touched) == 2


def test_a_tower_is_told_in_one_record():
    touched = {
        PLACE: Touched(4, 8, {0: (20, 19), 1: (20, 0)}),
        ("language", 0, *PLACE[2:]): Touched(4, 12, {0: (20, 20), 1: (20, 20), 2: (20, 7)}),
        ("vision", 0, *PLACE[2:]): Touched(3, 3, {0: (30, 0)}),
    }
    language, vision = by_tower(touched)
    assert language == {
        "tower": "language",
        "measure": "importance_jsd",
        "variant": "ablation=mean",
        "heads": 5,
        "examples": 4,
        "ablations": 20,
        "rows": [20, 20],
        "changed": [0, 20],
        "unchanged": ["L1H1"],
        "reason": "",
    }
    assert (vision["unchanged"], vision["reason"]) == (["L0H0"], EQUAL)
    none = nothing_in(tower="vision", measure="importance_jsd", reason="No image.")
    assert none.keys() == vision.keys()
    assert (none["heads"], none["changed"], none["reason"]) == (0, [0, 0], "No image.")
