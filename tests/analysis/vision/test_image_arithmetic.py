"""Regions, boxes and correlations against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import label

from analysis.vision.boxes import areas, coverage, from_largest, hit_patches, overlaps
from analysis.vision.components import components, spatial_entropy
from analysis.vision.correlation import pearson, ranks, spearman


def test_regions_are_those_of_scipy() -> None:
    draw = torch.Generator().manual_seed(3)
    inside = torch.rand(41, 7, 11, generator=draw) < 0.4
    found = components(inside)
    for mine, mask in zip(found, inside, strict=True):
        other, count = label(mask.numpy(), structure=np.ones((3, 3)))
        assert (mine > 0).equal(mask)
        pairs = {(int(a), int(b)) for a, b in zip(mine[mask], other[mask.numpy()], strict=True)}
        assert len(pairs) == count == len({a for a, _ in pairs})


def test_a_snake_is_one_region() -> None:
    inside = torch.zeros(1, 7, 9, dtype=torch.bool)
    inside[0, ::2] = True
    inside[0, 1, -1] = inside[0, 3, 0] = inside[0, 5, -1] = True
    assert components(inside)[inside].unique().numel() == 1
    assert components(torch.zeros(0, 3, 3, dtype=torch.bool)).shape == (0, 3, 3)


def test_spatial_entropy_by_hand() -> None:
    picture = torch.zeros(2, 3, 5)
    picture[0, 0, 0], picture[0, 2, 4], picture[0, 1, 4] = 3.0, 2.0, 1.0
    picture[1] = 0.25
    where = torch.ones(2, 3, 5, dtype=torch.bool)
    mean = 6 / 15
    first, second = (3 - mean) / (6 - 3 * mean), (3 - 2 * mean) / (6 - 3 * mean)
    expected = -first * np.log(first) - second * np.log(second)
    found = spatial_entropy(picture, where)
    assert float(found[0]) == pytest.approx(expected, abs=1e-6)
    assert bool(found[1].isnan()), "a flat map has no region"
    # Cells that do not exist lower the mean of none.
    where[0, :, 1:4] = False
    mean = 1.0
    first, second = 2 / 3, 1 / 3
    expected = -first * np.log(first) - second * np.log(second)
    assert float(spatial_entropy(picture, where)[0]) == pytest.approx(expected, abs=1e-6)


def test_coverage_by_hand() -> None:
    patches = torch.tensor([[0.0, 0, 4, 2], [4, 0, 8, 2], [8, 0, 12, 2], [torch.nan] * 4])
    assert areas(patches).tolist() == [8, 8, 8, 0]
    assert coverage(patches, [(3, 0, 6, 1)]).tolist() == [1 / 8, 2 / 8, 0, 0]
    assert coverage(patches, [(3, 0, 6, 1), (8, 0, 20, 9)]).tolist() == [1 / 8, 2 / 8, 1, 0]
    assert coverage(patches, [(0, 0, 4, 2), (0, 0, 3, 2)]).tolist()[0] == 1, "at most whole"


def test_a_hit_is_half_a_patch_or_the_best_of_a_small_box() -> None:
    cover = torch.tensor([[0.5, 0.49, 1.0], [0.1, 0.3, 0.3], [0.0, 0.0, 0.0]])
    expected = [[True, False, True], [False, True, True], [False, False, False]]
    assert hit_patches(cover).tolist() == expected


def test_overlaps_against_every_threshold() -> None:
    draw = torch.Generator().manual_seed(7)
    maps = torch.rand(3, 5, 13, generator=draw)
    cover = torch.rand(3, 1, 13, generator=draw) * (torch.rand(3, 1, 13, generator=draw) < 0.5)
    area = 1 + torch.rand(3, 1, 13, generator=draw)
    area[..., 4] = 0
    best, equal = overlaps(from_largest(maps, area > 0), cover, area)
    for one in range(3):
        for head in range(5):
            size = float((cover * area)[one].sum())
            ratios, off = [], []
            for level in sorted(maps[one, head].tolist(), reverse=True):
                taken = (maps[one, head] >= level) & (area[one, 0] > 0)
                shared = float((cover * area)[one, 0][taken].sum())
                whole = float(area[one, 0][taken].sum())
                ratios.append(shared / (whole + size - shared))
                off.append(abs(whole - size))
            assert float(best[one, head]) == pytest.approx(max(ratios), abs=1e-6)
            assert float(equal[one, head]) == pytest.approx(ratios[off.index(min(off))], abs=1e-6)


def test_correlations_are_those_of_scipy() -> None:
    draw = torch.Generator().manual_seed(1)
    maps = torch.randint(0, 5, (3, 7, 11), generator=draw).double()
    other = torch.randint(0, 4, (11,), generator=draw).double()
    for one in range(3):
        for head in range(7):
            mine = maps[one, head].numpy()
            expected = stats.pearsonr(mine, other.numpy()).statistic
            assert float(pearson(maps, other)[one, head]) == pytest.approx(expected, abs=1e-9)
            expected = stats.spearmanr(mine, other.numpy()).statistic
            assert float(spearman(maps, other)[one, head]) == pytest.approx(expected, abs=1e-9)
            assert ranks(maps)[one, head].tolist() == stats.rankdata(mine).tolist()


def test_correlations_without_meaning_are_not_a_number() -> None:
    alike = torch.full((2, 7), 0.1)
    assert bool(pearson(alike, torch.arange(7.0)).isnan().all())
    assert bool(spearman(torch.arange(7.0)[None], torch.full((7,), 0.3)).isnan().all())
    assert bool(pearson(torch.rand(3, 2), torch.rand(2)).isnan().all())
