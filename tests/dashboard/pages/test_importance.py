"""The importance page: its numbers are the tables', every part is there or says what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.head_table import HeadTable
from analysis.run_folder import open_run

App = Callable[..., Any]


def said(test: Any) -> str:
    return " ".join(one.value for one in [*test.text, *test.markdown])


def specs(test: Any) -> dict[str, Any]:
    found = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    return {spec["layout"]["title"]["text"]: spec for spec in found}


def numbers(values: Any) -> list[float]:
    """As a figure has them: a list, or bytes."""
    import base64

    if isinstance(values, dict):
        raw = base64.b64decode(values["bdata"])
        return np.frombuffer(raw, np.dtype(values["dtype"])).astype(float).tolist()
    return [float(value) for value in values]


def test_every_part_is_drawn_from_its_table(app: App, vlm_run: Path) -> None:
    test = app("importance", vlm_run)
    run = open_run(vlm_run)
    found = specs(test)
    lines = run.heads.lines("importance_cross_entropy", "language")
    ranked = numbers(found["Largest effects · language"]["data"][1]["x"])
    assert ranked[:3] == lines["value"].nlargest(3).tolist()
    agreement = run.sections["importance"].table("agreement")
    mine = agreement[agreement["tower"] == "language"]
    drawn = numbers(found["Agreement with the exact effect · language"]["data"][1]["x"])
    assert drawn == sorted(mine["spearman"].tolist())
    best = mine.loc[mine["spearman"].idxmax()]
    assert f"Spearman {best['spearman']:.2f} ({best['ci_low']:.2f}" in said(test)
    pruning = run.sections["importance"].table("pruning")
    order = pruning.loc[pruning["kind"] == "order", "value"].tolist()
    assert numbers(found["Pruning by importance"]["data"][2]["y"]) == order
    joint = run.sections["importance"].table("joint")
    chosen = joint.loc[joint["kind"] == "chosen", "value"].tolist()
    marks = found["Heads taken away together"]["data"]
    assert [numbers(one["y"])[0] for one in marks if one["name"] == "chosen heads"] == chosen
    assert "Layers taken whole · language" in found
    assert any(title.startswith("Example by example") for title in found)


def test_all_towers_and_another_estimate_from_the_address(app: App, vlm_run: Path) -> None:
    test = app("importance", vlm_run)
    test = test.selectbox(key="heads-of").set_value("all").run()
    assert not test.exception
    agreement = open_run(vlm_run).sections["importance"].table("agreement")
    every = agreement[(agreement["tower"] == "all")]
    (scatter,) = [spec for title, spec in specs(test).items() if title.endswith("against exact")]
    assert [one["name"] for one in scatter["data"]][:2] == ["vision", "language"]
    drawn = sum(len(one["customdata"]) for one in scatter["data"][:2])
    assert drawn == int(every["heads"].max())


def test_a_head_of_the_address_is_shown_example_by_example(app: App, lm_run: Path) -> None:
    test = app("importance", lm_run, head="language.L1H4")
    found = specs(test)
    assert "Example by example · language.L1H4" in found
    table = open_run(lm_run).sections["importance"].table("examples")
    (column,) = [name for name in table if name.startswith("importance_")
                 and name.endswith("language.L1H4")]  # fmt: skip
    drawn = numbers(found["Example by example · language.L1H4"]["data"][0]["y"])
    np.testing.assert_allclose(drawn, sorted(table[column], reverse=True), rtol=1e-6)


def test_without_estimates_or_effects_it_says_what_to_run(
    app: App, lm_run: Path, tmp_path: Path
) -> None:
    test = app("importance", lm_run)
    assert "No estimate was taken beside the exact effect." in said(test)
    shutil.copytree(lm_run, tmp_path / "none")
    shutil.rmtree(tmp_path / "none" / "importance")
    test = app("importance", tmp_path)
    assert "What happens without each head was not measured in this run." in said(test)
    assert test.code[0].value.startswith("headscope score repeat-lm --measures importance,atp")


def test_classes_are_shown_where_there_are_some(app: App, lm_run: Path, tmp_path: Path) -> None:
    shutil.copytree(lm_run, tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / "importance" / "heads.parquet")
    lines = table[table["measure"] == "importance_cross_entropy"]
    classes = lines.drop(columns=["inputs", "null_low", "null_high", "unit"])
    classes.insert(0, "class", "<i>odd")
    classes.to_parquet(tmp_path / "run" / "importance" / "classes.parquet")
    found = specs(app("importance", tmp_path))
    (title,) = [title for title in found if "by class" in title]
    assert found[title]["data"][0]["x"] == ["&lt;i&gt;odd"]


def test_odd_runs_are_sentences(app: App, lm_run: Path, tmp_path: Path) -> None:
    # A folder for each: what lies on the shelf is looked at anew after some seconds only.
    for name in ("gaps", "nothing", "cut"):
        shutil.copytree(lm_run, tmp_path / name)
    heads = HeadTable.from_parquet(lm_run / "importance" / "heads.parquet")
    for name, layers in (("gaps", [0]), ("nothing", [0, 1])):
        frame = heads.frame.copy()
        mine = (frame["measure"] == "importance_cross_entropy") & frame["layer"].isin(layers)
        frame.loc[mine, ["value", "ci_low", "ci_high"]] = np.nan
        HeadTable(frame).to_parquet(tmp_path / name / "importance" / "heads.parquet")
    (tmp_path / "cut" / "importance" / "pruning.parquet").write_bytes(b"no table")
    gaps = app("importance", tmp_path / "gaps")
    assert "cannot be shown" not in said(gaps)
    ranked = specs(gaps)["Largest effects · language"]["data"][1]["y"]
    assert len(ranked) == 8 and all(name.startswith("L1") for name in ranked)
    assert "must have been measured of some head" in said(app("importance", tmp_path / "nothing"))
    assert "pruning.parquet cannot be read" in said(app("importance", tmp_path / "cut"))
