"""The first page: its numbers are the library's, the finder answers, odd runs are sentences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_runs import drawn_run

from analysis.precision import rounded
from analysis.run_folder import open_run

App = Callable[..., Any]


def said(test: Any) -> str:
    return " ".join(one.value for one in [*test.text, *test.markdown])


def figures(test: Any) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in
            test.get("plotly_chart")]  # fmt: skip


def test_the_map_and_the_table_have_the_librarys_numbers(app: App, vlm_run: Path) -> None:
    test = app("overview", vlm_run, tower="language", measure="vhd", variant="words=other")
    heads = open_run(vlm_run).heads
    grid = heads.grid("vhd", "language", "words=other")
    layer, head = (int(place) for place in np.unravel_index(np.nanargmax(grid), grid.shape))
    line = heads.lines("vhd", "language", "words=other").query(
        f"layer == {layer} and head == {head}"
    )
    value = rounded(*line[["value", "ci_low", "ci_high"]].iloc[0])
    table = test.dataframe[0].value
    assert list(table) == ["head", "vhd[words=other]", "null"]
    assert table.iloc[0, 0] == f"L{layer}H{head}" and table.iloc[0, 1] == value
    assert len(table) == 32
    assert f"Highest: L{layer}H{head}, {value} norm of z" in said(test).replace("\\", "")
    first = figures(test)[0]
    squares = first["data"][-1]
    name = f"language.L{layer}H{head}"
    assert value in squares["text"][squares["customdata"].index(name)]
    assert first["data"][0]["hoverinfo"] == "skip"


def test_the_finder_filters_marks_and_stays_in_the_address(app: App, vlm_run: Path) -> None:
    query = "entropy > 2.6 and sink_weight < 0.2 by sink_weight"
    test = app("overview", vlm_run, tower="language", query=query)
    found = open_run(vlm_run).heads.select(tower="language").find(query)
    assert 0 < len(found) < 32
    table = test.dataframe[0].value
    assert [f"language.{name}" for name in table["head"]] == found.names
    assert list(table) == ["head", "sink_weight[k=1]", "null", "entropy"]
    assert f"{len(found)} of 32 heads, by sink" in said(test).replace("\\", "")
    squares = figures(test)[0]["data"][-1]
    widths = squares["marker"]["line"]["width"]
    marked = {n for n, width in zip(squares["customdata"], widths, strict=True) if width}
    assert marked == set(found.names)
    test.text_input(key="query").set_value("entropy > 100").run()
    assert "No head fulfils this." in said(test)
    test.text_input(key="query").set_value("entropi > 1").run()
    assert "Did you mean entropy" in said(test)
    assert not test.exception


def test_other_measures_and_the_state_of_the_run(app: App, vlm_run: Path) -> None:
    test = app("overview", vlm_run, tower="language")
    panels = [one for one in figures(test)[1]["data"] if one["type"] == "heatmap"]
    assert len(panels) == 6
    text = said(test).replace("\\", "")
    assert "Finished." in text and "6 examples" in text
    assert "Sections: importance (finished), vision (finished)" in text
    test.button[0].click().run()
    assert "Every file is as it was" in said(test)


def test_an_altered_file_is_named(app: App, lm_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lm_run, tmp_path / "mine")
    with (tmp_path / "mine" / "profiles.parquet").open("ab") as file:
        file.write(b"more")
    test = app("overview", tmp_path / "mine")
    test.button[0].click().run()
    assert "Changed since the run was finished: profiles.parquet." in said(test)


def test_a_head_in_the_address_is_shown_where_no_page_of_heads_is(app: App, lm_run: Path) -> None:
    test = app("overview", lm_run, head="language.L1H3")
    values = test.dataframe[1].value
    frame = open_run(lm_run).heads.frame
    known = frame.query("layer == 1 and head == 3").dropna(subset="value")
    assert len(values) == len(known) and set(values["measure"]) == set(known["measure"])
    for odd in ("language.L99H0", "nowhere.L0H0", "<b>", "language.LxHy"):
        app("overview", lm_run, head=odd)


@pytest.mark.parametrize("kind", ["one head", "not a number", "marks"])
def test_odd_runs_are_shown(app: App, tmp_path: Path, kind: str) -> None:
    heads = 1 if kind == "one head" else 6
    scores = np.random.default_rng(1).random((5, heads))
    weights = np.zeros_like(scores) if kind == "not a number" else None
    name = "<img src=x>`|" if kind == "marks" else "entropy"
    drawn_run(tmp_path / "odd", scores, weights=weights, measure=name)
    test = app("overview", tmp_path, query="layer >= 0")
    assert len(test.get("plotly_chart")) == 1
    assert "<img src=x>" not in " ".join(one.value for one in test.markdown)
    assert "<img" not in json.dumps(figures(test)[0]["data"][-1]["text"])


def test_a_run_without_a_shard_is_a_sentence(app: App, lm_run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(lm_run / "plan.json", tmp_path / "new")
    text = said(app("overview", tmp_path))
    assert "no shard is done" in text and "0 of 1 shards" in text


def test_unknown_names_in_the_address_choose_the_first(app: App, lm_run: Path) -> None:
    test = app("overview", lm_run, tower="moon", measure="<script>", variant="x")
    assert len(test.get("plotly_chart")) == 2
