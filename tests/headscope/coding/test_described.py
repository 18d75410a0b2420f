"""Folders of `headscope sae` told apart and read, finished, left and running."""

import json

import pytest
import torch

from analysis.journal import RunLock
from analysis.run_files import LOCK, RunError
from headscope.coding.described import described, training_state, what_is
from sae.activations import TensorActivations, store_activations
from sae.coders.topk import TopK
from sae.exchange.headscope_folder import save_coder
from sae.exchange.saelens import write_saelens
from sae.judging.sweep import sweep
from sae.training import Record, TrainConfig, train_sites
from sae.training.checkpoint import CHECKPOINT

CONFIG = TrainConfig(
    latents=13, k=2, tokens=1_100, batch_size=50, buffer_rows=100, log_every=4, checkpoint_every=5
)


def rows(sites=("language.L0", "vision.L1")):
    generator = torch.Generator().manual_seed(3)
    drawn = {site: torch.randn(301, 7, generator=generator) for site in sites}
    return TensorActivations(drawn, chunk_rows=43)


def left_at(step, folder):
    """A training that Ctrl-C ended at a step of its first site."""

    def hear(told):
        if isinstance(told, Record) and told.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sites(CONFIG, rows(), out=folder, listener=hear)


def test_a_training_that_was_left_is_running_while_it_is_locked(tmp_path):
    left_at(12, tmp_path / "run")
    found = described(tmp_path / "run")
    assert what_is(tmp_path / "run") == "training" and found.state == "unfinished"
    assert found.sites == {"language.L0": "language.L0", "vision.L1": "vision.L1"}
    assert {name: one["k"] for name, one in found.configs.items()} == dict.fromkeys(found.sites, 2)
    # Both sites took 12 steps; logged are the first and each fourth, and 24 were made safe.
    assert found.first["language.L0"].step == 1 and found.last["language.L0"].step == 12
    assert found.last["language.L0"].steps == 22 and found.last["language.L0"].tokens == 600
    assert found.safe == max(int(p.name) for p in (tmp_path / "run/checkpoint").glob("0*")) > 20
    with RunLock(tmp_path / "run" / CHECKPOINT / LOCK):
        assert training_state(tmp_path / "run").state == "running"
    assert training_state(tmp_path / "run").state == "unfinished"


def test_before_the_first_step_nothing_is_told_of_progress(tmp_path):
    left_at(1, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    found = training_state(tmp_path / "run")
    assert not found.first and not found.last and found.state == "unfinished"


def test_a_line_that_is_just_being_written_is_left_out_and_a_damaged_one_refused(tmp_path):
    left_at(12, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole + whole.splitlines()[0][:40])
    assert training_state(tmp_path / "run").last["language.L0"].step == 12
    metrics.write_text("{}\n")
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be read"):
        training_state(tmp_path / "run")


def test_a_finished_training_says_what_was_changed_since(tmp_path):
    train_sites(CONFIG, rows(), out=tmp_path)
    found = training_state(tmp_path)
    assert (found.state, found.altered, found.safe) == ("finished", (), 0)
    about = tmp_path / "vision.L1" / "coder.json"
    about.write_text(about.read_text() + "\n")
    assert training_state(tmp_path).altered == ("vision.L1/coder.json",)


def test_a_sweep_before_and_after_it_was_judged(tmp_path):
    source, judged = rows(("language.L0",)), rows(("language.L0",))
    configs = {"k=2": CONFIG, "k=3": TrainConfig(**{**CONFIG.record(), "k": 3})}
    made = sweep(configs, source, judged, out=tmp_path)
    found = described(tmp_path)
    assert what_is(tmp_path) == "sweep"
    assert found.training.sites == {"k=2": "language.L0", "k=3": "language.L0"}
    assert found.judged.table["name"].tolist() == made.table["name"].tolist()
    (tmp_path / "pareto.json").unlink()
    assert described(tmp_path).judged is None


def test_a_store_finished_and_not(tmp_path):
    store_activations(rows(), tmp_path, shard_rows=100)
    found = described(tmp_path)
    assert what_is(tmp_path) == "store"
    assert (found.finished, dict(found.rows)) == (True, {"language.L0": 301, "vision.L1": 301})
    assert found.shards == len(list(tmp_path.glob("shards/*.safetensors"))) == 3
    (tmp_path / "index.json").unlink()
    (tmp_path / "shards" / "shard-000002.safetensors").unlink()
    assert (described(tmp_path).finished, described(tmp_path).shards) == (False, 2)
    assert described(tmp_path).rows["vision.L1"] < 301


def test_coders_of_two_tools_and_what_is_none(tmp_path):
    coder = TopK(4, 6, k=2)
    save_coder(coder, tmp_path / "ours")
    write_saelens(coder, tmp_path / "theirs")
    for name, format_ in {"ours": "headscope", "theirs": "saelens"}.items():
        found = described(tmp_path / name)
        assert (found.format, found.coder.latents) == (format_, 6)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"schema": 1, "model": {}}))
    for other in (tmp_path, tmp_path / "run", tmp_path / "nowhere", tmp_path / "ours/coder.json"):
        assert what_is(other) is None
