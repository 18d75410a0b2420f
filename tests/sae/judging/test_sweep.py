"""A sweep: settings in one pass, judged beside baselines, written as a table."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sparse_dictionary import SparseDictionary

from headscope.batching import batches
from headscope.coder_losses import output_losses
from probes.readers import bundled_set
from sae.activations import SubjectActivations, TensorActivations
from sae.judging.fidelity import judge
from sae.judging.held_out import split_examples
from sae.judging.judgement import judgements
from sae.judging.latent_statistics import latent_statistics
from sae.judging.loss_recovered import losses_recovered
from sae.judging.pareto import pareto
from sae.judging.sweep import sweep
from sae.training import TrainConfig
from tests.drawn_coders import drawn_coder, subject_of

WORLD = SparseDictionary.random(16, 48, noise=0.02)


def config(**settings: object) -> TrainConfig:
    usual = {"latents": 64, "tokens": 40_000, "batch_size": 256, "buffer_rows": 4_096}
    return TrainConfig(**{**usual, "learning_rate": 4e-3, **settings})  # type: ignore[arg-type]


CONFIGS = {"k=2": config(k=2), "k=5": config(k=5), "batch": config(coder="batch_topk", k=4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep") / "out"


@pytest.fixture(scope="module")
def swept(folder: Path):
    train = TensorActivations(WORLD.rows(8_000), "language.L0", 2)
    held_out = TensorActivations(WORLD.rows(1_500, seed=5), "language.L0", 2)
    return sweep(CONFIGS, train, held_out, out=folder)


def test_every_setting_stands_beside_its_baselines_at_its_l0(swept) -> None:
    table = swept.table
    assert list(table["name"][:3]) == ["k=2", "batch", "k=5"]
    assert list(table["kind"]) == ["trained"] * 3 + list(table["kind"][3:])
    assert len(table) == 12 and not swept.not_measured
    for name in CONFIGS:
        group = table[table["setting"] == name].set_index("kind")
        assert set(group.index) == {"trained", "random", "pca", "untrained"}
        assert group["l0"].to_numpy() == pytest.approx(group["l0"]["trained"], abs=0.6)
        trained = group["explained_variance"]["trained"]
        assert (group["explained_variance"].drop("trained") < trained - 0.1).all()
        assert (group["rows"] == 1_500).all()
    assert (table["dead_share"] < 1).all() and (table["reconstruction_bias"] > 0).all()


def test_the_table_holds_what_judging_alone_says(swept) -> None:
    held_out = TensorActivations(WORLD.rows(1_500, seed=5), "language.L0", 2)
    for name, coder in swept.coders.items():
        line = swept.table.set_index("name").loc[name]
        alone, latents = judge(coder, held_out), latent_statistics(coder, held_out)
        assert line["explained_variance"] == pytest.approx(alone.explained_variance, rel=1e-9)
        assert line["l0"] == alone.l0
        assert line["dead_share"] == latents.dead_share
        assert coder.about["site"] == "language.L0"


def test_files_hold_the_same_and_a_sweep_is_taken_up_again(swept, folder: Path) -> None:
    written = pd.read_parquet(folder / "pareto.parquet")
    pd.testing.assert_frame_equal(written, swept.table)
    about = json.loads((folder / "pareto.json").read_text())
    assert about["site"] == "language.L0"
    assert about["judged_on"]["data"]["rows"] == {"language.L0": 1_500}
    assert [line["name"] for line in about["lines"]] == list(swept.table["name"])
    assert about["lines"][0]["l0"] == swept.table["l0"][0]
    assert sorted(p.parent.name for p in (folder / "training").glob("*/coder.json")) == [
        "batch",
        "k=2",
        "k=5",
    ]
    train = TensorActivations(WORLD.rows(8_000), "language.L0", 2)
    held_out = TensorActivations(WORLD.rows(1_500, seed=5), "language.L0", 2)
    again = sweep(CONFIGS, train, held_out, out=folder, resume=True, baselines=["pca"])
    assert len(again.table) == 6
    assert torch.equal(again.coders["k=5"].decoder, swept.coders["k=5"].decoder)


def test_the_front() -> None:
    l0 = pd.Series([2.0, 4.0, 4.0, 8.0, 1.0, 3.0, 8.0])
    explained = pd.Series([0.5, 0.7, 0.6, 0.7, 0.9, math.nan, 0.8])
    among = pd.Series([True, True, True, True, False, True, True])
    assert pareto(l0, explained, among) == [True, True, False, False, False, False, True]
    assert pareto(l0[:1], explained[:1], among[:1]) == [True]
    twins = pd.Series([2.0, 2.0])
    assert pareto(twins, twins, pd.Series([True, True])) == [True, True]


def test_on_a_model_with_its_losses(tmp_path: Path) -> None:
    subject = subject_of("repeat-lm")
    train, held_out = split_examples(islice(bundled_set.read("repeats"), 60), 0.2)
    data = list(batches(subject, held_out, 8, lambda e, reason: pytest.fail(reason)))
    made = output_losses(subject, lambda: data)

    def recovered(coders):
        return losses_recovered(
            subject, lambda: data, coders, made.losses, settings=made.settings,
            sites=dict.fromkeys(coders, "language.L1"),
        )  # fmt: skip

    settings = config(latents="4x", k=12, tokens=12_000, batch_size=256, buffer_rows=2_048)
    found = sweep(
        {"k=12": settings},
        SubjectActivations(subject, train, sites="language.L1"),
        SubjectActivations(subject, held_out, sites="language.L1"),
        recovered=recovered,
        out=tmp_path / "out",
    )
    table = found.table.set_index("kind")
    share = table["cross_entropy_recovered"]
    assert share["trained"] > share["untrained"]
    assert (table["cross_entropy_recovered_low"] <= share).all()
    assert (share <= table["cross_entropy_recovered_high"]).all()
    clean, zero = table["cross_entropy_clean"].iloc[0], table["cross_entropy_zero_ablation"].iloc[0]
    expected = (zero - table["cross_entropy_spliced"]) / (zero - clean)
    assert np.allclose(share, expected, rtol=1e-6)
    assert (table["kl_examples"] == len(held_out)).all()
    assert (table["cross_entropy_reason"] == "").all()
    json.loads((tmp_path / "out" / "pareto.json").read_text())


def test_baselines_that_cannot_be_made_are_named_with_their_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cannot(*_: object) -> None:
        raise ValueError("This kind has no start.")

    monkeypatch.setattr("sae.judging.sweep.untrained", cannot)
    train, held_out = torch.randn(600, 6), torch.randn(100, 6)
    dense = config(coder="standard", sparsity=0.0, latents=12, tokens=512)
    found = sweep({"dense": dense}, train, held_out, out=tmp_path)
    assert found.not_measured == {"untrained of dense": "This kind has no start."}
    assert found.table["kind"][0] == "trained"
    assert set(found.table["kind"]) == {"trained", "pca", "random"}
    written = json.loads((tmp_path / "pareto.json").read_text())
    assert written["not_measured"] == dict(found.not_measured)
    with pytest.raises(ValueError, match="`baselines` must be some of random, pca, untrained"):
        sweep({"dense": dense}, train, held_out, baselines=["ica"])
    both = TensorActivations({"a": train, "b": train})
    with pytest.raises(ValueError, match="must have one site, .* got a, b and input"):
        sweep({"dense": dense}, both, held_out)


def test_judgements_are_of_one_pass_and_agree_with_each_alone() -> None:
    rows = TensorActivations({"a": torch.randn(31, 6), "b": torch.randn(17, 4)}, chunk_rows=5)
    coders = {"a": drawn_coder(6), "b": drawn_coder(4)}
    found = judgements(coders, rows, find_duplicates=True)
    for name, coder in coders.items():
        assert found[name].fidelity == judge(coder, rows, site=name)
        alone = latent_statistics(coder, rows, site=name)
        assert torch.equal(found[name].latents.fired, alone.fired)
        assert found[name].latents.duplicates is not None
        json.dumps(found[name].record(), allow_nan=False)
