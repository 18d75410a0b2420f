"""POPE: questions from the data's own objects, the rule that reads answers, a table by hand."""

import pytest

from analysis.hallucination.chair import totals
from analysis.hallucination.pope import PopeAnswer, parse_answer, pope_values
from analysis.hallucination.pope_questions import object_statistics, pope_questions, wording

IMAGES = {
    "p": ["dog", "cat"],
    "q": ["dog", "cow"],
    "r": ["dog", "cow", "bird", "cat"],
    "s": ["yak"],
}


def asked(poll, image, split, there):
    return [
        q.kind for q in poll.questions if (q.image_id, q.split, q.there) == (image, split, there)
    ]


def test_statistics_of_the_data():
    found = object_statistics(IMAGES)
    assert found.popularity == ("dog", "cat", "cow", "bird", "yak")
    assert found.together["cow"] == ("dog", "bird", "cat")
    assert found.together["yak"] == ()


def test_questions_by_hand():
    poll = pope_questions(IMAGES, object_statistics(IMAGES))
    for split in ("random", "popular", "adversarial"):
        assert asked(poll, "p", split, True) == ["dog", "cat"]
        assert asked(poll, "r", split, True) == ["dog", "cow", "bird"]
        assert len(asked(poll, "p", split, False)) == 2
    assert asked(poll, "p", "popular", False) == ["cow", "bird"]
    # Seen beside dog: cat, cow, bird. Beside cat: bird and cow once, dog twice; cow is taken.
    assert asked(poll, "p", "adversarial", False) == ["cow", "bird"]
    # Beside dog: cat first. Beside cow: dog is there, bird next.
    assert asked(poll, "q", "adversarial", False) == ["cat", "bird"]
    # One class is absent in r, for three positives; it was never seen with any of them.
    assert asked(poll, "r", "adversarial", False) == ["yak"]
    assert poll.short == 1
    assert asked(poll, "s", "popular", False) == ["dog"]
    assert poll.fallbacks == {"random": 0, "popular": 0, "adversarial": 2}


def test_negatives_are_absent_and_asked_once():
    kinds = [f"k{number}" for number in range(13)]
    images = {str(i): [kinds[(i * step) % 13] for step in (1, 2, 3, 5)] for i in range(1, 13)}
    poll = pope_questions(images, object_statistics(images), per_image=3, seed=4)
    for image, there in images.items():
        for split in ("random", "popular", "adversarial"):
            wrong = asked(poll, image, split, False)
            assert len(wrong) == len(set(wrong)) == 3
            assert not set(wrong) & set(there)


def test_random_negatives_depend_on_seed_and_image_alone():
    statistics = object_statistics(IMAGES)
    whole = pope_questions(IMAGES, statistics, seed=3)
    alone = pope_questions({"q": IMAGES["q"]}, statistics, seed=3)
    assert asked(alone, "q", "random", False) == asked(whole, "q", "random", False)
    draws = {
        tuple(asked(pope_questions(IMAGES, statistics, seed=s), "q", "random", False))
        for s in range(20)
    }
    assert len(draws) > 3


def test_wording():
    assert wording("dog") == "Is there a dog in the image?"
    assert wording("Umbrella", "is there {a} {object} ?") == "is there an Umbrella ?"
    for template in ("Is there a dog?", "Is there {a}?", "{object} {0}", "{object"):
        with pytest.raises(ValueError, match="must hold {object}"):
            wording("dog", template)


@pytest.mark.parametrize(
    ("text", "plain", "strict", "clear"),
    [
        ("Yes, there is a dog.", True, True, True),
        ("No, there is no dog.", False, False, True),
        ("There is a dog. No doubt.", True, False, True),
        ("There is not a dog.", False, None, True),
        ("NO", True, False, True),  # POPE's own rule knows No and no only
        ("no.", False, False, True),
        ("yes,no", True, True, True),  # without the comma one word, which is neither
        ("", True, None, False),
        ("It is raining", True, None, False),
        ("A notion, nothing", True, None, False),
        (" no", False, False, True),
    ],
)
def test_answers(text, plain, strict, clear):
    assert parse_answer(text) == PopeAnswer(plain, clear)
    said = parse_answer(text, strict=True)
    assert said.yes is strict
    assert said.clear is (strict is not None)


def _slow(pairs):
    """evaluate.py over (label, prediction) pairs of 0 and 1."""
    tp = sum(1 for label, said in pairs if said == 1 and label == 1)
    fp = sum(1 for label, said in pairs if said == 1 and label == 0)
    tn = sum(1 for label, said in pairs if said == 0 and label == 0)
    fn = sum(1 for label, said in pairs if said == 0 and label == 1)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": (tp + fp) / len(pairs),
    }


def test_the_table_by_hand_and_by_the_slow_rule():
    by_image = [
        [(True, "Yes."), (True, "no"), (False, "Yes"), (False, "No, none")],
        [(True, "yes"), (False, "I do not know")],
        [(True, "blue"), (False, "green")],
    ]
    rows = [pope_values((t, parse_answer(text)) for t, text in image) for image in by_image]
    found = totals(rows)
    # TP: Yes, yes, blue; FN: no; FP: Yes, green; TN: No, not.
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["precision"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx(3 / 4)
    assert found["f1"] == pytest.approx(6 / 9)
    assert found["yes_ratio"] == pytest.approx(5 / 8)
    assert found["unclear"] == pytest.approx(2 / 8)
    pairs = [(int(t), int(bool(parse_answer(text).yes))) for i in by_image for t, text in i]
    for name, value in _slow(pairs).items():
        assert found[name] == pytest.approx(value), name


def test_strict_answers_that_say_neither_are_wrong_both_ways():
    answers = [(True, parse_answer("blue", True)), (False, parse_answer("blue", True))]
    answers += [(True, parse_answer("yes", True)), (False, parse_answer("no", True))]
    found = totals([pope_values(answers)])
    assert found["accuracy"] == 0.5
    assert found["recall"] == 0.5
    assert found["precision"] == 1
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["yes_ratio"] == 0.25
    assert found["unclear"] == 0.5


def test_only_absent_objects_leave_recall_out():
    found = pope_values([(False, parse_answer("no")), (False, parse_answer("no"))])
    assert found["recall"] == (0, 0)
    assert found["precision"] == (0, 0)
    assert found["accuracy"] == (2, 2)
