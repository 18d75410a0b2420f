"""Vision: words, maps and rates are the library's; old, odd and damaged runs are sentences."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.kept_patterns import kept_examples
from analysis.precision import plain
from analysis.run_folder import open_run
from analysis.vision.depth import over_depth
from analysis.vision.kept_words import read_kept_words

App = Callable[..., Any]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small evaluation of the bundled LVLM."""
    out = tmp_path_factory.mktemp("evaluation") / "chair"
    command = [
        "evaluate",
        "shapes-llava",
        "--limit",
        "3",
        "--edit",
        "vhr:alpha=2",
        "--control",
        "1",
    ]
    subprocess.run(
        [sys.executable, "-m", "headscope", *command, "--out", str(out)],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return out


def said(test: Any) -> str:
    return " ".join(one.value for one in [*test.text, *test.markdown])


def figures(test: Any) -> dict[str, dict]:
    specs = [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]
    return {spec["layout"]["title"]["text"]: spec for spec in specs}


def words_drawn(test: Any, key: str) -> dict:
    """What the component of a key was given."""
    (found,) = [
        json.loads(part.proto.json) for part in test.get("bidi_component")
        if key in part.proto.id
    ]  # fmt: skip
    return found


def values_of(trace: dict) -> np.ndarray:
    z = trace["z"]
    if isinstance(z, dict):  # as bytes
        import base64

        shape = [int(part) for part in str(z["shape"]).split(",")]
        return np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]).reshape(shape)
    return np.array(z, float)


def test_the_map_is_that_of_the_word_in_the_address(app: App, vlm_run: Path) -> None:
    words = read_kept_words(vlm_run / "vision")
    assert words is not None
    name = words.frame["example"].iloc[-1]
    mine = words.of(name)
    for number in (0, 4):
        test = app("vision", vlm_run, example=name, word=str(number))
        line = mine.iloc[number]
        spec = figures(test)[f"VHD at »{line['text']}« · language"]
        np.testing.assert_allclose(
            values_of(spec["data"][0]), words.vhd[mine.index[number]], rtol=1e-6
        )
        assert spec["data"][0]["zmax"] == pytest.approx(float(words.vhd[mine.index].max()))
        assert plain(line["t_vhd"]) in spec["layout"]["title"]["subtitle"]["text"]


def test_the_first_answer_shown_is_one_that_makes_something_up(app: App, vlm_run: Path) -> None:
    words = read_kept_words(vlm_run / "vision")
    assert words is not None
    wrong = words.frame[words.frame["group"] == "hallucinated_object"]
    test = app("vision", vlm_run)
    assert test.selectbox(key="example").value in set(wrong["example"])
    titles = " ".join(figures(test))
    assert any(f"VHD at »{text}«" in titles for text in wrong["text"])


def test_patches_are_the_kept_pattern_of_the_position_before(app: App, vlm_run: Path) -> None:
    words = read_kept_words(vlm_run / "vision")
    assert words is not None
    example = kept_examples(vlm_run)[2]
    line = words.of(example.id).iloc[3]
    assert line["query_first"] == line["first"] - 1
    row = example.open_patterns().head("language.L2H3").row(int(line["query_first"]))
    test = app("vision", vlm_run, example=example.id, word="3", head="language.L2H3")
    spec = figures(test)[f"Where language.L2H3 looks for »{line['text']}«"]
    (cells,) = [trace for trace in spec["data"] if trace["type"] == "heatmap"]
    patches = values_of(cells)
    assert patches.shape == (6, 6)
    start = int(np.flatnonzero(np.isclose(row, patches.flat[0]))[0])
    np.testing.assert_allclose(row[start : start + 36], patches.ravel(), atol=1e-6)


def test_where_texts_part_the_picture_stands_alone(app: App, vlm_run: Path) -> None:
    words = read_kept_words(vlm_run / "vision")
    assert words is not None
    unknown = words.frame[words.frame["query_first"] < 0].iloc[0]
    test = app("vision", vlm_run, example=unknown["example"], word=str(unknown["word"]))
    assert "The picture" in figures(test)
    assert "Patterns are kept of the text of the data." in said(test)


def test_an_address_of_nothing_shows_something(app: App, vlm_run: Path) -> None:
    for odd in ("-1", "99", "x", "²", "<b>"):
        test = app("vision", vlm_run, word=odd, head="language.L99H0", example="no")
        assert any(title.startswith("VHD at") for title in figures(test))


def test_flow_and_dominance_are_the_librarys(app: App, vlm_run: Path) -> None:
    found = figures(app("vision", vlm_run))
    depth = over_depth(open_run(vlm_run).heads)
    (image,) = [
        trace for trace in found["What the answer reads, layer by layer · language"]["data"]
        if trace["name"] == "image"
    ]  # fmt: skip
    first = f"{plain(depth.layers['output->image'].iloc[0])} of the weight"
    assert first in image["text"][0]
    line = found["Modality dominance (MDI) · language"]["data"][1]
    assert line["name"] == "of the mean over heads"


def test_before_and_after_are_the_evaluations(
    app: App, vlm_run: Path, evaluation: Path, tmp_path: Path
) -> None:
    shutil.copytree(vlm_run, tmp_path / "run")
    shutil.copytree(evaluation, tmp_path / "chair")
    answers = pd.read_parquet(evaluation / "answers.parquet")
    table = pd.read_parquet(evaluation / "evaluation.parquet")
    name = answers["id"].iloc[1]
    test = app("vision", tmp_path, run="run", asked=name)
    found = figures(test)["What vhr:alpha=2 changes"]
    control = table[(table["kind"] == "control") & (table["seed"] == -1)]
    line = control[control["metric"] == "recall"].iloc[0]
    shown = found["data"][2]
    assert shown["name"] == "random heads, as strong"
    assert any(plain(line["ci_low"]) in text for text in shown["text"] if "recall" in text)
    wrong = answers[(answers["id"] == name) & (answers["kind"] == "baseline")].iloc[0]
    expected = ", ".join(wrong["hallucinated"]) or "All that is named is there"
    assert expected.split(",")[0] in said(test).replace("\\", "")


def test_without_an_evaluation_of_this_model_there_is_how_to_make_one(
    app: App, vlm_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(vlm_run, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text('{"kind": "evaluation", "model": {"name": "m"}}')
    (tmp_path / "other" / "manifest.json").write_text("{}")
    test = app("vision", tmp_path, run="run")
    assert "No finished evaluation of shapes-llava lies beside" in said(test)
    assert test.code[-1].value.startswith("headscope evaluate shapes-llava --edit vhr:alpha=2")


def test_an_older_run_and_one_without_objects_say_what_to_do(
    app: App, vlm_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(vlm_run, tmp_path / "run")
    section = tmp_path / "run" / "vision"
    (section / "words.parquet").unlink()
    (section / "token_groups.parquet").unlink()
    test = app("vision", tmp_path, run="run")
    assert "This run keeps no answer with VHD of its words." in said(test)
    assert "Nothing says which words are made up" in said(test)
    assert test.code[0].value.startswith("headscope score shapes-llava --data scenes-broken")
    shutil.rmtree(section)
    assert "modality_flow" in " ".join(figures(test)) or len(test.get("plotly_chart")) == 2


def test_damage_is_a_sentence(app: App, vlm_run: Path, tmp_path: Path) -> None:
    shutil.copytree(vlm_run, tmp_path / "run")
    examples = tmp_path / "run" / "examples"
    for file in [*examples.glob("*.png"), *(examples / "patterns").iterdir()]:
        file.write_bytes(b"cut")
    test = app("vision", tmp_path, run="run")
    assert "does not decode" in said(test) or "cannot be read" in said(test)
    assert any(title.startswith("VHD at") for title in figures(test))
    (tmp_path / "run" / "vision" / "word_vhd.safetensors").write_bytes(b"cut")
    assert "word_vhd.safetensors cannot be read" in said(app("vision", tmp_path, run="run"))


def test_a_language_model_has_no_image(app: App, lm_run: Path) -> None:
    test = app("vision", lm_run)
    assert "does not read images and text" in said(test)
    assert not test.get("plotly_chart")
