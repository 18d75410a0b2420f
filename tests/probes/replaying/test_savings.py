"""Copies in one batch, rows that nobody reads, towers that nobody changed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.heads import Site
from probes.replay import ReplayError, record
from probes.subject import Subject
from tests import tiny_models as tiny
from tests.probes.test_replay import LLAVA, MODELS, PIXELS, Ran, assert_equal, drawn
from tests.probes.test_tap import IDS, LEFT


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "llava", "t5"])
@pytest.mark.parametrize("examples", [1, 2])
def test_copies_give_what_single_runs_give(name: str, examples: int) -> None:
    build, tensors, _ = MODELS[name]
    subject = Subject(build())
    batch = subject.prepare(**{key: value[:examples] for key, value in tensors.items()})
    recorded = record(subject, batch)
    for site, z in recorded.z.items():
        variants = [drawn(z, [1], seed=3), drawn(z, [0, 2], seed=4), drawn(z, [1], seed=5)]
        made = recorded.run_copies(site, variants).logits
        single = [recorded.run({site: variant}).logits for variant in variants]
        assert torch.allclose(made, torch.cat(single), atol=1e-5)
        assert torch.allclose(recorded.run_copies(site, variants[:1]).logits, single[0], atol=1e-5)


def test_what_has_no_row_for_each_copy_is_left_out() -> None:
    subject = Subject(tiny.clip())
    batch = subject.prepare(input_ids=IDS, pixel_values=PIXELS)
    recorded = record(subject, batch)
    site = Site("vision", 1)
    variants = [drawn(recorded.z[site], [head]) for head in (0, 2)]
    made = recorded.run_copies(site, variants)
    assert made.logits_per_image is None
    single = [recorded.run({site: variant}).image_embeds for variant in variants]
    assert torch.allclose(made.image_embeds, torch.cat(single), atol=1e-6)
    assert torch.allclose(made.text_embeds, recorded.output.text_embeds.repeat(2, 1), atol=1e-6)


class Mean(nn.Module):
    """Subtracts the mean over the batch: examples mix, so copies would."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.gpt2()

    def forward(self, input_ids: Tensor) -> Tensor:
        logits = self.inner(input_ids=input_ids).logits
        return logits * logits.shape[0]


def test_a_batch_that_mixes_is_not_folded() -> None:
    subject = Subject(Mean().eval())
    recorded = record(subject, subject.prepare(input_ids=IDS))
    site = Site("language", 0)
    assert re.match("Copies of the batch give something else", str(recorded.can_fold(site)))
    with pytest.raises(ReplayError, match="Run the variants one by one"):
        recorded.run_copies(site, [([0], torch.zeros(1))])


class Shapes:
    """Shapes of what a module is called with."""

    def __init__(self, model: nn.Module, path: str) -> None:
        self.seen: list[tuple[int, ...]] = []
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda _, args: self.seen.append(tuple(args[0].shape)))


def test_the_last_block_works_on_the_positions_that_are_read() -> None:
    subject = Subject(tiny.llama())
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    recorded = record(subject, batch, positions=torch.tensor([3, 6]))
    assert recorded.fewer_rows is True
    last = Shapes(subject.model, "model.layers.2.mlp.up_proj")
    before = Shapes(subject.model, "model.layers.1.mlp.up_proj")
    for layer in (0, 2):
        site = Site("language", layer)
        changes = {site: drawn(recorded.z[site], [1])}
        made, whole = recorded.run(changes).logits, recorded.run_whole(changes).logits
        assert torch.allclose(made, whole, atol=1e-6)
    # The block of a changed layer is always whole.
    heads, values = drawn(recorded.z[site], [1])
    assert recorded.run_block(site, heads, values).shape == (2, 7, 30)
    assert last.seen == [(2, 2, 30), (2, 7, 30), (2, 2, 30), (2, 7, 30), (2, 7, 30)]
    assert before.seen == [(2, 7, 30)] * 3


def test_most_positions_are_computed_where_most_are_read() -> None:
    subject = Subject(tiny.llama())
    batch = subject.prepare(input_ids=IDS)
    recorded = record(subject, batch, positions=torch.arange(6))
    assert recorded.fewer_rows == "Most positions are read."


def test_a_classifier_that_reads_cls_is_told_from_one_that_reads_all() -> None:
    subject = Subject(tiny.vit())
    recorded = record(subject, subject.prepare(pixel_values=PIXELS))
    assert recorded.fewer_rows is True
    last = Shapes(subject.model, "vit.layers.1.mlp.fc1")
    recorded.run({Site("vision", 0): ([1], torch.zeros(1))})
    assert last.seen == [(2, 1, 12)]

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = tiny.vit().vit

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.vit(pixel_values).last_hidden_state.mean(1)

    subject = Subject(Pooled().eval())
    recorded = record(subject, subject.prepare(pixel_values=PIXELS))
    assert re.match("With fewer rows the intact model gives something", str(recorded.fewer_rows))


class Neighbours(nn.Module):
    """A feed-forward part that reads the position before: rows cannot stand alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden + hidden.roll(1, dims=1))


def test_rows_that_need_their_neighbours_are_not_computed_alone() -> None:
    model = tiny.llama()
    model.model.layers[2].mlp = Neighbours(model.model.layers[2].mlp)
    subject = Subject(model)
    recorded = record(subject, subject.prepare(input_ids=IDS), positions=torch.tensor([3, 6]))
    assert recorded.positions is not None
    assert re.match("With fewer rows the intact model gives something", str(recorded.fewer_rows))
    changes = {Site("language", 1): ([1], torch.zeros(1))}
    assert_equal(recorded.run(changes), recorded.run_whole(changes))


def test_a_tower_with_unchanged_inputs_does_not_run() -> None:
    subject = Subject(tiny.clip())
    batch = subject.prepare(input_ids=IDS, pixel_values=PIXELS)
    recorded = record(subject, batch)
    towers: dict[str, Any] = {"vision": "vision_model", "language": "text_model"}
    for tower in towers:
        recorded.run({Site(tower, 0): ([1], torch.zeros(1))})
    ran = Ran(subject.model, *[f"{path}.encoder.layers.1" for path in towers.values()])
    recorded.run({Site("vision", 0): ([1], torch.zeros(1))})
    assert list(ran.times.values()) == [1, 0]
    recorded.run({Site("language", 0): ([1], torch.zeros(1))})
    assert list(ran.times.values()) == [1, 1]


def test_a_tower_that_reads_what_was_changed_runs() -> None:
    subject = Subject(tiny.llava())
    recorded = record(subject, subject.prepare(**LLAVA))
    for tower in ("vision", "language"):
        recorded.run({Site(tower, 0): ([1], torch.zeros(1))})
    vision, language = "model.vision_tower.encoder.layers.1", "model.language_model.layers.1"
    ran = Ran(subject.model, vision, language, "model.vision_tower")
    recorded.run({Site("language", 0): ([1], torch.zeros(1))})
    assert ran.times == {vision: 0, language: 1, "model.vision_tower": 1}  # called, and answered
    recorded.run({Site("vision", 0): ([1], torch.zeros(1))})
    assert ran.times == {vision: 1, language: 2, "model.vision_tower": 2}
