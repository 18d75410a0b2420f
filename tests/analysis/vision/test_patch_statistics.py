"""What is heard of patches, against attention that the model itself writes down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import seeing_batches as seen
import torch
from small_vlms import qwen2_5
from torch import Tensor, nn
from transformers import AttentionInterface

from analysis.vision.patch_statistics import Need, PatchStatistics, needs_of
from probes.inputs import Batch
from probes.listening import attach
from probes.subject import Subject
from probes.tokens.correspondence import Correspondence
from probes.tokens.map import ROLES, TokenMap
from tests.probes.tokens.test_correspondence import _onevision, _pixtral, _qwen

NAME = "written_down"
NOTES: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
"""Module -> pattern and values of each of its calls."""


def _write_down(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, **settings: Any
) -> tuple[Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(-1, -2) * settings["scaling"]
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else scores + mask
    pattern = scores.softmax(-1)
    NOTES[id(module)].append((pattern, value))
    return (pattern @ value).transpose(1, 2), None


@pytest.fixture
def notes() -> Iterator[dict[int, list[tuple[Tensor, Tensor]]]]:
    AttentionInterface.register(NAME, _write_down)
    NOTES.clear()
    yield NOTES
    NOTES.clear()


def _heard(subject: Subject, batch: Batch, layers: range, *names: str) -> dict[Need, Tensor]:
    needs = needs_of("vision", layers, *names)
    statistics = PatchStatistics(frozenset(needs))
    (listener,) = statistics.listeners
    with attach(subject, listener):
        subject.forward(batch)
    count = len(batch.tokens["vision"])
    patches = Correspondence(torch.arange(count), torch.arange(count)[:, None])
    return {need: statistics.at_positions(need, patches) for need in needs}


def _written(subject: Subject, batch: Batch, modules: list[nn.Module]) -> list[list[Any]]:
    subject.model.set_attn_implementation({"": NAME, "text_config": "sdpa", "vision_config": NAME})  # type: ignore[operator]
    subject.forward(batch)
    return [NOTES[id(module)] for module in modules]


def _batch(case: Any) -> tuple[Subject, Batch]:
    model, tensors, tokens, _, _ = case
    subject = Subject(model, kind="vision-language")
    return subject, replace(subject.prepare(**tensors), tokens=tokens)


@pytest.mark.parametrize("make", [lambda: _qwen(qwen2_5), lambda: _onevision("anyres_max_9")])
def test_without_cls_the_mean_over_queries_stands_for_it(make: Any, notes: Any) -> None:
    """Qwen2.5 runs windows in layer 0 and whole images in layer 1; SigLIP one row per tile."""
    subject, batch = _batch(make())
    layers = len(list(subject.towers["vision"].sites))
    heard = _heard(
        subject, batch, range(layers), "cls_attention", "received", "cls_similarity", "value_norm"
    )
    modules = [
        module
        for path, module in subject.model.named_modules()
        if ("visual" in path or "vision_tower" in path) and path.endswith(("attn", "self_attn"))
    ]
    assert len(modules) == layers
    for layer, calls in enumerate(_written(subject, batch, modules)):
        means = torch.cat([pattern.mean((1, 2)).flatten() for pattern, _ in calls])
        norms = torch.cat([value.mean(1).abs().sum(-1).flatten() for _, value in calls])
        of_layer = {name: heard[Need("vision", layer, name)] for name in
                    ("cls_attention", "received", "cls_similarity", "value_norm")}  # fmt: skip
        assert torch.allclose(of_layer["received"], means, atol=1e-6)
        assert torch.equal(of_layer["cls_attention"], of_layer["received"])
        assert torch.allclose(of_layer["value_norm"], norms, atol=1e-6)
        assert float(of_layer["cls_similarity"].abs().max()) == 0
    assert layers == 1 or len(NOTES[id(modules[0])]) > len(NOTES[id(modules[1])]), "windows"


def test_images_in_one_packed_row_are_read_by_their_own_queries_alone() -> None:
    """Pixtral: the mean is over the queries that may read a patch, not over all of the row."""
    subject, batch = _batch(_pixtral(1))
    heard = _heard(subject, batch, range(1), "received")
    found = heard[Need("vision", 0, "received")]
    example = batch.tokens["vision"].example
    for image in (0, 1):
        assert float(found[example == image].sum()) == pytest.approx(1, abs=1e-5)


def test_with_cls_and_registers(notes: Any) -> None:
    """Column means count the CLS token's query; a register in front is not taken for it."""
    subject = seen.seeing()
    batch = seen.three(subject)
    names = ("cls_attention", "received", "cls_similarity", "value_norm")
    heard = _heard(subject, batch, range(5), *names)
    tokens = batch.tokens["vision"]
    role = tokens.role.clone()
    role[tokens.starts[:-1]], role[tokens.starts[:-1] + 1] = ROLES.index("register"), 5
    moved = {**batch.tokens.towers, "vision": replace(tokens, role=role)}
    assert ROLES[5] == "cls"
    second = _heard(subject, replace(batch, tokens=TokenMap(moved)), range(5), *names)
    modules = [
        m for path, m in subject.model.named_modules()
        if "vision_tower" in path and path.endswith("self_attn")
    ]  # fmt: skip
    for layer, calls in enumerate(_written(subject, batch, modules)):
        ((pattern, value),) = calls
        for row, of in ((0, heard), (1, second)):
            similar = (value @ value[:, :, row, :, None])[..., 0].softmax(-1).mean(1)
            expected = {
                "cls_attention": pattern[:, :, row].mean(1),
                "received": pattern.mean((1, 2)),
                "cls_similarity": similar,
                "value_norm": value.mean(1).abs().sum(-1),
            }
            for name, values in expected.items():
                found = of[Need("vision", layer, name)]
                assert torch.allclose(found, values.flatten(), atol=1e-6), name


def test_the_decision_is_asked_for_wherever_prompts_end(notes: Any) -> None:
    """Padded on the right, each prompt ends elsewhere; with an answer the question's end counts."""
    subject = seen.seeing()
    need = Need("language", 1, "deciding_attention")
    found = []
    for side in ("left", "right"):
        batch = subject.prepare(list(seen.TEXTS), seen.pictures(), padding_side=side)
        statistics = PatchStatistics(frozenset({need}))
        with attach(subject, statistics.listeners[0]):
            subject.forward(batch)
        found.append(statistics.at_positions(need, None))
    assert found[0].shape == (48,)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    alone = []
    subject.model.set_attn_implementation({"": NAME, "text_config": NAME, "vision_config": "sdpa"})  # type: ignore[operator]
    layer = subject.model.model.language_model.layers[1].self_attn  # type: ignore[union-attr]
    for tensors in seen.alone(subject):
        NOTES.clear()
        causal = torch.ones(tensors["input_ids"].shape[1:] * 2, dtype=torch.bool).tril()
        with torch.no_grad():
            subject.model(**tensors, attention_mask=causal[None, None])
        pattern = NOTES[id(layer)][0][0]
        alone.append(pattern[0, :, -1, tensors["input_ids"][0] == 4].mean(0))
    assert torch.allclose(found[0], torch.cat(alone), atol=1e-6)


def test_a_layer_that_did_not_run() -> None:
    statistics = PatchStatistics(frozenset({Need("vision", 3, "received")}))
    with pytest.raises(ValueError, match="vision.L3 must run before the attention that depends on"):
        statistics.at_positions(Need("vision", 3, "received"), None)
    assert PatchStatistics(frozenset()).listeners == ()
