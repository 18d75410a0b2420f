"""Pairs of tokens against a count with dictionaries."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from exemplar_batches import batch_call, feed, text_batch, texts
from synthetic_calls import image_tokens, whole_call

from analysis.atlas.exemplars import ExemplarCollector, ExemplarOptions
from analysis.atlas.exemplars.pairs import pair_index
from analysis.atlas.exemplars.place_store import PlaceStore
from analysis.atlas.exemplars.reach import reach_of
from analysis.call_plan import CallPlan
from analysis.plan_cache import PlanCache
from probes.inputs import Batch, Example
from probes.tokens.map import ROLES, TokenMap

ALL = ExemplarOptions(pairs=10_000, fewest_queries=1)


def _frame(found, head: int):
    frame = found.pairs[found.pairs["head"] == head]
    return {(line.query, line.key): line for line in frame.itertuples()}


@pytest.mark.parametrize("side", ["left", "right"])
def test_mass_chance_lift_and_queries(side: str):
    given = texts(5, vocabulary=6, seed=1)
    batch = text_batch(given, side=side)
    call = batch_call(batch, heads=2)
    collector = ExemplarCollector(None, ALL)
    feed(collector, batch, [call])
    found = collector.exemplars()
    mass, chance, queries = [defaultdict(float) for _ in range(3)]
    pattern = call.pattern()[:, 1]
    for row, ids in enumerate(given.values()):
        start = pattern.shape[1] - len(ids) if side == "left" else 0
        for q, token in enumerate(ids):
            seen = set()
            for k in range(q + 1):
                key = f"w{ids[k]}" if k < q else "<self>"
                # BOS is known as such, not as w0, and is not told apart by query token.
                pair = (f"w{token}", key) if k else ("<bos>" if q == 0 else "<text>", "<bos>")
                mass[pair] += float(pattern[row, start + q, start + k])
                chance[pair] += 1 / (q + 1)
                seen.add(pair)
            for pair in seen:
                queries[pair] += 1
    lines = _frame(found, 1)
    assert lines.keys() == mass.keys()
    total = sum(mass.values())
    for pair, line in lines.items():
        assert line.mass == pytest.approx(mass[pair], rel=1e-5)
        assert line.chance == pytest.approx(chance[pair], rel=1e-6)
        assert line.lift == pytest.approx(mass[pair] / chance[pair], rel=1e-5)
        assert line.share == pytest.approx(mass[pair] / total, rel=1e-5)
        assert (line.queries, line.error) == (queries[pair], 0)
        assert line.sink == (pair[1] == "<bos>")
    assert found.pairs["row_offset"].isna().all()
    rare = ExemplarCollector(None, replace(ALL, fewest_queries=9))
    feed(rare, batch, [call])
    shown = _frame(rare.exemplars(), 1)
    assert shown.keys() == {pair for pair in mass if queries[pair] >= 9} != mass.keys()


def test_patches_go_by_offset_and_the_rest_by_role():
    tokens = image_tokens((2, 3))
    pattern = torch.zeros(1, 1, 7, 7)
    pattern[0, 0, :, 0] = 0.25
    for query in range(7):
        pattern[0, 0, query, (1, 2, 3, 4, 5, 6, 2)[query]] += (
            0.75  # the next; of the last the second
        )
    collector = ExemplarCollector(None, ALL)
    batch = Batch({}, TokenMap({"vision": tokens}), (Example("a"),))
    full = pattern * 0.999 + 0.001 / 7
    feed(collector, batch, [whole_call(full, tokens)])
    frame = collector.exemplars().pairs
    patches = frame[frame["row_offset"].notna()].set_index(["row_offset", "column_offset"])
    assert patches.loc[(0, 1), "queries"] == 4
    assert patches.loc[(0, 1), "mass"] == pytest.approx(4 * (0.75 * 0.999 + 0.001 / 7), rel=1e-4)
    assert patches.loc[(0, 1), "lift"] == pytest.approx(7 * 0.75, rel=1e-2)
    assert patches.loc[(1, -2), "mass"] == pytest.approx(0.75, rel=1e-2)
    assert patches.loc[(-1, -1), "mass"] == pytest.approx(0.75, rel=1e-2)
    assert patches.loc[(1, 1), "mass"] < 0.01 > patches.loc[(-1, -2), "mass"]
    assert len(patches) == 15  # rows -1 to 1, columns -2 to 2
    roles = frame[frame["row_offset"].isna()].set_index(["query", "key"])
    assert set(roles.index) == {("<image>", "<cls>"), ("<cls>", "<cls>"), ("<cls>", "<image>")}
    assert roles.loc[("<image>", "<cls>"), "mass"] == pytest.approx(6 * 0.25, rel=1e-2)
    assert roles.loc[("<image>", "<cls>"), "sink"]
    assert not roles.loc[("<cls>", "<image>"), "sink"]


def test_patches_of_two_images_have_no_offset():
    tokens = image_tokens((1, 2), cls=False)
    tokens = replace(tokens, image=torch.tensor([0, 1]), role=tokens.role)
    collector = ExemplarCollector(None, ALL)
    batch = Batch({}, TokenMap({"vision": tokens}), (Example("a"),))
    feed(collector, batch, [whole_call(torch.full((1, 1, 2, 2), 0.5), tokens)])
    frame = collector.exemplars().pairs
    offsets = frame["row_offset"].notna()
    assert frame[offsets]["mass"].tolist() == [1.0]
    assert frame[~offsets][["query", "key", "mass"]].values.tolist() == [["<image>", "<image>", 1]]
    assert ROLES.index("image") == int(tokens.role[0])


def test_long_texts_give_as_many_pairs_as_the_budget():
    given = {"long": [0, *(1 + i % 7 for i in range(60))], "short": [0, 3, 4]}
    batch = text_batch(given)
    call = batch_call(batch, heads=1)
    plan, _ = PlanCache(batch.tokens, 2).find(call)
    assert isinstance(plan, CallPlan)
    places = PlaceStore(8, seed=0).open(batch.tokens["language"], list(given))
    found = pair_index(plan, reach_of(plan), places, 200)
    read = (found.index < found.codes.size).sum(-1)
    long, short = read[found.batch == 0], read[found.batch == 1]
    assert short.tolist() == [1, 2, 3]
    # The next query in the order of the keys would not have fitted any more.
    order = sorted(range(61), key=lambda q: places.keys[q])
    drawn = order[: long.numel()]
    assert sorted(drawn) == found.query[found.batch == 0].tolist()
    spent = sum(q + 1 for q in drawn)
    assert spent == int(long.sum()) <= 200 < spent + order[long.numel()] + 1

    totals = {}
    for budget in (1, 10_000):
        collector = ExemplarCollector(None, replace(ALL, pair_budget=budget))
        feed(collector, batch, [call])
        totals[budget] = collector.exemplars().pairs["mass"].sum()
    assert totals[10_000] == pytest.approx(64, rel=1e-5)  # each query has weight 1
    assert totals[1] == pytest.approx(2, rel=1e-5)  # at least one query of each text
