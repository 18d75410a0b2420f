"""Two processes on the CPU against one with all their rows."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import distributed_child
import pytest
import torch
from torch import Tensor

from analysis.run_files import RunError
from sae.activations import StoredActivations, store_activations
from sae.coders.coder import Coder
from sae.training import read_metrics, train_sites
from sae.training.distributed import Processes, own_device
from sae.training.feed import Feed
from sae.training.interrupts import Interrupts
from sae.training.site_trainer import SiteTrainer

children = multiprocessing.get_context("forkserver")
ROOT = Path(distributed_child.__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _server():
    """Children are forked from a process that has loaded torch once."""
    children.set_forkserver_preload(["distributed_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        forkserver.ensure_running()
        yield


def _run(target: Any, *arguments: Any) -> list[int | None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        children.Process(target=target, args=(rank, 2, port, *arguments)) for rank in range(2)
    ]
    for child in started:
        child.start()
    for child in started:
        child.join(120)
    return [child.exitcode for child in started]


def _trained(tmp_path: Path, **settings: Any) -> list[dict[str, Tensor]]:
    tmp_path.mkdir(exist_ok=True)
    out, to = str(tmp_path / "out"), str(tmp_path / "coders")
    assert _run(distributed_child.run, settings, out, to) == [0, 0]
    return [torch.load(f"{to}-{rank}", weights_only=True) for rank in range(2)]


def _by_one_process(**settings: Any) -> tuple[dict[str, Coder], dict[str, list[Any]]]:
    """Each step with the rows that the two processes have at that step."""
    halves = distributed_child.config(**settings)
    whole = distributed_child.config(**settings, batch_size=64, buffer_rows=180)
    source = distributed_child.source()
    feeds = [Feed(source, halves, Processes(rank, 2), Interrupts()) for rank in range(2)]
    trainers = {s: SiteTrainer(s, w, whole) for s, w in source.widths.items()}
    records: dict[str, list[Any]] = {site: [] for site in trainers}
    steps = 2 * halves.steps(2)
    for (site, x), (other, y) in islice(zip(*feeds, strict=True), steps):
        assert site == other
        trainer, both = trainers[site], torch.cat([x, y])
        if not trainer.taken:
            norms = [feed.norms for feed in feeds]
            total = sum(n._sums[site] for n in norms)
            trainer.begin(both, total / sum(n._counts[site] for n in norms))
        records[site].append(trainer.step(both))
    assert all(trainer.done for trainer in trainers.values())
    return {site: trainer.finished({}) for site, trainer in trainers.items()}, records


@pytest.mark.parametrize(
    "settings",
    [
        {"auxiliary": 0.0},
        {"coder": "standard", "dead_features": "none"},
        {"dead_features": "resample", "dead_after": 100, "decay": 0.0},
    ],
    ids=["topk", "standard", "resampling"],
)
def test_two_processes_train_what_one_with_all_their_rows_does(tmp_path, settings):
    first, second = _trained(tmp_path, **settings)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    coders, records = _by_one_process(**settings)
    for site, coder in coders.items():
        for name, value in coder.state_dict().items():
            torch.testing.assert_close(first[f"{site}/{name}"], value, atol=1e-5, rtol=1e-5)
    lines = read_metrics(tmp_path / "out")
    assert len(lines) == sum(len(found) for found in records.values()) == 32
    for site, found in records.items():
        for line, record in zip([one for one in lines if one["site"] == site], found, strict=True):
            assert line["tokens"] == record.tokens and line["dead"] == record.dead
            for name in ("loss", "l0", "explained_variance"):
                assert line[name] == pytest.approx(getattr(record, name), rel=1e-5)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jump_relu"])
def test_all_processes_hold_the_same_coder_whatever_the_kind(tmp_path, kind):
    first, second = _trained(tmp_path, coder=kind, dead_after=64)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_two_processes_that_were_ended_go_on_as_if_they_had_not(tmp_path):
    whole = _trained(tmp_path / "whole", dead_after=100)
    out, to = str(tmp_path / "out"), str(tmp_path / "coders")
    settings = {"dead_after": 100}
    assert _run(distributed_child.run, {**settings, "stop": 21}, out, to) == [9, 9]
    with pytest.raises(RunError, match=r"processes was 2, now 1"):
        config = distributed_child.config(**settings)
        train_sites(config, distributed_child.source(), out=out, resume=True)
    assert _run(distributed_child.run, {**settings, "resume": True}, out, to) == [0, 0]
    for rank, wanted in enumerate(whole):
        found = torch.load(f"{to}-{rank}", weights_only=True)
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    curves = [
        [{n: v for n, v in line.items() if n != "seconds"} for line in read_metrics(folder)]
        for folder in (tmp_path / "whole" / "out", out)
    ]
    assert curves[0] == curves[1]
    # A finished training is read by all processes.
    assert _run(distributed_child.run, {**settings, "resume": True}, out, to) == [0, 0]


def test_two_processes_make_one_store_and_train_from_it(tmp_path):
    """The second waits for the first, as long as that writes; a finished store is read by both."""
    folder, to = tmp_path / "store", tmp_path / "coders"
    for how in ("late", "again"):
        assert _run(distributed_child.store, how, str(folder), str(to)) == [0, 0]
        first, second = (torch.load(f"{to}-{rank}", weights_only=True) for rank in range(2))
        for site, weights in first.items():
            assert all(torch.equal(value, second[site][name]) for name, value in weights.items())
    alone = store_activations(distributed_child.source(), tmp_path / "alone", shard_rows=100)
    made = StoredActivations(folder)
    assert made.about == alone.about and made.shards == alone.shards > 2


@pytest.mark.parametrize(
    ("how", "sentences"),
    [
        (
            "broken",
            [
                "RowsNotFinite: Head outputs of language.L0 must be finite",
                "StoreError: The store in .* could not be made, the first process says why",
            ],
        ),
        (
            "few",
            ["StoreError: The store in .* must have a shard for each of 2 processe"] * 2,
        ),
    ],
)
def test_what_is_wrong_with_a_store_ends_all_processes(tmp_path, how, sentences):
    folder, to = str(tmp_path / "store"), str(tmp_path / "said")
    assert _run(distributed_child.store, how, folder, to) == [0, 0]
    for rank, sentence in enumerate(sentences):
        assert re.match(sentence, Path(f"{to}-{rank}").read_text(encoding="utf-8"))


def test_sums_means_and_rows_of_all_processes(tmp_path):
    to = str(tmp_path / "found")
    assert _run(distributed_child.sums, to) == [0, 0]
    for rank in range(2):
        found = torch.load(f"{to}-{rank}", weights_only=True)
        assert found["summed"].tolist() == [3.0, 30.0]
        assert found["kept"].tolist() == [1.0 * (rank + 1), 10.0 * (rank + 1)]
        assert found["counts"].tolist() == [1, 4]
        assert found["gathered"].tolist() == [[1.0, 10.0], [2.0, 20.0]]
        assert found["first"].tolist() == [1.5, 15.0]
        assert found["second"].tolist() == [[0.5] * 3] * 2
        assert found["totals"].tolist() == [1.0, 1.0]


def test_one_process_sums_nothing():
    alone, x = Processes(), torch.tensor([[1.0, 2.0]])
    alone.average([x])
    assert alone.summed(x) is x and alone.gathered(x) is x
    assert alone.totals([1.5]) == [1.5] and alone.writes


@pytest.mark.parametrize(
    ("given", "processes", "gpus", "own"),
    [
        (None, "4", True, "cuda:3"),
        ("cuda", "4", True, "cuda:3"),
        ("cuda:1", "4", True, "cuda:1"),
        ("cpu", "4", True, "cpu"),
        (None, "4", False, None),
        (None, "1", True, None),
    ],
)
def test_each_process_has_a_gpu_of_its_own(monkeypatch, given, processes, gpus, own):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("RANK", "11")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    assert own_device(given) == own
