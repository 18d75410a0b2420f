"""Runs end to end on a bundled model: resumed, interrupted, strict, full disk."""

import errno
import json

import pandas as pd
import pytest
from stopped_runs import stopped_after

from analysis import atomic_file
from analysis.atomic_file import DiskFull
from analysis.run_folder import RunError, open_run
from headscope.plan import AskedWrongly, Options
from headscope.runs import score_run
from headscope.scoring import score


@pytest.fixture
def texts(tmp_path):
    """Seven texts of several lengths, one of which is longer than the model's context."""
    path = tmp_path / "texts.jsonl"
    words = [f"t{number:02d}" for number in range(60)]
    lines = [
        {"id": f"x{index}", "text": " ".join(words[index : index + 7 + 3 * index])}
        for index in range(6)
    ]
    lines.insert(2, {"id": "long", "text": " ".join(words * 200)})
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("headscope.batching._SHARD_EXAMPLES", 2)
    return Options(measures="entropy,previous_token,z_norm", batch_size=2)


def test_a_run_holds_what_the_design_says(subject, few, tmp_path):
    run = score_run(subject, "repeats", tmp_path / "run", Options(few, limit=5))
    assert run.finished
    assert run.manifest is not None
    assert run.manifest["n"] == 5
    assert run.manifest["skipped"] == []
    assert run.heads.measures == ["entropy", "previous_token", "z_norm"]
    assert run.heads.frame["inputs"].unique().tolist() == ["repeats"]
    assert run.heads.grid("entropy").shape == (2, 8)
    assert {"plan.json", "heads.parquet", "profiles.parquet", "examples/index.json"} <= set(
        run.manifest["files"]
    )
    assert run.plan["model"]["name"] == "repeat-lm"
    assert len(run.plan["data"]["digest"]) == 32
    tokens = pd.read_parquet(run.path / "examples" / "tokens.parquet")
    assert tokens["id"].nunique() == 5
    assert run.altered() == []


def test_a_run_equals_the_python_twin(subject, few, tmp_path):
    run = score_run(subject, "repeats", tmp_path / "run", Options(few, limit=5))
    table = score(subject, "repeats", few.split(","), limit=5)
    pd.testing.assert_frame_equal(run.heads.frame, table.frame)


def test_batch_size_changes_little(subject, few):
    one = score(subject, "repeats", few, limit=6, batch_size=1)
    four = score(subject, "repeats", few, limit=6, batch_size=4)
    pd.testing.assert_frame_equal(one.frame, four.frame, rtol=1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("cable pulled")])
def test_an_interrupted_run_goes_on_to_the_same_table(
    subject, texts, small_shards, tmp_path, error
):
    whole = score_run(subject, texts, tmp_path / "whole", small_shards)
    with stopped_after(2, error):
        score_run(subject, texts, tmp_path / "cut", small_shards)
    part = open_run(tmp_path / "cut")
    assert not part.finished
    assert part.shards == (2, 4)
    assert len(part.heads) == len(whole.heads)
    seen = []
    again = score_run(
        subject,
        texts,
        tmp_path / "cut",
        small_shards,
        resume=True,
        progress=lambda stage: seen.append((stage.name, stage.done, stage.total, stage.skipped)),
    )
    assert seen[1] == ("examples", 4, 7, 1)
    assert seen[-1] == ("examples", 7, 7, 1)
    pd.testing.assert_frame_equal(again.heads.frame, whole.heads.frame)


def test_resuming_with_another_plan_is_refused(subject, texts, small_shards, tmp_path):
    with stopped_after(1):
        score_run(subject, texts, tmp_path / "run", small_shards)
    other = Options(measures="entropy", batch_size=2, seed=3)
    with pytest.raises(RunError, match="has another plan: measures was .* seed was 0, now 3"):
        score_run(subject, texts, tmp_path / "run", other, resume=True)


def test_resuming_with_other_weights_is_refused(
    subject, texts, small_shards, tmp_path, monkeypatch
):
    with stopped_after(1):
        score_run(subject, texts, tmp_path / "run", small_shards)
    weight = next(p for p in subject.model.parameters() if p.ndim == 2)
    monkeypatch.setattr(weight, "data", weight.data + 0.5)
    with pytest.raises(RunError, match="has another plan: model.weights was"):
        score_run(subject, texts, tmp_path / "run", small_shards, resume=True)


def test_bad_examples_are_counted_and_named(subject, texts, few, tmp_path):
    run = score_run(subject, texts, tmp_path / "run", Options(few))
    assert [item["id"] for item in run.skipped] == ["long"]
    assert "token" in run.skipped[0]["reason"]
    assert run.manifest is not None
    assert run.manifest["n"] == 6
    with pytest.raises(ValueError, match=r"'long' cannot be scored: .* Leave out `--strict`"):
        score_run(subject, texts, tmp_path / "strict", Options(few, strict=True))
    with pytest.raises(ValueError, match="'long' cannot be scored"):
        score(subject, texts, few, strict=True)


def test_nothing_but_bad_examples_is_an_error(subject, few, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("t01 " * 5000)
    with pytest.raises(RunError, match="None of the 1 examples could be scored; the first: "):
        score_run(subject, str(path), tmp_path / "run", Options(few))
    with pytest.raises(ValueError, match="No example could be scored: "):
        score(subject, str(path), few)


def test_a_full_disk_keeps_the_finished_shards(subject, texts, small_shards, tmp_path, monkeypatch):
    real, calls = atomic_file.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 7:  # the plan and three shards, a file and its folder each
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(DiskFull, match="No space is left on the disk"):
        score_run(subject, texts, tmp_path / "run", small_shards)
    monkeypatch.setattr(atomic_file.os, "fsync", real)
    assert 0 < open_run(tmp_path / "run").shards[0] < 4
    assert not list((tmp_path / "run").rglob("*.part"))
    assert score_run(subject, texts, tmp_path / "run", small_shards, resume=True).finished


def test_measures_that_are_unknown_or_do_not_apply_are_asked_wrongly(subject, tmp_path):
    with pytest.raises(AskedWrongly, match=r"got 'entrop'.*Did you mean entropy"):
        score_run(subject, "repeats", tmp_path / "run", Options("entrop"))
    with pytest.raises(AskedWrongly, match="'mean_hop' does not apply to repeat-lm: "):
        score_run(subject, "repeats", tmp_path / "run", Options("mean_hop,entropy", limit=3))
    assert not (tmp_path / "run").exists()
    with pytest.raises(AskedWrongly, match="'mean_hop' does not apply to repeat-lm: "):
        score(subject, "repeats", ["mean_hop"], limit=3)
    with pytest.raises(AskedWrongly, match="`--batch-size` must be at least 1, got 0"):
        Options(batch_size=0)


def test_batches_in_memory(subject, few):
    first = subject.prepare(text=["t01 t02 t03 t01 t02", "t05 t06 t07"])
    second = subject.prepare(text=["t11 t12 t13 t14", "t21 t22 t21 t22 t21"])
    table = score(subject, [first, second], few)
    assert (table.frame["n"] == 4).all()
    alone = score(subject, first, few)
    assert (alone.frame["n"] == 2).all()
    with pytest.raises(TypeError, match="must be batches from subject.prepare"):
        score(subject, [first.tensors], few)
    with pytest.raises(ValueError, match="There was no batch"):
        score(subject, [], few)
