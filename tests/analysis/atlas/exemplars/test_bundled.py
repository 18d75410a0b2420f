"""The bundled models: exemplars of heads whose role is known."""

from __future__ import annotations

from functools import cache

import pytest

from analysis.atlas.exemplars import ExemplarCollector, ExemplarOptions, Exemplars
from headscope.batching import batches
from probes.listening import listen
from probes.loading import load
from probes.readers import read_examples


@cache
def _exemplars(model: str, data: str, limit: int) -> Exemplars:
    subject = load(model)
    collector = ExemplarCollector(subject.layout, ExemplarOptions(sample=200))
    skipped: list[str] = []
    examples = list(read_examples(data, subject.kind, limit, lambda e, why: skipped.append(why)))
    for batch in batches(subject, examples, 8, lambda e, why: skipped.append(why)):
        collector.start_batch(batch)
        with listen(subject, batch, collector.listener):
            subject.forward(batch)
        collector.finish_batch()
    assert not skipped
    return collector.exemplars()


def _induction(frame) -> float:
    """Share of events whose key follows an earlier place of the query's token."""
    before = frame["key_before"].str.split(" ").str[-1]
    earlier = frame["key_position"] < frame["query_position"]
    return float(((before == frame["query_token"]) & earlier).mean())


def test_exemplars_of_induction_heads_show_induction():
    events = _exemplars("repeat-lm", "repeats", 24).events
    usual = events.query("kind == 'decile' and by == 'weight' and query_position > 28")
    assert len(usual) > 60
    for head in (0, 1, 4, 5, 7):  # prefix matching above 0.7 (data/README.md)
        assert _induction(usual.query(f"layer == 1 and head == {head}")) > 0.8
    assert _induction(usual.query("layer == 0")) < 0.1
    # The sharpest of the previous-token heads of layer 0, beside one that is none.
    strongest = events.query("layer == 0 and kind == 'strongest'")
    previous = strongest["key_position"] == strongest["query_position"] - 1
    by_head = previous.groupby(strongest["head"]).mean()
    assert by_head[6] > 0.8 and by_head[0] < 0.5


def test_patches_have_boxes_and_offsets():
    found = _exemplars("shapes-vit", "shapes", 6)
    patches = found.events.query("query_role == 'image' and key_role == 'image'")
    assert len(patches) > 100
    for side in ("query", "key"):
        assert (patches[f"{side}_left"] == 4 * patches[f"{side}_column"]).all()
        assert (patches[f"{side}_bottom"] == 4 * patches[f"{side}_row"] + 4).all()
        assert (patches[f"{side}_image"] == 0).all()
    assert not set(found.events["key_role"]) & {"cls", "register"}
    assert set(found.events["query_role"]) >= {"image", "cls"}
    assert found.pairs.query("not sink")["row_offset"].notna().sum() > 100
    assert found.components["explained"].between(0, 1).all()


@pytest.mark.parametrize("by", ["weight", "contribution"])
def test_towers_of_a_vision_language_model(by: str):
    found = _exemplars("shapes-llava", "scenes", 5)
    assert not found.reasons
    events = found.events[found.events["by"] == by]
    assert set(events["tower"]) == {"vision", "language"}
    language = events[events["tower"] == "language"]
    seen = language[(language["query_role"] == "text") & (language["key_role"] == "image")]
    assert len(seen) and (seen["key_left"] == 8 * seen["key_column"]).all()
    assert (seen["query_row"] < 0).all()
    assert "<image>" in "|".join(seen["query_before"])
    assert "<image> <image>" not in "|".join(language["query_before"])
