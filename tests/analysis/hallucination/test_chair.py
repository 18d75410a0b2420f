"""CHAIR: a table worked out by hand, an independent slow CHAIR, and rules that must fail."""

import math
import random

import pytest

from analysis.hallucination.chair import chair, chair_values, judge, partner_values, totals
from analysis.hallucination.repetition import repetition
from analysis.hallucination.vocabulary import Vocabulary

ANIMALS = Vocabulary.of(["dog", "cat", "cow", "bird"])
CAPTIONS = [
    "a dog and a dog and a cat",  # the cat is wrong
    "a cow a cow a cow",  # nothing of it there
    "nothing to see here",
    "a bird",
]
THERE = [["dog", "bird"], ["cat"], ["dog", "dog"], []]


def test_the_table_by_hand():
    found = chair(CAPTIONS, THERE, ANIMALS)
    # Mentions 3, 3, 0, 1; hallucinated 1, 3, 0, 1; named of those there 1 of 2, 0 of 1, 0 of 1, 0.
    assert found["chair_i"] == pytest.approx(5 / 7)
    assert found["chair_s"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(1 / 4)
    assert found["objects"] == pytest.approx(7 / 4)
    assert found["words"] == pytest.approx((8 + 6 + 4 + 2) / 4)
    # 4-grams: 5, of which 1 repeats (a dog and a); 3, 1 repeats (a cow a cow); 1; none.
    assert found["repetition"] == pytest.approx((1 / 5 + 1 / 3 + 0) / 3)


def test_wrong_rules_give_other_numbers():
    found = chair(CAPTIONS, THERE, ANIMALS)["chair_i"]
    rows = [chair_values(judge(c, t, ANIMALS)) for c, t in zip(CAPTIONS, THERE, strict=True)]
    shares = [top / bottom for top, bottom in (row["chair_i"] for row in rows) if bottom]
    assert found != pytest.approx(sum(shares) / len(shares))  # mean of the captions' ratios
    distinct = chair(CAPTIONS, THERE, ANIMALS, distinct=True)
    assert distinct["chair_i"] == pytest.approx((1 + 1 + 0 + 1) / (2 + 1 + 0 + 1))
    assert distinct["objects"] == pytest.approx(4 / 4)
    assert distinct["chair_s"] == pytest.approx(3 / 4)


def test_nothing_to_divide_by_is_nan():
    found = chair(["", "hm"], [[], []], ANIMALS)
    assert found["chair_s"] == 0
    assert found["words"] == 0.5
    for name in ("chair_i", "recall", "repetition"):
        assert math.isnan(found[name])
    assert chair([], [], ANIMALS) == {}


def test_truth_goes_by_any_name_and_strangers_are_passed_over():
    vocabulary = Vocabulary({"couch": ("sofa",), "dog": ()})
    judged = judge("a couch and a dog", ["Sofas", "zebra"], vocabulary)
    assert judged.there == {"couch"}
    assert [mention.kind for mention in judged.hallucinated] == ["dog"]


def _slow_chair(captions, truths, kinds):
    """Rohrbach et al. for one-word classes, with nothing but string splitting."""
    wrong = said = bad = named = there = 0
    for caption, truth in zip(captions, truths, strict=True):
        any_wrong = False
        for word in caption.replace(".", " ").replace(",", " ").lower().split():
            kind = word if word in kinds else word[:-1] if word[:-1] in kinds else None
            if kind is None:
                continue
            said += 1
            if kind not in truth:
                wrong += 1
                any_wrong = True
        bad += any_wrong
        for kind in set(truth):
            there += 1
            named += kind in caption.lower()
    return {"chair_s": bad / len(captions), "chair_i": wrong / said, "recall": named / there}


def test_an_independent_chair_agrees_on_random_captions():
    rng = random.Random(5)
    kinds = ["dog", "cat", "cow", "bird", "goat", "toad", "seal"]
    fill = ["the", "a", "and", "sits", "near", ",", "."]
    captions = [
        " ".join(
            rng.choice([k, k + "s", k.upper()]) if rng.random() < 0.4 else rng.choice(fill)
            for k in rng.choices(kinds, k=rng.randrange(1, 23))
        )
        for _ in range(71)
    ]
    truths = [rng.sample(kinds, rng.randrange(1, 5)) for _ in captions]
    found = chair(captions, truths, Vocabulary.of(kinds))
    for name, value in _slow_chair(captions, truths, kinds).items():
        assert found[name] == pytest.approx(value), name


def test_partners_and_other_errors():
    rows = [
        # dog there, cat the absent partner: named twice; cow another error.
        partner_values(
            judge("a dog, a cat, a cat, a cow", ["dog"], ANIMALS), "cat", False, ANIMALS
        ),
        partner_values(judge("a dog, a bird", ["dog"], ANIMALS), "cat", False, ANIMALS),
        partner_values(judge("a dog, a cat", ["dog", "cat"], ANIMALS), "cat", True, ANIMALS),
        partner_values(judge("a dog", ["dog", "cat"], ANIMALS), "cat", True, ANIMALS),
        partner_values(judge("", ["dog", "cat"], ANIMALS), "cat", True, ANIMALS),
    ]
    found = totals(rows)
    assert found["absent_partner"] == pytest.approx(1 / 2)
    assert found["present_partner"] == pytest.approx(1 / 3)
    assert found["other_errors"] == pytest.approx(2 / 9)


def test_repetition_by_hand():
    assert repetition("one two three") is None
    assert repetition("a b c d e f") == 0
    assert repetition("a b a b a b") == pytest.approx(1 - 2 / 3)
    assert repetition("a a a a a a a") == pytest.approx(1 - 1 / 4)
    assert repetition("a b a b", gram=2) == pytest.approx(1 - 2 / 3)
