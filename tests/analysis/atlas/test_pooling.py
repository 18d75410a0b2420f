"""Pooling by area: R A C, against loops over fractions, and what tiles and empty rows do."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from analysis.atlas import pooling
from analysis.atlas.pooling import Pooler, average_queries, pool, split_keys


def slow_pool(pattern: list[list[Fraction]], side: int) -> list[list[Fraction]]:
    """Four loops over exact numbers: overlap of stretches on both axes."""
    queries, keys = len(pattern), len(pattern[0])
    found = [[Fraction(0)] * side for _ in range(side)]
    for i in range(side):
        for q in range(queries):
            # query q lies at [q / Q, (q + 1) / Q), cell i at [i / side, (i + 1) / side)
            top = max(Fraction(q, queries), Fraction(i, side))
            low = min(Fraction(q + 1, queries), Fraction(i + 1, side))
            share = max(low - top, Fraction(0)) * side
            for k in range(keys):
                for j in range(side):
                    left = max(Fraction(k, keys), Fraction(j, side))
                    right = min(Fraction(k + 1, keys), Fraction(j + 1, side))
                    part = max(right - left, Fraction(0)) * keys
                    found[i][j] += share * part * pattern[q][k]
    return found


def exact_rows(queries: int, keys: int, seed: int) -> list[list[Fraction]]:
    drawn = np.random.default_rng(seed).integers(0, 20, (queries, keys)) + 1
    return [[Fraction(int(w), int(row.sum())) for w in row] for row in drawn]


@pytest.mark.parametrize(
    ("queries", "keys", "side"), [(7, 11, 5), (3, 2, 7), (5, 13, 7), (13, 3, 5), (6, 6, 3)]
)
def test_it_equals_four_loops_over_fractions(queries: int, keys: int, side: int) -> None:
    exact = exact_rows(queries, keys, 3)
    expected = np.array(slow_pool(exact, side), dtype=float)
    found = pool(np.array(exact, dtype=float), side)
    assert found.shape == (side, side)
    np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-14)


def test_three_queries_and_keys_on_two_cells_by_hand() -> None:
    pattern = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    # Rows on two cells: (.75, .25) and (.125, .875) for queries 1 and 2; each cell has 1.5 queries.
    expected = np.array([[11 / 12, 1 / 12], [1 / 3, 2 / 3]])
    np.testing.assert_allclose(pool(pattern, 2), expected, atol=1e-15)
    nearest = pattern[[0, 2]][:, [0, 2]]
    resized = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(pattern)[None], 2)[0].numpy()
    for wrong in (nearest, resized, resized / resized.sum(-1, keepdims=True)):
        assert np.abs(wrong - expected).max() > 0.03


def test_a_uniform_and_a_full_size_pattern_stay_as_they_are() -> None:
    np.testing.assert_allclose(pool(np.full((5, 11), 1 / 11), 7), 1 / 7, atol=1e-15)
    pattern = np.random.default_rng(1).dirichlet(np.ones(7), size=7)
    np.testing.assert_array_equal(pool(pattern, 7), pattern)


def test_it_is_linear_and_takes_leading_axes() -> None:
    draw = np.random.default_rng(2)
    one, other = draw.dirichlet(np.ones(11), size=(2, 3, 13))
    mixed = pool(0.3 * one + 0.7 * other, 5)
    np.testing.assert_allclose(mixed, 0.3 * pool(one, 5) + 0.7 * pool(other, 5), atol=1e-14)
    np.testing.assert_allclose(pool(one, 5)[1], pool(one[1], 5), atol=1e-15)


def test_a_causal_pattern_stays_causal_but_for_the_cells_on_the_edge() -> None:
    """A position that lies in two cells reads itself in both; nothing goes further."""
    pattern = np.tril(np.random.default_rng(4).random((29, 29)))
    pattern /= pattern.sum(-1, keepdims=True)
    assert np.triu(pool(pattern, 7), 2).max() == 0 < np.triu(pool(pattern, 7), 1).max() < 0.01
    assert np.triu(pool(pattern[:28, :28], 7), 1).max() == 0
    upsampled = pool(np.eye(3), 9)
    assert np.flatnonzero(upsampled[4]).tolist() == [3, 4, 5]


def test_torch_and_numpy_agree_and_half_precision_is_raised() -> None:
    pattern = np.random.default_rng(5).dirichlet(np.ones(11), size=7)
    single = pool(torch.tensor(pattern).float(), 5)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), pool(pattern, 5), atol=1e-6)
    half = pool(torch.tensor(pattern).bfloat16(), 5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pool(torch.tensor(pattern).bfloat16().float(), 5))
    assert pool(pattern.astype(np.float16), 5).dtype == np.float32
    given = torch.tensor(pattern, requires_grad=True)
    pool(given, 5)[0, 0].backward()
    expected = average_queries(7, 5)[0][:, None] * split_keys(11, 5)[:, 0]
    torch.testing.assert_close(given.grad, expected)


@pytest.mark.parametrize("rows", [1, 4, 13])
def test_pieces_of_rows_add_up_to_the_whole(rows: int) -> None:
    pattern = torch.softmax(torch.randn(3, 13, 11, generator=torch.manual_seed(0)) * 3, -1)
    order = torch.randperm(13, generator=torch.manual_seed(1))
    pooler = Pooler(3, 13, 11, 5)
    for start in range(0, 13, rows):
        some = order[start : start + rows]
        # Keys that are not handed over have no weight: two pieces of the key axis are too few.
        pooler.add(pattern[:, some], some, torch.arange(11))
    torch.testing.assert_close(pooler.images, pool(pattern, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(pooler.mass, torch.ones(3).double(), atol=1e-6, rtol=0)
    assert pooler.empty.tolist() == [0, 0, 0]


def test_rows_are_renormalised_and_empty_ones_left_out() -> None:
    pattern = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.3, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    pooler = Pooler(1, 4, 3, 2)
    pooler.add(pattern[None], torch.arange(4), torch.arange(3))
    # Cell row 0 holds query 1 alone: (.25, .75, 0) on two cells; cell row 1 holds query 2 alone.
    expected = torch.tensor([[[0.25 + 0.375, 0.375], [0.0, 1.0]]])
    torch.testing.assert_close(pooler.images, expected)
    assert pooler.empty.tolist() == [2]
    assert pooler.mass.tolist() == pytest.approx([0.9 / 4])


def test_a_cell_row_without_any_weight_is_zero_and_no_nan() -> None:
    pooler = Pooler(2, 4, 3, 2)
    part = torch.zeros(2, 4, 3)
    part[0, :2, 1] = 1
    pooler.add(part, torch.arange(4), torch.arange(3))
    assert pooler.images.sum(-1).tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert pooler.empty.tolist() == [2, 4]


def test_nan_does_not_hide() -> None:
    pooler = Pooler(2, 3, 3, 2)
    part = torch.full((2, 3, 3), 1 / 3)
    part[1, 2, 0] = float("nan")
    pooler.add(part, torch.arange(3), torch.arange(3))
    assert torch.isfinite(pooler.mass).tolist() == [True, False]


def test_what_cannot_be_pooled_is_said() -> None:
    with pytest.raises(ValueError, match="must have a query and a key axis, got shape \\(3,\\)"):
        pool(np.ones(3), 2)
    with pytest.raises(ValueError, match="got 0 positions and 2 cells"):
        pool(np.ones((0, 3)), 2)
    with pytest.raises(ValueError, match="at least one cell, got 3 positions and 0 cells"):
        pool(np.ones((3, 3)), 0)


def test_tables_are_kept_up_to_so_many_bytes() -> None:
    kept = pooling._Tables(most_bytes=1000)  # float32 [position 5]: 20 bytes a position
    first = kept.find(13, 5)
    assert kept.find(13, 5) is first and kept.nbytes == 260
    kept.find(17, 5)
    kept.find(13, 5)
    kept.find(19, 5)  # 260 + 340 + 380: just fits
    assert kept.nbytes == 980 and kept.find(13, 5) is first
    kept.find(2, 5)  # 17 was asked for the longest time ago
    assert kept.nbytes == 980 - 340 + 40 and kept.find(13, 5) is first
    long = kept.find(51, 5)
    assert long.shape == (51, 5) and kept.nbytes == 680
    assert kept.find(51, 5) is not long and kept.find(51, 5).equal(long)


@pytest.mark.parametrize(("count", "side"), [(7, 5), (3, 11), (13, 13), (1, 7)])
def test_a_table_made_in_slices_is_that_of_a_loop(
    count: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "_POSITIONS", 2)
    found = pooling._overlap(count, side)
    for position in range(count):
        for cell in range(side):
            begin = max(position * side, cell * count)
            end = min((position + 1) * side, (cell + 1) * count)
            assert found[position, cell] == max(end - begin, 0)
