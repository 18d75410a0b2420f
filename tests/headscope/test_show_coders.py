"""`headscope show` of what `headscope sae` wrote."""

import json

import pytest
import torch

from analysis.journal import RunLock
from analysis.run_files import LOCK
from headscope.cli import main
from sae.activations import TensorActivations, store_activations
from sae.coders.topk import TopK
from sae.exchange.headscope_folder import save_coder
from sae.judging.sweep import sweep
from sae.training import Record, TrainConfig, train_sites
from sae.training.checkpoint import CHECKPOINT

CONFIG = TrainConfig(
    latents=13, k=2, tokens=1_100, batch_size=50, buffer_rows=100, log_every=4, checkpoint_every=5
)


def rows():
    drawn = torch.randn(301, 7, generator=torch.Generator().manual_seed(3))
    return TensorActivations(drawn, "language.L0", chunk_rows=43)


@pytest.fixture
def left(tmp_path):
    """A training that Ctrl-C ended at step 12 of 22."""

    def hear(told):
        if isinstance(told, Record) and told.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sites(CONFIG, rows(), out=tmp_path / "run", listener=hear)
    return tmp_path / "run"


def shown(capsys, *arguments):
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_training_that_runs_and_one_that_was_left(left, capsys):
    with RunLock(left / CHECKPOINT / LOCK):
        running = shown(capsys, left)
    assert "Training of 1 coder (topk, 13 latents, k 2) on a model that is not named" in running
    assert "(being trained: 12 steps are safe)" in running
    (row,) = (line for line in running.splitlines() if line.startswith(" language.L0"))
    assert "12 of 22" in row and " 600 " in row and row.rstrip().endswith(" s")  # time left
    waiting = shown(capsys, left)
    assert "(unfinished: 12 steps are safe, go on with --resume)" in waiting
    assert "Judge it" not in waiting
    (row,) = (line for line in waiting.splitlines() if line.startswith(" language.L0"))
    assert not row.rstrip().endswith(" s")  # nobody works on it
    found = json.loads(shown(capsys, left, "--json"))
    assert found["state"] == "unfinished" and found["safe_steps"] == 12
    assert found["coders"]["language.L0"]["last"]["tokens"] == 600


def test_a_finished_training_its_coder_and_a_bundled_one(left, capsys):
    train_sites(CONFIG, rows(), out=left, resume=True)
    out = shown(capsys, left)
    assert "(finished)" in out and f"Judge it: headscope sae evaluate {left}" in out
    out = shown(capsys, left / "language.L0")
    assert out.startswith("topk coder of language.L0: 13 latents, width 7 (1 head), k 2\n")
    assert "made   of 1,100 tokens, 50 a step, seed 0" in out
    from probes.bundled import bundled_coders

    out = shown(capsys, bundled_coders()["repeat-lm"].path)
    assert "model  repeat-lm in float32\n" in out and "8,000 examples to learn from" in out
    assert json.loads(shown(capsys, left / "language.L0", "--json"))["latents"] == 13


def test_a_coder_that_does_not_say_where_it_is_from(tmp_path, capsys):
    save_coder(TopK(4, 6, k=2), tmp_path)
    out = shown(capsys, tmp_path)
    assert out.startswith("topk coder of a site that it does not name: 6 latents, width 4, k 2\n")
    assert "data   not known\n" in out
    assert out.endswith(f"Judge it: headscope sae evaluate {tmp_path} MODEL --site SITE\n")


def test_a_sweep_and_a_store(tmp_path, capsys):
    configs = {"k=2": CONFIG, "k=3": TrainConfig(**{**CONFIG.record(), "k": 3})}
    sweep(configs, rows(), rows(), out=tmp_path / "sweep")
    out = shown(capsys, tmp_path / "sweep")
    assert "Training of 2 coders on" in out and "\n * k=3 " in out and "PCA of k=2" in out
    found = json.loads(shown(capsys, tmp_path / "sweep", "--json"))
    assert len(found["lines"]) == 8 and found["training"]["state"] == "finished"
    (tmp_path / "sweep" / "pareto.json").unlink()
    assert "Not judged yet." in shown(capsys, tmp_path / "sweep")
    store_activations(rows(), tmp_path / "store")
    out = shown(capsys, tmp_path / "store")
    assert "(finished: 1 shard, 0 MB)" in out and "language.L0  301 positions, width 7" in out
    assert json.loads(shown(capsys, tmp_path / "store", "--json"))["rows"] == {"language.L0": 301}


def test_what_cannot_be_shown_is_one_sentence(tmp_path, left, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text('{"schema": 1}')
    (left / "plan.json").write_text("{")
    for folder, sentence in {
        tmp_path / "begun": "is just being begun",
        tmp_path / "nowhere": "does not exist",
        left: "plan.json cannot be read",
    }.items():
        assert main(["show", str(folder)]) == 1
        said = capsys.readouterr()
        assert sentence in said.err and len(said.err.splitlines()) == 1 and not said.out
