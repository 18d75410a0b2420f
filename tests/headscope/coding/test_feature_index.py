"""`headscope sae features`: where it writes, what it tells, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import headscope as hs
from headscope.cli import main
from headscope.coding.feature_index import index_folder
from headscope.plan import AskedWrongly
from probes.bundled import bundled_coders
from sae import FeatureIndex, load_coder, save_coder

COMMAND = ["sae", "features"]
FEW = ["--data", "repeats", "--limit", "3", "--latents", "5"]


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_coder(load_coder("repeat-lm"), tmp_path_factory.mktemp("coders") / "mine")


def test_it_writes_beside_the_coder_and_the_coder_still_opens(coder: Path, capsys: Any) -> None:
    assert main([*COMMAND, str(coder), *FEW, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    index = FeatureIndex.open(coder / "features")
    assert told["out"] == str(coder / "features") and told["site"] == "language.L1"
    assert told["followed"] == 5 == int(index.features["followed"].sum())
    assert (index.about["model"], index.about["data"]) == ("repeat-lm", "repeats")
    assert index.about["examples"] == 3 and load_coder(coder).latents == 1024
    assert main([*COMMAND, str(coder), *FEW]) != 0
    assert "holds a finished index" in capsys.readouterr().err


def test_numbers_equal_those_of_read_feature(coder: Path, tmp_path: Path) -> None:
    subject = hs.load("repeat-lm")
    index = hs.index_features(coder, subject, "repeats", out=tmp_path / "index", limit=4)
    latent = int(index.features["firings"].argmax())
    reading = hs.read_feature(coder, latent, subject, "repeats", examples=3, limit=4)
    feature = index.feature(latent)
    assert (feature.firings, feature.rows) == (reading.firings, reading.rows)
    assert feature.largest == pytest.approx(reading.largest, rel=1e-5)
    assert feature.decoder_shares == pytest.approx(reading.decoder_shares, rel=1e-5)
    assert feature.firing_shares == pytest.approx(reading.firing_shares, rel=1e-4)
    assert [word for word, _ in feature.words] == [word for word, _ in reading.words]
    mine = [(one.example, one.position) for one in index.top(latent)[:3]]
    assert mine == [(view.firing.example, view.firing.position) for view in reading.views]


def test_it_becomes_a_section_of_a_finished_run(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    score = ["score", "repeat-lm", "--data", "repeats", "--limit", "2", "--measures", "entropy"]
    assert main([*score, "--out", str(run)]) == 0
    assert main([*COMMAND, "repeat-lm", *FEW, "--into", str(run)]) == 0
    capsys.readouterr()
    assert FeatureIndex.open(run / "features").about["followed"] == 5
    assert hs.open_run(run).sections["features"].finished
    assert main([*COMMAND, "repeat-lm", *FEW, "--into", str(run)]) != 0
    assert "Section 'features'" in capsys.readouterr().err


def test_what_is_refused(coder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main([*COMMAND, str(coder), "--latents", "0", "--out", str(tmp_path / "a")]) == 2
    assert "`--latents` must be at least 1" in capsys.readouterr().err
    both = ["--out", str(tmp_path / "a"), "--into", str(tmp_path / "b")]
    assert main([*COMMAND, str(coder), *both]) == 2
    assert "not both" in capsys.readouterr().err
    with pytest.raises(AskedWrongly, match="without a folder"):
        index_folder(load_coder("repeat-lm"), None, None, "")
    assert index_folder("repeat-lm", None, None, "") == Path("runs/repeat-lm-features")


@pytest.mark.parametrize("name", sorted(bundled_coders()))
def test_bundled_coders_have_their_features(name: str) -> None:
    folder = bundled_coders()[name].path / "features"
    index = FeatureIndex.open(folder)
    assert index.about["latents"] == load_coder(name).latents == len(index.features)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 1 << 20
    latent = int(index.features["firings"].argmax())
    assert index.top(latent) and index.about["model"] == name
