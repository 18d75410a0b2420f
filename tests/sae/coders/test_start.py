"""The geometric median, against scipy and by its law."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from small_coders import small_coder, small_rows

from sae.coders.start import geometric_median, start_at


def test_it_is_the_point_of_least_distances() -> None:
    rows = small_rows(23, seed=3)
    points = rows.numpy()
    best = minimize(
        lambda at: (((points - at) ** 2).sum(1) ** 0.5).sum(), points.mean(0), tol=1e-12
    )
    found = geometric_median(rows, iterations=1_000, tolerance=1e-9)
    assert torch.allclose(found, torch.from_numpy(best.x), atol=1e-4)
    assert not torch.allclose(found, rows.mean(0), atol=1e-2)


def test_of_points_on_a_line_it_is_the_median() -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [1_000.0, 1.0]])
    found = geometric_median(rows, iterations=500, tolerance=1e-9)
    assert torch.allclose(found, torch.tensor([2.0, 1.0]), atol=1e-2)


def test_rows_at_the_point_itself_are_no_trouble() -> None:
    same = torch.full((4, 3), 2.5)
    assert torch.equal(geometric_median(same), same[0])
    cross = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert torch.allclose(geometric_median(cross), torch.zeros(2), atol=1e-5)
    assert geometric_median(same[:1]).tolist() == [2.5] * 3


def test_of_no_rows_there_is_none() -> None:
    with pytest.raises(ValueError, match="`rows` must hold at least one row, got none"):
        geometric_median(torch.zeros(0, 3))


def test_centred_coders_start_there_and_others_do_not() -> None:
    rows = small_rows(31)
    centred = small_coder("topk")
    start_at(centred, rows)
    assert torch.allclose(centred.decoder_bias, geometric_median(rows))
    plain = small_coder("topk", centred=False)
    before = plain.decoder_bias.detach().clone()
    start_at(plain, rows)
    assert torch.equal(plain.decoder_bias, before)
