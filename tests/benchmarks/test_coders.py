"""The benchmark of trainings: rounds across processes, and what the page says of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

MACHINE = {"date": "2026-01-02", "system": "Linux", "processor": "x", "cores": 2, "memory": 8}
MACHINE |= {"load": 0.1, "python": "3.11", "versions": {}, "peers": {}}
SETTINGS = {"width": 768, "latents": 16_384, "batch": 1000, "k": 32, "threads": 2}
SETTINGS |= {"warm_up": 0.1, "dead_after": 5, "tokens": 9}


def turn(ours: float, sparsify: float, saelens: float) -> dict[str, dict[str, float]]:
    seconds = {"ours": ours, "sparsify, Adam": sparsify, "SAELens": saelens}
    return {name: {"seconds": taken, "cpu": taken} for name, taken in seconds.items()}


def page_of(bench: Any, *entries: dict[str, Any], **more: Any) -> str:
    result = {"page": "coders", "machine": MACHINE, "settings": SETTINGS, "missing": {}}
    return bench("report").page_of([result | {"entries": list(entries)} | more])


def test_speed_is_set_against_the_fastest_way_of_each_peer(bench: Any) -> None:
    taken = [turn(1.0, 1.5, 3.0), turn(2.0, 2.0, 5.0), turn(1.0, 1.25, 4.0)]
    for each, signum in zip(taken, (0.5, 1.5, 0.75), strict=True):
        each["sparsify, signum"] = {"seconds": signum, "cpu": signum}
    entry = {"part": "speed", "dead": 0.1, "steps": 4, "taken": taken, "failures": {}}
    page = page_of(bench, entry)
    assert "### Tokens per second, 10% of the latents dead" in page
    assert "| ours | 4000 (3000 to 4000) | 1.00 (1.00 to 1.00) |" in page
    assert "| sparsify, Adam | 2667 (2333 to 2933) | 1.25 (1.12 to 1.38) |" in page
    assert "1x sparsify, its fastest: 0.75x, missed; 3.5x SAELens, its fastest: 3.00x, mis" in page


def test_peers_that_could_not_run_are_named(bench: Any) -> None:
    entry = {"part": "speed", "dead": 0.0, "steps": 4, "taken": [], "failures": {"SAELens": "no"}}
    page = page_of(bench, entry, missing={"sparsify": "no environment"})
    assert "sparsify: not run, no environment." in page and "| SAELens | not run: no |  |" in page


@pytest.mark.parametrize(("ours", "verdict"), [(0.90, "met"), (0.89, "missed")])
def test_fidelity_is_compared_at_the_best_rate_of_each(
    bench: Any, ours: float, verdict: str
) -> None:
    values = {
        ("ours", 0.01): 0.7,
        ("ours", 0.001): ours,
        ("sparsify, Adam", 0.001): 0.6,
        ("sparsify, Adam", 0.01): 0.8964,
        ("SAELens", 0.001): 0.7,
    }
    entries = [
        {"part": "fidelity", "contender": name, "rate": rate, "explained_variance": value}
        | {"dead": 1234, "tokens": 1_000_000, "seconds": 61.2}
        for (name, rate), value in values.items()
    ]
    failed = {"part": "fidelity", "contender": "SAELens", "rate": 0.01, "failed": "no memory"}
    page = page_of(bench, *entries, failed)
    assert f"Reach: at most 0.5 points below the best, {verdict}." in page
    best = f"ours {100 * ours:.2f}; sparsify, Adam 89.64; SAELens 70.00"
    assert f"Each at its own best of these rates: {best}." in page
    assert "| SAELens | 0.001 | 70.00 | 1,234 |\n" in page
    assert "| SAELens | 0.01 | not run: no memory |  |" in page
    assert "after 1,000,000 tokens" in page and "dead after 5 rows" in page


def test_sites_and_memory(bench: Any) -> None:
    turns = [{"plain": 0.9, "one": 1.0, "six": 1.2}, {"plain": 0.9, "one": 1.0, "six": 1.4}]
    sites = {"part": "sites", "tokens": 4096, "turns": turns}
    memory = [
        {"part": "memory", "buffers": 4, "tokens": 5000, "peak": 300.0, "rest": 100.0},
        {"part": "memory", "buffers": 16, "failed": "MemoryError"},
    ]
    page = page_of(bench, sites, *memory)
    assert "| six sites | 1.30 (1.25 to 1.35) | 1.30 (1.25 to 1.35) |" in page
    assert "at most 1.25x, missed" in page
    assert "| 5,000 tokens | 300 | 200 |" in page
    assert "| 16 buffers | not run: MemoryError |  |" in page


def test_the_gate_opens_for_as_many_steps_as_were_asked_for(bench: Any) -> None:
    module = bench("coder_gate")
    told = io.StringIO()
    gate = module.Gate(io.StringIO("2\n3\n"), told)
    steps = 0
    with pytest.raises(module.Over):
        while True:
            gate.wait()
            steps += 1
    assert steps == 5
    said = [json.loads(line) for line in told.getvalue().splitlines()]
    assert [set(line) for line in said] == [{"ready"}, {"seconds", "cpu"}, {"seconds", "cpu"}]


def test_rows_have_the_norm_that_no_contender_needs_to_scale(bench: Any, tmp_path: Path) -> None:
    data = bench("coder_data")
    data.write_rows(tmp_path / "rows", width=24, rows=2000, held_out=100)
    rows, held_out = (data.read_rows(tmp_path / "rows", name) for name in ("rows", "held_out"))
    assert rows.shape == (2000, 24) and held_out.shape == (100, 24)
    assert rows.norm(dim=1).mean().item() == pytest.approx(24**0.5, rel=0.1)
    assert data.explained_variance(rows, rows) == 1.0
    assert data.explained_variance(rows, rows.mean(0).expand_as(rows)) == pytest.approx(0, abs=1e-6)
    assert data.explained_variance(rows, torch.zeros_like(rows)) < 0


def test_rounds_of_a_contender_and_of_one_that_cannot_begin(bench: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    bench("coder_data").write_rows(file, width=24, rows=256, held_out=8)
    settings = {"contender": "ours", "variant": "", "file": str(file), "latents": 96, "batch": 64}
    settings |= {"k": 4, "learning_rate": 1e-3, "warm_up": 0.1, "dead": 0.1, "threads": 1}
    children = {
        "ours": (settings, sys.executable),
        "other": (settings | {"contender": "nobody"}, sys.executable),
    }
    taken, failed = bench("coder_rounds").rounds(children, turns=2, steps=3)
    assert [set(each) for each in taken] == [{"ours"}] * 2
    assert all(each["ours"]["seconds"] > 0 for each in taken)
    assert failed == {"other": "ModuleNotFoundError: No module named 'coder_nobody'"}


def test_a_failure_is_written_down(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    script = bench("coders")
    monkeypatch.setattr(script, "run_child", lambda *_, **__: {"failed": "MemoryError"})
    asked = ["--out", str(tmp_path), "--toy", "--parts", "memory", "sites"]
    assert script.main(asked) == 1
    found = json.loads((tmp_path / "results" / "coders-cpu.json").read_text())
    assert [entry["failed"] for entry in found["entries"]] == ["MemoryError"] * 3
    assert "not run: MemoryError" in (tmp_path / "README.md").read_text()


def test_without_environments_only_ours_is_trained(bench: Any, tmp_path: Path) -> None:
    script = bench("coders")
    asked = ["--out", str(tmp_path), "--toy", "--parts", "fidelity", "--threads", "1"]
    asked += ["--rates", "0.001"]
    assert script.main(asked) == 0
    found = json.loads((tmp_path / "results" / "coders-cpu.json").read_text())
    (entry,) = found["entries"]
    assert (
        entry["contender"] == "ours"
        and entry["rate"] == 0.001
        and 0 < entry["explained_variance"] < 1
    )
    assert set(found["missing"]) == {"sparsify", "saelens"}


def test_parts_that_stay_keep_the_versions_of_their_peers(
    bench: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    script = bench("coders")
    monkeypatch.setattr(script, "run_child", lambda *_, **__: {"failed": "MemoryError"})
    file = tmp_path / "results" / "coders-cpu.json"
    script.main(["--out", str(tmp_path), "--toy", "--parts", "memory"])
    found = json.loads(file.read_text())
    found["machine"]["peers"] = {"sae-lens": "6.54.12"}
    file.write_text(json.dumps(found))
    script.main(["--out", str(tmp_path), "--toy", "--parts", "sites"])
    found = json.loads(file.read_text())
    assert found["machine"]["peers"] == {"sae-lens": "6.54.12"}
    assert [entry["part"] for entry in found["entries"]] == ["memory", "memory", "sites"]
