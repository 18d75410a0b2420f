"""Several settings in one pass: each is what it would be alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.run_files import RunError
from sae.activations import TensorActivations
from sae.training import Notice, Record, TrainConfig, read_metrics, train, train_settings
from sae.training.jobs import Jobs


def config(**settings: Any) -> TrainConfig:
    usual = {"latents": 20, "k": 2, "tokens": 640, "batch_size": 16, "buffer_rows": 64}
    return TrainConfig(
        **{**usual, "learning_rate": 0.01, "log_every": 1, "checkpoint_every": 9, **settings}
    )


def rows(width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(211, width, generator=torch.Generator().manual_seed(seed)) + 1


CONFIGS = {
    "few": config(k=1),
    "more": config(k=3, latents=31),
    "l1": config(coder="standard", sparsity=0.3, tokens=320, dead_after=100),
}


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    both = left.state_dict(), right.state_dict()
    return all(torch.equal(value, both[1][name]) for name, value in both[0].items())


class Counted(TensorActivations):
    chunks_made = 0

    def chunks(self, epoch: int, start: int = 0, every: int = 1):
        for chunk in super().chunks(epoch, start, every):
            self.chunks_made += 1
            yield chunk


def test_each_is_as_it_would_be_alone_and_rows_are_made_once() -> None:
    alone = {}
    passes = []
    for name, one in CONFIGS.items():
        source = Counted(rows(), "language.L1", 2, chunk_rows=16)
        alone[name] = train(one, source)
        passes.append(source.chunks_made)
    source = Counted(rows(), "language.L1", 2, chunk_rows=16)
    heard: list[Record | Notice] = []
    found = train_settings(CONFIGS, source, listener=heard.append)
    assert source.chunks_made == max(passes)
    assert list(found) == list(CONFIGS)
    for name, coder in found.items():
        assert same(coder, alone[name]), name
        assert coder.about["site"] == "language.L1"
        assert (coder.about["heads"], coder.about["head_width"]) == (2, 3)
        assert coder.about["config"] == CONFIGS[name].record()
    steps = {name: [r.step for r in heard if isinstance(r, Record) and r.site == name]
             for name in CONFIGS}  # fmt: skip
    assert steps == {"few": [*range(1, 41)], "more": [*range(1, 41)], "l1": [*range(1, 21)]}


def test_settings_at_several_sites() -> None:
    data = {"language.L0": rows(), "vision.L1": rows(5, 1)}
    configs = {"a": config(k=1), "b": config(), "c": config(k=3)}
    sites = {"a": "language.L0", "b": "vision.L1", "c": "language.L0"}
    found = train_settings(configs, TensorActivations(data, seed=None), sites=sites)
    for name, site in sites.items():
        alone = train(configs[name], TensorActivations(data[site], site, seed=None))
        assert same(found[name], alone)


def test_killed_between_and_taken_up_again(tmp_path: Path) -> None:
    whole = train_settings(CONFIGS, rows(), out=tmp_path / "whole")
    source = TensorActivations(rows())

    def stop(news: Record | Notice) -> None:
        if isinstance(news, Record) and news.site == "more" and news.step == 23:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train_settings(CONFIGS, source, out=tmp_path / "cut", listener=stop)
    told: list[Record | Notice] = []
    again = train_settings(
        CONFIGS, TensorActivations(rows()), out=tmp_path / "cut", resume=True, listener=told.append
    )
    assert isinstance(told[0], Notice) and "checkpoint of step" in told[0].text
    curves = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(tmp_path / n)]
        for n in ("whole", "cut")
    ]
    assert curves[0] == curves[1]
    assert all(same(whole[name], again[name]) for name in CONFIGS)
    plan = json.loads((tmp_path / "cut" / "plan.json").read_text())
    assert plan["settings"]["l1"] == {"site": "input", "config": CONFIGS["l1"].record()}
    assert sorted(p.parent.name for p in (tmp_path / "cut").glob("*/coder.json")) == [
        "few",
        "l1",
        "more",
    ]
    # Read again without training; other settings are named.
    read = train_settings(CONFIGS, rows(), out=tmp_path / "cut", resume=True)
    assert all(same(whole[name], read[name]) for name in CONFIGS)
    quiet = {name: config(**{**one.record(), "log_every": 7}) for name, one in CONFIGS.items()}
    train_settings(quiet, rows(), out=tmp_path / "cut", resume=True)
    other = {**CONFIGS, "few": config(k=2)}
    with pytest.raises(RunError, match=r"settings.few.config.k was 1, now 2"):
        train_settings(other, rows(), out=tmp_path / "cut", resume=True)


def test_what_cannot_be_trained_together_is_refused() -> None:
    source = TensorActivations({"a": rows(), "b": rows()})
    with pytest.raises(ValueError, match="at least one setting to train"):
        train_settings({}, source)
    for field, value in {"batch_size": 8, "seed": 1, "buffer_rows": 80}.items():
        both = {"x": config(), "y": config(**{field: value})}
        with pytest.raises(ValueError, match=rf"`{field}` must be the same .* {value} in 'y'"):
            train_settings(both, rows())
    with pytest.raises(ValueError, match="which of a, b each setting is trained at"):
        Jobs.of_settings({"x": config(), "y": config()}, source)
    with pytest.raises(ValueError, match="leave none out"):
        Jobs.of_settings({"x": config()}, source, {"x": "a"})
    with pytest.raises(ValueError, match="At y: `k` must be between 1 and the width"):
        train_settings({"x": config(), "y": config(k=7)}, rows())
