"""What edits that work on images have in common: they leave no trace, and say where they fail."""

from __future__ import annotations

from typing import Any

import pytest
import seeing_batches as seen
import tiny_models as tiny
import torch
from torch import Tensor

from probes.edits.apply import edit
from probes.edits.matched_random import matched_random
from probes.edits.parse import parse_edit
from probes.inputs import InputError
from probes.subject import Subject
from probes.tokens.correspondence import CorrespondenceError
from tests.probes.test_tap import eager, hooks

EDITS = ["paint", "modulation", "agla", "prune_tokens", "prune_tokens:method=fastv,keep=0.25"]
OTHERS = [
    "vhr",
    "vhr:branches=image",
    "gift",
    "gift:source=0.9",
    "act:theta=0.14",
    "var:tau=1.4,dimensions=3+5+7+11+20,rho=0.05,mass=0.15",
    "sink_removal:tau=1.4,dimensions=3+5+7+11+20",
    "scale_attention:heads=language.*,factor=2",
    "scale:heads=language.L1H2,factor=3",
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


def _breaking(at: int, error: BaseException) -> Any:
    """A logits processor that fails at some step, as Ctrl-C would."""
    calls = []

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == at:
            raise error
        return scores

    return process


@pytest.mark.parametrize("text", [*EDITS, *OTHERS, *(f"random {text}" for text in OTHERS)])
@pytest.mark.parametrize("ending", ["well", "error", "interrupt"])
def test_no_trace(subject: Subject, text: str, ending: str) -> None:
    method = parse_edit(text.removeprefix("random "))
    method = matched_random(method) if text.startswith("random") else method
    batch = seen.three(subject)
    plain = subject.forward(batch).logits
    ids = subject.generate(batch, 3, eos_token_id=None).ids
    count, way = hooks(subject.model), subject.attention_implementation
    settings: dict[str, Any] = {"eos_token_id": None, "suppress_tokens": [4]}
    if ending == "well":
        with edit(subject, method) as (report,):
            subject.generate(batch, 3, **settings)
        assert report.touched > 0
    else:
        error = KeyboardInterrupt() if ending == "interrupt" else ZeroDivisionError()
        broken = [_breaking(2, error)]
        with pytest.raises(type(error)), edit(subject, method):
            subject.generate(batch, 3, logits_processor=broken, **settings)
    assert hooks(subject.model) == count and subject.attention_implementation == way
    assert not any(parameter.grad is not None for parameter in subject.model.parameters())
    assert torch.equal(subject.forward(batch).logits, plain)
    assert torch.equal(subject.generate(batch, 3, eos_token_id=None).ids, ids)


@pytest.mark.parametrize("text", EDITS)
def test_a_vision_transformer_and_a_language_model_are_refused(text: str) -> None:
    vision = Subject(tiny.vit(), tiny.image_processor(20))
    said = "must read or write text, it has only vision"
    with pytest.raises(ValueError, match=said), edit(vision, parse_edit(text)):
        pass
    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    said = f"{text.split(':')[0]} works on the image of a prompt, and .* is a language model"
    with pytest.raises(ValueError, match=said), edit(language, parse_edit(text)):
        pass


@pytest.mark.parametrize("text", EDITS)
def test_a_prompt_without_an_image_is_refused(subject: Subject, text: str) -> None:
    batch = subject.prepare(["a b <image> c d", "e f g"], [seen.pictures()[0], []])
    said = "works on an image, and example '1' has no image among the positions of language"
    with pytest.raises(InputError, match=said) as caught, edit(subject, parse_edit(text)):
        subject.forward(batch)
    assert caught.value.example_id == "1"


@pytest.mark.parametrize("text", [*EDITS, *OTHERS])
def test_bfloat16(text: str) -> None:
    half = seen.seeing()
    half.model.bfloat16()
    with edit(half, parse_edit(text)) as (report,):
        half.generate(seen.three(half), 2, eos_token_id=None, suppress_tokens=[4])
    assert report.touched > 0


@pytest.mark.parametrize("text", [*EDITS, *(text for text in OTHERS if not text.startswith("act"))])
def test_without_a_cache_the_same_is_written(subject: Subject, text: str) -> None:
    """But by ACT, which judges all rows anew then."""
    found = []
    for cached in (True, False):
        with edit(subject, parse_edit(text)):
            found.append(
                seen.written_together(
                    subject, seen.three(subject), use_cache=cached, suppress_tokens=[4]
                )
            )
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_paint_needs_the_scores_themselves(subject: Subject) -> None:
    """Eager attention shows its softmax only, and scores up to a constant are not enough here."""
    loud = Subject(eager(subject.model), subject.processor)
    said = "needs the scores of language.L0 themselves, and the model writes out its own softmax"
    with pytest.raises(ValueError, match=said), edit(loud, "paint"):
        loud.forward(seen.three(loud))


@pytest.mark.parametrize("text", ["modulation", "prune_tokens", "prune_tokens:method=fastv"])
def test_eager_models_give_the_same(subject: Subject, text: str) -> None:
    loud = Subject(eager(subject.model), subject.processor)
    found = []
    for one in (subject, loud):
        with edit(one, parse_edit(text)):
            found.append(one.forward(seen.three(one)).logits)
    real = seen.three(subject).tensors["attention_mask"].bool()
    assert torch.allclose(found[0][real][:, :], found[1][real][:, :], atol=1e-4)


@pytest.mark.parametrize("text", ["paint", "agla", "prune_tokens", "prune_tokens:method=hiprune"])
def test_positions_that_stand_for_no_known_patch_are_refused(subject: Subject, text: str) -> None:
    from dataclasses import replace

    from probes.tokens.map import TokenMap

    batch = seen.three(subject)
    blind = replace(batch.tokens["vision"], row=torch.full((len(batch.tokens["vision"]),), -1))
    unknown = replace(batch, tokens=TokenMap({**batch.tokens.towers, "vision": blind}))
    said = pytest.raises(CorrespondenceError, match="cannot be told")
    with said, edit(subject, parse_edit(text)):
        subject.forward(unknown)
    with edit(subject, parse_edit("prune_tokens:method=fastv")) as (report,):
        subject.forward(unknown)
    assert report.touched > 0
