"""The atlas page: the map says what the tables say; what is not there is a sentence."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.atlas.atlas_files import read_about, read_frame
from analysis.run_folder import open_run
from dashboard.opened_atlas import opened_atlas, sheet_around

App = Callable[..., Any]


@pytest.fixture
def copied(atlas_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(atlas_run, tmp_path / "mine"))


def spec(test: Any, number: int = 0) -> dict[str, Any]:
    return json.loads(test.get("plotly_chart")[number].proto.spec)


def numbers(packed: dict[str, str]) -> np.ndarray:
    return np.frombuffer(b64decode(packed["bdata"]), np.dtype(packed["dtype"]))


def said(test: Any) -> str:
    parts = [*test.text, *test.caption, *test.markdown]
    return " ".join(part.value for part in parts).replace("\\", "")


def change(folder: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(read_frame(folder, name)).to_parquet(folder / f"{name}.parquet", index=False)


def test_map_and_kinds_say_what_the_tables_say(app: App, atlas_run: Path) -> None:
    test, folder = app("atlas", atlas_run), atlas_run / "atlas"
    points, clusters = read_frame(folder, "points"), read_frame(folder, "clusters")
    figure = spec(test)
    assert "384 patterns of 16 heads" in figure["layout"]["title"]["subtitle"]["text"]
    sizes = [f"{c} · {n} ({k})" for c, n, k in clusters[["cluster", "name", "size"]].to_numpy()]
    assert [trace["name"] for trace in figure["data"]] == sizes
    assert all(trace["type"] == "scattergl" for trace in figure["data"])
    first = points[points["cluster"] == 0]
    np.testing.assert_allclose(numbers(figure["data"][0]["x"]), first["x"], rtol=1e-6)
    samples = numbers(figure["data"][0]["customdata"]).reshape(-1, 3)[:, 0]
    np.testing.assert_array_equal(samples, first["sample"])
    assert read_about(folder)["towers"]["language"]["verdict"] in said(test)
    titles = [note["text"] for note in spec(test, 1)["layout"]["annotations"]]
    assert f"{100 * clusters['share'][0]:.0f} %" in titles[0]
    assert f"name holds for {100 * clusters['agreement'][0]:.0f} %" in titles[0]


def test_points_take_the_colour_of_a_measure_of_their_head(app: App, atlas_run: Path) -> None:
    test = app("atlas", atlas_run, colour="measure", measure="entropy")
    grid = open_run(atlas_run).heads.grid("entropy", "language")
    (trace,) = spec(test)["data"]
    layers, heads = numbers(trace["customdata"]).reshape(-1, 3)[:, 1:].T
    np.testing.assert_allclose(numbers(trace["marker"]["color"]), grid[layers, heads], rtol=1e-6)
    assert trace["marker"]["cmax"] == pytest.approx(grid.max()) and grid.min() < grid.max()


def test_a_cluster_in_the_address_is_lit_and_its_heads_counted(app: App, atlas_run: Path) -> None:
    points = read_frame(atlas_run / "atlas", "points")
    mine = points[points["cluster"] == 0]
    name = f"0 · {mine['name'].iloc[0]}"
    test = app("atlas", atlas_run, cluster=name, colour="layer")
    faded, lit = spec(test)["data"]
    assert faded["name"] == "others" and len(numbers(lit["x"])) == len(mine)
    heads = len(mine[["layer", "head"]].drop_duplicates())
    assert f"{len(mine)} patterns of {heads} heads; a bar is" in said(test)
    one = mine.iloc[0]
    test = app("atlas", atlas_run, cluster=name, lit=f"language.L{one.layer}H{one['head']}")
    both = mine[(mine["layer"] == one.layer) & (mine["head"] == one["head"])]
    assert f"{len(both)} patterns of 1 heads" in said(test)


def test_a_lasso_in_the_address_is_drawn_again_and_counted(app: App, atlas_run: Path) -> None:
    points = read_frame(atlas_run / "atlas", "points")
    low, right = float(points["y"].median()), float(points["x"].quantile(0.7))
    far = 1e3
    outline = f"{-far},{low};{right},{low};{right},{far};{-far},{far}"
    inside = points[(points["x"] < right) & (points["y"] > low)]
    scope = "atlas.language.UMAP"
    test = app("atlas", atlas_run, lasso=f"{scope}:{outline}")
    heads = len(inside[["layer", "head"]].drop_duplicates())
    assert f"{len(inside)} patterns of {heads} heads" in said(test)
    (drawn,) = spec(test)["layout"]["selections"]
    assert drawn["path"].startswith(f"M{-far},{low}") and drawn["path"].endswith("Z")
    # That of another map or no lasso at all is none.
    for other in (f"atlas_2.vision.pca:{outline}", f"{scope}:1,2;<b>", f"{scope}:1,2;3,nan;5,6"):
        test = app("atlas", atlas_run, lasso=other)
        assert "Draw a lasso" in said(test) and not spec(test)["layout"].get("selections")


def test_patterns_come_in_sheets_of_neighbours(atlas_run: Path) -> None:
    import io

    from PIL import Image

    atlas = opened_atlas(open_run(atlas_run), "atlas")
    sheet = sheet_around(atlas, "language", 200)
    assert 200 in sheet["samples"] and len(sheet["samples"]) <= 32
    lines = atlas.points.set_index("sample").loc[sheet["samples"]]
    spread = np.ptp(atlas.points[["x", "y"]], axis=0).max()
    assert np.ptp(lines[["x", "y"]], axis=0).max() < spread / 2
    line = lines.loc[200]
    place = sheet["samples"].index(200)
    assert sheet["titles"][place] == f"language.L{line.layer}H{line['head']}"
    assert line.example in sheet["facts"][place]
    picture = Image.open(io.BytesIO(b64decode(sheet["url"].partition(",")[2])))
    assert picture.size == (16, 16 * len(sheet["samples"]))


def test_without_umap_it_is_said_that_axes_are_principal_components(app: App, copied: Path) -> None:
    change(copied / "atlas", "points", lambda p: p.assign(x=p["pca_x"], y=p["pca_y"]))
    test = app("atlas", copied)
    subtitle = spec(test)["layout"]["title"]["subtitle"]["text"]
    explained = read_about(copied / "atlas")["towers"]["language"]["explained"]
    assert f"principal components, {100 * explained[0]:.0f} %" in subtitle
    assert "plane" not in [box.key for box in test.selectbox]


def test_a_refused_tower_says_why(app: App, copied: Path) -> None:
    about = copied / "atlas" / "atlas.json"
    told = json.loads(about.read_text())
    told["refused"] = {"vision": "it has 3 patterns, at least 40 are needed."}
    about.write_text(json.dumps(told))
    assert "No map of vision: it has 3 patterns" in said(app("atlas", copied))
    test = app("atlas", copied, tower="vision")
    assert "There is no map of vision: it has 3 patterns" in said(test)
    assert test.code[0].value.startswith("headscope atlas repeat-lm --data repeats")


def test_maps_of_other_names_are_found_and_unfinished_ones_are_not(app: App, copied: Path) -> None:
    shutil.copytree(copied / "atlas", copied / "fewer")
    change(copied / "fewer", "points", lambda p: p.iloc[:300])
    (copied / "fewer" / "heads.parquet").unlink()
    test = app("atlas", copied, map="fewer")
    assert "300 patterns" in spec(test)["layout"]["title"]["subtitle"]["text"]
    for name in ("fewer", "atlas"):
        (copied / name / "manifest.json").unlink()
    test = app("atlas", copied)
    assert "The pattern atlas of run 'mine' is unfinished." in said(test)


def test_a_run_without_an_atlas_says_how_to_make_one(app: App, lm_run: Path) -> None:
    test = app("atlas", lm_run)
    assert "The pattern atlas of run 'repeat-lm' is not there." in said(test)
    assert (
        test.code[0].value == "headscope atlas repeat-lm --data repeats --out runs/repeat-lm-atlas"
    )


def test_damaged_files_are_sentences(app: App, copied: Path) -> None:
    patterns = copied / "atlas" / "patterns.safetensors"
    patterns.write_bytes(patterns.read_bytes()[:1000])
    test = app("atlas", copied)  # the map is there, a pattern is not
    assert "384 patterns" in spec(test)["layout"]["title"]["subtitle"]["text"]
    points = copied / "atlas" / "points.parquet"
    points.write_bytes(points.read_bytes()[:1000])
    about = copied / "atlas" / "atlas.json"
    about.write_text(about.read_text())  # otherwise what was opened before is shown
    assert "points.parquet cannot be read" in said(app("atlas", copied))


def test_one_head_and_measures_without_a_value(app: App, copied: Path) -> None:
    for name in ("points", "head_mix", "head_shares"):
        change(copied / "atlas", name, lambda t: t[(t["layer"] == 1) & (t["head"] == 3)])
    heads = pd.read_parquet(copied / "atlas" / "heads.parquet")
    attrs = dict(heads.attrs)
    numbers_of = ["value", "ci_low", "ci_high", "null_low", "null_high"]
    heads.loc[heads["measure"] == "pattern_entropy", numbers_of] = np.nan
    heads.attrs = attrs
    heads.to_parquet(copied / "atlas" / "heads.parquet", index=False)
    test = app("atlas", copied, colour="measure", measure="pattern_entropy")
    figure = spec(test)
    assert "24 patterns of 1 heads" in figure["layout"]["title"]["subtitle"]["text"]
    assert figure["data"][0]["name"] == "not measured"
    assert len(numbers(figure["data"][0]["x"])) == 24
