"""The frame around pages: which runs there are, and what is said where one cannot be shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.run_folder import open_run
from dashboard.shelf import read_shelf

App = Callable[..., Any]


def said(test: Any) -> str:
    return " ".join(text.value for text in test.text)


def test_without_a_run_the_page_says_how_to_make_one(app: App, tmp_path: Path) -> None:
    test = app("overview", tmp_path)
    assert f"There is no run in {tmp_path}." in said(test)
    assert test.code[0].value.startswith("headscope score")


def test_a_damaged_run_is_a_sentence(app: App, lm_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lm_run, tmp_path / "cut")
    whole = (tmp_path / "cut" / "heads.parquet").read_bytes()
    (tmp_path / "cut" / "heads.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no-plan").mkdir()
    (tmp_path / "no-plan" / "plan.json").write_text("{")
    assert "heads.parquet cannot be read" in said(app("overview", tmp_path, run="cut"))
    assert "plan.json cannot be read" in said(app("overview", tmp_path, run="no-plan"))


def test_an_unfinished_run_shows_what_there_is(app: App, lm_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lm_run, tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    test = app("overview", tmp_path)
    assert "This run is unfinished: 1 of 1 shards are done." in said(test)
    assert len(test.get("plotly_chart")) >= 1


def test_an_address_outside_of_the_places_opens_nothing(
    app: App, lm_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(lm_run, tmp_path / "runs" / "mine")
    shutil.copytree(lm_run, tmp_path / "other")
    test = app("overview", tmp_path / "runs", run="../other")
    assert "There is no run '../other' here" in said(test)
    assert test.selectbox(key="run").value == "mine"


def test_shelf_knows_kinds_and_states(lm_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lm_run, tmp_path / "deeper" / "run")
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "plan.json").write_text('{"kind": "evaluation", "model": {"name": "m"}}')
    (tmp_path / "nothing").mkdir()
    items = {item.name: item for item in read_shelf([tmp_path]).items}
    assert set(items) == {"deeper/run", "said"}
    assert items["deeper/run"].finished and items["deeper/run"].model == "repeat-lm"
    assert items["said"].kind == "evaluation" and not items["said"].finished
    assert [item.name for item in read_shelf([lm_run]).items] == [lm_run.name]


def test_overview_draws_the_table_of_the_run(app: App, lm_run: Path) -> None:
    test = app("overview", lm_run, measure="induction", variant="")
    chart, *_ = test.get("plotly_chart")
    assert "induction" in chart.proto.spec
    largest = open_run(lm_run).heads.grid("induction", variant="").max()
    assert f"{largest:.2f}" in chart.proto.spec
