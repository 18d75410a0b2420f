"""Run folders: what is refused, what an unfinished run shows, what a manifest vouches for."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import run_folder
from analysis.head_table import HeadTable
from analysis.journal import RunLock, RunLocked
from analysis.run_files import plan_differences
from analysis.run_folder import RunError, RunFolder, new_section, open_run
from analysis.scores import BatchScores, Column
from analysis.tally import Tally

PLAN = {
    "schema": 1,
    "created": "now",
    "command": ["headscope"],
    "model": {"name": "repeat-lm", "revision": None},
    "data": {"inputs": "repeats", "n": 5},
    "layers": {"language": 3},
    "measures": ["sink"],
    "seed": 7,
    "replicates": 20,
    "shards": 2,
}


def _scores(ids, seed=0):
    columns = tuple(Column("language", 1, head, "sink", "", "share") for head in range(3))
    generator = torch.Generator().manual_seed(seed)
    numerator = torch.rand(len(ids), 3, generator=generator, dtype=torch.float64)
    ones = torch.ones_like(numerator)
    return BatchScores(columns, numerator, ones, numerator / 5, ones, examples=tuple(ids))


def _write(folder, shard, scores, skipped=()):
    tensors, about = scores.to_tensors()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    folder.journal.write(shard, arrays, {"scores": about, "skipped": list(skipped)})


def _finish(folder):
    tally = Tally(replicates=20, seed=7)
    for ids, seed in ((["a", "b"], 0), (["c", "d", "e"], 1)):
        tally.add(_scores(ids, seed))
    table = tally.heads("repeats", {"language": 3})
    folder.finish(table, tally.profiles(), {"n": 5, "skipped": []})
    return table


@pytest.fixture
def finished(tmp_path):
    with RunFolder.begin(tmp_path / "run", PLAN, resume=False) as folder:
        _write(folder, 0, _scores(["a", "b"], 0))
        _write(folder, 1, _scores(["c", "d", "e"], 1))
        _finish(folder)
    return tmp_path / "run"


def test_the_plan_is_there_before_anything_else(tmp_path):
    path = tmp_path / "deep" / "run"
    with RunFolder.begin(path, PLAN, resume=False):
        assert {item.name for item in path.iterdir()} == {"plan.json", "journal"}
    run = open_run(path)
    assert run.plan["seed"] == 7
    assert not run.finished
    assert run.shards == (0, 2)
    assert "unfinished, 0 of 2 shards" in repr(run)
    assert len(run.heads) == 0
    assert len(run.profiles) == 0
    assert run.skipped == []


def test_an_unfinished_run_shows_what_is_done(tmp_path):
    skipped = {"id": "z", "reason": "it does not decode"}
    with RunFolder.begin(tmp_path, PLAN, resume=False) as folder:
        _write(folder, 1, _scores(["c", "d", "e"], 1), [skipped])
        run = open_run(tmp_path)
        assert run.being_written
        assert run.shards == (1, 2)
        expected = _scores(["c", "d", "e"], 1).values.numpy()
        np.testing.assert_allclose(run.heads.grid("sink")[1], expected, rtol=1e-12)
        assert run.heads.layers == {"language": 3}
        assert run.skipped == [skipped]
    assert not run.being_written


def test_a_finished_run_reads_back_and_vouches_for_its_files(finished):
    run = open_run(finished / "manifest.json")
    assert run.finished
    assert run.manifest is not None
    assert set(run.manifest["files"]) == {
        "plan.json",
        "heads.parquet",
        "profiles.parquet",
        "journal/shard-000000.safetensors",
        "journal/shard-000001.safetensors",
    }
    assert run.altered() == []
    (finished / "heads.parquet").write_bytes(b"tampered")
    (finished / "journal" / "shard-000001.safetensors").unlink()
    assert run.altered() == ["heads.parquet", "journal/shard-000001.safetensors"]


def test_finished_and_unfinished_give_one_table(finished):
    whole = open_run(finished).heads
    (finished / "manifest.json").unlink()
    pd.testing.assert_frame_equal(open_run(finished).heads.frame, whole.frame)


def test_a_crash_before_the_manifest_leaves_an_unfinished_run(tmp_path, monkeypatch):
    def crash(path, value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with RunFolder.begin(tmp_path, PLAN, resume=False) as folder:
            _write(folder, 0, _scores(["a"]))
            monkeypatch.setattr(run_folder, "write_json", crash)
            _finish(folder)
    monkeypatch.undo()
    assert not open_run(tmp_path).finished
    with RunFolder.begin(tmp_path, PLAN, resume=True) as folder:
        assert folder.journal.finished() == [0]


def test_what_a_killed_start_left_is_no_hindrance_and_goes(tmp_path):
    """Half a plan; and, where there is one, halves of what was written later."""
    out = tmp_path / "out"
    (out / "journal").mkdir(parents=True)
    (out / ".plan.json.4711.part").write_text("{")
    RunFolder.refuse_taken(out)
    with RunFolder.begin(out, PLAN, resume=False):
        assert sorted(path.name for path in out.iterdir()) == ["journal", "plan.json"]
    (out / "journal" / ".shard-000000.safetensors.12.part").write_bytes(b"x")
    (out / ".mine.part").write_text("not ours: no process in its name")
    with RunFolder.begin(out, PLAN, resume=True):
        assert [path.name for path in out.rglob("*.part")] == [".mine.part"]


@pytest.mark.parametrize("name", [".plan.json.x.part", ".thesis.tex.12.part", "plan.json.12.part"])
def test_halves_of_other_files_are_something_else(tmp_path, name):
    (tmp_path / name).write_text("x")
    with (
        pytest.raises(RunError, match=r"holds something else \("),
        RunFolder.begin(tmp_path, PLAN, resume=False),
    ):
        pass
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path, resume):
    precious = tmp_path / "thesis.tex"
    precious.write_text("x")
    with (
        pytest.raises(RunError, match=r"new or empty folder, .* holds something else \(thesis"),
        RunFolder.begin(tmp_path, PLAN, resume=resume),
    ):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]
    with (
        pytest.raises(RunError, match="must be a folder"),
        RunFolder.begin(precious, PLAN, resume=resume),
    ):
        pass


@pytest.mark.parametrize("plan", [{"kind": "sae training", "schema": 1}, {"shard_rows": 64}])
def test_a_training_or_a_store_that_was_begun_is_not_written_over(tmp_path, plan):
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with (
        pytest.raises(RunError, match="something else than a run of scores"),
        RunFolder.begin(tmp_path, PLAN, resume=False),
    ):
        pass
    with pytest.raises(RunError, match="something else than a run of scores"):
        RunFolder.refuse_taken(tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text()) == plan
    assert [item.name for item in tmp_path.iterdir()] == ["plan.json"]


def test_finished_unfinished_and_other_plans_are_refused_with_what_to_do(finished, tmp_path):
    for resume in (False, True):
        with (
            pytest.raises(RunError, match="holds a finished run"),
            RunFolder.begin(finished, PLAN, resume=resume),
        ):
            pass
    other = tmp_path / "other"
    with RunFolder.begin(other, PLAN, resume=False) as folder:
        _write(folder, 0, _scores(["a"]))
    with (
        pytest.raises(RunError, match="Add `--resume` to go on"),
        RunFolder.begin(other, PLAN, resume=False),
    ):
        pass
    changed = {**PLAN, "seed": 8, "model": {"name": "gpt2", "revision": None}, "created": "later"}
    with (
        pytest.raises(RunError, match=r"model.name was 'repeat-lm', now 'gpt2'; seed was 7, now 8"),
        RunFolder.begin(other, changed, resume=True),
    ):
        pass


def test_a_run_without_a_finished_shard_counts_as_empty(tmp_path):
    with RunFolder.begin(tmp_path, PLAN, resume=False):
        pass
    with RunFolder.begin(tmp_path, {**PLAN, "seed": 8}, resume=False):
        assert open_run(tmp_path).plan["seed"] == 8


def test_only_time_command_and_device_may_differ():
    assert plan_differences(PLAN, {**PLAN, "created": "x", "command": [], "device": "cuda"}) == []
    assert plan_differences(PLAN, {**PLAN, "limit": 3}) == ["limit was None, now 3"]


def test_a_second_writer_is_told_who_is_there(tmp_path):
    with (
        RunFolder.begin(tmp_path, PLAN, resume=False),
        pytest.raises(RunLocked, match=r"is being written by process \d+ on .*other `--out`"),
        RunFolder.begin(tmp_path, PLAN, resume=True),
    ):
        pass
    assert not RunLock(tmp_path / "journal" / "lock").is_held()


def test_sections_have_manifests_of_their_own(finished):
    with new_section(finished, "atlas", {"seed": 1}) as folder:
        (folder / "map.txt").write_text("here")
    with pytest.raises(RuntimeError), new_section(finished, "vision", {}):
        raise RuntimeError
    sections = open_run(finished).sections
    assert sections["atlas"].finished
    assert sections["atlas"].manifest is not None
    assert list(sections["atlas"].manifest["files"]) == ["map.txt"]
    assert not sections["vision"].finished
    assert open_run(finished).altered() == []
    with (
        pytest.raises(RunError, match="'atlas' of .* is finished"),
        new_section(finished, "atlas", {}),
    ):
        pass
    for name in ("journal", "../x"):
        with pytest.raises(RunError, match="must not be called"), new_section(finished, name, {}):
            pass


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run: it has no plan\.json"):
        open_run(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        open_run(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "schema": 99}))
    with pytest.raises(RunError, match="has schema 99, this version of headscope reads 1"):
        open_run(tmp_path)


def test_opening_a_finished_run_needs_no_torch(finished):
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys; from analysis.run_folder import open_run\n"
        "print(len(open_run(sys.argv[1]).heads), 'torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(finished)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert found.stdout == "3 False\n", found.stderr


def test_heads_come_back_as_a_head_table(finished):
    assert isinstance(open_run(finished).heads, HeadTable)
    assert list(open_run(finished).profiles.columns)[:4] == ["tower", "layer", "head", "measure"]
