"""Sink removal against four loops, on planted sinks, and where it does not apply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import seeing_batches as seen
import tiny_models as tiny
import torch
from loop_attention import Row, Rule, looping, written
from torch import Tensor

from analysis.vision.methods.sink_removal import sink_removal
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.parse import parse_edit
from probes.inputs import InputError
from probes.loading import load
from probes.subject import Subject
from tests.probes.test_tap import IDS, LEFT

DIMENSIONS, TAU, PATCHES = (3, 11, 20), 1.5, 16
SETTINGS: dict[str, Any] = {"dimensions": DIMENSIONS, "tau": TAU}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


@dataclass
class Removed(Rule):
    """Sink removal on one prompt; `hear` is hooked before each block."""

    image: int = 0
    which: str = "both"
    amount: float = 1.0
    sinks: dict[int, set[int]] = field(default_factory=dict)
    changed: int = 0

    def hear(self, layer: int, x: Tensor) -> None:
        if layer in self.sinks:
            return
        image = set(range(self.image, self.image + PATCHES))
        found = set()
        for position, vector in enumerate(x[0].tolist()):
            root = (sum(value * value for value in vector) / len(vector)) ** 0.5
            if max(abs(vector[d]) for d in DIMENSIONS) / root > TAU:
                found.add(position)
        self.sinks[layer] = {
            "both": found, "visual": found & image, "text": found - image
        }[self.which]  # fmt: skip

    def weights(self, rows: list[tuple[Row, list[float]]]) -> list[list[float]]:
        made = []
        for row, weights in rows:
            new = list(weights)
            if row.tower == "language":
                sinks = self.sinks[row.layer] & set(range(len(weights)))
                rest = sum(w for j, w in enumerate(weights) if j not in sinks)
                if sinks and rest:
                    moved = self.amount * sum(weights[j] for j in sinks)
                    for j, weight in enumerate(weights):
                        new[j] = (
                            weight * (1 - self.amount)
                            if j in sinks
                            else weight + moved * weight / rest
                        )
                    self.changed += 1
            made.append(new)
        return made


@pytest.mark.parametrize(("which", "amount"), [("both", 1.0), ("visual", 0.6), ("text", 1.0)])
def test_generation_equals_a_loop_over_heads_queries_and_keys(
    subject: Subject, which: Any, amount: float
) -> None:
    with edit(subject, sink_removal(which, amount, **SETTINGS)) as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    _, plain = seen.written_together(subject, seen.three(subject))
    changed = 0
    for row, tensors in enumerate(seen.alone(subject)):
        start = int((tensors["input_ids"][0] == 4).nonzero()[0, 0])
        rule = Removed(image=start, which=which, amount=amount)
        twin = looping(subject.model, rule)
        for layer, block in enumerate(twin.model.language_model.layers):
            block.register_forward_pre_hook(
                lambda module, args, layer=layer, rule=rule: rule.hear(layer, args[0])
            )
        expected_ids, expected = written(twin, tensors, seen.STEPS)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
        changed += rule.changed
    assert (logits - plain).abs().max() > 1e-3
    assert report.touched == changed > 20


def test_rows_sum_to_one_and_the_size_of_tiles_changes_nothing(subject: Subject) -> None:
    seen.assert_tiles_change_nothing(subject, sink_removal(**SETTINGS), range(3))


def test_without_a_cache_the_sinks_of_the_prompt_are_kept(subject: Subject) -> None:
    batch = seen.three(subject)
    with edit(subject, sink_removal(**SETTINGS)):
        ids, logits = seen.written_together(subject, batch, 4, suppress_tokens=[4])
        again, slow = seen.written_together(subject, batch, 4, suppress_tokens=[4], use_cache=False)
    words = torch.arange(31) != 4
    assert torch.equal(ids, again)
    assert torch.allclose(logits[..., words], slow[..., words], atol=2e-5)


@pytest.mark.parametrize("which", ["text", "visual", "both"])
def test_planted_sinks_are_emptied_and_a_model_without_has_none(which: Any) -> None:
    from probes.readers import read_examples

    kept = {"text": [8, 33], "visual": [0], "both": []}[which]
    for name, planted in (("shapes-llava-sinks", True), ("shapes-llava", False)):
        subject = load(name)
        examples = list(read_examples("scenes", subject.kind, 4))
        batch = subject.prepare(examples=examples, answers=False)
        plain = subject.forward(batch).logits
        with edit(subject, "sink_removal", which=which) as (report,):
            found = capture(subject, batch, patterns="language.*")
            subject.generate(batch, 3)
        assert (report.touched > 0) == planted
        if not planted:
            assert torch.allclose(found.output.logits, plain, atol=1e-4)
            continue
        tokens = batch.tokens["language"]
        pad = tokens.has_role("pad").view(4, -1).sum(-1).tolist()
        for layer in range(4):
            pattern = found.pattern(f"language.L{layer}")
            assert isinstance(pattern, Tensor)
            for row in range(4):
                last = pattern[row, :, -1, pad[row] :]
                empty = (last == 0).all(0).nonzero()[:, 0].tolist()
                assert empty == [place for place in (0, 8, 33) if place not in kept]


def test_heads_can_be_named_and_it_can_be_written_as_text(subject: Subject) -> None:
    method = parse_edit(
        "sink_removal:which=visual,amount=0.5,dimensions=3+11+20,tau=1.5,heads=language.L0H2"
    )
    assert method == sink_removal("visual", 0.5, 1.5, (3, 11, 20), "language.L0H2")
    with edit(subject, method) as (report,):
        subject.forward(seen.three(subject))
    assert [str(head) for head in report.heads] == ["language.L0H2"] and report.touched > 0


def test_it_has_a_control_and_leaves_nothing_behind(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = subject.forward(batch).logits
    with edit(subject, edits.matched_random(sink_removal(**SETTINGS))) as (report,):
        subject.generate(batch, 2)
    assert report.touched > 0
    assert torch.equal(subject.forward(batch).logits, plain)


def test_text_sinks_of_a_language_model() -> None:
    subject = Subject(tiny.sharp(tiny.llama()), tiny.tokenizer("left"))
    subject.model.model.embed_tokens.weight.data[1, 7] = 60.0  # <s>, massive in dimension 7
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    with edit(subject, "sink_removal", depth=(0.0, 0.4)) as (report,):
        found = capture(subject, batch, patterns="language.L0").pattern("language.L0")
        subject.generate(batch, 2)
    assert isinstance(found, Tensor) and report.touched > 0
    assert not found[1, :, 1:, 0].any()  # the first row reads nothing else, and stays as it is
    assert torch.equal(found[1, :, 0, 0], torch.ones(6))
    assert found[0, :, 4:, 3].all()  # the other prompt begins with another word


def test_sentences_where_it_does_not_apply(subject: Subject) -> None:
    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    with (
        pytest.raises(ValueError, match="Visual sinks are image tokens, and 'Llama"),
        edit(language, "sink_removal", which="visual"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="must read or write text, it has only vision"),
        edit(Subject(tiny.vit(), tiny.image_processor(20)), "sink_removal"),
    ):
        pass
    with (
        pytest.raises(InputError, match="example '0' has no image"),
        edit(subject, sink_removal("visual", **SETTINGS)),
    ):
        subject.forward(subject.prepare(["a cat sat on a mat"]))
    with pytest.raises(ValueError, match="must be one of text, visual, both, got 'all'"):
        sink_removal("all")  # type: ignore[arg-type]
    said = "`depth` must be two numbers with 0 <= first < second"
    with pytest.raises(ValueError, match=said), edit(subject, sink_removal(depth=(0.6, 0.2))):
        pass
