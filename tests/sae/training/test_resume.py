"""A training that was ended anywhere and taken up again is the training that was not."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import training_child

from analysis.atomic_file import DiskFull
from analysis.run_files import RunError
from sae.activations import TensorActivations
from sae.training import Notice, Record, TrainConfig, read_metrics, train_sites

children = multiprocessing.get_context("forkserver")
ROOT = Path(training_child.__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Children are forked from a process that has loaded torch once."""
    children.set_forkserver_preload(["training_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        forkserver.ensure_running()
        yield


def _start(folder: Path, resume: bool = False, die: str = "") -> Any:
    child = children.Process(target=training_child.run, args=(str(folder), resume, die))
    child.start()
    return child


def _killed(folder: Path, die: str, resume: bool = False) -> None:
    child = _start(folder, resume, die)
    child.join(120)
    assert child.exitcode == -signal.SIGKILL


def _curve(folder: Path) -> list[dict[str, object]]:
    return [{n: v for n, v in line.items() if n != "seconds"} for line in read_metrics(folder)]


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/coder.safetensors")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    train_sites(training_child.CONFIG, training_child.source(), out=folder)
    curve, weights = _curve(folder), _weights(folder)
    assert len(curve) == 2 * training_child.STEPS
    assert sorted(weights) == ["language.L0", "vision.L1"]
    assert sum(line["dead"] for line in curve) > 0  # type: ignore[misc]
    return curve, weights


def _resumed(folder: Path, uninterrupted: tuple[object, object]) -> list[Record | Notice]:
    news: list[Record | Notice] = []
    train_sites(
        training_child.CONFIG,
        training_child.source(),
        out=folder,
        resume=True,
        listener=news.append,
    )
    curve, weights = uninterrupted
    assert _curve(folder) == curve
    assert _weights(folder) == weights
    return news


def test_killed_before_the_first_checkpoint(tmp_path, uninterrupted):
    _killed(tmp_path / "out", "4")
    assert len(_curve(tmp_path / "out")) > 0
    news = _resumed(tmp_path / "out", uninterrupted)
    assert isinstance(news[0], Record) and news[0].step == 1


def test_killed_between_checkpoints_and_again_after_that(tmp_path, uninterrupted):
    folder = tmp_path / "out"
    _killed(folder, "20")
    lines = len(_curve(folder))
    _killed(folder, "33", resume=True)
    assert len(_curve(folder)) > lines
    news = _resumed(folder, uninterrupted)
    assert isinstance(news[0], Notice) and "Goes on from the checkpoint of step" in news[0].text
    assert isinstance(news[1], Record) and 20 < news[1].step < 34


@pytest.mark.parametrize("where", ["tensors:3", "whole:3", "drop:4"])
def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, where):
    folder = tmp_path / "out"
    _killed(folder, where)
    news = _resumed(folder, uninterrupted)
    step = {"tensors:3": 28, "whole:3": 28, "drop:4": 56}[where]
    assert isinstance(news[0], Notice)
    assert news[0].text == f"Goes on from the checkpoint of step {step}."


def test_a_newest_checkpoint_that_is_damaged_is_passed_over_and_said(tmp_path, uninterrupted):
    folder = tmp_path / "out"
    _killed(folder, "30")
    newest = max((folder / "checkpoint").glob("*/shared.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    news = _resumed(folder, uninterrupted)
    assert isinstance(news[0], Notice)
    assert "Newer ones were passed over" in news[0].text and str(newest) in news[0].text


def test_ended_by_ctrl_c_it_goes_on_from_that_very_step(tmp_path, uninterrupted):
    folder = tmp_path / "out"
    child = _start(folder, die="ctrl-c:17")
    child.join(120)
    assert child.exitcode == 1
    logged = len(_curve(folder))
    assert 17 < logged < 2 * training_child.STEPS
    news = _resumed(folder, uninterrupted)
    assert isinstance(news[0], Notice)
    assert news[0].text == f"Goes on from the checkpoint of step {logged}."


def test_an_interrupt_by_a_listener_is_like_ctrl_c(tmp_path, uninterrupted):
    folder = tmp_path / "out"

    def hear(news):
        if isinstance(news, Record) and news.step == 26:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sites(training_child.CONFIG, training_child.source(), out=folder, listener=hear)
    logged = len(_curve(folder))
    news = _resumed(folder, uninterrupted)
    assert isinstance(news[0], Notice)
    assert news[0].text == f"Goes on from the checkpoint of step {logged}."


def test_ended_by_ctrl_c_while_rows_are_waited_for(tmp_path, uninterrupted):
    class Slow(TensorActivations):
        def chunks(self, epoch: int, start: int = 0, every: int = 1):
            for number, chunk in enumerate(super().chunks(epoch, start, every), start):
                if (epoch, number) == (1, 4):
                    os.kill(os.getpid(), signal.SIGINT)
                yield chunk

    whole = training_child.source()
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_sites(training_child.CONFIG, Slow(whole._tensors, chunk_rows=64), out=folder)
    logged = len(_curve(folder))
    assert 20 < logged < 2 * training_child.STEPS
    news = _resumed(folder, uninterrupted)
    assert isinstance(news[0], Notice)
    assert news[0].text == f"Goes on from the checkpoint of step {logged}."


def test_a_disk_that_is_full_in_the_end_costs_nothing(tmp_path, uninterrupted, monkeypatch):
    import sae.training.folder as module

    def full(path: Path, value: Any) -> None:
        if path.name == "manifest.json":
            raise DiskFull(f"No space is left on the disk for {path}.")
        write_json(path, value)

    write_json = module.write_json
    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(DiskFull):
        train_sites(training_child.CONFIG, training_child.source(), out=tmp_path / "out")
    monkeypatch.undo()
    news = _resumed(tmp_path / "out", uninterrupted)
    assert len(news) == 1


def test_killed_when_all_is_trained_and_nothing_said_so(tmp_path, uninterrupted):
    folder = tmp_path / "out"
    _killed(folder, "drop:9")
    assert not (folder / "manifest.json").exists()
    news = _resumed(folder, uninterrupted)
    assert [n.text for n in news if isinstance(n, Notice)] == [
        "Goes on from the checkpoint of step 120."
    ]
    assert len(news) == 1


def test_killed_between_the_manifest_and_the_end_it_is_finished(tmp_path, uninterrupted):
    folder = tmp_path / "out"
    _killed(folder, "end:1")
    assert (folder / "manifest.json").exists()
    assert len(list(folder.glob("checkpoint/*/whole.json"))) == 2
    news = _resumed(folder, uninterrupted)
    assert [n.text for n in news if isinstance(n, Notice)] == [
        f"{folder} holds this training, finished; its coders were read."
    ]
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["lock"]


def test_another_plan_is_refused_by_what_differs(tmp_path):
    folder = tmp_path / "out"
    _killed(folder, "20")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    before = {path: path.read_bytes() for path in files}
    config = TrainConfig(**{**training_child.CONFIG.record(), "k": 4, "learning_rate": 0.02})
    with pytest.raises(RunError, match=r"config\.k was 2, now 4; config\.learning_rate was 0.01"):
        train_sites(config, training_child.source(), out=folder, resume=True)
    other = training_child.source()
    other._tensors["vision.L1"][3, 2] += 1.0
    with pytest.raises(RunError, match=r"data\.data\.digest\.vision\.L1 was '.*', now '"):
        train_sites(training_child.CONFIG, other, out=folder, resume=True)
    with pytest.raises(RunError, match="holds an unfinished training. Say `resume`"):
        train_sites(training_child.CONFIG, training_child.source(), out=folder)
    assert {path: path.read_bytes() for path in before} == before


def test_how_often_is_logged_may_change(tmp_path):
    folder = tmp_path / "out"
    _killed(folder, "20")
    config = TrainConfig(**{**training_child.CONFIG.record(), "log_every": 50, "device": "cpu"})
    train_sites(config, training_child.source(), out=folder, resume=True)
    assert (folder / "manifest.json").exists()
