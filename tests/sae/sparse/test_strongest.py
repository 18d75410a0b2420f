"""The search in groups against the search through everything."""

from __future__ import annotations

import pytest
import torch

from sae.sparse.strongest import strongest


@pytest.mark.parametrize(
    ("columns", "k"),
    [(4099, 7), (4096, 32), (1031, 1), (16_384, 32), (65_537, 3), (64, 2), (63, 2), (13, 13)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_those_of_topk(columns, k, dtype):
    pre = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    values, indices = strongest(pre, k)
    assert torch.equal(values.sort(descending=True).values, pre.topk(k, dim=1).values)
    assert torch.equal(pre.gather(1, indices), values)
    assert all(row.unique().numel() == k for row in indices)


@pytest.mark.parametrize("place", [0, 2047, 4095, 4096, 4098])
def test_all_of_one_group_and_the_columns_after_the_last_group_are_found(place):
    pre = -torch.arange(4099.0)[None].repeat(2, 1)
    # The members of a group lie a fixed distance apart: whatever it is, some of these share one.
    chosen = torch.tensor([place, *range(3, 4099, 256)])[:7].unique()
    pre[1, chosen] = torch.arange(1.0, chosen.numel() + 1)
    values, indices = strongest(pre, chosen.numel())
    assert indices[1].sort().values.tolist() == chosen.tolist()
    assert indices[0].sort().values.tolist() == list(range(chosen.numel()))
    assert values[1].sort().values.tolist() == list(range(1, chosen.numel() + 1))


def test_equal_values_are_taken_once_each():
    pre = torch.zeros(3, 4099)
    pre[1, 1000:1004] = 2.0
    values, indices = strongest(pre, 7)
    assert values[0].tolist() == [0.0] * 7
    assert sorted(values[1].tolist()) == [0.0] * 3 + [2.0] * 4
    assert all(row.unique().numel() == 7 for row in indices)


def test_rows_with_values_that_can_never_win():
    pre = torch.full((2, 4099), -torch.inf)
    pre[0, [5, 4000]] = torch.tensor([-3.0, 1.0])
    values, indices = strongest(pre, 2)
    assert sorted(indices[0].tolist()) == [5, 4000] and sorted(values[0].tolist()) == [-3.0, 1.0]
    assert values[1].tolist() == [-torch.inf] * 2
