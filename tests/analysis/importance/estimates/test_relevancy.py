"""Rollout and relevancy against whole matrices, and on three tokens worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from PIL import Image
from synthetic_calls import text_tokens, whole_call
from torch import Tensor

from analysis.importance.estimates.relevancy import relevancy, relevancy_maps
from analysis.importance.estimates.relevancy_flow import Flow, carry, without_keys
from analysis.importance.estimates.sink_keys import sink_keys
from analysis.importance.study import StudyOptions
from analysis.tally import Tally
from probes.inputs import Example
from probes.subject import Subject
from probes.tokens.map import TokenMap
from tests.analysis.importance.estimates.test_gradient import (
    TEXTS,
    batches_of,
    of,
    scored,
    text_subject,
)

NO_SINKS = torch.tensor([[False, False, False]])


def matrices(model: Any, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Patterns ``[head query key]`` and their gradients, of an eager model by autograd."""
    output = model(input_ids=ids, output_attentions=True)
    for pattern in output.attentions:
        pattern.retain_grad()
    logits = output.logits[0, :-1].log_softmax(-1)
    logits.gather(1, ids[0, 1:, None]).sum().backward()
    model.zero_grad()
    return (
        [a[0].detach().double() for a in output.attentions],
        [a.grad[0].double() for a in output.attentions],
    )


def whole_maps(patterns: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rollout and relevancy ``[query key]``, by products of whole matrices upwards."""
    eye = torch.eye(patterns[0].shape[-1], dtype=torch.float64)
    rollout, relevant = eye, eye
    for pattern, gradient in zip(patterns, gradients, strict=True):
        mean = pattern.mean(0) + eye
        rollout = (mean / mean.sum(-1, keepdim=True)) @ rollout
        relevant = relevant + (gradient * pattern).clamp_min(0).mean(0) @ relevant
    return rollout, relevant


@pytest.fixture(scope="module")
def eager() -> Any:
    return tiny_models.sharp(tiny_models.llama(attn_implementation="eager", num_hidden_layers=2))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_maps_are_those_of_whole_matrices(eager: Any, implementation: str) -> None:
    subject = text_subject(attn_implementation=implementation, num_hidden_layers=2)
    subject.model.load_state_dict(eager.state_dict())
    (batch,) = batches_of(subject, 4)
    maps = relevancy_maps(subject, batch)
    for number, text in enumerate(TEXTS):
        ids = subject.prepare(text=[text], chat_template=False).tensors["input_ids"]
        rollout, relevant = whole_maps(*matrices(eager, ids))
        mine = maps[maps["example"] == str(number)]
        # Every position but the last is read alike.
        for column, expected in (("rollout", rollout), ("relevancy", relevant)):
            made = torch.tensor(mine[column].to_numpy())
            assert torch.allclose(made, expected[:-1].mean(0), rtol=1e-3, atol=1e-6), column
        assert mine["rollout"].sum() == pytest.approx(1.0)


def test_head_scores_are_those_of_whole_matrices(eager: Any) -> None:
    subject = text_subject(num_hidden_layers=2)
    subject.model.load_state_dict(eager.state_dict())
    scores = scored(relevancy(StudyOptions()), subject, batches_of(subject, 2))
    found, moved = of(scores, "relevancy_cross_entropy"), of(scores, "rollout_mass")
    for number, text in enumerate(TEXTS):
        ids = subject.prepare(text=[text], chat_template=False).tensors["input_ids"]
        patterns, gradients = matrices(eager, ids)
        length = ids.shape[1]
        start = torch.full((length,), 1 / (length - 1), dtype=torch.float64)
        start[-1] = 0
        mean = patterns[1].mean(0) + torch.eye(length)
        below = start @ (mean / mean.sum(-1, keepdim=True))
        for layer, arriving in ((1, start), (0, below)):
            for head in (0, 3):
                a, g = patterns[layer][head], gradients[layer][head]
                expected = (a * g).clamp_min(0).sum()
                ours = found["language", layer, head][number]
                assert torch.isclose(ours, expected, rtol=1e-3, atol=1e-6)
                away = (arriving * (1 - a.diagonal())).sum()
                assert torch.isclose(
                    moved["language", layer, head][number], away, rtol=1e-4, atol=1e-6
                )


def three_tokens() -> tuple[Any, Tensor]:
    """One head; the gradient at the pattern is [[0 . .], [1 -2 .], [3 1 -1]]."""
    pattern = torch.tensor([[[[1.0, 0, 0], [0.4, 0.6, 0], [0.5, 0.2, 0.3]]]])
    call = whole_call(pattern, text_tokens([[9, 4, 7]], bos=False))
    call.value = torch.eye(3)[None, None]
    gradient = torch.tensor([[[[0.0, 0, 0], [1, -2, 0], [3, 1, -1]]]])
    return call, gradient


def test_three_tokens_by_hand() -> None:
    call, gradient = three_tokens()
    flow = Flow.starting(torch.tensor([0.0, 0.0, 1.0]))
    (share,) = carry(flow, [(call, gradient, NO_SINKS)])
    # Rows of A + I sum to 2: the read position keeps (0.3 + 1) / 2.
    assert flow.rollout[""][:3].tolist() == pytest.approx([0.25, 0.10, 0.65])
    # g * A of the last row: 1.5, 0.2 and -0.3, of which the last does not count.
    assert flow.relevancy[""][:3].tolist() == pytest.approx([1.5, 0.2, 1.0])
    assert share.relevancy[""][0, 0].tolist() == pytest.approx([0.0, 0.4, 1.7])
    assert share.rollout[""][0, 0].tolist() == pytest.approx([0.0, 0.0, 0.7])
    carry(flow, [(call, gradient, NO_SINKS)])
    # 0.25 stays; 0.10 goes 0.2 : 0.8; 0.65 goes 0.25 : 0.1 : 0.65.
    assert flow.rollout[""][:3].tolist() == pytest.approx(
        [0.25 + 0.02 + 0.1625, 0.08 + 0.065, 0.4225]
    )
    assert flow.relevancy[""][:3].tolist() == pytest.approx([1.5 + 0.08 + 1.5, 0.4, 1.0])


def test_masking_a_sink_by_hand() -> None:
    call, gradient = three_tokens()
    flow = Flow.starting(torch.tensor([0.5, 0.0, 0.5]))
    sinks = torch.tensor([[True, False, False]])
    (share,) = carry(flow, [(call, gradient, sinks)])
    # The last row is 0.4, 0.6 without its first key; the first row is empty and keeps what it has.
    assert flow.rollout["sinks_masked"][:3].tolist() == pytest.approx([0.5, 0.1, 0.4])
    assert flow.relevancy["sinks_masked"][:3].tolist() == pytest.approx([0.5, 0.2, 0.5])
    assert share.rollout["sinks_masked"][0, 0].tolist() == pytest.approx([0.0, 0.0, 0.2])
    assert flow.rollout[""][0] > 0.5
    assert torch.isfinite(without_keys(call.whole, torch.ones(1, 3, dtype=torch.bool))).all()


def test_sinks_are_named_by_role_or_by_what_they_receive() -> None:
    pattern = torch.tensor(
        [[[[1.0, 0, 0, 0], [0.2, 0.8, 0, 0], [0.1, 0.6, 0.3, 0], [0.1, 0.1, 0.1, 0.7]]]]
    )
    tokens = text_tokens([[9, 4, 7, 5]])
    call = whole_call(pattern, tokens)
    named = sink_keys(call, TokenMap({"language": tokens}))
    # Key 0 is bos; key 1 gets (0.6 + 0.1) / 2 from others; key 3 has no reader but itself.
    assert named.tolist() == [[True, True, False, False]]
    assert sink_keys(call, None).tolist() == [[False, True, False, False]]


def test_a_bos_sink_is_masked() -> None:
    subject = text_subject(num_hidden_layers=2)
    batch = subject.prepare(
        input_ids=torch.tensor([[1, 5, 6, 7, 8, 5, 6]]),
        attention_mask=torch.ones(1, 7, dtype=torch.long),
    )
    maps = relevancy_maps(subject, batch)
    bos = maps[maps["role"] == "bos"].iloc[0]
    assert bos["rollout_sinks_masked"] < 0.5 * bos["rollout"]
    assert maps["rollout_sinks_masked"].sum() == pytest.approx(1.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_and_padding_change_nothing(side: str) -> None:
    subject = text_subject()
    alone = scored(relevancy(StudyOptions()), subject, batches_of(subject, 1))
    both = scored(relevancy(StudyOptions()), subject, batches_of(subject, 4, side))
    assert alone.columns == both.columns
    assert torch.allclose(alone.numerator, both.numerator, rtol=1e-3, atol=1e-5)
    assert torch.equal(alone.denominator, both.denominator)


def test_a_class_is_read_at_cls() -> None:
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    pictures = [Image.effect_noise((20, 20), 60 + 40 * i).convert("RGB") for i in range(2)]
    examples = [Example(str(i), image=p, label=2 * i) for i, p in enumerate(pictures)]
    batch = subject.prepare(examples=examples)
    maps = relevancy_maps(subject, batch, effect="logit")
    assert len(maps) == 2 * 17
    for _, mine in maps.groupby("example"):
        assert mine["rollout"].sum() == pytest.approx(1.0)
        assert mine["rollout"].idxmax() == mine.index[mine["role"] == "cls"][0]
    assert {"row", "column", "role"} <= set(maps.columns)


def test_towers_of_a_vision_language_model() -> None:
    model = tiny_models.llava()
    model.config.vision_feature_layer = -2
    subject = Subject(model, tiny_models.llava_processor())
    examples = [
        Example(str(i), question="describe the image", image=p, answer="a cat")
        for i, p in enumerate(
            Image.effect_noise((20, 20), 60 + 40 * i).convert("RGB") for i in range(2)
        )
    ]
    batch = subject.prepare(examples=examples)
    scores = scored(relevancy(StudyOptions()), subject, [batch])
    layers = {(c.tower, c.layer) for c in scores.columns if c.measure == "rollout_mass"}
    assert ("vision", 0) in layers and ("vision", 1) not in layers and ("language", 2) in layers
    maps = relevancy_maps(subject, batch)
    assert maps.groupby(["tower", "example"])["rollout"].sum().tolist() == pytest.approx([1.0] * 4)


def test_cross_attention_has_no_map_and_says_so() -> None:
    subject = Subject(tiny_models.t5(), tiny_models.tokenizer("right"))
    examples = [Example("0", text="a b c d", answer="the cat"), Example("1", text="c", answer="a")]
    batch = subject.prepare(examples=examples)
    scores = scored(relevancy(StudyOptions()), subject, [batch])
    assert any("maps follow one sequence" in why for why in scores.reasons.values())
    assert {c.tower for c in scores.columns if c.measure == "rollout_mass"} >= {"encoder"}


def test_the_study_keeps_maps_of_its_first_examples() -> None:
    subject = text_subject()
    batches = batches_of(subject, 3)
    study = relevancy(StudyOptions())
    tally = Tally(replicates=1)
    tally.add(scored(study, subject, batches))
    (table,) = study.finish(subject, lambda: batches, tally).values()
    assert set(table["example"]) == {"0", "1", "2", "3"}
