"""First tokens of answers, against what the tokenizer makes of the whole sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from analysis.importance.patches.answer_tokens import class_index, classes, corrupted, first_tokens
from probes.inputs import Example, InputError
from probes.loading import load
from probes.subject import Subject
from tests import tiny_models as tiny

PAIR = Example("p", text="the cat", corrupt="the mat", correct="sat", wrong="on")


@pytest.fixture(scope="module")
def prose() -> Subject:
    """Byte-level BPE: a word after a space is another token than the word alone."""
    return load("prose-lm")


@pytest.fixture(scope="module")
def words() -> Subject:
    return Subject(tiny.llama(), tiny.tokenizer("left"))


def test_a_word_carries_the_space_that_the_sentence_has(prose: Subject) -> None:
    example = replace(PAIR, text="return the", correct="value", wrong="list")
    correct, wrong, before = first_tokens(prose, example)
    sentence = prose.tokenizer("return the value")["input_ids"]
    assert [before, correct] == sentence[-2:]
    assert prose.tokenizer.convert_ids_to_tokens(correct).startswith("Ġ")
    assert correct != prose.tokenizer("value", add_special_tokens=False)["input_ids"][0]
    assert wrong == prose.tokenizer("return the list")["input_ids"][-1]


def test_no_space_is_put_where_the_prompt_has_a_break(prose: Subject) -> None:
    example = replace(PAIR, text="return\n", correct="value", wrong="list")
    correct, _, _ = first_tokens(prose, example)
    assert correct == prose.tokenizer("return\nvalue")["input_ids"][-1]
    assert not prose.tokenizer.convert_ids_to_tokens(correct).startswith("Ġ")


def test_the_answer_so_far_comes_first(words: Subject) -> None:
    correct, wrong, before = first_tokens(words, replace(PAIR, answer="sat on"))
    assert words.tokenizer.convert_ids_to_tokens([before, correct, wrong]) == ["on", "sat", "on"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"correct": ""}, "'p': `correct` must be a word for a model of language, got ''"),
        ({"wrong": 4}, "`wrong` must be a word for a model of language, got 4"),
        ({"wrong": "dog"}, "`wrong` must be in the model's vocabulary, got 'dog'"),
        ({"wrong": "sat down"}, "`wrong` must be in the model's vocabulary, got 'sat down'"),
        ({"wrong": "sat on"}, "must begin with different tokens, got 'sat' and 'sat on', which"),
    ],
)
def test_bad_words_are_named(words: Subject, changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        first_tokens(words, replace(PAIR, **changes))
    assert caught.value.example_id == "p"


def test_a_tokenizer_that_puts_another_word_for_an_unknown_one_is_found_out() -> None:
    """repeat-lm has no unknown token: an unknown word becomes t00."""
    repeat = load("repeat-lm")
    with pytest.raises(InputError, match="got 'zebra', which reads 't00'"):
        first_tokens(repeat, replace(PAIR, text="t01 t02", correct="t03", wrong="zebra"))


def test_a_space_at_the_end_of_the_prompt_is_refused_if_it_is_a_token(prose: Subject) -> None:
    example = replace(PAIR, text="return the ", correct="value", wrong="list")
    with pytest.raises(InputError, match="Leave out the space at the end of the prompt"):
        first_tokens(prose, example)


def test_in_an_encoder_decoder_the_answer_is_the_decoders() -> None:
    subject = Subject(tiny.t5(), tiny.tokenizer())
    correct, wrong, before = first_tokens(subject, PAIR)
    assert (subject.tokenizer.decode([correct]), before) == ("sat", -1)
    assert subject.tokenizer.decode([wrong]) == "on"
    _, _, before = first_tokens(subject, replace(PAIR, answer="a mat"))
    assert subject.tokenizer.decode([before]) == "mat"


def test_classes_by_word_and_by_number() -> None:
    subject = Subject(tiny.vit(id2label={0: "cat", 1: "dog", 2: "12", 3: "d"}, num_labels=4))
    example = Example("v", image="a.png", corrupt="b.png", correct="dog", wrong=3)
    assert classes(subject, example) == (1, 3)
    assert class_index(subject, replace(example, correct="12"), "correct") == 2
    assert class_index(subject, replace(example, correct="1"), "correct") == 1
    for wrong in ("cow", 4, -1, "9"):
        with pytest.raises(InputError, match=r"must be a class of the model \(cat, dog, 12, d"):
            class_index(subject, replace(example, wrong=wrong), "wrong")
    with pytest.raises(InputError, match="must be different classes, got 1 for both"):
        classes(subject, replace(example, wrong="dog"))


def test_what_is_exchanged() -> None:
    assert corrupted(PAIR).text == "the mat"
    asked = Example("q", question="is it", corrupt="was it", image="a.png")
    assert (corrupted(asked).question, corrupted(asked).image) == ("was it", "a.png")
    picture = Image.new("RGB", (4, 4))
    shown = corrupted(replace(asked, corrupt=picture))
    assert (shown.question, shown.image) == ("is it", picture)
    assert corrupted(Example("v", image="a.png", corrupt="b.png")).image == "b.png"
    with pytest.raises(InputError, match="must have a `corrupt` half"):
        corrupted(replace(PAIR, corrupt=None))
    with pytest.raises(InputError, match="must stand for exactly one image, got 0 images"):
        corrupted(replace(PAIR, corrupt=picture))
