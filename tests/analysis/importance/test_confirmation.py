"""Heads that matter together, and what they are judged on."""

import numpy as np
import pytest
import tiny_models
import torch

import headscope as hs
from analysis.importance.confirmation import confirmation, effort, of_half
from analysis.importance.greedy import greedy_set
from analysis.importance.leave_one_out import Ablation, importance
from analysis.importance.study import StudyOptions
from analysis.progress import Progress
from analysis.statistics import half_of
from analysis.tally import Tally
from probes.heads import Head
from probes.inputs import Example
from probes.subject import Subject

TEXTS = ["a b c d e f", "the cat sat on a mat .", "c c d", "j i h g f e", "mat on a", "cat the"]
HEADS = [Head("language", layer, head) for layer in (0, 1) for head in range(3)]


def _subject():
    return Subject(tiny_models.gpt2(), tiny_models.tokenizer())


def _examples():
    return [Example(f"x{i}", text=text) for i, text in enumerate(TEXTS)]


def _begun(subject, batches):
    study = importance(StudyOptions(ablation="zero"))
    study.begin(subject, lambda: batches)
    return study


def _loss(subject, batches):
    """Mean loss per token over all examples, by torch's own loss."""
    total, count = 0.0, 0
    for batch in batches:
        logits = subject.forward(batch).logits
        ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"].bool()
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
        real = mask[:, 1:] & mask[:, :-1]
        total, count = total + float(losses[real].sum()), count + int(real.sum())
    return total / count


def test_greedy_takes_what_costs_most_with_the_others_gone():
    subject = _subject()
    batches = [subject.prepare(examples=_examples()[i : i + 3]) for i in (0, 3)]
    taken = greedy_set(subject, lambda: batches, _begun(subject, batches), HEADS, 3)
    expected = [HEADS[0]]
    while len(expected) < 3:
        rest = [head for head in HEADS if head not in expected]
        losses = []
        for head in rest:
            with hs.edit(subject, hs.edits.zero([*expected, head])):
                losses.append(_loss(subject, batches))
        expected.append(rest[int(np.argmax(losses))])
    assert taken == expected


def test_a_half_holds_its_own_examples_and_no_others():
    subject = _subject()
    batches = [subject.prepare(examples=_examples()[i : i + 3]) for i in (0, 3)]
    seen = {}
    for half in (0, 1):
        data, counts = of_half(subject, lambda: batches, half, 0)
        names = [example.id for batch in data() for example in batch.examples if counts(example.id)]
        assert all(half_of(name, 0) == half for name in names)
        seen[half] = set(names)
        assert all(batch.size > 0 for batch in data())
    assert seen[0] | seen[1] == {example.id for example in _examples()}
    assert not seen[0] & seen[1]


def test_tensors_that_cannot_be_prepared_again_are_masked_instead():
    subject = Subject(tiny_models.gpt2())
    batch = subject.prepare(input_ids=torch.randint(5, 25, (4, 7)))
    for half in (0, 1):
        data, counts = of_half(subject, lambda: [batch], half, 0)
        mine = [e.id for e in batch.examples if counts(e.id)]
        assert [b.size for b in data()] == ([4] if mine else [])


def test_the_chosen_set_is_ranked_on_one_half_alone():
    subject = _subject()
    batches = [subject.prepare(examples=_examples()[i : i + 3]) for i in (0, 3)]
    study = _begun(subject, batches)
    tally = Tally(replicates=10)
    for batch in batches:
        tally.add(study.score(subject, batch))
    tables = confirmation(subject, lambda: batches, tally, study)
    joint = tables["joint"]
    first = {
        str(Head(c.tower, c.layer, c.head)): halves[0]
        for c, halves in tally.halves.items()
        if c.measure == "importance_cross_entropy"
    }
    best = max(first, key=lambda name: first[name])
    chosen = joint[(joint["kind"] == "chosen") & (joint["top"] == 1)]
    assert chosen["heads"].tolist() == [best]
    judged = sum(half_of(example.id, 0) for example in _examples())
    assert chosen["n"].tolist() == [judged]
    order = tables["pruning"]
    assert {"order", "random"} == set(order["kind"])
    weakest = min(first, key=lambda name: first[name])
    with hs.edit(subject, hs.edits.zero(weakest)):
        kept = [e for e in _examples() if half_of(e.id, 0) == 1]
        after = _loss(subject, [subject.prepare(examples=kept)])
    before = _loss(subject, [subject.prepare(examples=kept)])
    line = order[(order["kind"] == "order") & (order["removed"] == 1)].iloc[0]
    assert abs(line["value"] - (after - before)) < 1e-5


@pytest.mark.parametrize(("ablation", "size"), [("zero", 1), ("zero", 6), ("resample", 4)])
def test_stages_know_their_total_before_they_begin(ablation, size):
    """Six heads: 1 and 2 heads left out at once, 2 taken one after the other; see below."""
    subject = _subject()
    examples = _examples()
    batches = [subject.prepare(examples=examples[i : i + size]) for i in range(0, 6, size)]
    study = importance(StudyOptions(ablation=ablation, draws=2))
    heard = {}

    def listen(stage):
        heard.setdefault(stage.name, []).append((stage.done, stage.total, stage.ended))

    study.progress = Progress(listen, examples=6)
    study.begin(subject, lambda: batches)
    assert list(heard) == (["donors"] if ablation == "resample" else [])
    heard.clear()
    tally = Tally(replicates=10)
    for batch in batches:
        tally.add(study.score(subject, batch))
    assert sum(tally.in_half) == tally.examples == 6 and min(tally.in_half) > 1
    tables = confirmation(subject, lambda: batches, tally, study)
    chooses, judges = (half * (2 if ablation == "resample" else 1) for half in tally.in_half)
    joint = tables["joint"]
    assert {name: told[0] for name, told in heard.items()} == {
        "one after the other": (0, 5 * chooses, False),
        "sets of heads": (0, len(joint) * judges, False),
        "pruning": (0, len(tables["pruning"]) * judges, False),
    }
    for told in heard.values():
        done = [entry[0] for entry in told]
        assert done == sorted(done)
        assert told[-1] == (told[0][1], told[0][1], True)
        assert not any(ended for *_, ended in told[:-1])
    # Fewer than twenty sets match: 2 others for one head, 2 or 8 for two of one or two layers.
    assert len(joint) < 3 * 21


def test_the_effort_is_what_the_stages_count(monkeypatch):
    """18 heads in layers of 6, so that there are more than enough sets to draw four from."""
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    examples = _examples()
    batches = [subject.prepare(examples=examples)]
    totals, passes = {}, []
    study = importance(StudyOptions(ablation="zero"))
    study.progress = Progress(lambda stage: totals.setdefault(stage.name, stage.total))
    study.begin(subject, lambda: batches)
    tally = Tally(replicates=10)
    tally.add(study.score(subject, batches[0]))
    real = Ablation.record

    def counted(self, subject, batch):
        passes.append({half_of(example.id, 0) for example in batch.examples})
        return real(self, subject, batch)

    monkeypatch.setattr(Ablation, "record", counted)
    monkeypatch.setattr("analysis.importance.confirmation.RANDOMS", 4)
    tables = confirmation(subject, lambda: batches, tally, study)
    assert len(tables["joint"]) == 3 * (1 + 4)
    needed = effort(18)
    first, second = tally.in_half
    assert totals["one after the other"] == needed.sets[0] * first
    assert totals["sets of heads"] + totals["pruning"] == needed.sets[1] * second
    assert [passes.count({half}) for half in (0, 1)] == list(needed.passes)


def test_patterns_cannot_be_judged_together():
    subject = _subject()
    batches = [subject.prepare(examples=_examples())]
    study = importance(StudyOptions(ablation="uniform"))
    study.begin(subject, lambda: batches)
    tally = Tally(replicates=10)
    tally.add(study.score(subject, batches[0]))
    assert confirmation(subject, lambda: batches, tally, study) == {}


def test_examples_that_are_not_judged_do_not_count():
    from analysis.importance.joint import joint_effect

    subject = _subject()
    batches = [subject.prepare(examples=_examples()[i : i + 3]) for i in (0, 3)]
    study = _begun(subject, batches)
    kept = {"x1", "x4", "x5"}
    found = joint_effect(
        subject, lambda: batches, HEADS[1:3], study, only=kept.__contains__, randoms=2
    )
    assert found.lines["n"].tolist() == [3] * len(found.lines)
    alone = [subject.prepare(examples=[e for e in _examples() if e.id in kept])]
    with hs.edit(subject, hs.edits.zero(HEADS[1:3])):
        after = _loss(subject, alone)
    assert abs(found.value - (after - _loss(subject, alone))) < 1e-5


def test_heads_of_two_towers_are_judged_by_the_vectors_of_both():
    from analysis.importance.set_effects import effects_of_sets

    processor = _clip_processor()
    subject = Subject(tiny_models.clip(), processor)
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 255, (20, 20, 3), dtype=np.uint8) for _ in range(2)]
    examples = [Example(str(i), image=p, text="a cat") for i, p in enumerate(pixels)]
    batch = subject.prepare(examples=examples)
    study = _begun(subject, [batch])
    vision, text = Head("vision", 0, 1), Head("language", 1, 0)
    sets = [[vision], [text], [vision, text]]
    values = effects_of_sets(subject, lambda: [batch], sets, study).change.value
    assert values[0] > 0 and values[1] > 0
    np.testing.assert_allclose(values[2], (values[0] + values[1]) / 2, rtol=1e-4)


def _clip_processor():
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=tiny_models.tokenizer())
