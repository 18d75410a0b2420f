"""Coders by name and by the settings of a training."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from sae.coders import registry
from sae.coders.batch_topk import BatchTopK
from sae.coders.gated import Gated
from sae.coders.jump_relu import JumpReLU
from sae.coders.matryoshka import Matryoshka
from sae.coders.registry import CODERS, available_coders, coder_of, defaults, make_coder
from sae.coders.standard import Standard
from sae.coders.topk import TopK
from sae.training.config import TrainConfig


class Mine(TopK):
    architecture = "mine"


def config(coder: str, **others: object) -> TrainConfig:
    return TrainConfig(coder=coder, latents="3x", k=5, **others)  # type: ignore[arg-type]


def test_the_project_announces_the_kinds_it_has() -> None:
    root = Path(__file__).parents[3]
    announced = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    paths = {kind: f"{made.__module__}:{made.__name__}" for kind, made in CODERS.items()}
    assert announced["headscope.coders"] == paths


def test_a_package_adds_a_kind_by_one_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("mine", f"{__name__}:Mine", registry.GROUP)]
    monkeypatch.setattr(EntryPoint, "load", lambda self: Mine)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: points if group == registry.GROUP else []
    )
    assert coder_of("mine") is Mine
    assert available_coders() == {**CODERS, "mine": Mine}
    made = make_coder(config("mine"), 16)
    assert isinstance(made, Mine) and made.k == 5


def test_an_unknown_kind_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="`coder` must be one of .*gated, jump_relu.*got 'relu'"):
        coder_of("relu")


def test_settings_reach_the_coder() -> None:
    options = {"auxiliary": 0.25, "auxiliary_k": 7}
    topk = make_coder(config("topk", **options), 16)
    assert isinstance(topk, TopK)
    assert (topk.width, topk.latents, topk.k, topk.auxiliary, topk.auxiliary_k) == (
        *(16, 48, 5, 0.25),
        7,
    )
    assert make_coder(config("topk"), 16).settings["auxiliary_k"] == 8
    batch = make_coder(config("batch_topk", options={"threshold_rate": 0.1}), 16)
    assert isinstance(batch, BatchTopK) and batch.threshold_rate == 0.1
    nested = make_coder(config("matryoshka", options={"group_shares": [0.25, 0.75]}), 16)
    assert isinstance(nested, Matryoshka) and nested.prefixes == (12, 48)
    jump = make_coder(config("jump_relu", sparsity=3.0), 16)
    assert isinstance(jump, JumpReLU) and (jump.target, jump.sparsity) == (5.0, 3.0)
    free = make_coder(config("jump_relu", options={"target": None, "centred": False}), 16)
    assert isinstance(free, JumpReLU) and free.target is None and not free.centred
    kissane = make_coder(config("standard", options={"form": "kissane"}), 16)
    assert isinstance(kissane, Standard) and kissane.unit_decoder


def test_seeds_are_the_settings_unless_given() -> None:
    of_config, given = make_coder(config("gated", seed=3), 16), make_coder(config("gated"), 16, 3)
    assert torch.equal(of_config.decoder, given.decoder)
    assert not torch.equal(of_config.decoder, make_coder(config("gated"), 16).decoder)


def test_defaults_are_of_the_source_and_scaled_as_rows_are() -> None:
    topk = defaults(TrainConfig(latents=4_096), 768)
    assert topk.learning_rate == pytest.approx(4e-4)
    assert topk.betas == (0.9, 0.999) and topk.sparsity is None
    for kind, weight in (("standard", 0.1 * 64**0.5), ("gated", 0.8), ("jump_relu", 64.0)):
        found = defaults(config(kind), 64)
        assert found.sparsity == pytest.approx(weight), kind
        coder = make_coder(config(kind), 64)
        assert isinstance(coder, Standard | Gated | JumpReLU)
        assert coder.sparsity == found.sparsity
        assert found.source
    assert defaults(config("gated"), 64).betas == (0.0, 0.999)


def test_what_the_user_says_is_taken() -> None:
    found = defaults(config("standard", learning_rate=0.5, sparsity=0.0), 16)
    assert (found.learning_rate, found.sparsity) == (0.5, 0.0)
    assert make_coder(config("standard", sparsity=0.0), 16).settings["sparsity"] == 0.0


def test_rows_as_they_are_need_a_weight_of_their_own_unit() -> None:
    raw = {"normalise": "none"}
    assert make_coder(config("standard", **raw), 16).settings["sparsity"] == 1.0
    for kind in ("gated", "jump_relu"):
        with pytest.raises(ValueError, match=f"`sparsity` must be given for {kind} when rows"):
            make_coder(config(kind, **raw), 16)
        assert make_coder(config(kind, sparsity=0.5, **raw), 16).settings["sparsity"] == 0.5
        assert defaults(config(kind, sparsity=0.5, **raw), 16).sparsity == 0.5


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5])
def test_a_threshold_that_would_not_follow_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"`threshold_rate` must be above 0 and .*, got {rate}"):
        make_coder(config("batch_topk", options={"threshold_rate": rate}), 16)


def test_dead_latents_are_treated_as_the_kind_can() -> None:
    assert registry.dead_features(config("matryoshka")) == "auxk"
    assert registry.dead_features(config("standard")) == "resample"
    assert registry.dead_features(config("topk", dead_features="none")) == "none"
    without = make_coder(config("topk", dead_features="resample"), 16)
    assert without.settings["auxiliary"] == 0.0
    for kind in ("standard", "gated", "jump_relu"):
        with pytest.raises(ValueError, match=f"resample or none for {kind}, got 'auxk'"):
            make_coder(config(kind, dead_features="auxk"), 16)


def test_k_above_the_width_is_refused_where_it_counts() -> None:
    for kind in ("topk", "batch_topk", "matryoshka", "jump_relu"):
        with pytest.raises(ValueError, match="`k` must be between 1 and the width of the site, 4"):
            make_coder(config(kind), 4)
    assert make_coder(config("standard"), 4).latents == 12


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="`options` must be settings of topk, got \\['form'\\]"):
        make_coder(config("topk", options={"form": "april"}), 16)
