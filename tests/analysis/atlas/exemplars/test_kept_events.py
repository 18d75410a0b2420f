"""Reservoirs of events against sorting everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.atlas.exemplars.drawn import Drawn
from analysis.atlas.exemplars.events import EVENT, few_of_each, ordered, place_in_group
from analysis.atlas.exemplars.keyed import example_key, position_keys
from analysis.atlas.exemplars.strongest import Strongest


def _events(heads: int, count: int, examples: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    events = np.zeros((heads, count), dtype=EVENT)
    events["example"] = draw.integers(examples, size=count).astype(np.uint64)
    events["query"] = np.arange(count)
    events["weight"] = draw.random((heads, count))
    keys = draw.integers(1 << 62, size=count)
    events["order"] = ordered(events["weight"], np.broadcast_to(keys, (heads, count)))
    events["order"][:, ::13] = -1
    return events


def _by_sorting(events: np.ndarray, kept: int, per_example: int) -> list[int]:
    seen: dict[int, int] = {}
    found = []
    for event in sorted(events, key=lambda e: -int(e["order"])):
        name = int(event["example"])
        if event["order"] < 0 or seen.get(name, 0) == per_example:
            continue
        seen[name] = seen.get(name, 0) + 1
        found.append(int(event["query"]))
    return found[:kept]


@pytest.mark.parametrize("pieces", [1, 4, 29])
@pytest.mark.parametrize("backwards", [False, True])
def test_strongest_in_any_pieces_and_order(pieces: int, backwards: bool):
    events = _events(3, 211, 19, seed=5)
    kept = Strongest.none(3, 17, 2)
    parts = np.array_split(np.arange(211), pieces)
    for part in reversed(parts) if backwards else parts:
        kept = kept.with_events(events[:, part])
    for head in range(3):
        expected = _by_sorting(events[head], 17, 2)
        assert len(expected) == 17
        assert kept.events[head]["query"].tolist() == expected


def test_few_examples_leave_places_empty():
    events = _events(1, 50, 3, seed=1)
    kept = Strongest.none(1, 17, 2).with_events(events)
    assert (kept.events["order"] >= 0).sum() == 6
    assert kept.events["order"][0, 6:].tolist() == [-1] * 11


def test_order_compares_to_one_part_in_4096_and_then_by_key():
    values = np.array([0.5, 0.5 * (1 + 1e-6), 0.5 * (1 + 1e-3), 0.0, np.nan], dtype=np.float32)
    order = ordered(values, np.array([9, 3, 1, 5, 5], dtype=np.int64) << 50)
    assert order[2] > order[0] > order[1]  # the key decides between the first two
    assert order[3:].tolist() == [-1, -1]


def test_groups():
    assert place_in_group(np.array([2, 2, 2, 5, 9, 9])).tolist() == [0, 1, 2, 0, 0, 1]
    groups, names = np.array([1, 1, 1, 1, 4]), np.array([8, 8, 3, 8, 8], dtype=np.uint64)
    assert few_of_each(groups, names, 2).tolist() == [True, True, True, False, True]


def test_drawn_queries_are_those_with_the_smallest_keys_in_any_order():
    draw = np.random.default_rng(0)
    keys = draw.permutation(1000)[:301].astype(np.int64)
    events = np.zeros((301, 2), dtype=EVENT)
    events["query"] = np.arange(301)[:, None]
    z = draw.random((301, 2, 3)).astype(np.float32)
    for order in (np.arange(301), np.arange(301)[::-1]):
        drawn = Drawn.none(37, 2, 3, ("weight",))
        for part in np.array_split(order, 11):
            few = part[drawn.entering(keys[part])]
            drawn = drawn.with_queries(keys[few], {"weight": events[few]}, z[few])
        expected = np.argsort(keys)[:37]
        assert drawn.keys.tolist() == keys[expected].tolist()
        assert drawn.events["weight"]["query"][:, 1].tolist() == expected.tolist()
        np.testing.assert_array_equal(drawn.z, z[expected])


def test_keys_are_even_and_depend_on_all_that_is_given():
    examples = np.full(20_000, example_key("a", 0), dtype=np.uint64)
    sequence, rank = np.repeat([0, 1], 10_000), np.tile(np.arange(10_000), 2)
    keys = position_keys(examples, sequence, rank)
    assert keys.min() >= 0 and np.unique(keys).size == 20_000
    shares = np.histogram(keys / 2.0**63, bins=10, range=(0, 1))[0] / 20_000
    assert np.abs(shares - 0.1).max() < 0.01
    assert abs(np.corrcoef(keys[:-1], keys[1:])[0, 1]) < 0.02
    assert example_key("a", 0) != example_key("a", 1) != example_key("b", 1)
