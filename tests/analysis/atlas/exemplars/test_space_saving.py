"""Heavy items against an exact count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from analysis.atlas.exemplars.space_saving import Heavy


def _batch(masses: dict[int, float]) -> tuple[np.ndarray, ...]:
    codes = np.array(sorted(masses), dtype=np.int64)
    mass = np.array([masses[code] for code in codes.tolist()])
    return codes, mass, mass / 2, np.ones(codes.size)


def test_by_hand():
    table = Heavy.none(2).with_batch(*_batch({7: 5.0, 3: 2.0}))
    assert (table.floor, table.error.tolist()) == (0.0, [0.0, 0.0])
    table = table.with_batch(*_batch({3: 0.5, 9: 1.0, 4: 4.0}))
    # 3 has 2.5 and 9 has 1: both are left out, and a new item may have had 2.5 before.
    assert table.codes.tolist() == [4, 7]
    assert table.mass.tolist() == [4.0, 5.0]
    assert table.floor == 2.5
    table = table.with_batch(*_batch({3: 3.0, 7: 1.0}))
    assert table.codes.tolist() == [3, 7]
    assert table.mass.tolist() == [3.0, 6.0]
    assert table.error.tolist() == [2.5, 0.0]  # its true mass 5.5 is the upper end
    assert table.chance.tolist() == [1.5, 3.0]
    assert table.floor == 4.0
    assert table.total == 16.5


@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_on_a_long_tail(seed: int):
    draw = np.random.default_rng(seed)
    truth: Counter[int] = Counter()
    table = Heavy.none(23)
    for _ in range(40):
        items = draw.zipf(1.3, 60) % 500
        batch: Counter[int] = Counter()
        for item, mass in zip(items.tolist(), draw.exponential(size=60).tolist(), strict=True):
            batch[item] += mass
        truth.update(batch)
        table = table.with_batch(*_batch(dict(batch)))
    assert table.codes.size == 23 < len(truth)
    assert table.total == pytest.approx(sum(truth.values()))
    assert 0 < table.floor <= table.total / 24 + 1e-9
    for code, low, error in zip(table.codes.tolist(), table.mass, table.error, strict=True):
        assert low <= truth[code] + 1e-9
        assert truth[code] <= low + error + 1e-9
    missing = set(truth) - set(table.codes.tolist())
    assert max(truth[code] for code in missing) <= table.floor + 1e-9
    heaviest = truth.most_common(1)[0][0]
    assert heaviest in table.codes


def test_exact_in_any_order_while_there_is_room():
    draw = np.random.default_rng(3)
    batches = []
    for _ in range(12):
        items, masses = draw.choice(40, 9, replace=False).tolist(), draw.random(9).tolist()
        batches.append(dict(zip(items, masses, strict=True)))
    tables = []
    for order in (range(12), reversed(range(12))):
        table = Heavy.none(40)
        for number in order:
            table = table.with_batch(*_batch(batches[number]))
        tables.append(table)
    one, other = tables
    assert one.floor == 0 and not one.error.any()
    assert one.codes.tolist() == other.codes.tolist()
    np.testing.assert_allclose(one.mass, other.mass, rtol=1e-12)
    assert one.count.sum() == 12 * 9


def test_first_batch_larger_than_the_table():
    masses = {code: float(1 + (code * 7) % 31) for code in range(31)}
    table = Heavy.none(5).with_batch(*_batch(masses))
    assert sorted(table.mass.tolist()) == [27, 28, 29, 30, 31]
    assert table.floor == 26


def test_a_batch_leaves_the_table_before_it_alone():
    before = Heavy.none(3).with_batch(*_batch({1: 1.0, 2: 2.0}))
    before.with_batch(*_batch({1: 4.0, 5: 1.0}))
    assert before.mass.tolist() == [1.0, 2.0]
