"""Pairs: equal shapes, the position that is read, and what is said of pairs that do not fit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.importance.patches.pairs import is_pair, pair_up
from analysis.importance.readings import ReadingError
from probes.inputs import Example, InputError
from probes.subject import Subject
from tests import small_pairs
from tests import tiny_models as tiny


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_halves_have_one_shape_and_the_last_word_is_read(side: str) -> None:
    subject = small_pairs.llama(side)
    pairs = pair_up(subject, small_pairs.examples(), side)
    ids = pairs.clean.tensors["input_ids"]
    assert ids.shape == pairs.corrupted.tensors["input_ids"].shape == (5, 6)
    assert pairs.position.tolist() == ([5] * 5 if side == "left" else [4, 5, 2, 4, 4])
    read = [subject.tokenizer.decode(ids[row, place]) for row, place in enumerate(pairs.position)]
    assert read == ["e", "a", "h", "e", "the"]
    assert subject.tokenizer.decode(pairs.correct).split() == ["g", "b", "a", "f", "mat"]
    assert subject.tokenizer.decode(pairs.wrong).split() == ["h", "mat", "cat", ".", "?"]
    assert (pairs.ids, pairs.tower) == (("p0", "p1", "p2", "p3", "p4"), "language")


def test_the_difference_is_read_behind_the_answer_so_far() -> None:
    """One pair, padded, against logits picked by hand; in copies, and at kept positions."""
    subject = small_pairs.llama()
    examples = [replace(small_pairs.examples()[2], answer="the"), small_pairs.examples()[1]]
    pairs = pair_up(subject, examples)
    output = subject.forward(pairs.clean)
    word = subject.tokenizer.convert_tokens_to_ids
    alone = subject.prepare(text="j i h the", chat_template=False)
    logits = subject.forward(alone).logits[0, -1].double()
    expected = logits[word("a")] - logits[word("cat")]
    found = pairs.difference(output)
    assert found.shape == (1, 2)
    assert torch.allclose(found[0, 0], expected, atol=1e-5)
    kept = torch.tensor([1, 3, 5])
    some = SimpleNamespace(logits=output.logits[:, kept])
    assert torch.equal(pairs.difference(some, kept), found)
    thrice = SimpleNamespace(logits=torch.cat([output.logits, output.logits * 2, output.logits]))
    copies = pairs.difference(thrice, copies=3)
    assert torch.allclose(copies, torch.stack([found[0], 2 * found[0], found[0]]))


def test_the_halves_exchanged_keep_their_answers() -> None:
    subject = small_pairs.llama()
    pairs = pair_up(subject, small_pairs.examples())
    other = pairs.exchanged()
    assert other.clean is pairs.corrupted
    output = subject.forward(other.clean)
    assert torch.equal(other.difference(output), pairs.difference(output))


def test_halves_of_other_lengths_are_named() -> None:
    subject = small_pairs.llama()
    examples = small_pairs.examples()
    examples[3] = replace(examples[3], corrupt="d c b a")
    with pytest.raises(
        InputError, match=r"'p3': both halves .* got 5 and 4 in input_ids"
    ) as caught:
        pair_up(subject, examples)
    assert caught.value.example_id == "p3"


def test_what_is_no_pair() -> None:
    assert not is_pair(Example("a", text="a"))
    assert not is_pair(Example("a", text="a", corrupt="b", correct="c"))
    assert is_pair(Example("a", text="a", corrupt="b", correct=0, wrong=1))
    with pytest.raises(InputError, match="'a': a pair must have a `corrupt` half"):
        pair_up(small_pairs.llama(), [Example("a", text="a")])


def picture(seed: int, side: int = 20) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_images_and_classes() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    examples = [
        Example(str(i), image=picture(i), corrupt=picture(i + 7), correct=i, wrong="LABEL_4")
        for i in range(3)
    ]
    pairs = pair_up(subject, examples)
    assert (pairs.tower, pairs.positions, pairs.position.tolist()) == ("", None, [-1, -1, -1])
    logits = subject.forward(pairs.corrupted).logits.double()
    expected = logits[torch.arange(3), torch.arange(3)] - logits[:, 4]
    assert torch.allclose(pairs.difference(subject.forward(pairs.corrupted))[0], expected)
    assert not torch.equal(
        pairs.clean.tensors["pixel_values"], pairs.corrupted.tensors["pixel_values"]
    )


def test_an_image_beside_a_text() -> None:
    subject = Subject(tiny.llava(), tiny.llava_processor())
    example = Example(
        "v", image=picture(1), corrupt=picture(2), text="<image> the cat", correct="sat", wrong="on"
    )
    pairs = pair_up(subject, [example])
    assert torch.equal(pairs.clean.tensors["input_ids"], pairs.corrupted.tensors["input_ids"])
    assert pairs.position.tolist() == [pairs.clean.tensors["input_ids"].shape[1] - 1]


def test_an_encoder_decoder_is_read_in_its_decoder() -> None:
    subject = Subject(tiny.t5(), tiny.tokenizer())
    pair = Example("t", text="the cat", corrupt="the mat", correct="sat", wrong="on", answer="a b")
    pairs = pair_up(subject, [pair, replace(pair, id="u", answer=None)])
    assert pairs.tower == "decoder"
    assert pairs.position.tolist() == [2, 0]
    with pytest.raises(InputError, match="'t': both halves .* got 2 and 3 in input_ids"):
        pair_up(subject, [replace(pair, corrupt="the mat sat")])


def test_outputs_that_cannot_be_read_are_refused() -> None:
    subject = small_pairs.llama()
    pairs = pair_up(subject, small_pairs.examples(2))
    with pytest.raises(ReadingError, match="reads logits of next tokens"):
        pairs.difference(SimpleNamespace(logits=torch.zeros(2, 31)))
    output = subject.forward(pairs.clean)
    output.logits[1, -1, 6] = float("nan")
    with pytest.raises(ReadingError, match="must be finite"):
        pairs.difference(output)
