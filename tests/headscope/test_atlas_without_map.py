"""What cannot be drawn or mapped: refused before the model runs, or said in a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import headscope as hs
from analysis.atlas.atlas import Atlas
from analysis.atlas.atlas_map import MapOptions
from analysis.atlas.enough import refuse_too_few
from headscope.cli.entry import main


def texts(folder: Path, *given: str) -> Path:
    path = folder / "data.jsonl"
    lines = [json.dumps({"id": f"e{n}", "text": text}) for n, text in enumerate(given)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model of six heads without BOS, in a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    return tiny_models.saved(folder, tiny_models.gpt2(), tiny_models.tokenizer())


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("--samples 60", "A map needs at least 16 patterns, language can have 12: 2 of each of 6 "
         "heads. Take more examples."),
        ("--samples 11 --limit 9", "language can have 6: 1 of each of 6 heads. Take more samples."),
        ("--samples 5", "`samples` must be at least the number of heads, 6, got 5."),
        ("--clusters 40", "40 clusters need at least 40 patterns, language can have 12: 2 of each "
         "of 6 heads. Take more examples, or ask for fewer clusters."),
    ],
)  # fmt: skip
def test_too_few_are_refused_before_anything_is_written(
    more: str, sentence: str, tiny: str, tmp_path: Path, capsys: Any
) -> None:
    data = texts(tmp_path, *["a b c d e"] * (2 if "limit" not in more else 9))
    out = tmp_path / "run"
    asked = f"atlas {tiny} --data {data} --measures entropy {more} --out {out}"
    assert main(asked.split()) == 1
    said = capsys.readouterr()
    assert sentence in said.err and said.out == ""
    assert not out.exists()
    if "clusters" in more:
        with pytest.raises(ValueError, match="or ask for fewer clusters"):
            hs.atlas(hs.load(tiny), data, clusters=40)


def test_no_more_batches_are_looked_at_than_it_takes(subject: Any) -> None:
    batch = subject.prepare(["t00 t01 t02", "t03 t04"])
    looked = []

    def data() -> Any:
        for number in range(9):
            looked.append(number)
            yield batch

    refuse_too_few(subject, data, 160, MapOptions())  # 16 heads: one example is enough
    assert looked == [0]
    refuse_too_few(subject, data, 16 * 9, MapOptions(clusters=6 * 16))
    assert looked == [0, 0, 1, 2]


def test_what_only_shows_once_patterns_are_drawn_leaves_a_finished_run(
    tiny: str, tmp_path: Path, capsys: Any
) -> None:
    """Twelve texts that are the same: 72 patterns that differ by head and by rounding alone."""
    data, out = texts(tmp_path, *["a b c d e a b"] * 12), tmp_path / "run"
    asked = f"atlas {tiny} --data {data} --side 16 --clusters 60 --measures entropy --out {out}"
    assert main(asked.split()) == 1
    said = capsys.readouterr()
    why = "There must be at least as many different patterns as clusters, got "
    assert f"There is no map. language: {why}" in said.err
    assert f"for 60 clusters. Ask for fewer. All else is in {out}." in said.err
    assert f"No map of language: {why}" in " ".join(said.out.split())
    run = hs.open_run(out)
    assert run.finished and run.sections["atlas"].finished
    assert set(run.heads.measures) == {"entropy"}
    found = Atlas.load(out / "atlas")
    assert found.about["refused"]["language"].startswith(why)
    assert len(found.points) == len(found.clusters) == len(found.head_mix) == 0
    assert len(found.patterns) == 72 and found.exemplars is not None
    assert main(["show", str(out)]) == 0
    assert main([*asked.split(), "--resume"]) == 1
    assert "holds a finished run" in capsys.readouterr().err
    again = ["atlas", str(out), "--section", "other", "--clusters"]
    assert main([*again, "60"]) == 1 and not (out / "other").exists()
    assert main([*again, "2"]) == 0
    assert hs.open_run(out).sections["other"].table("clusters")["cluster"].tolist() == [0, 1]


def test_texts_of_one_token_have_no_pattern_and_the_run_says_so(
    tiny: str, tmp_path: Path, capsys: Any
) -> None:
    data, out = texts(tmp_path, *"abcde"), tmp_path / "run"
    asked = f"atlas {tiny} --data {data} --side 16 --measures z_norm --out {out}"
    assert main(asked.split()) == 1
    said = capsys.readouterr()
    reason = "A pattern must have at least 2 queries and 2 keys"
    assert f"There is no map. language: No pattern could be drawn: {reason}" in said.err
    assert f"30: {reason}" in " ".join(said.out.split())
    run = hs.open_run(out)
    assert run.finished and set(run.heads.measures) == {"z_norm"}
    assert main(["show", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["atlas"]
    assert [line["pairs"] for line in record["not_drawn"]] == [30]
    assert record["clusters"] == [] and list(record["about"]["refused"]) == ["language"]
    assert main(["atlas", str(out), "--section", "other"]) == 1
    assert "No pattern could be drawn" in capsys.readouterr().err


def test_a_tower_with_too_few_patterns_leaves_the_others_their_map(tmp_path: Path) -> None:
    subject = hs.load("shapes-llava")
    found = hs.atlas(subject, "scenes", samples=44, side=16, limit=3, exemplars=False, clusters=2)
    assert list(found.about["towers"]) == ["language"]
    assert found.about["refused"] == {
        "vision": "A map needs at least 16 patterns, vision has 12. Take more samples."
    }
    assert found.verdict.startswith("language: 2 clusters")
    assert set(found.points["tower"]) == {"language"} and len(found.patterns) == 44


def test_a_tower_that_no_example_reaches_is_named() -> None:
    subject = hs.load("shapes-llava")
    batch = subject.prepare(["a red circle", "a blue star and a green square"])
    found = hs.atlas(subject, batch, samples=88, side=16, exemplars=False, clusters=2)
    why = "No pattern could be drawn: The example did not reach the layer, or was left out."
    assert found.about["refused"] == {"vision": why}
    assert set(found.points["tower"]) == {"language"}
