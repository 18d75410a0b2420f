"""The sinks page: planted sinks are told, the slider walks what was measured, odd runs are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.run_folder import open_run

App = Callable[..., Any]


@pytest.fixture(scope="session")
def sinks_run(run_of: Callable[[str], Path]) -> Path:
    """A run of the bundled model in which sinks were planted."""
    return run_of("shapes-llava-sinks")


def said(test: Any) -> str:
    return " ".join(one.value for one in [*test.text, *test.markdown]).replace("\\", "")


def titles(test: Any) -> list[str]:
    specs = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    return [spec["layout"]["title"]["text"] for spec in specs]


def trace(test: Any, title: str, name: str | None = None) -> dict[str, Any]:
    for chart in test.get("plotly_chart"):
        spec = json.loads(chart.proto.spec)
        if spec["layout"]["title"]["text"].startswith(title):
            return next(one for one in spec["data"] if name is None or one.get("name") == name)
    raise AssertionError(f"no figure {title}: {titles(test)}")


def test_the_planted_sinks_are_told(app: App, sinks_run: Path) -> None:
    test = app("sinks", sinks_run)
    assert "Sinks of language are massive in dimensions 41, 97 of 136." in said(test)
    table = test.dataframe[0].value
    assert table["sink"][:3].tolist() == [
        "<bos>, position 0", "patch row 0, column 5", "patch row 5, column 0",
    ]  # fmt: skip
    assert trace(test, "Massive dimensions")["x"] == ["41", "97"]
    tokens = open_run(sinks_run).sections["vision"].table("sink_tokens")
    largest = tokens.loc[tokens["tower"] == "language", "received"].max()
    drawn = trace(test, "Weight that sinks receive", "&lt;bos&gt;, position 0 (text)")
    assert drawn["legendgroup"] == drawn["name"]
    assert f"{largest:.2f}" in json.dumps([json.loads(c.proto.spec) for c in
                                           test.get("plotly_chart")])  # fmt: skip
    assert any(title == "Sinks on the picture" for title in titles(test))
    assert "&lt;bos&gt;" in trace(test, "Sinks in the text")["text"]


def test_the_slider_walks_the_measured_thresholds_on_one_scale(app: App, sinks_run: Path) -> None:
    heads = open_run(sinks_run).heads
    test = app("sinks", sinks_run, eps="0.5", measure="sink rate")
    slider = test.select_slider(key="eps")
    assert [float(one) for one in slider.options] == [0.1, 0.2, 0.3, 0.5]
    for epsilon in (0.5, 0.1):
        slider = test.select_slider(key="eps")
        test = slider.set_value(epsilon).run()
        assert not test.exception
        spec = next(json.loads(chart.proto.spec) for chart in test.get("plotly_chart"))
        assert spec["layout"]["title"]["text"].startswith(f"sink rate (any,eps={epsilon:g})")
        cells = spec["data"][0]
        assert (cells["zmin"], cells["zmax"]) == (0, 1)
        found = heads.grid("sink_rate", "language", f"any,eps={epsilon:g}")
        assert f"range {found.min():.0f} to" in spec["layout"]["title"]["subtitle"]["text"]


def test_the_vision_tower_has_artefacts_on_the_picture_alone(app: App, sinks_run: Path) -> None:
    test = app("sinks", sinks_run, tower="vision")
    assert "Sinks on the picture" in titles(test)
    assert "Sinks in the text" not in titles(test)


def test_a_run_without_the_study_says_what_to_run(app: App, lm_run: Path, tmp_path: Path) -> None:
    test = app("sinks", lm_run)
    assert "Which tokens are sinks was not looked for in this run." in said(test)
    assert test.code[0].value == ("headscope score repeat-lm --measures all,sinks --out runs/sinks")
    assert titles(test)[0].startswith("sink rate")
    shutil.copytree(lm_run, tmp_path / "none")
    heads = pd.read_parquet(tmp_path / "none" / "heads.parquet")
    few = heads[heads["measure"] == "entropy"]
    few.to_parquet(tmp_path / "none" / "heads.parquet")
    shutil.rmtree(tmp_path / "none" / "importance")
    test = app("sinks", tmp_path / "none")
    assert "No measure of sinks was taken in this run." in said(test)
    assert not titles(test)


def test_odd_runs_are_sentences(app: App, sinks_run: Path, tmp_path: Path) -> None:
    # A folder for each: what lies on the shelf is looked at anew after some seconds only.
    for name in ("bare", "cut", "half"):
        shutil.copytree(sinks_run, tmp_path / name)
    (tmp_path / "bare" / "examples" / "index.json").unlink()
    (tmp_path / "cut" / "vision" / "massive.parquet").write_bytes(b"no table")
    (tmp_path / "half" / "manifest.json").unlink()
    assert "keeps no example" in said(app("sinks", tmp_path / "bare"))
    assert "massive.parquet cannot be read" in said(app("sinks", tmp_path / "cut"))
    half = app("sinks", tmp_path / "half")
    assert "1 of 1 shards are done" in said(half)
    assert titles(half)[0].startswith("sink rate")


def test_tokens_from_data_are_text(app: App, sinks_run: Path, tmp_path: Path) -> None:
    shutil.copytree(sinks_run, tmp_path / "run")
    file = tmp_path / "run" / "vision" / "sink_tokens.parquet"
    tokens = pd.read_parquet(file)
    bos = tokens["token"] == "<bos>"
    tokens.loc[bos, "token"] = "<img src=x onerror=alert(1)>"
    tokens.to_parquet(file)
    test = app("sinks", tmp_path)
    for chart in test.get("plotly_chart"):
        assert "<img" not in chart.proto.spec
