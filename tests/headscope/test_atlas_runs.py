"""The pattern atlas from model to folder: made, shown, made again without the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headscope as hs
from analysis.atlas.atlas import Atlas
from headscope.cli.entry import main

HEADS = [f"L{layer}H{head}" for layer in (0, 1) for head in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an atlas of repeat-lm, by the command line."""
    out = tmp_path_factory.mktemp("atlas") / "run"
    asked = (
        f"atlas repeat-lm --limit 24 --samples 384 --side 16 --clusters 6 --measures= --out {out}"
    )
    assert main(asked.split()) == 0
    return out


def test_every_head_is_placed_and_induction_heads_are_named_so(folder: Path) -> None:
    run = hs.open_run(folder)
    section = run.sections["atlas"]
    points, mix = section.table("points"), section.table("head_mix")
    assert section.finished and len(points) == 16 * 24
    assert [f"L{layer}H{head}" for layer, head in mix[["layer", "head"]].to_numpy()] == HEADS
    named = points.groupby(["layer", "head"])["name"].agg(lambda names: names.mode()[0])
    detected = run.sections["atlas"].table("features").assign(**points[["layer", "head"]])
    induction = detected.groupby(["layer", "head"])["value:induction"].mean()
    assert {head for head, value in induction.items() if value > 0.3} == {
        (1, 0), (1, 1), (1, 4), (1, 5), (1, 7)
    }  # fmt: skip
    for head, value in induction.items():
        if not 0.05 < value < 0.3:
            assert (named[head] == "induction") == (value > 0.3), head
    entropy = run.heads.lines("pattern_entropy", "language")
    assert len(entropy) == 16 and (entropy["value"] < entropy["null_low"]).all()


def test_an_atlas_is_read_as_it_was_made(folder: Path) -> None:
    found = Atlas.load(folder / "atlas")
    again = hs.atlas(folder, clusters=6)
    assert found.verdict == again.verdict and "clusters" in found.verdict
    np.testing.assert_array_equal(found.points[["x", "y"]], again.points[["x", "y"]])
    np.testing.assert_array_equal(found.pictures["medoid"], again.pictures["medoid"])
    medoids = found.patterns.images[found.clusters["medoid"]].astype(np.float32)
    np.testing.assert_array_equal(found.pictures["medoid"], medoids)
    shares = found.head_shares.groupby(["layer", "head"])["share"].sum()
    np.testing.assert_allclose(shares, 1.0)
    assert found.exemplars is not None and set(found.exemplars.events["head"]) == set(range(8))


def test_heads_are_matched_with_those_of_another_atlas(folder: Path) -> None:
    found = Atlas.load(folder / "atlas")
    # The same heads on the other half of the inputs, their numbers turned around.
    halves = found.points["example"].str[-1].isin(list("02468")).to_numpy()
    one, other = (replace(found, patterns=found.patterns.of(half)) for half in (halves, ~halves))
    turned = other.patterns.samples
    turned = turned.assign(head=7 - turned["head"])
    other = replace(other, patterns=replace(other.patterns, samples=turned))
    matching = one.match(other)
    pairs = matching.pairs
    assert matching.p < 0.02 and matching.score > 0.9
    assert (pairs["layer_a"] == pairs["layer_b"]).all()
    assert (pairs["head_a"] == 7 - pairs["head_b"]).mean() >= 0.75


def test_shown_and_mapped_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Pattern atlas of language: 384 patterns of 16 heads" in shown
    assert "adjusted Rand index" in shown and "induction 0." in shown
    asked = ["atlas", str(folder), "--section", "atlas_3", "--clusters", "3", "--json"]
    assert main(asked) == 0
    record = json.loads(capsys.readouterr().out)
    assert [line["cluster"] for line in record["clusters"]] == [0, 1, 2]
    assert record["about"]["options"]["clusters"] == "3"
    run = hs.open_run(folder)
    assert run.sections["atlas_3"].finished
    assert len(run.heads.lines("pattern_steadiness", inputs="repeats")) == 16
    again = hs.open_run(folder).sections["atlas_3"].path / "atlas.json"
    options = json.loads(again.read_text())["options"]
    assert (options["samples"], options["side"], options["exemplars"]) == (384, 16, True)
    assert main(asked) == 1  # the section is taken
    assert main(["atlas", str(folder), "--section", "atlas-4"]) == 1
    assert main([*asked[:3], "other", "--side", "32"]) == 2
    capsys.readouterr()
    assert main(["show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["atlas"]["clusters"][0]["cluster"] == 0


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("repeat-lm --side 20", 2, "`side` must be a multiple of 8"),
        ("repeat-lm --space both-of-them", 2, "`space` must be one of both, features, latent"),
        ("repeat-lm --clusters 0", 2, "or a number of clusters, got '0'"),
        ("repeat-lm --section other", 2, "`--section` must come with the folder of a run"),
        ("repeat-lm --samples 15 --limit 4", 1, "at least the number of heads, 16, got 15"),
        ("repeat-lm --resume", 2, "`--resume` needs `--out`"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    words: str, code: int, sentence: str, tmp_path: Path, capsys: Any
) -> None:
    more = [] if "--resume" in words else ["--out", str(tmp_path / "run")]
    assert main(["atlas", *words.split(), *more]) == code
    assert sentence in capsys.readouterr().err


def test_a_run_without_patterns_says_what_to_run(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert main(f"score repeat-lm --limit 4 --measures entropy --out {out}".split()) == 0
    capsys.readouterr()
    assert main(["atlas", str(out), "--section", "atlas_2"]) == 1
    said = capsys.readouterr().err
    assert "has kept no patterns. Draw some with: headscope atlas repeat-lm --data repeats" in said
    assert main(["atlas", str(out)]) == 2


def test_examples_without_an_image_reach_no_vision_head_in_any_batch() -> None:
    from probes.readers import read_examples

    subject = hs.load("shapes-llava")
    seen = list(read_examples("scenes", subject.kind, 6))
    blind = [replace(e, id=f"blind-{e.id}", image=None, objects=()) for e in seen]
    counts = []
    for batches in ([[*seen, *blind]], [seen, blind]):
        made = [subject.prepare(examples=part) for part in batches]
        found = hs.atlas(subject, made, samples=44 * 12, side=16, clusters=2, exemplars=False)
        counts.append(found.points.groupby("tower").size().to_dict())
    assert counts[0] == counts[1] == {"vision": 12 * 6, "language": 32 * 12}


def test_scores_alone_have_no_atlas() -> None:
    with pytest.raises(ValueError, match="Use `hs.atlas`"):
        hs.score(hs.load("repeat-lm"), "repeats", "atlas", limit=2)


def test_towers_have_maps_of_their_own(tmp_path: Path) -> None:
    subject = hs.load("shapes-llava")
    found = hs.atlas(subject, "scenes", samples=44 * 6, side=16, limit=6, clusters=2,
                     exemplars=False)  # fmt: skip
    assert list(found.about["towers"]) == ["vision", "language"]
    assert found.exemplars is None
    by_tower = found.clusters.groupby("tower", sort=False)["cluster"].agg(list)
    numbers = [number for numbers in by_tower for number in numbers if number >= 0]
    assert numbers == list(range(len(numbers)))
    for line in found.clusters.itertuples():
        assert found.patterns.samples["tower"][line.medoid] == line.tower
    sizes = found.points.groupby("cluster").size()
    assert (sizes[found.clusters["cluster"]].to_numpy() == found.clusters["size"]).all()
    found.save(tmp_path)
    read = Atlas.load(tmp_path)
    assert read.exemplars is None and read.about["refused"] == {}
    assert read.clusters.equals(found.clusters)
