"""`vhd` in run folders and on the command line: its section, what is printed, resumed, refused."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from stopped_runs import stopped_after

from analysis.run_folder import open_run
from headscope.cli import main
from headscope.plan import Options
from headscope.runs import score_run
from probes.loading import load

HOW = Options("vhd", limit=12, batch_size=4, replicates=20)


@pytest.fixture(scope="module")
def llava():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def run(llava, tmp_path_factory):
    return score_run(llava, "scenes-broken", tmp_path_factory.mktemp("runs") / "run", HOW)


def test_the_study_fills_a_section_of_its_own(run):
    assert list(run.sections) == ["vision"]
    section = run.sections["vision"]
    assert section.finished and set(section.tables) == {"heads", "token_groups", "tokens", "words"}
    assert run.heads.measures == ["vhd", "vhd_relative", "vhd_cosine", "vhd_outlier"]
    assert run.manifest["studies"] == {"vhd": run.heads.measures}
    assert run.manifest["measures"] == []
    tokens = section.table("tokens")
    assert tokens["example"].nunique() == 12
    assert set(tokens["group"]) == {"true_object", "hallucinated_object", "other"}
    line = run.heads.lines("vhd", variant="words=hallucinated_object").iloc[0]
    assert line["n"] == tokens.loc[tokens["group"] == "hallucinated_object", "example"].nunique()
    assert line["ci_low"] <= line["value"] <= line["ci_high"] and line["unit"] == "norm of z"


def test_beside_another_study_each_has_its_section(llava, tmp_path):
    how = Options("vhd,redundancy", limit=4, batch_size=4, replicates=5)
    both = score_run(llava, "scenes", tmp_path / "run", how)
    assert set(both.sections) == {"importance", "vision"}
    own = {name: set(both.sections[name].table("heads")["measure"]) for name in both.sections}
    assert not own["importance"] & own["vision"] and "vhd" in own["vision"]
    assert set(both.heads.measures) == own["importance"] | own["vision"]
    assert set(both.sections["vision"].manifest["studies"]) == {"vhd"}


def test_an_interrupted_run_goes_on_and_gives_the_same(llava, run, tmp_path, monkeypatch):
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 4)
    with stopped_after(1):
        score_run(llava, "scenes-broken", tmp_path / "run", HOW)
    assert open_run(tmp_path / "run").shards == (1, 3)
    again = score_run(llava, "scenes-broken", tmp_path / "run", HOW, resume=True)
    for name in ("tokens", "token_groups"):
        pd.testing.assert_frame_equal(
            again.sections["vision"].table(name), run.sections["vision"].table(name), rtol=1e-4
        )


def test_the_screen_says_whether_hallucinated_words_diverge_less(run, capsys):
    assert main(["show", str(run.path)]) == 0
    out = capsys.readouterr().out
    for group in ("all", "true_object", "hallucinated_object", "other", "first_token"):
        assert f"vhd words={group}" in out
    assert "T-VHD: do heads turn to the image less where the model makes something up?" in out
    assert "true ones of the same text" in out and "Section vision: finished." in out
    assert main(["show", str(run.path), "--json"]) == 0
    names = {line["measure"] for line in json.loads(capsys.readouterr().out)["summary"]}
    assert {"vhd", "vhd_cosine"} <= names


def test_given_answers_and_a_blank_image_can_be_asked_for(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--limit", "4", "--answers", "given"]
    arguments = ["score", "shapes-llava", "--measures", "vhd", "--image-removal", "blank", *out]
    assert main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "There were no true and hallucinated object words to compare." in said
    options = open_run(tmp_path / "run").plan["study_options"]
    assert (options["answers"], options["image_removal"]) == ("given", "blank")


@pytest.mark.parametrize(
    ("model", "more", "code", "sentence"),
    [
        ("shapes-vit", [], 1, "'shapes-vit' is a vision model. Choose a model that reads images"),
        ("repeat-lm", [], 1, "'repeat-lm' is a language model. Choose a model that reads images"),
        ("shapes-llava", ["--answers", "mine"], 2, "`answers` must be one of auto, own, given"),
        ("shapes-llava", ["--image-removal", "cut"], 2, "`image_removal` must be one of delete"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(model, more, code, sentence, tmp_path, capsys):
    out = ["--limit", "2", "--out", str(tmp_path / "run")]
    assert main(["score", model, "--measures", "vhd", *more, *out]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err and "Traceback" not in captured.err


def test_prompts_without_an_image_are_set_aside_with_the_reason(llava, tmp_path):
    lines = [
        {"id": "bare", "question": "describe the scene", "answer": "there is a red star ."},
        {"id": "seen", "question": "describe the scene", "image": "x.png"},
    ]
    from PIL import Image

    Image.new("RGB", (48, 48), "red").save(tmp_path / "x.png")
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    run = score_run(llava, str(data), tmp_path / "run", Options("vhd", batch_size=2))
    assert [item["id"] for item in run.skipped] == ["bare"]
    assert run.skipped[0]["reason"].startswith("has no image, so there is none to take away.")
    assert set(run.sections["vision"].table("tokens")["example"]) == {"seen"}
