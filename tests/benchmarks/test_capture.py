"""The benchmark's scripts run, and their page says what was measured; nothing here is a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_the_script_measures_a_toy_and_writes_the_page(bench: Any, tmp_path: Path) -> None:
    asked = "--toy --parts capture --lengths 37 --contenders plain --quantities memory --threads 1"
    assert bench("capture").main([*asked.split(), "--out", str(tmp_path)]) == 0
    (figure,) = json.loads((tmp_path / "results" / "cpu.json").read_text())["figures"]
    assert (figure["contender"], figure["length"], len(figure["peaks"])) == ("plain", 37, 3)
    assert all(run["peak"] >= run["rest"] > 0 for run in figure["peaks"])
    page = (tmp_path / "README.md").read_text()
    assert "### 37 tokens, 1 thread, float32" in page
    assert "the plain forward pass again" in page and "Peers:" not in page


@pytest.mark.parametrize("contender", ["plain", "z", "z_passing", "pattern", "core", "all"])
def test_contenders_run_on_a_toy(bench: Any, contender: str) -> None:
    figure = bench("figure")
    measured = figure.measure(figure.Figure(contender, "time", 37, 1, 3, toy=True))
    assert len(measured["turns"]) == 3
    assert all(min(turn.values()) >= 0 and turn["seconds"] > 0 for turn in measured["turns"])


def test_peers_are_planned_only_with_their_interpreter(bench: Any) -> None:
    capture = bench("capture")
    alone = capture.figures(capture.arguments([]))
    assert not any(figure.peers for figure in alone)
    both = capture.figures(capture.arguments(["--peers-python", "python"]))
    assert {f.contender for f in both if f.peers} == {
        "plain",
        "eager",
        "transformer_lens",
        "nnsight",
    }
    assert {f.threads for f in both if f.contender == "all" and f.quantity == "time"} == {1, 2}


def test_a_ratio_is_taken_within_each_turn(bench: Any) -> None:
    measuring = bench("measuring")
    turns = [
        {"plain": 1.0, "seconds": 1.5, "plain_cpu": 2.0, "seconds_cpu": 2.5},
        {"plain": 4.0, "seconds": 4.0, "plain_cpu": 1.0, "seconds_cpu": 4.0},
    ]
    assert measuring.ratios(turns) == [1.5, 1.0]
    assert measuring.ratios(turns, "_cpu") == [1.25, 4.0]
    assert measuring.quartiles([3.0, 1.0, 2.0, 5.0, 4.0]) == (2.0, 3.0, 4.0)
    assert measuring.quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_turns_alternate_after_one_run_of_each(bench: Any) -> None:
    ran: list[str] = []
    watch = bench("measuring").Stopwatch()
    turns = watch.side_by_side(lambda: ran.append("plain"), lambda: ran.append("other"), 3)
    assert ran == ["plain", "other", "plain", "other", "other", "plain", "plain", "other"]
    assert len(turns) == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_peak_is_seen_after_it_is_gone(bench: Any) -> None:
    size = 64 << 20

    def run() -> None:
        bytearray(b"\1") * size

    measuring = bench("measuring")
    (first,) = measuring.peak_memory(run, repeats=1)
    assert 60 < first["peak"] - first["rest"] < 90
    (second,) = measuring.peak_memory(lambda: None, repeats=1)
    assert second["peak"] - second["rest"] < 20


def test_text_repeats_itself_and_is_the_same_every_time(bench: Any) -> None:
    small = bench("gpt2_small")
    ids = small.like_text(512, 211)
    assert ids.shape == (1, 512) and bool((ids == small.like_text(512, 211)).all())
    assert int(ids.max()) < 211
    row = ids[0].tolist()
    stretches = [tuple(row[i : i + 32]) for i in range(len(row) - 31)]
    assert len(set(stretches)) < len(stretches)


def test_what_failed_is_said_on_the_page_and_by_the_exit_code(bench: Any) -> None:
    failed = {"contender": "nnsight", "quantity": "time", "length": 5, "threads": 2}
    failed |= {"dtype": "float32", "peers": True, "failed": "ModuleNotFoundError: nnsight"}
    assert bench("capture").failures({"figures": [failed]}) == ["ModuleNotFoundError: nnsight"]
    machine = {"date": "2026-01-02", "system": "Linux", "processor": "x", "cores": 2}
    machine |= {"memory": 8, "load": 0.1, "python": "3.11", "versions": {}, "peers": {}}
    page = bench("report").page_of([{"machine": machine, "figures": [failed]}])
    assert "| nnsight, z only | not run: ModuleNotFoundError: nnsight |" in page
