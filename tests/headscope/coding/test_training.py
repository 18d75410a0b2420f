"""Training from a model and data: settings in words, stores, sweeps."""

import pytest
import torch

from headscope.coding.examples import read_parts, rows_of
from headscope.coding.opened import open_coders
from headscope.coding.training import (
    amount,
    latents,
    settings,
    stored,
    sweep_coders,
    swept,
    train_coders,
)
from headscope.plan import AskedWrongly
from sae.activations.store_files import StoreError
from sae.training import TrainConfig, train_sites

SMALL = TrainConfig(latents=67, k=3, tokens=1_500, batch_size=250, buffer_rows=500, log_every=2)


def same(first, second):
    mine, other = first.state_dict(), second.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)


def test_it_is_the_librarys_training_on_the_part_that_is_not_held_out(subject):
    parts = read_parts(subject, "repeats", limit=30)
    rows = rows_of(subject, parts.train, ["language.*"], facts=parts.facts)
    wanted = train_sites(SMALL, rows)
    found = train_coders(subject, "repeats", sites=["language.*"], config=SMALL, limit=30)
    assert list(found) == ["language.L0", "language.L1"]
    assert all(same(found[site], wanted[site]) for site in wanted)
    data = found["language.L1"].about["provenance"]["data"]
    assert (data["name"], data["held_out"], data["examples"]) == ("repeats", 0.1, len(parts.train))


def test_a_store_is_made_once_and_must_fit(subject, tmp_path):
    parts = read_parts(subject, "repeats", limit=20)
    rows = rows_of(subject, parts.train, "language.L1", facts=parts.facts)
    folder = tmp_path / "store"
    first = stored(rows, folder)
    made = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    again = stored(rows, folder)
    assert made == {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert first.rows == again.rows and stored(rows, None) is rows
    others = rows_of(subject, parts.train[:-1], "language.L1", facts=parts.facts)
    with pytest.raises(StoreError):
        stored(others, folder)
    found = train_coders(
        subject, "repeats", sites="language.L1", config=SMALL, limit=20, store=folder
    )
    assert same(found["language.L1"], train_sites(SMALL, again)["language.L1"])


def test_a_sweep_is_judged_on_what_was_held_out(subject, tmp_path):
    found = sweep_coders(
        subject,
        "repeats",
        site="language.L1",
        configs=swept(SMALL, "k=2,5"),
        held_out=0.2,
        limit=30,
        out=tmp_path / "sweep",
    )
    trained = found.table[found.table["kind"] == "trained"]
    assert trained["name"].tolist() == ["k=2", "k=5"]
    assert trained["l0"].tolist() == [2.0, 5.0]
    held = read_parts(subject, "repeats", held_out=0.2, limit=30).held_out
    assert set(found.table["cross_entropy_examples"]) == {len(held)}
    assert set(found.table["kind"]) == {"trained", "random", "pca", "untrained"}
    coders = open_coders(tmp_path / "sweep")
    assert list(coders) == ["k=2", "k=5"]
    assert same(coders["k=5"], found.coders["k=5"])


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"site": ["language.*"]}, "A sweep must have one site, got language.L0, language.L1"),
        ({"site": "language.L1", "held_out": 0}, "must hold out some examples"),
    ],
)
def test_a_sweep_that_makes_no_sense(subject, how, sentence):
    with pytest.raises(AskedWrongly, match=sentence):
        sweep_coders(subject, "repeats", configs=swept(SMALL, "k=2,3"), limit=20, **how)


def test_settings_that_make_no_sense(subject):
    with pytest.raises(AskedWrongly, match="`k` must be between 1 and the width of the site, 128"):
        how = TrainConfig(latents="2x", k=129)
        train_coders(subject, "repeats", sites="language.L1", config=how, limit=20)
    with pytest.raises(AskedWrongly, match="`k` must be at most the number of latents, 64, got 65"):
        how = TrainConfig(latents="0.5x", k=65)
        train_coders(subject, "repeats", sites="language.L1", config=how, limit=20)
    with pytest.raises(AskedWrongly, match="`coder` must be one of"):
        settings(coder="bottle")
    assert settings(coder="topk", sparsity=None) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "value"), [("5M", 5_000_000), ("1.5k", 1500), ("4_096", 4096), (" 2G ", 2 * 10**9)]
)
def test_amounts(text, value):
    assert amount(text) == value


@pytest.mark.parametrize("text", ["", "M", "5x", "-3", "0.3", "1.2345k", "5 M M"])
def test_no_amounts(text):
    with pytest.raises(AskedWrongly, match="^An amount must be written like 5M"):
        amount(text)


def test_sweeps_in_words():
    found = swept(SMALL, "latents = 2x, 300")
    assert {name: how.latents for name, how in found.items()} == {
        "latents=2x": "2x",
        "latents=300": 300,
    }
    assert all(how.k == SMALL.k for how in found.values())
    assert swept(SMALL, "sparsity=0.5")["sparsity=0.5"].sparsity == 0.5
    assert latents("16x") == "16x"
    for text in ("k", "k=", "seed=1,2", "k=a", "k=0"):
        with pytest.raises(AskedWrongly, match="`--sweep"):
            swept(SMALL, text)
