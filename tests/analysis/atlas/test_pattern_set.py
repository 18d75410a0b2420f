"""The set of pooled patterns: what it refuses, and that a folder gives it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.atlas.pattern_set import PatternSet
from analysis.run_files import RunError


def made(count: int = 3, side: int = 5) -> PatternSet:
    draw = np.random.default_rng(0)
    samples = pd.DataFrame(
        {
            "tower": "language", "layer": range(count), "head": 1, "example": "é 1",
            "view": "tokens", "queries": 7, "keys": 11, "causal": [True] + [False] * (count - 1),
            "part": 0,
        }
    )  # fmt: skip
    values = pd.DataFrame({"entropy": [1.5, 2.5, np.nan][:count], "a[k=1,b=x]": range(count)})
    images = draw.dirichlet(np.ones(side), size=(count, side)).astype(np.float16)
    return PatternSet(images, samples, values.astype(float), values.astype(float) * 2, side, 9)


@pytest.mark.parametrize("columns", [["entropy", "a[k=1,b=x]"], []])
def test_a_folder_gives_back_what_was_saved(tmp_path: Path, columns: list[str]) -> None:
    kept = made()
    kept = replace(kept, features=kept.features[columns], nulls=kept.nulls[columns])
    kept.save(tmp_path / "atlas")
    names = sorted(path.name for path in (tmp_path / "atlas").iterdir())
    assert names == ["features.parquet", "patterns.safetensors", "samples.parquet"]
    found = PatternSet.load(tmp_path / "atlas")
    assert found.images.dtype == np.float16 and np.array_equal(found.images, kept.images)
    pd.testing.assert_frame_equal(found.samples, kept.samples)
    pd.testing.assert_frame_equal(found.features, kept.features, check_column_type=False)
    pd.testing.assert_frame_equal(found.nulls, kept.nulls, check_column_type=False)
    assert (found.side, found.seed, len(found)) == (5, 9, 3)


def test_a_folder_without_patterns_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Run `headscope atlas` on the model to keep patterns"):
        PatternSet.load(tmp_path)


@pytest.mark.parametrize("name", ["features.parquet", "patterns.safetensors", "samples.parquet"])
def test_a_broken_file_is_said(tmp_path: Path, name: str) -> None:
    made().save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(RunError, match=f"{name} cannot be read .* Run `headscope atlas` on the"):
        PatternSet.load(tmp_path)


def test_files_of_two_sets_are_refused(tmp_path: Path) -> None:
    made(3).save(tmp_path)
    made(2).samples.to_parquet(tmp_path / "samples.parquet")
    with pytest.raises(ValueError, match=r"must be float16 of shape \(2, 5, 5\), got float16 of"):
        PatternSet.load(tmp_path)


def test_what_does_not_fit_together_is_refused() -> None:
    good = made()
    with pytest.raises(ValueError, match="must be float16 of shape"):
        replace(good, images=good.images.astype(np.float32))
    with pytest.raises(ValueError, match="must have the columns view, part"):
        replace(good, samples=good.samples.drop(columns=["view", "part"]))
    with pytest.raises(ValueError, match="one of patches, tokens, window, cross, got 'grid'"):
        replace(good, samples=good.samples.assign(view="grid"))
    with pytest.raises(ValueError, match="`nulls` must have a line for each of 3 samples, got 2"):
        replace(good, nulls=good.nulls.iloc[:2])
    with pytest.raises(ValueError, match="the same columns in one order"):
        replace(good, nulls=good.nulls[["a[k=1,b=x]", "entropy"]])


def test_rows_must_be_distributions_or_empty() -> None:
    good = made()
    empty = good.images.copy()
    empty[1, 3] = 0
    assert len(replace(good, images=empty)) == 3
    half = good.images.copy()
    half[2, 4] /= 2
    with pytest.raises(ValueError, match=r"got row 4 of sample 2 that sums to 0\.5"):
        replace(good, images=half)
    negative = good.images.copy()
    negative[0, 0] = [-0.5, 1.5, 0, 0, 0]
    with pytest.raises(ValueError, match=r"least weight -0\.5"):
        replace(good, images=negative)
    hollow = good.images.copy()
    hollow[0, 0] = np.nan
    with pytest.raises(ValueError, match="got row 0 of sample 0"):
        replace(good, images=hollow)
