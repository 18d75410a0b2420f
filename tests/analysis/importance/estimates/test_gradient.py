"""Mask gradients and HISP, against autograd through an explicit mask example by example."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from PIL import Image
from torch import Tensor

from analysis.importance.estimates.attribution_patching import atp
from analysis.importance.estimates.gradient import gradient, layer_normalised
from analysis.importance.estimates.relevancy import relevancy
from analysis.importance.study import StudyOptions
from analysis.scores import BatchScores
from analysis.tally import Tally
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.inputs import Example
from probes.listening import listen
from probes.subject import Subject

TEXTS = ["a b c d e f", "the cat sat on a mat .", "c c d", "j i h g f e d c b a"]


def text_subject(side: str = "left", **changes: Any) -> Subject:
    return Subject(tiny_models.llama(**changes), tiny_models.tokenizer(side))


def batches_of(subject: Subject, size: int, side: str = "left") -> list[Any]:
    examples = [Example(str(i), text=text) for i, text in enumerate(TEXTS)]
    parts = [examples[i : i + size] for i in range(0, len(examples), size)]
    return [subject.prepare(examples=part, padding_side=side) for part in parts]


def scored(study: Any, subject: Subject, batches: list[Any]) -> BatchScores:
    study.begin(subject, lambda: batches)
    return BatchScores.merge([study.score(subject, batch) for batch in batches])


def of(scores: BatchScores, measure: str, variant: str = "") -> dict[tuple[str, int, int], Tensor]:
    """``(tower, layer, head)`` -> float64 ``[example]``: numerators."""
    return {
        (c.tower, c.layer, c.head): scores.numerator[:, i]
        for i, c in enumerate(scores.columns)
        if (c.measure, c.variant) == (measure, variant)
    }


def log_likelihood(subject: Subject, batch: Any) -> Tensor:
    """Of the real next tokens of a batch of one example, summed."""
    logits, ids = subject.call(batch).logits[0], batch.tensors["input_ids"][0]
    real = batch.tensors["attention_mask"][0].bool()
    chosen = logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return chosen[real[1:] & real[:-1]].sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_gradient_is_the_derivative_by_a_mask_per_example(side: str) -> None:
    subject = text_subject(side)
    scores = scored(gradient(StudyOptions()), subject, batches_of(subject, 3, side))
    found = of(scores, "mask_gradient_cross_entropy")
    assert len(found) == 18
    for number, text in enumerate(TEXTS):
        batch = subject.prepare(text=[text], chat_template=False)
        for layer, head in ((0, 1), (2, 5)):
            mask = torch.ones((), requires_grad=True)

            def scaled(z: Tensor, _: EditPlace, mask: Tensor = mask) -> Tensor:
                return z * mask

            with edit(subject, edits.edit_z(f"L{layer}H{head}", scaled)):
                (slope,) = torch.autograd.grad(log_likelihood(subject, batch), mask)
            ours = found["language", layer, head][number]
            assert torch.isclose(ours, slope.abs().double(), rtol=1e-3, atol=1e-6)


def test_batches_change_nothing() -> None:
    subject = text_subject()
    one, all_ = (
        scored(gradient(StudyOptions()), subject, batches_of(subject, n)) for n in (1, len(TEXTS))
    )
    assert one.columns == all_.columns
    assert torch.allclose(one.numerator, all_.numerator, rtol=1e-4, atol=1e-6)
    assert torch.allclose(one.null_numerator, all_.null_numerator, rtol=1e-4, atol=1e-6)
    assert torch.equal(one.denominator, all_.denominator)


def test_the_absolute_value_is_taken_per_example() -> None:
    """Of a batch's gradient it would be smaller where examples disagree in sign."""
    subject = text_subject()
    scores = scored(gradient(StudyOptions()), subject, batches_of(subject, 4))
    signed = []
    for text in TEXTS:
        batch = subject.prepare(text=[text], chat_template=False)
        z = capture(subject, batch, z="L1").z("L1")

        def leaf(values: Tensor, _: EditPlace, z: Tensor = z) -> Tensor:
            return z[:, :, [3]]

        z.requires_grad_(True)
        with edit(subject, edits.edit_z("L1H3", leaf)):
            (slope,) = torch.autograd.grad(log_likelihood(subject, batch), z)
        signed.append(float((slope * z.detach()).sum()))
    assert min(signed) < 0 < max(signed), "the test needs examples that disagree"
    ours = float(of(scores, "mask_gradient_cross_entropy")["language", 1, 3].sum())
    assert np.isclose(ours, np.abs(signed).sum(), rtol=1e-3)


def test_hisp_is_the_derivative_by_a_mask_between_a_value_and_its_mean() -> None:
    """On values: z' = pattern @ mean value, by plain matrices of the captured pattern."""
    subject = text_subject()
    batches = batches_of(subject, 4)
    study = gradient(StudyOptions())
    scores = scored(study, subject, batches)
    values: list[Tensor] = []

    def hear(call: Any) -> None:
        if call.site.layer == 1:
            values.append(call.value.repeat_interleave(call.heads // call.kv_heads, 1).clone())

    with listen(subject, batches[0], hear):
        subject.forward(batches[0])
    real = batches[0].tensors["attention_mask"].bool()
    mean = values[0].transpose(1, 2)[real].mean(0)
    seen = capture(subject, batches[0], patterns="L1", z="L1")
    pattern = seen.pattern("L1")
    assert isinstance(pattern, Tensor)
    other = torch.einsum("bhqk,hw->bqhw", pattern, mean)
    mask = torch.ones(4, 1, 1, 1, requires_grad=True)

    def mixed(z: Tensor, _: EditPlace) -> Tensor:
        return mask * z + (1 - mask) * other[:, :, [2]]

    ids = batches[0].tensors["input_ids"]
    with edit(subject, edits.edit_z("L1H2", mixed)):
        logits = subject.call(batches[0]).logits
    chosen = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    counted = real[:, 1:] & real[:, :-1]
    (slope,) = torch.autograd.grad((chosen * counted).sum(), mask)
    ours = of(scores, "hisp_cross_entropy", "value")["language", 1, 2]
    assert torch.allclose(ours, slope.flatten().abs().double(), rtol=1e-3, atol=1e-6)
    variants = {c.variant for c in scores.columns if c.measure == "hisp_cross_entropy"}
    assert variants == {"query", "key", "value", "z"}


def test_a_written_out_softmax_leaves_queries_out_and_says_so() -> None:
    subject = text_subject(attn_implementation="eager")
    scores = scored(gradient(StudyOptions()), subject, batches_of(subject, 4))
    variants = {c.variant for c in scores.columns if c.measure == "hisp_cross_entropy"}
    assert variants == {"z"}


def test_vision_and_classes() -> None:
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    pictures = [Image.effect_noise((20, 20), 60 + 40 * i).convert("RGB") for i in range(3)]
    examples = [Example(str(i), image=p, label=2 * i) for i, p in enumerate(pictures)]
    batch = subject.prepare(examples=examples)
    scores = scored(gradient(StudyOptions(effects=("logit",))), subject, [batch])
    found = of(scores, "mask_gradient_logit")
    for row, example in enumerate(examples):
        alone = subject.prepare(examples=[example])
        logits = []
        for factor in (1.01, 0.99):
            with edit(subject, edits.scale("vision.L1H2", factor)):
                logits.append(float(subject.forward(alone).logits[0, 2 * row]))
        slope = abs(logits[0] - logits[1]) / 0.02
        assert np.isclose(float(found["vision", 1, 2][row]), slope, rtol=2e-2, atol=1e-4)


def with_and_without_images() -> list[Example]:
    pictures = [Image.effect_noise((20, 20), 60 + 40 * i).convert("RGB") for i in range(2)]
    return [
        Example("0", question="describe the image", image=pictures[0], answer="a cat sat"),
        Example("1", question="the cat sat on", answer="a mat"),
        Example("2", question="describe", image=pictures[1], answer="on the mat . a"),
    ]


def test_an_example_without_an_image_says_nothing_of_vision_heads() -> None:
    """Alone it does not reach them; beside images it must not count as a head that does nothing."""
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    examples = with_and_without_images()
    alone = [subject.prepare(examples=[example]) for example in examples]
    together = [subject.prepare(examples=examples)]
    one, all_ = (scored(gradient(StudyOptions()), subject, parts) for parts in (alone, together))
    assert set(one.columns) == set(all_.columns)
    order = [one.columns.index(column) for column in all_.columns]
    assert torch.allclose(one.numerator[:, order], all_.numerator, rtol=1e-3, atol=1e-6)
    assert torch.equal(one.denominator[:, order], all_.denominator)
    vision = [column.tower == "vision" for column in all_.columns]
    assert all_.denominator[1].eq(0).tolist() == vision


def test_words_of_zero_shot_classes_are_fixed_so_their_tower_is_not_measured() -> None:
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {"height": 20, "width": 20}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=size)
    processor = CLIPProcessor(image_processor=pictures, tokenizer=tiny_models.tokenizer("right"))
    subject = Subject(tiny_models.clip(), processor)
    examples = [
        Example(str(i), text="the cat", image=Image.new("RGB", (20, 20), (90 * i, 9, 60)), label=w)
        for i, w in enumerate(("cat", "mat", "a"))
    ]
    batch = subject.prepare(examples=examples)
    for study, measures in ((gradient, 2), (relevancy, 2), (atp, 3)):
        scores = scored(study(StudyOptions(effects=("logit",))), subject, [batch])
        assert {column.tower for column in scores.columns} == {"vision"}
        told = {measure: why for (tower, measure), why in scores.reasons.items()}
        assert all("heads of language have no part" in told[m] for m in told if "logit" in m)
        assert len(told) == measures


def test_effects_without_a_gradient_are_refused() -> None:
    subject = text_subject()
    batches = batches_of(subject, 4)
    with pytest.raises(ValueError, match=r"Effect 'jsd' has no gradient at the intact model.*"):
        gradient(StudyOptions(effects=("jsd",))).begin(subject, lambda: batches)
    both = scored(gradient(StudyOptions(effects=("jsd", "logit"))), subject, batches)
    assert "has no gradient" in both.reasons["language", "hisp_jsd"]
    assert {c.measure for c in both.columns} == {"mask_gradient_logit", "hisp_logit"}


def test_layer_normalised_divides_by_the_norm_of_the_layers_means() -> None:
    columns = ("tower", "layer", "head", "measure", "variant", "inputs", "value", "ci_low")
    columns = (*columns, "ci_high", "n", "null_low", "null_high", "unit")
    lines = [
        ("language", 0, 0, "mask_gradient_logit", "", "", 3.0, 1.5, 6.0, 4, 0.5, 1.0, "logits"),
        ("language", 0, 1, "mask_gradient_logit", "", "", 4.0, 2.0, 6.0, 4, 0.5, 1.0, "logits"),
        ("language", 1, 0, "mask_gradient_logit", "", "", 0.2, 0.1, 0.3, 4, 0.0, 0.1, "logits"),
        ("language", 1, 1, "mask_gradient_logit", "", "", 0.0, 0.0, 0.1, 4, 0.0, 0.1, "logits"),
        ("language", 1, 0, "confidence", "all", "", 0.7, 0.6, 0.8, 4, 0.0, 0.1, "share"),
    ]
    made = layer_normalised(pd.DataFrame(lines, columns=list(columns)), ["mask_gradient_logit"])
    assert made["value"].tolist() == pytest.approx([0.6, 0.8, 1.0, 0.0])
    assert made["ci_low"].tolist() == pytest.approx([0.3, 0.4, 0.5, 0.0])
    assert set(made["variant"]) == {"layer_normalised"}


def test_the_study_writes_the_normalised_table() -> None:
    subject = text_subject()
    batches = batches_of(subject, 2)
    study = gradient(StudyOptions())
    scores = scored(study, subject, batches)
    tally = Tally(replicates=20)
    tally.add(scores)
    (table,) = study.finish(subject, lambda: batches, tally).values()
    squares = table.assign(square=table["value"] ** 2)
    norms = squares.groupby(["layer", "measure"])["square"].sum()
    assert norms.tolist() == pytest.approx([1.0] * 6)
