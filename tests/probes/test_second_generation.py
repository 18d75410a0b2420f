"""A generation beside another: same logits from the same batch, and no step miscounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import seeing_batches as seen
import torch
from small_vlms import qwen2, qwen2_5, qwen3
from torch import Tensor

from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.heads import Site
from probes.inputs import Batch, Example
from probes.listening import attach
from probes.second_generation import SecondGeneration
from probes.subject import Subject
from probes.tap import Attached
from tests.probes.test_tap import hooks
from tests.probes.tokens.test_correspondence import _llava_next, _pixtral, _qwen


class Beside:
    """A logits processor that asks a second generation and notes how far apart both are."""

    def __init__(self, subject: Subject, batch: Batch, generated: int) -> None:
        self.second = SecondGeneration(subject, batch, generated)
        self.apart: list[float] = []
        self.seen: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        found = self.second.logits(ids)
        self.seen.append(found)
        finite = scores.isfinite()
        self.apart.append(float((found - scores)[finite].abs().max()))
        return scores


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


FAMILIES: dict[str, Callable[[], Any]] = {
    "llava_next": _llava_next,
    "qwen2": lambda: _qwen(qwen2),
    "qwen2_5": lambda: _qwen(qwen2_5),
    "qwen3": lambda: _qwen(qwen3),
    "mistral3": lambda: _pixtral(2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_batch_gives_the_same_logits(name: str) -> None:
    """Left padding, positions of one's own (Qwen), tiles: transformers makes both alike."""
    model, tensors, tokens, _, _ = FAMILIES[name]()
    subject = Subject(model, kind="vision-language")
    rows = tensors["input_ids"].shape[0]
    batch = Batch(dict(tensors), tokens, tuple(Example(str(row)) for row in range(rows)))
    watch = Beside(subject, batch, 4)
    settings = {"eos_token_id": None, "suppress_tokens": [4, 5, 6, 7], "pad_token_id": 0}
    made = subject.generate(batch, 4, logits_processor=[watch], **settings)
    assert len(watch.apart) == 4 and max(watch.apart) < 1e-5
    assert made.ids.shape == (rows, 4)


def test_it_follows_the_tokens_it_is_given_with_its_own_image(subject: Subject) -> None:
    batch = seen.three(subject)
    other = {**batch.tensors, "pixel_values": batch.tensors["pixel_values"].flip(0)}
    swapped = Batch(other, batch.tokens, batch.examples)
    watch = Beside(subject, swapped, 3)
    settings = {"eos_token_id": None, "suppress_tokens": [4]}
    ids = subject.generate(batch, 3, logits_processor=[watch], **settings).sequences
    tensors = {**other, "attention_mask": batch.tensors["attention_mask"]}
    tensors.pop("position_ids", None)
    for step, found in enumerate(watch.seen):
        length = batch.tensors["input_ids"].shape[1] + step
        mask = torch.nn.functional.pad(tensors["attention_mask"], (0, step), value=1)
        with torch.no_grad():
            position = (mask.cumsum(-1) - 1).clamp_min(0)
            whole = subject.model(
                **{**tensors, "input_ids": ids[:, :length], "attention_mask": mask},
                position_ids=position,
            )
        assert torch.allclose(found, whole.logits[:, -1], atol=1e-5)
    assert min(watch.apart) > 1e-3, "another image is another answer"


def test_edits_act_in_both_and_know_their_steps_while_listeners_hear_the_first(
    subject: Subject,
) -> None:
    batch = seen.three(subject)
    steps: list[tuple[int, int, bool]] = []
    heard: list[int] = []

    def look(pattern: Tensor, place: EditPlace) -> Tensor:
        steps.append((place.step, pattern.shape[3], bool(place.queries_with("generated").all())))
        return pattern * 0.5

    listener = Attached(
        frozenset({Site("language", 1)}), on_call=lambda call: heard.append(call.step)
    )
    watch = Beside(subject, batch, 3)
    with edit(subject, edits.edit_pattern("language.L1", look)), attach(subject, listener):
        subject.generate(batch, 3, logits_processor=[watch], eos_token_id=None)
    assert max(watch.apart) < 1e-5
    length = batch.tensors["input_ids"].shape[1]
    assert heard == [0, 1, 2]
    distinct = list(dict.fromkeys(steps))
    assert distinct == [(0, length, False), (1, length + 1, True), (2, length + 2, True)]
    assert len(steps) == 2 * len(distinct), "once in each generation"


def test_nothing_is_left_of_a_second_generation_that_failed(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = capture(subject, batch, z="language.L1")
    count = hooks(subject.model)

    class Failing(Beside):
        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            super().__call__(ids, scores)
            if len(self.apart) == 2:
                raise KeyboardInterrupt
            return scores

    with pytest.raises(KeyboardInterrupt), edit(subject, edits.zero("language.L1H2")):
        subject.generate(batch, 3, logits_processor=[Failing(subject, batch, 3)])
    assert hooks(subject.model) == count
    after = capture(subject, batch, z="language.L1")
    assert torch.equal(after.z("language.L1"), plain.z("language.L1"))
    assert torch.equal(after.output.logits, plain.output.logits)


def test_a_step_that_does_not_follow_is_refused(subject: Subject) -> None:
    batch = seen.three(subject)
    second = SecondGeneration(subject, batch, 3)
    ids = batch.tensors["input_ids"]
    second.logits(ids)
    with pytest.raises(ValueError, match="must get one token more at every step"):
        second.logits(ids)
