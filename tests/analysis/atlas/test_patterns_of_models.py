"""Patterns drawn of real architectures, against what `capture` gives of the same forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import seeing_batches as seen
import small_tiled_vlms
import small_vlms
import tiny_models as tiny
import torch
from small_tokenizers import word_tokenizer
from torch import Tensor

from analysis.atlas.collector import PatternCollector
from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.pooling import pool
from analysis.atlas.sample_features import sample_features
from analysis.atlas.sampling import draw_samples
from analysis.engine import Engine
from analysis.measures import select_measures
from probes.capture import Capture, capture
from probes.heads import select_heads
from probes.inputs import Batch, Example
from probes.listening import listen
from probes.subject import Subject
from tests.probes.tokens.test_correspondence import _llava_next, _qwen, _tiled

SIDE = 7


def collected(subject: Subject, batch: Batch) -> tuple[PatternSet, PatternCollector]:
    """Every head on every example."""
    ids = [example.id for example in batch.examples]
    sampling = draw_samples(ids, select_heads("*", subject.towers), len(ids))
    collector = PatternCollector(subject.layout, sampling, SIDE)
    collector.start_batch(batch)
    with listen(subject, batch, collector.listener):
        subject.forward(batch)
    collector.finish_batch()
    return collector.patterns(), collector


def captured(subject: Subject, batch: Batch) -> Capture:
    return capture(subject, batch, patterns="*")


def assert_close(image: np.ndarray, pattern: Tensor) -> None:
    rows = pattern.double() / pattern.double().sum(-1, keepdim=True)
    keys = (rows > 0).sum(-1)
    assert float((rows.amax(-1) * keys).max()) > 1.2, "a uniform pattern proves nothing"
    np.testing.assert_allclose(image, pool(rows, SIDE).numpy(), atol=1e-3)


def wrapped(make: Callable[[], Any]) -> tuple[Subject, Batch]:
    model, made, tokens, *_ = make()
    subject = Subject(sharp(model), word_tokenizer("<image>"), name="small")
    count = 1 + max(int(tower.example.max()) for tower in tokens.towers.values())
    subject.layout_for(made, count)
    return subject, Batch(made, tokens, tuple(Example(f"e{n}") for n in range(count)))


def sharp(model: Any, by: float = 8) -> Any:
    """The model with queries and keys that prefer something."""
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if weight.ndim == 2 and {"q_proj", "k_proj", "query", "key", "q", "k", "qkv"} & set(parts):
            weight.data.mul_(by)
    return model.eval()


def pixels(model: Any, side: int) -> tuple[Subject, Batch]:
    subject = Subject(sharp(model))
    drawn = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    return subject, subject.prepare(pixel_values=drawn)


def lines(found: PatternSet) -> list[tuple[int, dict]]:
    return list(enumerate(found.samples.to_dict("records")))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model(padding: str, dtype: torch.dtype) -> None:
    subject = Subject(sharp(tiny.llama(), by=20).to(dtype), tiny.tokenizer())
    batch = subject.prepare(["the cat sat on a mat", "a b c"], padding_side=padding)
    found, _ = collected(subject, batch)
    whole = captured(subject, batch)
    assert len(found) == 2 * 18
    for number, line in lines(found):
        example, length = int(line["example"]), line["queries"]
        pattern = whole.pattern(f"language.L{line['layer']}H{line['head']}")
        pattern = pattern.reshape(2, *pattern.shape[-2:])[example]
        own = slice(6 - length, 6) if padding == "left" else slice(0, length)
        assert_close(found.images[number], pattern[own, own])
    assert sorted(set(found.samples["queries"])) == [3, 6]
    assert found.samples["causal"].all()


def test_a_vision_language_model_has_its_features_beside() -> None:
    subject = seen.seeing()
    batch = seen.three(subject)
    ids = [example.id for example in batch.examples]
    sampling = draw_samples(ids, select_heads("*", subject.towers), 2, seed=1)
    collector = PatternCollector(subject.layout, sampling, SIDE)
    engine = Engine(subject.layout, select_measures(["entropy", "hop_mass", "previous_token"]))
    collector.start_batch(batch)
    engine.start_batch(batch.tokens, ids)

    def both(call: Any) -> None:
        engine.listener(call)
        collector.listener(call)

    with listen(subject, batch, both):
        subject.forward(batch)
    scores = engine.finish_batch()
    assert collector.finish_batch() == len(sampling) == 2 * (5 * 3 + 3 * 6)
    found = collector.patterns([sample_features(scores, sampling.frame)])
    whole = captured(subject, batch)
    for number, line in lines(found):
        example = ids.index(line["example"])
        head = f"{line['tower']}.L{line['layer']}H{line['head']}"
        pattern = whole.pattern(head)
        pattern = pattern.reshape(3, *pattern.shape[-2:])[example]
        start = 1 if line["tower"] == "vision" else pattern.shape[-1] - line["queries"]
        assert_close(found.images[number], pattern[start:, start:])
    views = found.samples.groupby("tower")["view"].unique().map(list).to_dict()
    assert views == {"vision": ["patches"], "language": ["tokens"]}
    seeing = found.samples["tower"] == "vision"
    assert found.features["entropy"].notna().all() and found.nulls["entropy"].notna().all()
    assert (found.features["previous_token"].notna() == ~seeing).all()
    assert found.features.loc[seeing, "hop_mass[k=1]"].between(0, 1).all()
    line = found.samples[~seeing].iloc[5]
    alone = next(
        column
        for column, what in enumerate(scores.columns)
        if (what.tower, what.layer, what.head, what.measure)
        == ("language", line["layer"], line["head"], "entropy")
    )
    row = ids.index(line["example"])
    expected = scores.numerator[row, alone] / scores.denominator[row, alone]
    assert found.features["entropy"][line.name] == pytest.approx(float(expected))


@pytest.mark.parametrize("registers", [0, 2])
def test_registers_and_cls_are_left_out(registers: int) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(3)
    config = Dinov2WithRegistersConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, image_size=20, patch_size=5,
        num_register_tokens=registers,
    )  # fmt: skip
    subject, batch = pixels(Dinov2WithRegistersModel(config), 20)
    found, _ = collected(subject, batch)
    whole = captured(subject, batch)
    for number, line in lines(found):
        pattern = whole.pattern(f"vision.L0H{line['head']}").reshape(3, 17 + registers, -1)
        patches = pattern[int(line["example"]), 1 + registers :, 1 + registers :]
        assert_close(found.images[number], patches)
        assert line["mass"] == pytest.approx(float(patches.sum(-1).mean()), abs=1e-5)
        assert line["mass"] < 0.95
    assert set(found.samples["queries"]) == {16}


def test_a_vision_tower_without_cls_and_a_pooling_head() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(3)
    subject, batch = pixels(SiglipVisionModel(SiglipVisionConfig(**small_vlms.SEEING)), 20)
    found, collector = collected(subject, batch)
    assert set(found.samples["tower"]) == {"vision"} and set(found.samples["mass"].round(5)) == {1}
    reasons = set(collector.not_drawn()["reason"])
    assert collector.not_drawn()["tower"].unique().tolist() == ["resampler"]
    assert len(reasons) == 1 and "at least 2 queries and 2 keys" in reasons.pop()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_shifted_windows(kernel: str) -> None:
    from transformers import SwinConfig, SwinModel

    torch.manual_seed(3)
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4
    )
    model = SwinModel._from_config(config, attn_implementation=kernel)
    subject, batch = pixels(model, 32)
    found, _ = collected(subject, batch)
    whole = captured(subject, batch)
    assert len(found) == 3 * (2 + 2 + 3 + 3)
    for number, line in lines(found):
        pattern = whole.pattern(f"vision.L{line['layer']}H{line['head']}").reshape(-1, 16, 16)
        windows = len(pattern) // 3
        assert windows == (4 if line["layer"] < 2 else 1)
        assert line["view"] == ("window" if windows > 1 else "tokens")
        own = pattern[windows * int(line["example"]) + line["part"]]
        assert_close(found.images[number], own)


def test_an_encoder_decoder() -> None:
    subject = Subject(sharp(tiny.t5()), tiny.tokenizer())
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 0, 0]])
    batch = subject.prepare(
        input_ids=ids, attention_mask=(ids > 0).long(), decoder_input_ids=ids[:, :4]
    )
    found, _ = collected(subject, batch)
    whole = captured(subject, batch)
    lengths = {"0": 5, "1": 3}
    for number, line in lines(found):
        pattern = whole.pattern(f"{line['tower']}.L{line['layer']}H{line['head']}")
        pattern = pattern.reshape(2, *pattern.shape[-2:])[int(line["example"])]
        queries = lengths[line["example"]] if line["tower"] == "encoder" else 4
        keys = 4 if line["tower"] == "decoder" else lengths[line["example"]]
        assert (line["queries"], line["keys"]) == (queries, keys)
        assert line["view"] == ("cross" if line["tower"] == "cross" else "tokens")
        assert line["causal"] == (line["tower"] == "decoder")
        assert_close(found.images[number], pattern[:queries, :keys])


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, set[str]]]] = {
    "tiles": (_llava_next, {"vision": {"patches"}, "language": {"tokens"}}),
    "packed": (
        lambda: _qwen(small_vlms.qwen2),
        {"vision": {"patches"}, "language": {"tokens"}},
    ),
    "packed windows": (
        lambda: _qwen(small_vlms.qwen2_5),
        {"vision": {"window", "patches"}, "language": {"tokens"}},
    ),
    "resampler": (
        lambda: _tiled(small_tiled_vlms.idefics2, True),
        {"vision": {"patches"}, "resampler": {"cross"}, "language": {"tokens"}},
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_head_of_a_family_is_drawn_whatever_the_batch(name: str) -> None:
    make, views = FAMILIES[name]
    subject, batch = wrapped(make)
    found, collector = collected(subject, batch)
    assert not len(collector.not_drawn())
    assert found.samples.groupby("tower")["view"].unique().map(set).to_dict() == views
    assert (found.samples["empty"] == 0).all()
    again, _ = collected(subject, batch)
    np.testing.assert_array_equal(found.images, again.images)
    pd.testing.assert_frame_equal(found.samples, again.samples)


def test_patches_of_a_packed_image_stand_in_reading_order() -> None:
    """Qwen runs patches by groups of 2 x 2: the token map says where each one is."""
    subject, batch = wrapped(lambda: _qwen(small_vlms.qwen2))
    found, _ = collected(subject, batch)
    whole = captured(subject, batch)
    tokens = batch.tokens["vision"]
    starts = tokens.starts.tolist()
    for number, line in lines(found):
        if line["tower"] != "vision":
            continue
        image = int(line["example"][1:])
        own = slice(starts[image], starts[image + 1])
        order = torch.argsort(tokens.row[own] * 1000 + tokens.column[own])
        assert order.tolist() != list(range(len(order)))
        pattern = whole.pattern(f"vision.L0H{line['head']}")
        pattern = pattern[image] if isinstance(pattern, list) else pattern[0, own, own]
        assert_close(found.images[number], pattern.reshape(len(order), -1)[order][:, order])
