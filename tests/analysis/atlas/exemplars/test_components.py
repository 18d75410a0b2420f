"""Principal components from sums, against a singular value decomposition of the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.atlas.exemplars import components
from analysis.atlas.exemplars.components import OutputSums, principal_components


def _data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, 5, 5, generator=draw) * torch.tensor([3.0, 1.0, 0.3, 0.1, 0.01])
    z = torch.randn(7, 2, 13, 5, generator=draw) @ mixing.transpose(1, 2) + 40.0
    return z, torch.rand(7, 2, 13, generator=draw) > 0.2


@pytest.mark.parametrize("cuts", [[7], [3, 4], [1] * 7])
def test_components_are_those_of_the_data(cuts: list[int]):
    z, counted = _data()
    sums = OutputSums.none(2, 5)
    for part, mask in zip(z.split(cuts), counted.split(cuts), strict=True):
        sums = sums + OutputSums.of(part, mask)
    for head in range(2):
        rows = z[:, head][counted[:, head]].double().numpy()
        centred = rows - rows.mean(0)
        _, singular, directions = np.linalg.svd(centred, full_matrices=False)
        found = principal_components(sums, head, 3)
        assert found is not None and found.count == len(rows)
        np.testing.assert_allclose(found.variances, singular**2 / len(rows), rtol=1e-6, atol=1e-9)
        overlap = np.abs((found.directions * directions[:3]).sum(1))
        np.testing.assert_allclose(overlap, 1, atol=1e-6)
        assert (found.directions.max(1) == np.abs(found.directions).max(1)).all()
        shares = singular**2 / (singular**2).sum()
        assert found.effective == pytest.approx(1 / (shares**2).sum(), rel=1e-6)
        np.testing.assert_allclose(found.explained, shares, rtol=1e-6, atol=1e-9)


def test_rows_that_do_not_count_may_be_anything():
    z, counted = _data()
    poisoned = z.masked_fill(~counted[..., None], float("nan"))
    one, other = OutputSums.of(z, counted), OutputSums.of(poisoned, counted)
    np.testing.assert_array_equal(one.products, other.products)


@pytest.mark.parametrize("numbers", [1, 7 * 2 * 5 * 4, 7 * 2 * 5 * 13])
def test_slices_of_queries_add_up_and_leave_z_alone(numbers, monkeypatch):
    z, counted = _data()
    z = z.double()
    before = z.clone()
    whole = OutputSums.of(z, counted)
    monkeypatch.setattr(components, "_NUMBERS", numbers)
    cut = OutputSums.of(z, counted)
    assert torch.equal(z, before)
    np.testing.assert_array_equal(cut.count, whole.count)
    np.testing.assert_allclose(cut.total, whole.total, rtol=1e-13)
    np.testing.assert_allclose(cut.products, whole.products, rtol=1e-13)


def test_few_rows_and_flat_ones():
    z, counted = _data()
    counted[:] = False
    counted[0, 0, 0] = True
    sums = OutputSums.of(z, counted)
    assert principal_components(sums, 0, 3) is None
    still = OutputSums.of(torch.full((2, 1, 3, 4), 2.5), torch.ones(2, 1, 3, dtype=torch.bool))
    found = principal_components(still, 0, 3)
    assert found is not None and found.directions.shape == (0, 4)
    line = torch.arange(6.0).view(1, 1, 6, 1) * torch.tensor([3.0, 4.0])
    found = principal_components(OutputSums.of(line, torch.ones(1, 1, 6, dtype=torch.bool)), 0, 3)
    assert found is not None
    np.testing.assert_allclose(found.directions, [[0.6, 0.8]])
    assert found.variances[0] == pytest.approx(25 * 35 / 12)
