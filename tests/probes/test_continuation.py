"""The probability of a continuation: against token by token, in batches, with images."""

import numpy as np
import pytest
import tiny_models
import torch

from probes.continuation import continuation_log_probability
from probes.inputs import Example, InputError
from probes.loading import load
from probes.subject import Subject


@pytest.fixture(scope="module")
def llava():
    return Subject(tiny_models.llava(), tiny_models.llava_processor(), name="tiny")


@pytest.fixture(scope="module")
def prose():
    return load("prose-lm")


def _image(seed):
    return np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)


def _slow(subject, example, beginning, continuation):
    """One forward per token of the continuation, on a batch of one."""
    total = 0.0
    words = (beginning + continuation).split()
    first = len(beginning.split())
    for place in range(first, len(words)):
        known = Example("x", image=example.image, question=example.question)
        said = Example(
            "x", image=example.image, question=example.question, answer=" ".join(words[:place])
        )
        batch = subject.prepare(examples=[said if place else known])
        scores = subject.forward(batch).logits[0, -1].double()
        token = subject.tokenizer.convert_tokens_to_ids(words[place])
        total += float(scores.log_softmax(-1)[token])
    return total


def test_a_batch_of_different_lengths_against_token_by_token(llava):
    examples = [
        Example("p", image=_image(1), question="describe the image"),
        Example("q", image=_image(2), question="a cat sat on the mat . describe a mat ?"),
        Example("r", image=_image(3), question="the image"),
    ]
    beginnings = ["the cat", "a b c d e", "mat"]
    continuations = [" sat on", " f", " on the a mat ."]
    found = continuation_log_probability(llava, examples, beginnings, continuations)
    expected = [_slow(llava, *row) for row in zip(examples, beginnings, continuations, strict=True)]
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 3) for value in expected}) == 3


def test_the_image_matters(llava):
    pair = [Example("p", image=_image(seed), question="the mat") for seed in (1, 2)]
    one, two = continuation_log_probability(llava, pair, ["a", "a"], [" cat sat", " cat sat"])
    assert abs(float(one - two)) > 1e-6


def test_subwords_begin_where_the_continuation_changes_them(prose):
    example = Example("x", text="Return the")
    found = continuation_log_probability(prose, [example], [" num"], ["ber of items"])
    ids = prose.tokenizer("Return the number of items", return_tensors="pt")["input_ids"]
    begun = prose.tokenizer("Return the num")["input_ids"]
    shared = sum(1 for a, b in zip(begun, ids[0].tolist(), strict=False) if a == b)
    logits = prose.forward(prose.prepare(text="Return the number of items")).logits[0].double()
    total = sum(
        float(logits[place - 1].log_softmax(-1)[ids[0, place]])
        for place in range(shared, ids.shape[1])
    )
    assert found.item() == pytest.approx(total, abs=1e-4)


def test_probabilities_of_all_words_sum_to_one(llava):
    words = list(tiny_models.WORDS)
    example = Example("p", image=_image(1), question="the mat")
    found = continuation_log_probability(
        llava, [example] * len(words), ["a cat"] * len(words), [f" {word}" for word in words]
    )
    assert 0.5 < float(found.exp().sum()) <= 1.0  # the six special tokens have the rest


def test_nothing_to_score_is_said(llava):
    example = Example("p", image=_image(1), question="the mat")
    with pytest.raises(InputError, match="Example 'p': the continuation of 'a cat' must have tok"):
        continuation_log_probability(llava, [example], ["a cat"], [""])


def test_an_encoder_decoder_is_refused():
    subject = Subject(tiny_models.t5(), tiny_models.tokenizer(), name="tiny-t5")
    with pytest.raises(InputError, match="'tiny-t5' is an encoder-decoder"):
        continuation_log_probability(subject, [Example("p", text="a")], ["b"], [" c"])
