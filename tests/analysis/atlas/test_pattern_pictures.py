"""Pictures of a few patterns: the right lines in the right brightness, neighbours together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis.atlas.pattern_pictures import eight_bits, neighbourhoods, read_pictures
from analysis.run_files import RunError


@pytest.fixture
def images(tmp_path: Path) -> np.ndarray:
    """Seven patterns of 16 x 16 in a file."""
    dice = np.random.default_rng(0)
    found = dice.dirichlet(np.full(16, 0.2), (7, 16)).astype(np.float16)
    save_file({"images": found}, tmp_path / "patterns.safetensors")
    return found


def test_pictures_are_those_of_the_lines_that_are_asked_for(
    images: np.ndarray, tmp_path: Path
) -> None:
    found = read_pictures(tmp_path, [5, 0, 5])
    assert found.levels.shape == (3, 16, 16) and found.levels.dtype == np.uint8
    for place, line in enumerate((5, 0, 5)):
        top = np.quantile(images[line].astype(np.float32), 0.99)
        expected = np.minimum(images[line].astype(np.float32) / top, 1) * 255
        assert np.abs(found.levels[place] - expected).max() <= 0.51
        assert found.brightest[place] == pytest.approx(top, rel=1e-5)


def test_one_strong_cell_and_none_are_drawn() -> None:
    images = np.zeros((2, 16, 16), np.float32)
    images[0, 3, 5] = 0.25
    found = eight_bits(images)
    assert found.levels[0, 3, 5] == 255 and found.levels[0].sum() == 255
    assert found.levels[1].sum() == 0 and found.brightest.tolist() == [0.25, 0.0]


def test_what_cannot_be_read_is_a_sentence(images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must hold pattern 7, it has 7"):
        read_pictures(tmp_path, [1, 7])
    file = tmp_path / "patterns.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RunError, match="patterns.safetensors cannot be read"):
        read_pictures(tmp_path, [1])
    with pytest.raises(RunError, match="cannot be read"):
        read_pictures(tmp_path / "nowhere", [1])


def test_neighbourhoods_are_small_and_do_not_overlap() -> None:
    dice = np.random.default_rng(1)
    x, y = dice.random(1009), 0.5 * dice.random(1009)
    groups = neighbourhoods(x, y, 31)
    sizes = np.bincount(groups)
    assert sizes.sum() == 1009 and sizes.min() > 7 and sizes.max() <= 31
    boxes = [
        (x[groups == g].min(), x[groups == g].max(), y[groups == g].min(), y[groups == g].max())
        for g in range(len(sizes))
    ]
    for one, (left, right, low, high) in enumerate(boxes):
        for other, (left2, right2, low2, high2) in enumerate(boxes):
            apart = right < left2 or right2 < left or high < low2 or high2 < low
            assert one == other or apart
    same = neighbourhoods(np.zeros(5), np.zeros(5), 2)
    assert np.bincount(same).max() <= 2
