from __future__ import annotations

import json

import pytest
import torch

from analysis.run_files import RunError
from sae.training.checkpoint import Checkpoints, Part
from sae.training.distributed import Processes


def _write(checkpoints: Checkpoints, step: int) -> None:
    shared = Part({"a/coder": torch.full((2, 3), float(step))}, {"taken": step})
    own = Part({"carry/a": torch.arange(step)}, {"chunk": step + 1})
    checkpoints.write(step, shared, own)


def test_the_newest_generation_comes_back_and_one_more_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoint", Processes())
    assert checkpoints.newest() is None
    for step in (3, 11, 7 + 11):
        _write(checkpoints, step)
    assert checkpoints.steps() == [11, 18]
    found = checkpoints.newest()
    assert found is not None and found.step == 18 and found.unreadable == ()
    assert found.shared.tensors["a/coder"].tolist() == [[18.0] * 3] * 2
    assert found.shared.facts == {"taken": 18}
    assert found.own.tensors["carry/a"].tolist() == list(range(18))
    assert found.own.facts == {"chunk": 19}


def test_steps_are_ordered_as_numbers(tmp_path):
    checkpoints = Checkpoints(tmp_path, Processes())
    for step in (99_999_999, 100_000_000):
        (tmp_path / f"{step:08d}").mkdir()
        (tmp_path / f"{step:08d}" / "whole.json").write_text("{}")
    assert checkpoints.steps() == [99_999_999, 100_000_000]


@pytest.mark.parametrize("file", ["shared.safetensors", "process-0.safetensors", "whole.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_generation_is_passed_over_and_named(tmp_path, file, damage):
    checkpoints = Checkpoints(tmp_path, Processes())
    _write(checkpoints, 5)
    _write(checkpoints, 9)
    path = tmp_path / "00000009" / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.unlink()
    found = checkpoints.newest()
    assert found is not None and found.step == 5
    if file != "whole.json" or damage == "cut":
        assert len(found.unreadable) == 1 and file in found.unreadable[0]


def test_when_no_generation_can_be_read_it_is_a_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path, Processes())
    _write(checkpoints, 5)
    (tmp_path / "00000005" / "shared.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match=r"No checkpoint in .* can be read: .*is damaged"):
        checkpoints.newest()


def test_half_a_generation_does_not_count_and_goes_with_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, Processes())
    _write(checkpoints, 5)
    half = tmp_path / "00000009"
    half.mkdir()
    (half / "shared.safetensors").write_bytes(b"half")
    found = checkpoints.newest()
    assert found is not None and found.step == 5 and found.unreadable == ()
    _write(checkpoints, 13)
    assert not half.exists()
    assert checkpoints.steps() == [5, 13]


def test_a_generation_that_is_written_again_does_not_count_meanwhile(tmp_path, monkeypatch):
    import sae.training.checkpoint as module

    checkpoints = Checkpoints(tmp_path, Processes())
    _write(checkpoints, 5)
    _write(checkpoints, 9)

    def full(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(module, "write_tensors", full)
    with pytest.raises(OSError, match="full"):
        _write(checkpoints, 9)
    assert checkpoints.steps() == [5]


def test_each_process_has_a_part_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    first, second = (Checkpoints(tmp_path, Processes(rank, 2)) for rank in (0, 1))
    second.write(4, Part({"s": torch.ones(1)}, {}), Part({"o": torch.full((1,), 8.0)}, {}))
    assert second.steps() == []
    first.write(4, Part({"s": torch.zeros(1)}, {}), Part({"o": torch.full((1,), 7.0)}, {}))
    for checkpoints, own in ((first, 7.0), (second, 8.0)):
        found = checkpoints.newest()
        assert found is not None
        assert found.own.tensors["o"].item() == own
        assert found.shared.tensors["s"].item() == 0.0
    about = json.loads((tmp_path / "00000004" / "whole.json").read_text())
    assert about == {"step": 4, "processes": 2}


def test_clearing_leaves_the_lock(tmp_path):
    checkpoints = Checkpoints(tmp_path, Processes())
    _write(checkpoints, 5)
    (tmp_path / "lock").write_text("")
    checkpoints.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
