"""The benchmark of the atlas: what the page says of a map that was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = {"date": "2026-01-02", "system": "Linux", "processor": "x", "cores": 2, "memory": 8}
MACHINE |= {"load": 0.1, "python": "3.11", "versions": {}, "peers": {}}


def measured(**more: Any) -> dict[str, Any]:
    found = {
        "patterns": 1400,
        "side": 32,
        "threads": 2,
        "peak": 1536.0,
        "epochs": 7,
        "truth": 0.953,
    }
    found |= {"seconds": {"autoencoder": 200.0, "umap": 101.5, "stability": 44.0}, "same": True}
    found |= {"verdict": "7 clusters.", "reach": {"seconds": 300.0, "GiB": 3.0}}
    return {"page": "atlas", "machine": MACHINE, "settings": {}, "map": found | more}


def test_the_page_leaves_stability_out_of_the_sum(bench: Any) -> None:
    page = bench("report").page_of([measured()])
    assert "| together | 301.5 | 300 s, missed |" in page
    assert "| stability, apart | 44.0 |  |" in page
    assert "| peak of the process, GiB | 1.50 | 3 GiB, met |" in page
    assert "7 clusters. Against the truth: 0.953" in page and "twice: the same, to" in page
    other = bench("report").page_of([measured(same=False, seconds={"umap": 1.0})])
    assert "300 s, met" in other and "twice: not the same" in other and "apart |" not in other


def test_a_failure_is_written_down(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    script = bench("atlas")
    monkeypatch.setattr(script, "run_child", lambda *_, **__: {"failed": "MemoryError"})
    assert script.main(["--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "results" / "atlas-cpu.json").read_text())["page"] == "atlas"
    assert "not run: MemoryError" in (tmp_path / "README.md").read_text()


def test_a_small_map_is_measured_and_made_twice_the_same(bench: Any) -> None:
    found = bench("pattern_map").measure(patterns=140, side=16, threads=1)
    assert found["patterns"] == 140 and found["same"]
    assert found["truth"] > 0.1  # few and small; 0 is chance
    assert found["peak"] > found["rest"] > 0
    assert {"autoencoder", "umap", "clusters", "stability"} <= set(found["seconds"])
