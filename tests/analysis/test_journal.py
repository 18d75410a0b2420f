"""The journal survives crashes, full disks and a second process."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis import atomic_file
from analysis.atomic_file import DiskFull, is_disk_full, write_json, written_atomically
from analysis.journal import Journal, RunLock, RunLocked


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "numerator": rng.normal(size=(3, 11)),
        "denominator": np.repeat(rng.normal(size=(3, 2)), [4, 7], axis=1)[:, ::-1],
        "curve": rng.normal(size=(2, 3, 5)),
        "empty": np.zeros((0, 7)),
    }


def test_round_trip_is_exact_and_repeated_columns_are_stored_once(tmp_path, arrays):
    journal = Journal(tmp_path / "journal")
    assert journal.finished() == []
    journal.write(7, arrays, {"ids": ["a", "ü", "c"], "skipped": []})
    journal.write(2, arrays, {})
    assert journal.finished() == [2, 7]
    back, about = journal.read(7)
    assert about == {"ids": ["a", "ü", "c"], "skipped": []}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    from safetensors.numpy import load_file

    stored = load_file(tmp_path / "journal" / "shard-000007.safetensors")
    assert stored["denominator/unique"].shape == (3, 2)
    assert stored["numerator"].shape == (3, 11)


def test_columns_that_differ_only_in_the_sign_of_zero_come_back_as_they_were(tmp_path):
    array = np.array([[0.0, -0.0, 0.0, 0.0, 0.0]])
    Journal(tmp_path).write(0, {"x": array}, {})
    back, _ = Journal(tmp_path).read(0)
    assert np.signbit(back["x"]).tolist() == np.signbit(array).tolist()


def test_a_torn_shard_is_named(tmp_path, arrays):
    journal = Journal(tmp_path)
    journal.write(4, arrays, {})
    path = tmp_path / "shard-000004.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"shard-000004\.safetensors cannot be read"):
        journal.read(4)


def test_a_full_disk_leaves_what_was_there(tmp_path, arrays, monkeypatch):
    journal = Journal(tmp_path)
    journal.write(0, arrays, {"first": True})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    for shard in (0, 1):
        with pytest.raises(DiskFull, match="No space is left on the disk"):
            journal.write(shard, arrays, {"first": False})
    monkeypatch.undo()
    assert journal.finished() == [0]
    assert journal.read(0)[1] == {"first": True}
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.safetensors"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_real_full_device_is_recognised():
    with open("/dev/full", "w") as file, pytest.raises(OSError) as caught:
        file.write("x" * 100_000)
        file.flush()
    assert is_disk_full(caught.value)
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "denied"))
    assert not is_disk_full(ValueError("no"))


def test_atomic_write_replaces_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt), written_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_second_process_is_kept_out_until_the_first_dies(tmp_path):
    path = tmp_path / "run" / "journal" / "lock"
    code = (
        "import sys, time; from pathlib import Path; from analysis.journal import RunLock\n"
        "with RunLock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parents[2]
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "held\n"
        lock = RunLock(path)
        assert lock.is_held()
        with pytest.raises(RunLocked, match=rf"being written by process {first.pid} on "), lock:
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    deadline = time.monotonic() + 5
    while lock.is_held() and time.monotonic() < deadline:
        time.sleep(0.05)
    with RunLock(path) as held:
        assert held.is_held()
        assert str(os.getpid()) in held.holder()
    assert not lock.is_held()
