"""The pass as a whole: what does not change it, what it costs in memory, what it refuses."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from exemplar_batches import Texts, batch_call, feed, text_batch, texts
from synthetic_calls import Anatomy, text_tokens

from analysis.atlas.exemplars import TABLES, ExemplarCollector, ExemplarOptions, Exemplars
from probes.inputs import Batch, Example
from probes.tokens.map import TokenMap

FEW = ExemplarOptions(strongest=7, sample=60, pair_capacity=1000, components=2, component_events=3)


def _matrix(heads: int = 3) -> torch.Tensor:
    return torch.randn(heads, 5, 11, generator=torch.Generator().manual_seed(9))


def _collected(
    given: Texts,
    size: int,
    how: ExemplarOptions = FEW,
    side: str = "right",
    backwards: bool = False,
) -> Exemplars:
    collector = ExemplarCollector(Anatomy(_matrix()), how)
    names = list(given)[::-1] if backwards else list(given)
    for start in range(0, len(names), size):
        batch = text_batch({name: given[name] for name in names[start : start + size]}, side=side)
        feed(collector, batch, [batch_call(batch, layer=layer) for layer in (0, 1)])
    return collector.exemplars()


def _same(one: Exemplars, other: Exemplars) -> None:
    for name in TABLES:
        left, right = getattr(one, name), getattr(other, name)
        assert len(left)
        pd.testing.assert_frame_equal(left, right, rtol=1e-4, atol=1e-6)


GIVEN = texts(31, seed=4)


@pytest.mark.parametrize(
    ("size", "side", "backwards"), [(4, "left", False), (7, "right", True), (1, "right", False)]
)
def test_batches_order_and_padding_change_nothing(size: int, side: str, backwards: bool):
    _same(_collected(GIVEN, 31), _collected(GIVEN, size, side=side, backwards=backwards))


def test_calls_too_large_to_hold_are_read_twice(monkeypatch):
    held = _collected(GIVEN, 8)
    monkeypatch.setattr("analysis.atlas.exemplars.collector.HELD_ENTRIES", 0)
    _same(held, _collected(GIVEN, 8))


def test_the_seed_changes_what_is_drawn_but_not_what_is_strongest():
    one, other = _collected(GIVEN, 8), _collected(GIVEN, 8, replace(FEW, seed=1))
    kinds = [f.events.query("by == 'contribution'").groupby("kind") for f in (one, other)]
    # Values that are alike to 1 part in 4,096 stand in the order of their keys.
    strongest = [kind.get_group("strongest")["contribution"].to_numpy() for kind in kinds]
    np.testing.assert_allclose(*strongest, rtol=1 / 2048)
    deciles = [set(zip(k["example"], k["query_position"], strict=True))
               for k in (kind.get_group("decile") for kind in kinds)]  # fmt: skip
    assert deciles[0] != deciles[1]


def test_events_by_brute_force():
    found = _collected(GIVEN, 8, replace(FEW, sink=1.0)).events
    every = []
    gram = _matrix()
    for name, ids in GIVEN.items():
        batch = text_batch({name: ids})
        call = batch_call(batch, layer=1)
        pattern = call.pattern()[0, 2]
        norms = (call.value[0, 2] @ gram[2]).norm(dim=-1)
        for q in range(1, len(ids)):
            row = pattern[q] * norms
            k = int(row[1:].argmax()) + 1
            every.append((float(row[k]), name, q, k, float(pattern[q, k])))
    every.sort(reverse=True)
    seen: dict[str, int] = {}
    expected = []
    for event in every:
        seen[event[1]] = seen.get(event[1], 0) + 1
        if seen[event[1]] <= 2:
            expected.append(event)
    mine = found.query("layer == 1 and head == 2 and by == 'contribution' and kind == 'strongest'")
    assert mine["rank"].tolist() == list(range(1, 8))
    for line, event in zip(mine.itertuples(), expected, strict=False):
        value, name, q, k, weight = event
        assert (line.example, line.query_position, line.key_position) == (name, q, k)
        assert line.contribution == pytest.approx(value, rel=1e-4)
        assert line.weight == pytest.approx(weight, rel=1e-4)
        ids = GIVEN[name]
        assert (line.query_token, line.key_token) == (f"w{ids[q]}", f"w{ids[k]}")
        around = [f"w{i}" if n else "w0" for n, i in enumerate(ids)]
        assert line.key_before == " ".join(around[max(0, k - 8) : k])
        assert line.query_after == " ".join(around[q + 1 : q + 9])


def test_deciles_cut_the_even_sample():
    how = replace(FEW, sample=10_000, per_decile=3, per_example=100, sink=1.0)
    found = _collected(GIVEN, 8, how).events.query("kind == 'decile' and by == 'weight'")
    head = found.query("layer == 0 and head == 1")
    queries = sum(len(ids) - 1 for ids in GIVEN.values())
    assert set(head["drawn"]) == {queries}
    strongest = []
    for name, ids in GIVEN.items():
        call = batch_call(text_batch({name: ids}), layer=0)
        strongest += call.pattern()[0, 1, 1:, 1:].amax(-1).tolist()
    cut = np.array_split(np.sort(strongest), 10)
    assert head["decile"].tolist() == [d for d in range(1, 11) for _ in range(3)]
    lows, highs = head.groupby("decile")["low"].first(), head.groupby("decile")["high"].first()
    for number in range(10):
        middle = cut[number]
        # Decile d holds places d n / 10 to (d + 1) n / 10: array_split cuts at most one off.
        assert lows.iloc[number] == pytest.approx(middle[0], abs=0.02)
        assert highs.iloc[number] == pytest.approx(middle[-1], abs=0.02)
    assert ((head["weight"] >= head["low"]) & (head["weight"] <= head["high"])).all()


def test_at_most_a_few_events_of_one_example():
    found = _collected(GIVEN, 8, replace(FEW, per_example=1))
    lists = found.events.query("kind == 'strongest'").groupby(["layer", "head", "by"])["example"]
    assert (lists.nunique() == 7).all()
    ends = found.component_events.groupby(["layer", "head", "component", "sign"])["example"]
    assert (ends.value_counts() == 1).all()


def test_memory_does_not_grow_with_the_data(monkeypatch):
    monkeypatch.setattr("analysis.atlas.exemplars.place_store._SLACK", 0)

    small = replace(FEW, pair_capacity=50, sample=10, strongest=2)

    def run(batches: int) -> tuple[dict[str, int], int]:
        gc.collect()
        tracemalloc.start()
        # Few enough token types that tables are full, or complete, after the first batches.
        collector = ExemplarCollector(Anatomy(_matrix()), small)
        for number in range(batches):
            given = {f"{number}-{name}": ids for name, ids in texts(4, seed=number).items()}
            batch = text_batch(given)
            feed(collector, batch, [batch_call(batch)])
        del batch, given
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return collector.memory(), held

    run(2)  # what is imported and cached on the first use does not count
    (few, held), (many, more) = run(8), run(80)
    assert few["bytes"] == many["bytes"]
    # 2 events x 2 criteria x 3 heads x 2 positions, and 10 queries with 6 keys, twice over.
    assert many["places"] <= 2 * (24 + 10 * 7)
    assert more < held * 1.5 + 400_000


def test_a_batch_that_fails_leaves_nothing_behind():
    names = list(GIVEN)
    collector = ExemplarCollector(Anatomy(_matrix()), FEW)
    good = [text_batch({n: GIVEN[n] for n in names[i : i + 8]}) for i in range(0, len(names), 8)]
    for number, batch in enumerate(good):
        collector.start_batch(batch)
        collector.listener(batch_call(batch, layer=0))
        if number == 1:  # out of memory in layer 1, say; the same batch comes again
            collector.start_batch(batch)
            collector.listener(batch_call(batch, layer=0))
        collector.listener(batch_call(batch, layer=1))
        collector.finish_batch()
    _same(collector.exemplars(), _collected(GIVEN, 8))
    bad = text_batch(texts(3, seed=99))
    call = batch_call(bad)
    call.z[1, 2, 1, 0] = float("inf")
    with pytest.raises(ValueError, match=r"output of language.L0 must be finite, got NaN or inf"):
        feed(collector, bad, [call])
    _same(collector.exemplars(), _collected(GIVEN, 8))


def test_what_cannot_be_had_is_said():
    batch = text_batch(texts(3))
    with pytest.raises(RuntimeError, match=r"A batch must be started .* Call start_batch\(\)"):
        ExemplarCollector(None).listener(batch_call(batch))
    collector = ExemplarCollector(None, FEW)
    feed(collector, batch, [batch_call(batch)])
    found = collector.exemplars()
    assert set(found.events["by"]) == {"weight"} and found.events["contribution"].isna().all()
    assert "exemplars are by weight only" in found.reasons["language", "contribution"]

    for change, words in (
        ({"step": 3}, "A generated token is one query"),
        ({"query_index": None}, "positions of language are not known"),
    ):
        collector = ExemplarCollector(None, FEW)
        feed(collector, batch, [replace(batch_call(batch), **change)])
        found = collector.exemplars()
        assert words in found.reasons["language", "exemplars"]
        assert not any(len(getattr(found, name)) for name in TABLES)
        assert "decile" in found.events and "lift" in found.pairs
    mixed = ExemplarCollector(Anatomy(_matrix(), row_sums="any"), FEW)
    feed(mixed, batch, [batch_call(batch)])
    assert "mixed after the softmax" in mixed.exemplars().reasons["language", "exemplars"]
    with pytest.raises(ValueError, match="`sample` must be at least 1, got 0"):
        ExemplarOptions(sample=0)
    with pytest.raises(ValueError, match="`sink` must be above 0 and at most 1, got 0"):
        ExemplarOptions(sink=0)


def test_half_precision_and_grouped_heads():
    batch = text_batch(texts(6, seed=8))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        collector = ExemplarCollector(Anatomy(_matrix(4)), FEW)
        feed(collector, batch, [batch_call(batch, heads=4, kv_heads=2, dtype=dtype)])
        found[dtype] = collector.exemplars()
    one, other = (f.events.query("kind == 'strongest'")["weight"] for f in found.values())
    assert np.abs(np.sort(one) - np.sort(other)).mean() < 0.02
    explained = [f.components["explained"].to_numpy() for f in found.values()]
    np.testing.assert_allclose(*explained, atol=0.02)


def test_a_text_of_one_token_has_no_event():
    tokens = text_tokens([[0], [0, 3, 4]])
    batch = Batch({}, TokenMap({"language": tokens}), (Example("a"), Example("b")))
    collector = ExemplarCollector(None, FEW)
    feed(collector, batch, [batch_call(batch, heads=1)])
    found = collector.exemplars()
    assert set(found.events["example"]) == {"b"}
    assert set(found.events["query_position"]) <= {1, 2}
    assert found.components["queries"].tolist() == [2]


def test_saved_and_loaded(tmp_path):
    found = _collected(GIVEN, 8)
    found.save(tmp_path)
    again = Exemplars.load(tmp_path)
    _same(found, again)
    assert (again.how, again.reasons) == (found.how, found.reasons)
