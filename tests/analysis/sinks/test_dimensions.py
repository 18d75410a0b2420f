"""D_sink: found where it was planted, nowhere else, and checked against what was published."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models as tiny
import torch
from torch import nn

from analysis.sinks.dimensions import sink_dimensions
from analysis.sinks.published import PUBLISHED, published_for
from headscope.batching import batches
from probes.loading import load
from probes.readers import read_examples
from probes.subject import Subject
from tests.probes.test_tap import IDS, LEFT, hooks


def bundled(name: str, data: str, count: int) -> tuple[Subject, Any]:
    subject = load(name)
    examples = list(read_examples(data, subject.kind, count))
    return subject, lambda: batches(subject, examples, 4, lambda example, reason: None)


def test_the_planted_dimensions_are_found_exactly() -> None:
    subject, data = bundled("shapes-llava-sinks", "scenes", 9)
    found = sink_dimensions(subject, data())
    assert found.dimensions == (41, 97)
    assert (found.tower, found.width, found.n) == ("language", 136, 9)
    first = found.ranking.set_index("dimension")
    assert first.index[:2].tolist() == [41, 97]
    assert first.loc[41, "first"] == pytest.approx(10.43, abs=0.01)
    assert first.loc[41, "massive_first"] == 1 and first["chosen"].sum() == 2
    assert found.sentence == "Sinks of language are massive in dimensions 41, 97 of 136."


@pytest.mark.parametrize(
    ("name", "data"),
    [("shapes-llava", "scenes"), ("repeat-lm", "repeats"), ("prose-lm", "prose")],
)
def test_models_without_sinks_have_none(name: str, data: str) -> None:
    subject, batches_of = bundled(name, data, 16)
    found = sink_dimensions(subject, batches_of())
    assert found.dimensions == () and not found.ranking["chosen"].any()
    assert found.sentence == "No dimension of language is massive at a sink."


def language_model() -> Subject:
    """Five layers, of which 1 to 3 are the middle; <s> comes first in both rows of `IDS`."""
    return Subject(tiny.sharp(tiny.llama(num_hidden_layers=5)), tiny.tokenizer("left"))


def test_a_sink_that_is_not_the_first_token_is_found_by_its_attention() -> None:
    subject = language_model()
    model: Any = subject.model
    model.model.embed_tokens.weight.data[7, 11] = 80.0  # a word of the first sequence only
    batch = subject.prepare(input_ids=IDS)
    assert sink_dimensions(subject, batch, eps=0.9).dimensions == ()

    # Head 2 of layer 2 reads dimension 11 through its slowest rotary pair, whatever its query is.
    attention = model.model.layers[2].self_attn
    attention.k_proj.weight.data[4] = 0
    attention.k_proj.weight.data[4, 11] = 3.0
    attention.q_proj.weight.data[20:30] = 0
    attention.q_proj.bias = nn.Parameter(torch.zeros(60))
    attention.q_proj.bias.data[24] = 9.0
    found = sink_dimensions(subject, batch, eps=0.9)
    assert found.dimensions == (11,)
    line = found.ranking.set_index("dimension").loc[11]
    assert line["massive_other"] > 0 and line["massive_first"] == 0


def test_a_dimension_that_is_large_at_every_token_marks_no_sink() -> None:
    subject = language_model()
    weight = subject.model.model.embed_tokens.weight.data
    weight[:, 4] = 50.0
    weight[1, 9] = 70.0
    found = sink_dimensions(subject, subject.prepare(input_ids=IDS, attention_mask=LEFT))
    assert found.dimensions == (9,), "the first prompt begins with another word, in half the rows"
    line = found.ranking.set_index("dimension").loc[9]
    assert line["massive_first"] == pytest.approx(0.5)
    strict = sink_dimensions(subject, subject.prepare(input_ids=IDS), ratio=1e9)
    assert strict.dimensions == ()


def test_the_model_is_left_as_it_was() -> None:
    subject = language_model()
    batch = subject.prepare(input_ids=IDS)
    plain, count = subject.forward(batch).logits, hooks(subject.model)
    sink_dimensions(subject, [batch, batch])
    assert torch.equal(subject.forward(batch).logits, plain) and hooks(subject.model) == count


def test_a_vision_transformer_is_told_so() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    with pytest.raises(ValueError, match="'ViTForImageClassification' must read or write text"):
        sink_dimensions(subject, [])
    with pytest.raises(ValueError, match="must be looked for on at least one batch, got none"):
        sink_dimensions(language_model(), [])


def test_published_constants_are_a_check_only() -> None:
    def shaped(family: str, width: int, layers: int) -> Any:
        text = SimpleNamespace(model_type=family, hidden_size=width, num_hidden_layers=layers)
        return SimpleNamespace(config=SimpleNamespace(model_type="llava", text_config=text))

    assert published_for(shaped("llama", 4096, 32)).dimensions == (1415, 2533)  # type: ignore[union-attr]
    assert published_for(shaped("llama", 5120, 40)).dimensions == (2100, 4743)  # type: ignore[union-attr]
    assert published_for(shaped("qwen2_vl_text", 3584, 28)).name == "Qwen2-VL-7B"  # type: ignore[union-attr]
    assert published_for(shaped("llama", 4096, 31)) is None
    assert all(known.dimensions == tuple(sorted(known.dimensions)) for known in PUBLISHED)
    subject = language_model()
    found = sink_dimensions(subject, subject.prepare(input_ids=IDS))
    said = replace(found, published=PUBLISHED[0]).sentence
    assert said.endswith("They are not those published for LLaMA-2-7B (1415, 2533).")
