"""The page of one head: its numbers are the library's; odd runs get a sentence."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_runs import drawn_run

from analysis.kept_patterns import kept_examples
from analysis.precision import rounded
from analysis.run_folder import open_run
from analysis.similar_heads import similar_heads, standardised

App = Callable[..., Any]
HEAD = "language.L1H3"


def said(test: Any) -> str:
    return " ".join(one.value for one in [*test.text, *test.markdown, *test.caption])


def mounted(test: Any, name: str) -> list[dict[str, Any]]:
    """What components of a name were given."""
    found = [each.proto for each in test.get("bidi_component")]
    return [
        json.loads(proto.json) for proto in found if proto.component_name == f"headscope.{name}"
    ]


def test_the_numbers_are_those_of_the_run(app: App, vlm_run: Path) -> None:
    test = app("head", vlm_run, head=HEAD)
    assert test.title[0].value == HEAD
    run = open_run(vlm_run)
    charts = {each.proto.id: json.loads(each.proto.spec) for each in test.get("plotly_chart")}
    (scores,) = [spec for spec in charts.values() if "Scores" in spec["layout"]["title"]["text"]]
    texts = [note["text"] for note in scores["layout"]["annotations"]]
    lines = run.heads.select(tower="language").frame.query("layer == 1 and head == 3")
    known = [rounded(line.value, line.ci_low, line.ci_high) for line in lines.itertuples()]
    assert len(texts) == 8
    assert all(any(f"<b>{value}</b>" in text for value in known) for text in texts)
    (causal,) = [spec for spec in charts.values() if "Causal" in spec["layout"]["title"]["text"]]
    assert causal["layout"]["annotations"]
    nearest = similar_heads(standardised(run.heads, "language"), HEAD)
    table = test.dataframe[0].value
    assert table["distance"].tolist() == pytest.approx(nearest["distance"].tolist())


def test_the_pattern_of_the_chosen_example_is_sent(app: App, vlm_run: Path) -> None:
    example = kept_examples(vlm_run)[2]
    test = app("head", vlm_run, head=HEAD, example=example.id, query="30")
    (tokens,), (picture,) = mounted(test, "token_pattern"), mounted(test, "patch_pattern")
    pattern = example.open_patterns().head(HEAD)
    sent = np.frombuffer(b64decode(tokens["pattern"]["weights"]), "<u2")
    rows, _, weights = pattern.pairs()
    assert (sent / 65535) ** 2 == pytest.approx(weights, abs=3e-5)
    assert len(tokens["tokens"]) == pattern.keys == rows.max() + 1
    assert tokens["query"] == picture["query"] == 30
    assert tokens["same"] is True
    assert len(np.frombuffer(b64decode(picture["places"]), "<i4")) == 36
    assert picture["picture"].startswith("data:image/png;base64,")
    assert (picture["width"], picture["height"]) == (48, 48)


@pytest.mark.parametrize("query", ["", "99999", "-1", "x", "1e3"])
def test_a_query_that_is_none_is_the_last_one(app: App, vlm_run: Path, query: str) -> None:
    test = app("head", vlm_run, head="vision.L0H1", query=query)
    (tokens,) = mounted(test, "token_pattern")
    assert tokens["query"] == 36


def test_the_neighbours_are_a_step_away(app: App, lm_run: Path) -> None:
    test = app("head", lm_run, head="language.L0H0")
    back, on = (test.button(key=f"head-step-{step}") for step in (-1, 1))
    assert back.disabled and on.label == "L0H1 ▸"
    on.click().run()
    assert not test.exception and test.title[0].value == "language.L0H1"
    assert mounted(test, "patch_pattern") == []
    assert len(mounted(test, "token_pattern")) == 1


def test_a_head_that_is_not_there_opens_another(app: App, lm_run: Path) -> None:
    test = app("head", lm_run, head="<b>nobody</b>")
    assert test.title[0].value == "language.L0H0"


def test_without_an_atlas_it_says_how_to_make_one(app: App, lm_run: Path) -> None:
    test = app("head", lm_run)
    assert "has no atlas" in said(test)
    assert any("atlas" in each.value for each in test.code)


@pytest.fixture
def copied(lm_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(lm_run, tmp_path / "copied")


def test_a_run_from_before_patterns_were_kept(app: App, copied: Path) -> None:
    index = copied / "examples" / "index.json"
    records = json.loads(index.read_text())
    index.write_text(json.dumps([{**record, "patterns": None} for record in records]))
    test = app("head", copied)
    assert "keeps no attention patterns" in said(test)
    assert test.get("plotly_chart")


def test_damaged_patterns_and_examples_are_sentences(app: App, copied: Path) -> None:
    for file in (copied / "examples" / "patterns").iterdir():
        file.write_bytes(b"{}")
    assert "cannot be read" in said(app("head", copied))
    (copied / "examples" / "index.json").write_text("{")
    assert "cannot be read" in said(app("head", copied))
    (copied / "examples" / "index.json").unlink()
    assert "keeps no example" in said(app("head", copied))


@pytest.mark.parametrize("heads", [1, 5])
def test_a_run_of_few_heads_and_no_examples(app: App, tmp_path: Path, heads: int) -> None:
    drawn_run(tmp_path / "few", np.random.default_rng(1).normal(3, 1, (6, heads)))
    test = app("head", tmp_path / "few")
    assert "keeps no example" in said(test)
    assert ("No other head" in said(test)) == (heads == 1)
    assert test.get("plotly_chart")


def test_what_was_measured_nowhere_is_no_traceback(app: App, tmp_path: Path) -> None:
    scores = np.random.default_rng(1).normal(3, 1, (6, 4))
    weights = np.ones_like(scores)
    weights[:, 2] = 0
    drawn_run(tmp_path / "gaps", scores, weights=weights)
    test = app("head", tmp_path / "gaps", head="language.L0H2")
    assert "No other head" in said(test)
    (scores, *_) = [json.loads(each.proto.spec) for each in test.get("plotly_chart")]
    assert "not measured" in scores["layout"]["annotations"][0]["text"]


def test_text_from_data_is_only_data(app: App, copied: Path) -> None:
    index = copied / "examples" / "index.json"
    records = json.loads(index.read_text())
    evil = "<img src=x onerror=alert(1)> **bold** :red[x]"
    told = {"text": evil, "question": None, "answer": None}
    index.write_text(json.dumps([record | told for record in records]))
    test = app("head", copied)
    assert evil in [each.value for each in test.text]
    assert not any(evil in each.value for each in test.markdown)
