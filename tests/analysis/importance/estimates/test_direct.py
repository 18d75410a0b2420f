"""The study of direct contributions: the whole sum, direct effects, nulls and what is refused."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from analysis.importance.estimates.direct import Direct, direct
from analysis.importance.readings import ReadingError
from analysis.importance.study import StudyOptions
from analysis.tally import Tally
from probes.bundled import bundled_models
from probes.head_outputs import head_outputs
from probes.heads import Site
from probes.inputs import Batch, Example
from probes.loading import load
from probes.readers.bundled_set import read
from probes.subject import Subject

TEXTS = ["a b c d e f", "the cat sat on a mat .", "c c d", "j i h g f e d c b a"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = tiny_models.gpt2()
    draw = torch.Generator().manual_seed(6)
    for weight in model.parameters():
        weight.data.copy_(0.5 * torch.randn(weight.shape, generator=draw))
    return Subject(model, tiny_models.tokenizer())


def batches_of(subject: Subject, size: int) -> list[Batch]:
    examples = [Example(str(i), text=text) for i, text in enumerate(TEXTS)]
    groups = [examples[i : i + size] for i in range(0, len(examples), size)]
    return [subject.prepare(examples=group, chat_template=False) for group in groups]


def scored(study: Direct, subject: Subject, batches: list[Batch]) -> Tally:
    study.begin(subject, lambda: batches)
    tally = Tally(replicates=20)
    for batch in batches:
        tally.add(study.score(subject, batch))
    return tally


def values(tally: Tally, measure: str) -> dict[tuple[int, int], float]:
    frame = tally.heads().frame
    frame = frame[frame.measure == measure]
    return {(r.layer, r.head): r.value for r in frame.itertuples()}


def by_hand(
    subject: Subject, batch: Batch, changed: dict[Site, Tensor], targets: Tensor | None = None
) -> dict[Any, Tensor]:
    """``[example]`` by layer and head: the formula of a pre-norm GPT-2, token by token.

    Args:
        targets: long ``[batch position]``: what is taken to come at a position; the text itself.
    """
    model: Any = subject.model
    norm, streams = model.transformer.ln_f, []
    handle = norm.register_forward_pre_hook(lambda _, args: streams.append(args[0].detach()))
    try:
        subject.forward(batch)
    finally:
        handle.remove()
    scale = (streams[0].var(-1, unbiased=False) + norm.eps).sqrt()
    unembed = model.lm_head.weight.detach()
    ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    z = head_outputs(subject, batch).z
    found = {}
    for site in z:
        matrix = model.transformer.h[site.layer].attn.c_proj.weight.detach().unflatten(0, (3, 4))
        for head in range(3):
            total = []
            for row in range(len(ids)):
                parts = []
                for t in range(ids.shape[1] - 1):
                    if not (mask[row, t] and mask[row, t + 1]):
                        continue
                    lost = z[site][row, t, head] - changed[site][head]
                    written = lost @ matrix[head]
                    written = (written - written.mean()) / scale[row, t] * norm.weight.detach()
                    logits = unembed @ written
                    told = ids if targets is None else targets
                    parts.append(float(logits[told[row, t + 1]] - logits.mean()))
                total.append(sum(parts) / len(parts))
            found[site.layer, head] = torch.tensor(total)
    return found


def test_logits_and_direct_effects_equal_the_formula(subject: Subject) -> None:
    batches = batches_of(subject, 4)
    study = direct(StudyOptions(ablation="mean"))
    study.begin(subject, lambda: batches)
    scores = study.score(subject, batches[0])
    nothing = {site.site: torch.zeros(3, 4) for site in subject.layout.sites}
    mask = batches[0].tensors["attention_mask"].bool()
    z = head_outputs(subject, batches[0]).z
    means = {site: one[mask].mean(0) for site, one in z.items()}
    for measure, changed in (("direct_logit", nothing), ("direct_effect_logit", means)):
        expected = by_hand(subject, batches[0], changed)
        for i, column in enumerate(scores.columns):
            if column.measure == measure:
                ours = scores.numerator[:, i] / scores.denominator[:, i]
                place = expected[column.layer, column.head]
                assert torch.allclose(ours.float(), place, atol=1e-4, rtol=1e-4)
    assert {(c.unit, c.variant) for c in scores.columns} == {
        ("logits", ""),
        ("logits", "ablation=mean"),
    }


def test_zero_ablation_takes_the_whole_contribution_away(subject: Subject) -> None:
    tally = scored(direct(StudyOptions(ablation="zero")), subject, batches_of(subject, 2))
    whole, lost = values(tally, "direct_logit"), values(tally, "direct_effect_logit")
    assert whole == pytest.approx(lost) and len(whole) == 6
    assert max(abs(value) for value in whole.values()) > 1e-2


@pytest.mark.parametrize("ablation", ["uniform", "resample", "mean:role"])
def test_other_ablations_give_other_effects(subject: Subject, ablation: str) -> None:
    options = StudyOptions(ablation=ablation, draws=2)
    tally = scored(direct(options), subject, batches_of(subject, 2))
    whole, lost = values(tally, "direct_logit"), values(tally, "direct_effect_logit")
    assert set(whole) == set(lost) and whole != pytest.approx(lost)


def test_the_table_is_the_whole_sum_and_needs_no_memory_of_the_run(subject: Subject) -> None:
    batches = batches_of(subject, 3)
    study = direct(StudyOptions())
    tally = scored(study, subject, batches)
    table = study.finish(subject, lambda: batches, tally)["direct"]
    total = table[table.part == "total"].value.item()
    assert table[table.part != "total"].value.sum() == pytest.approx(total, abs=1e-4)
    assert set(table.part) == {"heads", "bias", "mlp", "embedding", "constant", "total"}
    heads = values(tally, "direct_logit")
    for layer in (0, 1):
        own = table[(table.part == "heads") & (table.layer == layer)].value.item()
        assert own == pytest.approx(sum(heads[layer, head] for head in range(3)), abs=1e-4)
    resumed = direct(StudyOptions())
    resumed.begin(subject, lambda: batches)
    again = resumed.finish(subject, lambda: batches, tally)["direct"]
    assert again.value.tolist() == pytest.approx(table.value.tolist())


def test_the_null_is_the_contribution_to_a_shuffled_target(subject: Subject) -> None:
    batches = batches_of(subject, 4)
    study = direct(StudyOptions())
    study.begin(subject, lambda: batches)
    scores = study.score(subject, batches[0])
    assert study.reader is not None
    reading = study.reader.reading(batches[0])
    shuffled = torch.zeros_like(batches[0].tensors["input_ids"])
    shuffled[reading.example, reading.position + 1] = reading.shuffled
    nothing = {site.site: torch.zeros(3, 4) for site in subject.layout.sites}
    expected = by_hand(subject, batches[0], nothing, shuffled)
    for i, column in enumerate(scores.columns):
        if column.measure == "direct_logit":
            ours = scores.null_numerator[:, i] / scores.null_denominator[:, i]
            place = expected[column.layer, column.head]
            assert torch.allclose(ours.float(), place, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores.null_numerator, scores.numerator)
    assert torch.equal(scores.null_denominator, scores.denominator)


def test_batches_change_nothing(subject: Subject) -> None:
    one = values(scored(direct(StudyOptions()), subject, batches_of(subject, 1)), "direct_logit")
    four = values(scored(direct(StudyOptions()), subject, batches_of(subject, 4)), "direct_logit")
    assert one == pytest.approx(four, abs=1e-4)


@pytest.mark.parametrize("name", ["repeat-lm", "shapes-vit"])
def test_bundled_models_add_up(name: str) -> None:
    subject = load(name)
    examples = list(islice(read(bundled_models()[name].default_set), 6))
    batches = [subject.prepare(examples=examples)]
    study = direct(StudyOptions())
    tally = scored(study, subject, batches)
    assert not tally.not_measured
    table = study.finish(subject, lambda: batches, tally)["direct"]
    total = table[table.part == "total"].value.item()
    parts = table[table.part != "total"].value
    assert parts.sum() == pytest.approx(total, abs=1e-4 * float(parts.abs().max()))


class Forbidding(nn.Module):
    """A language model that forbids some words, as Chameleon forbids its image tokens."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        output.logits[:, :, 24:29] = torch.finfo(output.logits.dtype).min
        return output


def test_words_that_cannot_come_are_not_in_the_mean(subject: Subject) -> None:
    forbidding = Subject(Forbidding(subject.model).eval(), tiny_models.tokenizer())
    batches = batches_of(forbidding, 4)
    study = direct(StudyOptions())
    tally = scored(study, forbidding, batches)
    assert not tally.not_measured
    table = study.finish(forbidding, lambda: batches, tally)["direct"]
    ids, mask = (batches[0].tensors[name] for name in ("input_ids", "attention_mask"))
    logits = subject.forward(batches[0]).logits[:, :-1]
    real = (mask[:, 1:] * mask[:, :-1]).bool()
    possible = torch.cat([logits[..., :24], logits[..., 29:]], dim=-1).mean(-1)
    expected = (logits.gather(2, ids[:, 1:, None])[..., 0] - possible)[real].mean()
    assert table[table.part == "total"].value.item() == pytest.approx(float(expected), abs=1e-4)


def test_towers_without_a_path_are_not_measured_and_say_why() -> None:
    subject = load(tiny_models.llava(), tiny_models.llava_processor())
    pictures = [torch.rand(20, 20, 3).numpy() for _ in range(2)]
    examples = [
        Example(str(i), text="<image> a b c", image=picture) for i, picture in enumerate(pictures)
    ]
    batches = [subject.prepare(examples=examples, chat_template=False)]
    tally = scored(direct(StudyOptions()), subject, batches)
    assert {line["tower"] for line in tally.not_measured} == {"vision"}
    assert "vision has no direct path" in tally.not_measured[0]["reason"]
    assert set(tally.heads().frame.tower) == {"language"}


def test_a_model_whose_head_is_not_linear_is_not_measured() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=14, num_labels=5,
    )  # fmt: skip
    subject = Subject(BertForSequenceClassification(config).eval(), tiny_models.tokenizer())
    examples = [Example(str(i), text=text, label=i) for i, text in enumerate(TEXTS)]
    batches = [subject.prepare(examples=examples)]
    study = direct(StudyOptions())
    tally = scored(study, subject, batches)
    reasons = {line["measure"]: line["reason"] for line in tally.not_measured}
    assert set(reasons) == {"direct_logit", "direct_effect_logit"}
    assert "`tanh` in bert.pooler.activation" in reasons["direct_logit"]
    assert study.finish(subject, lambda: batches, tally) == {}


def test_the_models_own_answer_as_the_target() -> None:
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    examples = [Example(str(i), image=torch.rand(20, 20, 3).numpy()) for i in range(3)]
    batches = [subject.prepare(examples=examples)]
    with pytest.raises(ValueError, match="must have a target's logit, and the data has no targets"):
        direct(StudyOptions()).begin(subject, lambda: batches)
    study = direct(StudyOptions(label="predicted"))
    tally = scored(study, subject, batches)
    table = study.finish(subject, lambda: batches, tally)["direct"]
    logits = subject.forward(batches[0]).logits
    best = (logits.amax(-1) - logits.mean(-1)).mean()
    assert table[table.part == "total"].value.item() == pytest.approx(float(best), abs=1e-5)


def test_no_data_is_an_error(subject: Subject) -> None:
    with pytest.raises(ReadingError, match="at least one example"):
        direct(StudyOptions()).begin(subject, list)
