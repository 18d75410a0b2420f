"""Packed images, windows, cross-attention: exemplars of each, or the reason why there are none."""

from __future__ import annotations

import pytest
import small_vlms
import tiny_models as tiny
import torch
from packed_batch import packed_batch
from small_tokenizers import word_tokenizer

from analysis.atlas.exemplars import TABLES, ExemplarCollector, ExemplarOptions, Exemplars
from probes.inputs import Batch
from probes.listening import listen
from probes.subject import Subject

HOW = ExemplarOptions(fewest_queries=1, pairs=10_000)


def _collect(subject: Subject, batch: Batch) -> Exemplars:
    collector = ExemplarCollector(subject.layout, HOW)
    collector.start_batch(batch)
    with listen(subject, batch, collector.listener):
        subject.forward(batch)
    collector.finish_batch()
    return collector.exemplars()


def _prompt(counts: list[int]) -> list[str]:
    return [f"what {'<image> ' * n}{'this ' * (i + 1)}" for i, n in enumerate(counts)]


@pytest.mark.parametrize("make", [small_vlms.qwen2, small_vlms.qwen2_5])
def test_packed_images_and_windows(make):
    tokenizer = word_tokenizer("<image>", padding_side="left")
    subject, batch = packed_batch(make(), tokenizer, _prompt)
    found = _collect(subject, batch)
    assert not found.reasons
    tokens = batch.tokens["vision"]
    frame = tokens.to_frame()
    events = found.events.query("tower == 'vision'")
    assert set(events["example"]) == {"0", "1"}
    for line in events.itertuples():
        own = frame[frame["example"] == int(line.example)].reset_index(drop=True)
        for side in ("query", "key"):
            place = own.loc[getattr(line, f"{side}_position")]
            for column in ("row", "column", "left", "bottom"):
                assert getattr(line, f"{side}_{column}") == place[column]
    queries = found.components.query("tower == 'vision'")["queries"]
    assert set(queries) == {len(tokens)}
    # Each query gives one unit of weight, all of it within its image.
    shares = found.pairs.query("tower == 'vision'").groupby(["layer", "head"])
    assert (shares["row_offset"].count() == shares.size()).all()
    for _, mass in shares["mass"].sum().items():
        assert mass == pytest.approx(len(tokens), rel=1e-4)
    for _, chance in shares["chance"].sum().items():
        assert chance == pytest.approx(len(tokens), rel=1e-6)


def test_cross_attention_reads_the_other_sequence():
    subject = Subject(tiny.t5(), tiny.tokenizer(), name="t5")
    texts = ["a b c d the cat", "mat b the cat"]
    batch = subject.prepare(text=texts)
    found = _collect(subject, batch)
    events = found.events.query("tower == 'cross'")
    assert len(events) and (events["key_position"] > 0).all()
    for line in events.itertuples():
        words = texts[int(line.example)].split()
        if line.key_position < len(words):
            assert line.key_token == words[line.key_position]
    pairs = found.pairs.query("tower == 'cross'")
    assert "<first>" in set(pairs["key"]) and "<self>" not in set(pairs["key"])
    assert "<self>" in set(found.pairs.query("tower == 'encoder'")["key"])


def test_windows_in_the_batch_axis_are_refused_with_the_reason():
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(0)
    config = SwinConfig(image_size=40, patch_size=5, embed_dim=12, depths=[1, 1], num_heads=[2, 2],
                        window_size=4)  # fmt: skip
    subject = Subject(SwinForImageClassification(config).eval(), name="swin")
    found = _collect(subject, subject.prepare(pixel_values=torch.rand(2, 3, 40, 40)))
    (reason,) = set(found.reasons.values())
    assert reason.startswith("The positions of vision are not known in its attention calls")
    assert not any(len(getattr(found, name)) for name in TABLES)
