"""Comparing runs, towers and variants: the page's numbers are those of `analysis.compare`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_runs import drawn_run

from analysis.compare import compare
from analysis.precision import rounded
from analysis.run_folder import open_run

App = Callable[..., Any]


def said(test: Any) -> str:
    return " ".join(one.value for one in [*test.text, *test.markdown]).replace("\\", "")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `a` and `b` of the same examples; L1H2 is higher by 2 in `b`."""
    place = tmp_path_factory.mktemp("two")
    scores = np.random.default_rng(3).normal(3, 1, (12, 8))
    moved = scores + np.random.default_rng(4).normal(0, 0.1, scores.shape)
    moved[:, 6] += 2
    drawn_run(place / "a", scores)
    drawn_run(place / "b", moved)
    return place


def test_two_runs(app: App, two: Path) -> None:
    test = app("compare", two, run="a", against="b")
    found = compare(two / "a", two / "b")
    line = found.most_moved().iloc[0]
    table = test.dataframe[0].value
    assert table.iloc[0, 0] == "L1H2" == f"L{line['layer']}H{line['head']}"
    assert table["difference"].iloc[0] == rounded(
        line["difference"], line["ci_low"], line["ci_high"]
    )
    assert table["moved"].tolist() == ["yes"] + [""] * 7
    assert "b minus a" in said(test) and "resampling each example on both sides" in said(test)
    charts = test.get("plotly_chart")
    maps = json.loads(charts[0].proto.spec)["data"]
    assert [one["type"] for one in maps].count("heatmap") == 3
    cells = [one for one in maps if one["type"] == "heatmap"]
    assert cells[0]["zmax"] == cells[1]["zmax"] and cells[2]["zmin"] == -cells[2]["zmax"]
    assert len(charts) == 2


def test_two_variants_and_two_towers_of_one_run(app: App, vlm_run: Path) -> None:
    address = {"tower": "language", "measure": "vhd", "variant": "words=all"}
    test = app("compare", vlm_run, against_variant="words=other", **address)
    run = open_run(vlm_run)
    found = compare(run, run, "vhd", "language", ("words=all", "words=other"))
    assert "words=other minus words=all" in said(test)
    assert len(test.dataframe[0].value) == len(found.most_moved())
    test = app("compare", vlm_run, tower="vision", against_tower="language", measure="entropy")
    assert "language minus vision" in said(test)


def test_what_cannot_be_compared_is_a_sentence(
    app: App, two: Path, lm_run: Path, tmp_path: Path
) -> None:
    assert "has one variant" in said(app("compare", two / "a"))
    assert "has one variant" in said(app("compare", two, run="a", against="a"))
    shutil.copytree(lm_run, tmp_path / "lm")
    (tmp_path / "new").mkdir()
    shutil.copy(lm_run / "plan.json", tmp_path / "new")
    assert "no head yet" in said(app("compare", tmp_path, run="lm", against="new"))
    other = drawn_run(tmp_path / "elsewhere" / "other", np.ones((4, 4)), measure="strange").path
    test = app("compare", tmp_path / "lm", other, run="lm", against="other")
    assert "no measure in common" in said(test)
    assert "There is no run in" in said(app("compare", tmp_path / "nothing"))


def test_without_intervals_and_without_heads_in_common(app: App, tmp_path: Path) -> None:
    scores = np.random.default_rng(1).random((5, 4))
    drawn_run(tmp_path / "a", scores)
    drawn_run(tmp_path / "b", scores, weights=np.zeros_like(scores))
    assert "cannot be told which ones moved" in said(app("compare", tmp_path, run="a", against="b"))
    drawn_run(tmp_path / "single" / "one", scores[:1])
    drawn_run(tmp_path / "single" / "two", scores[:1])
    test = app("compare", tmp_path / "single", run="one", against="two")
    assert "cannot be told which ones moved" in said(test)
