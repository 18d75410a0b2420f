"""An atlas that was interrupted, and one of data with and without images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headscope as hs
from analysis.atlas.atlas import Atlas
from analysis.atlas.options import AtlasOptions
from analysis.progress import Stage
from headscope.plan import Options
from headscope.runs import score_run

HOW = Options(
    "entropy,atlas", limit=40, atlas=AtlasOptions(samples=16 * 9, side=16, clusters="4")
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(subject: Any, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return Atlas.load(score_run(subject, "repeats", out, HOW).path / "atlas")


@pytest.mark.parametrize(
    ("stage", "done", "shards"),
    [("examples", 36, 1), ("atlas: patterns", 16, 2), ("atlas of language: autoencoder", 2, 2)],
)
def test_a_run_that_was_interrupted_has_the_same_clusters(
    stage: str, done: int, shards: int, undisturbed: Atlas, subject: Any, tmp_path: Path
) -> None:
    def interrupt(seen: Stage) -> None:
        if seen.name == stage and seen.done >= done:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        score_run(subject, "repeats", out, HOW, progress=interrupt)
    run = hs.open_run(out)
    assert not run.finished and run.shards == (shards, 2)
    assert "atlas" not in run.sections
    run = score_run(subject, "repeats", out, HOW, resume=True)
    found = Atlas.load(run.path / "atlas")
    assert run.finished and found.about["towers"].keys() == {"language"}
    for name in ("points", "clusters", "head_mix", "head_shares"):
        assert getattr(found, name).equals(getattr(undisturbed, name)), name
    np.testing.assert_array_equal(found.patterns.images, undisturbed.patterns.images)
    assert found.exemplars is not None and undisturbed.exemplars is not None
    assert found.exemplars.events.equals(undisturbed.exemplars.events)


def test_data_with_and_without_images_in_one_set(tmp_path: Path) -> None:
    from probes.readers import read_examples

    subject = hs.load("shapes-llava")
    seen = list(read_examples("scenes", subject.kind, 5))
    lines = [
        {"id": f"{kind}-{n}", "question": e.question, "answer": e.answer}
        | ({"image": str(e.image)} if kind == "seen" else {})
        for n, e in enumerate(seen)
        for kind in ("blind", "seen")
    ]
    data = tmp_path / "mixed.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    how = AtlasOptions(samples=44 * 10, side=16, clusters="2")
    # Batches of four: of images alone, mixed, and of text alone.
    run = score_run(subject, str(data), tmp_path / "run", Options("atlas", batch_size=4, atlas=how))
    assert run.finished and not run.skipped
    found = Atlas.load(run.path / "atlas")
    examples = found.points.groupby("tower")["example"].agg(set).to_dict()
    assert examples["vision"] == {f"seen-{n}" for n in range(5)}
    assert examples["language"] == {line["id"] for line in lines}
    sizes = found.points.groupby("tower").size()
    assert sizes.to_dict() == {"vision": 12 * 5, "language": 32 * 10}
    assert found.about["refused"] == {} and not len(found.not_drawn)
    samples = found.patterns.samples
    words = samples[samples["tower"] == "language"].groupby("example")["queries"].first()
    for n in range(5):  # the image's tokens are part of the sequence
        assert words[f"seen-{n}"] > words[f"blind-{n}"] + 16
    assert found.exemplars is not None
    events = found.exemplars.events
    assert set(events.loc[events["tower"] == "vision", "example"]) <= examples["vision"]
    assert {name.split("-")[0] for name in events["example"]} == {"seen", "blind"}
