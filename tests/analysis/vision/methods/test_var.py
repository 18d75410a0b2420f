"""VAR against four loops, by hand, on planted sinks, and where it does not apply."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import seeing_batches as seen
import tiny_models as tiny
import torch
from loop_attention import Row, Rule, looping, written
from torch import Tensor

from analysis.vision.methods.var import var
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.inputs import InputError
from probes.loading import load
from probes.subject import Subject

DIMENSIONS, TAU, PATCHES = (3, 5, 7, 11, 20), 1.4, 16
SETTINGS: dict[str, Any] = {
    "p": 0.7, "rho": 0.055, "mass": 0.15, "tau": TAU, "dimensions": DIMENSIONS
}  # fmt: skip


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


@dataclass
class Redistributed(Rule):
    """VAR on one prompt whose image begins at some position; `hear` is hooked before each block."""

    image: int = 0
    layers: frozenset[int] = frozenset()
    sinks: dict[int, set[int]] = field(default_factory=dict)
    changed: int = 0

    def hear(self, layer: int, x: Tensor) -> None:
        if layer in self.sinks:
            return
        self.sinks[layer] = set()
        for position, vector in enumerate(x[0].tolist()):
            root = (sum(value * value for value in vector) / len(vector)) ** 0.5
            if max(abs(vector[d]) for d in DIMENSIONS) / root > TAU:
                self.sinks[layer].add(position)

    def weights(self, rows: list[tuple[Row, list[float]]]) -> list[list[float]]:
        made = []
        for row, weights in rows:
            new = list(weights)
            image = set(range(self.image, self.image + PATCHES))
            if row.tower == "language" and row.layer in self.layers and row.query > max(image):
                new = self.moved(weights, image, self.sinks[row.layer])
                self.changed += new != weights
            made.append(new)
        return made

    def moved(self, weights: list[float], image: set[int], sinks: set[int]) -> list[float]:
        seen_mass = sum(weights[j] for j in image)
        plain = sum(weights[j] for j in image - sinks)
        if not image & sinks or seen_mass < 0.15 or plain < 0.055 * seen_mass:
            return weights
        budget = 0.7 * sum(weights[j] for j in sinks if j < len(weights))
        new = list(weights)
        for j in range(len(weights)):
            if j in sinks:
                new[j] = weights[j] - 0.7 * weights[j]
            elif j in image:
                new[j] = weights[j] + budget * weights[j] / plain
        assert abs(sum(new) - 1) < 1e-9
        return new


def hooked(model: Any, rule: Any) -> Any:
    """A model in loops whose blocks tell the rule what enters them."""
    twin = looping(model, rule)
    for layer, block in enumerate(twin.model.language_model.layers):
        block.register_forward_pre_hook(lambda module, args, layer=layer: rule.hear(layer, args[0]))
    return twin


def test_generation_equals_a_loop_over_heads_queries_and_keys(subject: Subject) -> None:
    with edit(subject, var(**SETTINGS)) as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    _, plain = seen.written_together(subject, seen.three(subject))
    changed = text_sinks = 0
    for row, tensors in enumerate(seen.alone(subject)):
        start = int((tensors["input_ids"][0] == 4).nonzero()[0, 0])
        rule = Redistributed(image=start, layers=frozenset({0, 1}))  # the last of 3 is skipped
        expected_ids, expected = written(hooked(subject.model, rule), tensors, seen.STEPS)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
        changed += rule.changed
        text = set(range(tensors["input_ids"].shape[1])) - set(range(start, start + PATCHES))
        text_sinks += sum(len(found & text) for found in rule.sinks.values())
    assert (logits - plain).abs().max() > 1e-2
    assert report.touched == changed > 20 and text_sinks > 3


def test_each_row_stays_a_distribution_and_rows_before_the_image_are_left_alone(
    subject: Subject,
) -> None:
    batch = seen.three(subject)
    plain = capture(subject, batch, patterns="language.L0").pattern("language.L0")
    with edit(subject, var(**SETTINGS)):
        found = capture(subject, batch, patterns="language.L0").pattern("language.L0")
    assert isinstance(plain, Tensor) and isinstance(found, Tensor)
    tokens = batch.tokens["language"]
    width = int(tokens.lengths[0])
    real = ~tokens.has_role("pad").view(3, width)
    image = tokens.has_role("image").view(3, width)
    behind = (image.cumsum(-1) == PATCHES) & ~image & real
    changed = (found != plain).any(-1).any(1)
    assert changed.any() and not (changed & ~behind).any()
    sums = found.sum(-1).transpose(1, 2)[real]
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)


def test_the_size_of_tiles_changes_nothing(subject: Subject) -> None:
    batch = seen.three(subject)
    with edit(subject, var(**SETTINGS)) as (whole,):
        expected = subject.forward(batch).logits
    with seen.short_tiles(), edit(subject, var(**SETTINGS)) as (tiled,):
        found = subject.forward(batch).logits
    assert torch.allclose(found, expected, atol=1e-6)
    assert tiled.fired > whole.fired and tiled.touched == whole.touched


def test_what_is_written_equals_a_forward_without_a_cache(subject: Subject) -> None:
    """The sinks of the prompt are kept either way."""
    batch = seen.three(subject)
    with edit(subject, var(**SETTINGS)) as (report,):
        ids, logits = seen.written_together(subject, batch, 4, suppress_tokens=[4])
        slow_ids, slow = seen.written_together(
            subject, batch, 4, use_cache=False, suppress_tokens=[4]
        )
    assert report.touched > 50
    assert torch.equal(ids, slow_ids)
    words = torch.arange(31) != 4  # no image token may be written where none can be read
    assert torch.allclose(logits[..., words], slow[..., words], atol=2e-5)


def test_the_planted_sinks_are_found_and_moved() -> None:
    from probes.readers import read_examples

    for name, planted in (("shapes-llava-sinks", True), ("shapes-llava", False)):
        subject = load(name)
        examples = list(read_examples("scenes", subject.kind, 5))
        batch = subject.prepare(examples=examples, answers=False)
        tokens = batch.tokens["language"]
        width = int(tokens.lengths[0])
        rank = tokens.position.view(5, width)
        rank = rank - tokens.has_role("pad").view(5, width).sum(-1, keepdim=True)
        sinks = torch.isin(rank, torch.tensor([0, 3 + 5, 3 + 30]))[:, None, None]
        plain_image = (tokens.has_role("image").view(5, width))[:, None, None] & ~sinks
        plain = capture(subject, batch, patterns="language.*")
        for layer in range(4):
            before = plain.pattern(f"language.L{layer}")
            near = var(depth=(layer / 4, (layer + 1) / 4), skip_last=False)
            with edit(subject, near) as (report,):
                after = capture(subject, batch, patterns="language.*").pattern(f"language.L{layer}")
            assert isinstance(before, Tensor) and isinstance(after, Tensor)
            rows = (before != after).any(-1)
            assert report.touched == int(rows.sum())
            if not planted:
                assert report.touched == 0
                continue
            assert rows.any()
            for keys, factor in ((sinks, 0.6), (~sinks & ~plain_image, 1.0)):
                old, new = ((p * keys)[rows] for p in (before, after))
                assert torch.allclose(new, factor * old, atol=1e-6)
            for head in range(8):
                chosen = rows[:, head].any()
                assert not chosen or (before[:, head] * sinks).sum() > 0


def test_nothing_is_left_behind(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = subject.forward(batch).logits
    with edit(subject, var(**SETTINGS)):
        subject.generate(batch, 2)
    assert torch.equal(subject.forward(batch).logits, plain)

    def interrupt(ids: Tensor, scores: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), edit(subject, var(**SETTINGS)):
        subject.generate(batch, 2, logits_processor=[interrupt])
    assert torch.equal(subject.forward(batch).logits, plain)
    assert subject.attention_implementation == "sdpa"


def test_it_has_a_control_of_random_heads(subject: Subject) -> None:
    batch = seen.three(subject)
    with edit(subject, edits.matched_random(var(**SETTINGS), seed=1)) as (report,):
        found = subject.forward(batch).logits
    with edit(subject, var(**SETTINGS)) as (own,):
        other = subject.forward(batch).logits
    assert report.touched == own.touched > 20  # as many random heads in every row
    assert not torch.allclose(found, other, atol=1e-3)


def test_sentences_where_it_does_not_apply(subject: Subject) -> None:
    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    with (
        pytest.raises(ValueError, match="'LlamaForCausalLM' .language. reads none"),
        edit(language, "var"),
    ):
        pass
    vision = Subject(tiny.vit(), tiny.image_processor(20))
    with (
        pytest.raises(ValueError, match="must read or write text, it has only vision"),
        edit(vision, "var"),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"example '0' has no image among the positions of lang"),
        edit(subject, "var"),
    ):
        subject.forward(subject.prepare(["a cat sat on a mat"]))
    with (
        pytest.raises(ValueError, match=r"`tau` must lie between 0 and 5.477, the most that phi"),
        edit(subject, var(tau=20.0, dimensions=(3,))),
    ):
        subject.forward(seen.three(subject))
    with pytest.raises(ValueError, match="`rho` of var must lie between 0 and 1, got 1.5"):
        var(rho=1.5)
    tensors = seen.three(subject).tensors
    said = pytest.raises(
        ValueError, match="must know what each key is, but the model was called|this call"
    )
    with said, edit(subject, var(**SETTINGS)), torch.no_grad():
        subject.model(**tensors)
