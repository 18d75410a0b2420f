"""GIFT: equal to plain loops, the same while generating, and gone without a trace."""

from __future__ import annotations

from math import exp

import pytest
import tiny_models as tiny
import torch
from planting import scene
from torch import Tensor

from analysis.vision.enhancement import enhanced
from analysis.vision.gaze_maps import gaze_maps
from analysis.vision.methods.gift import Gift, gift
from probes.capture import capture
from probes.edits.apply import available_edits, edit
from probes.edits.matched_random import matched_random
from probes.edits.parse import parse_edit
from probes.inputs import Batch, Example, InputError
from probes.subject import Subject
from probes.written_text import continued
from tests.probes.test_tap import hooks

ANSWERS = ["the cat sat on a mat .", "a mat", "a b cat"]
ONE_LAYER = {"depth": (0.4, 0.6), "source": 0.1}
"""Layer 1 of 3, by what layer 0 saw: no forward of its own."""


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llava()), tiny.llava_processor())


def prompts(answers: bool = True) -> list[Example]:
    return [
        Example(
            f"e{i}", text=text, image=scene(20, 20, i + 1), answer=ANSWERS[i] if answers else None
        )
        for i, text in enumerate(tiny.IMAGE_PROMPTS)
    ]


def by_loops(
    pattern: Tensor, gain: list[float], image: list[int], question: list[int], beta: float
) -> Tensor:
    """One row of all heads ``[head key]`` edited as the released code does, then scaled back."""
    heads = pattern.shape[0]
    new = pattern.double().clone()
    seen = [float(pattern[h, image].double().sum()) for h in range(heads)]
    louder = sorted(range(heads), key=lambda h: -seen[h])[: heads // 2]
    before = sum(seen[h] for h in louder)
    for head in louder:
        for place, key in enumerate(image):
            new[head, key] = float(pattern[head, key]) * gain[place]
    after = sum(float(new[h, image].sum()) for h in louder)
    ratio = beta * after / before
    asked = [float(pattern[h, question].double().sum()) for h in range(heads)]
    for head in sorted(range(heads), key=lambda h: -asked[h])[: heads // 2]:
        for key in question:
            new[head, key] = float(pattern[head, key]) * ratio
    return new / new.sum(-1, keepdim=True) * pattern.double().sum(-1, keepdim=True)


def layout(batch: Batch, row: int) -> tuple[list[int], list[int], list[int]]:
    """Image, question behind it, and rows that predict the answer, by their words."""
    tokens = batch.tokens["language"]
    words = list(tokens.text[int(tokens.starts[row]) : int(tokens.starts[row + 1])])
    image = [i for i, word in enumerate(words) if word == "<image>"]
    start = batch.answer_starts[row]
    end = start if start >= 0 else len(words)
    question = list(range(image[-1] + 1, end))
    return image, question, list(range(end - 1, len(words) - (start >= 0)))


@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_rows_equal_their_loops(subject: Subject, beta: float) -> None:
    batch = subject.prepare(examples=prompts())
    plain = capture(subject, batch, patterns="language.L1").pattern("language.L1")
    maps = gaze_maps(subject, batch, layer=0)
    with edit(subject, gift(alpha=3, beta=beta, **ONE_LAYER)) as reports:
        found = capture(subject, batch, patterns="language.L1").pattern("language.L1")
    rows = 0
    for row in range(batch.size):
        image, question, edited = layout(batch, row)
        gain = [exp(3 * float(s)) for s in maps[row].accumulated]
        for query in range(plain.shape[2]):
            if query in edited:
                expected = by_loops(plain[row, :, query], gain, image, question, beta)
                assert not torch.allclose(found[row, :, query], plain[row, :, query], atol=1e-4)
                torch.testing.assert_close(
                    found[row, :, query].double(), expected, atol=2e-6, rtol=1e-4
                )
                rows += 1
            else:
                assert torch.equal(found[row, :, query], plain[row, :, query])
    total = found.sum(-1)
    real = batch.tensors["attention_mask"].bool()[:, None].expand_as(total)
    torch.testing.assert_close(total[real], torch.ones_like(total[real]), atol=1e-5, rtol=0)
    # Of 6 heads the upper half for the image and the upper half for the question.
    assert 3 * rows <= reports[0].touched <= 6 * rows


def test_layers_see_what_the_layers_before_them_changed(subject: Subject) -> None:
    batch = subject.prepare(examples=prompts())
    with edit(subject, gift(alpha=3, **ONE_LAYER)):
        middle = capture(subject, batch, patterns="language.L2").pattern("language.L2")
    with edit(subject, gift(alpha=3, depth=(0.4, 1.0), source=0.1)):
        found = capture(subject, batch, patterns="language.L2").pattern("language.L2")
    maps = gaze_maps(subject, batch, layer=0)
    image, question, edited = layout(batch, 2)
    gain = [exp(3 * float(s)) for s in maps[2].accumulated]
    expected = by_loops(middle[2, :, edited[-1]], gain, image, question, 1.0)
    torch.testing.assert_close(found[2, :, edited[-1]].double(), expected, atol=2e-6, rtol=1e-4)


def test_a_saliency_layer_within_the_enhanced_ones_is_read_before_they_are(
    subject: Subject,
) -> None:
    """Layer 2 decides what layers 1 and 2 enhance; its own pattern is the plain one."""
    batch = subject.prepare(examples=prompts())
    plain = capture(subject, batch, patterns="language.L1").pattern("language.L1")
    maps = gaze_maps(subject, batch, layer=2)
    with edit(subject, gift(alpha=2, depth=(0.4, 1.0), source=0.9)):
        found = capture(subject, batch, patterns="language.L1").pattern("language.L1")
    image, question, edited = layout(batch, 0)
    gain = [exp(2 * float(s)) for s in maps[0].accumulated]
    expected = by_loops(plain[0, :, edited[0]], gain, image, question, 1.0)
    torch.testing.assert_close(found[0, :, edited[0]].double(), expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", [ONE_LAYER, {"depth": (0.4, 1.0), "source": 0.9}])
def test_with_a_cache_every_token_is_what_a_full_forward_says(
    subject: Subject, settings: dict
) -> None:
    batch = subject.prepare(examples=prompts(answers=False))
    with edit(subject, gift(alpha=4, **settings)) as reports:
        written = subject.generate(batch, 6, min_new_tokens=6)
        whole = continued(subject, batch, written.ids)
        logits = subject.forward(whole).logits
    assert reports[0].fired > 0
    start = batch.tensors["input_ids"].shape[1]
    said = logits[:, start - 1 : -1].argmax(-1)
    real = whole.tensors["attention_mask"][:, start:].bool()
    assert torch.equal(said[real], written.ids[:, : said.shape[1]][real])
    plain = subject.forward(whole).logits
    assert not torch.allclose(plain[:, start - 1], logits[:, start - 1], atol=1e-4)


def test_one_by_one_is_as_in_a_batch(subject: Subject) -> None:
    with edit(subject, gift(alpha=4, **ONE_LAYER)):
        batch = subject.prepare(examples=prompts())
        together = subject.forward(batch).logits
        for row, example in enumerate(prompts()):
            alone = subject.forward(subject.prepare(examples=[example])).logits
            torch.testing.assert_close(alone[0, -3:], together[row, -3:], atol=1e-4, rtol=1e-4)


def test_the_side_of_padding_changes_nothing(subject: Subject) -> None:
    logits = []
    for side in ("left", "right"):
        batch = subject.prepare(examples=prompts(), padding_side=side)
        with edit(subject, gift(alpha=4, **ONE_LAYER)) as reports:
            made = subject.forward(batch).logits
        real = batch.tensors["attention_mask"].bool()
        logits.append((made[real], reports[0].touched))
    torch.testing.assert_close(logits[0][0], logits[1][0], atol=1e-4, rtol=1e-4)
    assert logits[0][1] == logits[1][1]


def test_a_flat_map_changes_nothing() -> None:
    values = torch.softmax(torch.randn(2, 6, 3, 11, generator=torch.manual_seed(0)), -1)
    features = torch.zeros(2, 11, 3)
    features[0, 2:7, 0], features[0, 8:, 2] = 1, 1
    features[1, 2:7, 0], features[1, 2:7, 1], features[1, 8:, 2] = 1, 3.0, 1
    new = enhanced(values, features, torch.ones(2, 3, dtype=torch.bool), beta=2.0)
    assert torch.equal(new[0], values[0])
    assert not torch.equal(new[1], values[1])
    torch.testing.assert_close(new.sum(-1), values.sum(-1))


def test_rows_that_do_not_sum_to_one_keep_their_sum() -> None:
    values = 0.6 * torch.softmax(torch.randn(1, 4, 2, 7, generator=torch.manual_seed(0)), -1)
    features = torch.zeros(1, 7, 3)
    features[0, :3, 0], features[0, 1, 1], features[0, 4:6, 2] = 1, 9.0, 1
    new = enhanced(values, features, torch.tensor([[True, False]]))
    torch.testing.assert_close(new.sum(-1), values.sum(-1))
    assert torch.equal(new[:, :, 1], values[:, :, 1])


def test_it_leaves_no_trace(subject: Subject) -> None:
    batch = subject.prepare(examples=prompts())
    plain, count = subject.forward(batch).logits, hooks(subject.model)
    with edit(subject, gift()):
        changed = subject.forward(batch).logits
    assert not torch.equal(changed, plain)
    assert torch.equal(subject.forward(batch).logits, plain)
    assert hooks(subject.model) == count
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), edit(subject, gift()):
            subject.forward(batch)
            raise error
        assert torch.equal(subject.forward(batch).logits, plain)
        assert hooks(subject.model) == count


def test_what_it_cannot_do_is_said(subject: Subject) -> None:
    picture = scene(20, 20, 1)

    def run(text: str, image: object = picture) -> None:
        batch = subject.prepare(examples=[Example("x", text=text, image=image)])
        with edit(subject, gift()):
            subject.forward(batch)

    with pytest.raises(
        InputError, match="Example 'x': gift needs a word with content in the quest"
    ):
        run("<image> is there a ?")
    with pytest.raises(InputError, match="works on an image, and example 'x' has no image"):
        run("the cat", None)
    with pytest.raises(InputError, match="gift follows a question behind its image"):
        run("the cat <image>")
    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    sentence = "gift works on the image of a prompt, and .* is a language model"
    with pytest.raises(ValueError, match=sentence), edit(language, gift()):
        pass
    vit = Subject(tiny.vit(), tiny.image_processor(20))
    with pytest.raises(ValueError, match="must read or write text"), edit(vit, gift()):
        pass
    with pytest.raises(ValueError, match="`alpha` and `beta` of gift must be 0 or more, got -1"):
        gift(alpha=-1)


def test_it_is_found_by_name_and_has_a_control(subject: Subject) -> None:
    assert available_edits()["gift"] is gift
    made = parse_edit("gift:alpha=3,depth=0.4+0.6,source=0.1")
    assert isinstance(made, Gift) and made.depth == (0.4, 0.6) and made.label == "gift(alpha=3)"
    batch = subject.prepare(examples=prompts())
    with edit(subject, matched_random(made)) as reports:
        subject.forward(batch)
    assert reports[0].fired > 0
