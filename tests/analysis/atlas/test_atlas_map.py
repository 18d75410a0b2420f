"""The whole map on planted patterns: kinds found and named, noise without structure, same twice."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from planted_patterns import KINDS, SMALL_GRIDS, noise_set, planted_set
from sklearn.metrics import adjusted_rand_score

from analysis.atlas.atlas_map import AtlasMap, MapOptions, make_map
from analysis.atlas.autoencoder import AutoencoderOptions
from analysis.atlas.embedding import UmapOptions, principal_plane, umap_plane
from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.stability import StabilityOptions

QUICK = MapOptions(
    autoencoder=AutoencoderOptions(channels=(4, 8, 8), batch=64, most_epochs=30),
    stability=StabilityOptions(most=9, references=2),
    umap=None,
)
NAMES = (
    "itself", "previous token", "stripe", "block", "uniform", "rows above and below", "mixed",
)  # fmt: skip


@lru_cache(maxsize=1)
def planted() -> tuple[PatternSet, np.ndarray, AtlasMap]:
    patterns, truth = planted_set(per_kind=60, grids=SMALL_GRIDS, side=16, noise=0.2)
    return patterns, truth, make_map(patterns, QUICK)


def test_seven_planted_kinds_come_out_and_bear_their_names() -> None:
    _, truth, found = planted()
    assert found.choice is not None and found.choice.asked is not None
    assert adjusted_rand_score(truth, found.points["cluster"]) >= 0.9
    names = found.points["cluster"].map(lambda cluster: found.names[cluster].name)
    for number, name in enumerate(NAMES):
        mine = names[truth == number].value_counts()
        assert mine.index[0] == name, KINDS[number]
        assert mine.iloc[0] >= 0.85 * mine.sum()
    told = found.clusters.set_index("name").loc["itself", "sentence"]
    assert told.startswith("itself: self_attention 0.8") and "under uniform attention" in told


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_two_hundred_of_each_kind_at_full_size(seed: int) -> None:
    patterns, truth = planted_set(per_kind=200, side=64, seed=seed)
    found = make_map(patterns, MapOptions(umap=None, seed=seed))
    assert adjusted_rand_score(truth, found.points["cluster"]) >= 0.9


def test_prototypes_look_like_their_kind() -> None:
    _, truth, found = planted()
    for one in found.prototypes:
        np.testing.assert_allclose(one.decoded.sum(-1), 1, atol=1e-4)
        np.testing.assert_allclose(one.mean.sum(-1), 1, atol=5e-3)
        assert found.points["cluster"].iloc[one.medoid] == one.cluster
        if found.names[one.cluster].name == "itself":
            assert (np.diagonal(one.decoded) > 4 / 16).all()
            assert truth[one.medoid] == KINDS.index("diagonal")


def test_heads_of_one_kind_are_steady() -> None:
    _, _, found = planted()
    pure = found.heads[found.heads["layer"] < 6]
    assert (pure["verdict"] == "steady").mean() >= 0.9
    assert (pure["entropy_nats"] < pure["null_low_nats"]).all()


@pytest.mark.parametrize(("concentration", "causal"), [(0.1, False), (1.0, True)])
def test_noise_has_no_structure_at_three_resolutions(concentration: float, causal: bool) -> None:
    patterns = noise_set(
        90, grids=SMALL_GRIDS, side=16, concentration=concentration, causal=causal, seed=5
    )
    found = make_map(patterns, QUICK)
    assert found.verdict.startswith("No structure")
    assert set(found.points["cluster"]) == {0}
    assert any("The autoencoder explains" in note for note in found.notes)


def test_one_kind_alone_is_one_cluster() -> None:
    patterns, _ = planted_set(("block",), 90, grids=SMALL_GRIDS, side=16)
    found = make_map(patterns, QUICK)
    assert len(found.clusters) == 1 and found.clusters["name"].tolist() == ["block"]


def test_with_one_seed_the_map_is_the_same_twice() -> None:
    patterns, _ = planted_set(per_kind=12, grids=SMALL_GRIDS, side=16)
    how = replace(QUICK, umap=UmapOptions(), autoencoder=replace(QUICK.autoencoder, most_epochs=2))
    first, second = make_map(patterns, how), make_map(patterns, how)
    assert first.points.equals(second.points)
    assert first.points[["umap_x", "umap_y"]].notna().all(axis=None)
    assert first.clusters.equals(second.clusters) and first.heads.equals(second.heads)
    assert not first.points.equals(make_map(patterns, replace(how, seed=1)).points)
    assert {"autoencoder", "stability", "clusters", "umap"} <= first.seconds.keys()


def _only(patterns: PatternSet, rows: slice) -> PatternSet:
    parts = {name: getattr(patterns, name).iloc[rows] for name in ("samples", "features", "nulls")}
    return replace(patterns, images=patterns.images[rows], **parts)


def test_too_few_patterns_are_told() -> None:
    patterns = _only(planted()[0], slice(0, 15))
    with pytest.raises(ValueError, match="UMAP with 15 neighbours needs at least 16 patterns, got"):
        make_map(patterns, replace(QUICK, umap=UmapOptions()))
    found = make_map(patterns, QUICK)
    assert "Too few patterns to tell clusters" in found.verdict
    assert np.isnan(found.points["umap_x"]).all()


def test_features_that_tell_nothing_or_are_not_measured_do_no_harm() -> None:
    patterns = _only(planted()[0], slice(20, 130))
    constant = patterns.features * 0 + 0.3
    constant["induction"] = np.nan
    alone = patterns.samples.assign(layer=0, head=0)
    same = replace(patterns, features=constant, nulls=constant * 0 + 0.1, samples=alone)
    found = make_map(same, QUICK)
    assert "No feature differs between patterns, so that they are compared without." in found.notes
    assert found.columns is not None and not found.columns.names
    assert len(found.heads) == 1 and found.heads["p"].tolist() == [1.0]
    holes = patterns.features.copy()
    holes.iloc[::2, 0] = np.nan
    told = make_map(replace(patterns, features=holes), QUICK)
    assert any("counted there as under uniform attention" in note for note in told.notes)
    assert np.isfinite(told.space).all()


def test_patterns_that_are_all_the_same_are_one_cluster() -> None:
    one = _only(planted()[0], slice(0, 1))
    rows = np.zeros(50, int)
    parts = {name: getattr(one, name).iloc[rows] for name in ("samples", "features", "nulls")}
    patterns = replace(one, images=one.images[rows], **parts)
    found = make_map(patterns, replace(QUICK, umap=UmapOptions()))
    assert "all patterns are the same" in found.verdict
    assert "There is no UMAP, because all patterns are the same." in found.notes


def test_a_number_of_clusters_can_be_given() -> None:
    found = make_map(planted()[0], replace(QUICK, clusters=3))
    assert found.choice is None and sorted(set(found.points["cluster"])) == [0, 1, 2]
    assert found.verdict.startswith("3 clusters, as many as were asked for; their")
    fewer = replace(
        found, points=found.points.assign(cluster=found.points["cluster"].clip(upper=1))
    )
    assert fewer.verdict.startswith("2 clusters that have a pattern, of 3 that were asked for")


def test_planes_keep_what_lies_apart_apart() -> None:
    dice = np.random.default_rng(0)
    space = dice.normal(size=(60, 4)) * 0.1
    space[30:, 2] += 9
    plane, shares = principal_plane(space)
    assert abs(plane[:30, 0].mean() - plane[30:, 0].mean()) == pytest.approx(9, abs=0.1)
    assert shares[0] > 0.95
    np.testing.assert_allclose(principal_plane(space[:, 2:3])[0][:, 1], 0)
    threads = torch.get_num_threads()
    drawn = umap_plane(space, 0, UmapOptions(neighbours=5))
    assert torch.get_num_threads() == threads
    near = np.linalg.norm(drawn[:30] - drawn[:30].mean(0), axis=1).max()
    assert np.linalg.norm(drawn[30:].mean(0) - drawn[:30].mean(0)) > near
    with pytest.raises(ValueError, match="must be finite"):
        umap_plane(np.full((60, 2), np.nan), 0)


def test_umap_is_not_imported_before_it_is_needed() -> None:
    said = (
        "import sys, analysis.atlas.atlas_map\n"
        "print([name in sys.modules for name in ('umap', 'sklearn')])"
    )
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[False, False]"
