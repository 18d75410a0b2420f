"""The losses that a model and data get, against torch's own."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hand_coders import nothing
from torch import Tensor
from torch.nn import functional

from headscope.batching import batches
from headscope.coder_losses import output_losses
from probes.inputs import Batch, Example
from probes.readers import bundled_set
from probes.subject import Subject
from sae.judging.loss_recovered import losses_recovered
from tests import tiny_models as tiny
from tests.drawn_coders import subject_of


def data_of(subject: Subject, name: str, count: int = 6) -> list[Batch]:
    examples = list(islice(bundled_set.read(name), count))
    return list(batches(subject, examples, 4, lambda example, reason: pytest.fail(reason)))


def told(subject: Subject, data: list[Batch], **how: Any) -> dict[str, tuple[float, float]]:
    """Mean of each loss of the intact output, and its reads."""
    made = output_losses(subject, lambda: data, **how)
    found = {}
    for loss in made.losses:
        total = reads = 0.0
        for batch in data:
            output = subject.forward(batch, **made.settings(batch))
            one, count = loss(batch, output, output)
            total, reads = total + float(one.sum()), reads + float(count.sum())
        found[loss.name] = total / reads, reads
    return found


def test_next_tokens_of_text() -> None:
    subject = Subject(tiny.gpt2(), tiny.tokenizer("left"))
    data = [subject.prepare(text=["a b c the cat", "on a"]), subject.prepare(text=["d e . f"])]
    total, reads = 0.0, 0
    for batch in data:
        ids, logits = batch.tensors["input_ids"], subject.forward(batch).logits.double()
        mask = batch.tensors["attention_mask"].bool()
        for row in range(len(ids)):
            real = mask[row].nonzero()[:, 0]
            # The readings' own rule for text: every real token but the first.
            total += float(
                functional.cross_entropy(
                    logits[row, real[:-1]], ids[row, real[1:]], reduction="sum"
                )
            )
            reads += len(real) - 1
    found = told(subject, data)
    assert list(found) == ["cross_entropy", "kl"]
    assert found["cross_entropy"] == (pytest.approx(total / reads, rel=1e-5), reads)
    assert found["kl"] == (0.0, reads)


def test_classes_of_pictures() -> None:
    subject = subject_of("shapes-vit")
    data = data_of(subject, "shapes")
    names = {word: index for index, word in subject.config.id2label.items()}
    losses = []
    for batch in data:
        labels = [e.label if isinstance(e.label, int) else names[e.label] for e in batch.examples]
        logits = subject.forward(batch).logits
        losses.append(functional.cross_entropy(logits, torch.tensor(labels), reduction="none"))
    found = told(subject, data)
    assert found["cross_entropy"] == (pytest.approx(float(torch.cat(losses).mean()), rel=1e-5), 6)


def test_answers_where_the_data_have_them() -> None:
    subject = subject_of("shapes-llava")
    data = data_of(subject, "scenes")
    total, reads = 0.0, 0
    for batch in data:
        ids, logits = batch.tensors["input_ids"], subject.forward(batch).logits.double()
        mask = batch.tensors["attention_mask"].bool()
        for row, start in enumerate(batch.answer_starts):
            assert start > 0
            at = torch.tensor([p for p in range(start, ids.shape[1]) if mask[row, p]])
            total += float(
                functional.cross_entropy(logits[row, at - 1], ids[row, at], reduction="sum")
            )
            reads += len(at)
    found = told(subject, data)
    assert found["cross_entropy"] == (pytest.approx(total / reads, rel=1e-5), reads)


def test_divergence_of_a_changed_model_by_the_formula() -> None:
    subject = subject_of("shapes-vit")
    data = data_of(subject, "shapes")
    made = output_losses(subject, lambda: data)
    coder = nothing(96, "vision.L1")
    found = losses_recovered(
        subject, lambda: data, {"c": coder}, made.losses, settings=made.settings
    )["c"]["kl"]
    from probes.edits import zero
    from probes.edits.apply import edit

    parts: list[Tensor] = []
    for batch in data:
        p = subject.forward(batch).logits.double().log_softmax(-1)
        with edit(subject, zero("vision.L1")):
            q = subject.forward(batch).logits.double().log_softmax(-1)
        parts.append((p.exp() * (p - q)).sum(-1))
    assert found.spliced == pytest.approx(float(torch.cat(parts).mean()), rel=1e-5)
    assert found.clean == 0.0
    assert found.unit == "nats"


def test_without_a_class_vectors_are_compared() -> None:
    from transformers import ViTModel

    model = ViTModel(tiny.vit().config).eval()
    subject = Subject(model, tiny.image_processor(20))
    pixels = torch.randn(3, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    batch = subject.prepare(pixel_values=pixels)
    made = output_losses(subject, lambda: [batch], tower="vision")
    assert [loss.name for loss in made.losses] == ["cosine"]
    coder = nothing(12, "vision.L1")
    how = {"settings": made.settings}
    found = losses_recovered(subject, lambda: [batch], {"c": coder}, made.losses, **how)
    cosine = found["c"]["cosine"]
    assert cosine.clean == pytest.approx(0, abs=1e-6)
    assert cosine.spliced == cosine.zero
    assert cosine.zero is not None and cosine.zero > 1e-6
    assert cosine.examples == 3


def test_pictures_without_labels_are_judged_by_divergence() -> None:
    subject = subject_of("shapes-vit")
    whole = data_of(subject, "shapes")
    bare = [Example(e.id, image=e.image) for batch in whole for e in batch.examples]
    data = [subject.prepare(examples=bare)]
    assert [loss.name for loss in output_losses(subject, lambda: data).losses] == ["kl"]
    own = told(subject, data, label="predicted")
    logits = subject.forward(data[0]).logits
    expected = functional.cross_entropy(logits, logits.argmax(-1))
    assert own["cross_entropy"][0] == pytest.approx(float(expected), rel=1e-5)


def test_examples_with_nothing_to_read_are_set_aside() -> None:
    subject = Subject(tiny.gpt2(), tiny.tokenizer("left"))
    words = [Example(f"t{i}", text=text) for i, text in enumerate(["a b c", "e", "d"])]
    data = [subject.prepare(examples=words[:2]), subject.prepare(examples=words[2:])]
    made = output_losses(subject, lambda: [subject.prepare(text=["a b c"])])
    skipped: list[tuple[str, str]] = []
    left = list(made.readable(data, lambda e, reason: skipped.append((e.id, reason))))
    assert [[e.id for e in batch.examples] for batch in left] == [["t0"]]
    assert [name for name, _ in skipped] == ["t1", "t2"]
    assert skipped[0][1].startswith("must have a token to predict")


def test_a_tower_without_part_in_the_output_is_refused() -> None:
    model = tiny.clip()
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
    )
    subject = Subject(model, CLIPProcessor(pictures, tiny.tokenizer()))
    noise = torch.randint(0, 255, (3, 20, 20, 3), dtype=torch.uint8).numpy()
    examples = [
        Example(f"p{i}", text="a", image=noise[i], label=word)
        for i, word in enumerate(["cat", "mat", "cat"])
    ]
    data = [subject.prepare(examples=examples)]
    made = output_losses(subject, lambda: data, tower="language")
    with pytest.raises(ValueError, match="heads of language have no part"):
        made.losses[0](data[0], subject.forward(data[0]), subject.forward(data[0]))
