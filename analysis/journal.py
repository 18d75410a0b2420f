"""The journal of a run: one file per finished shard, and the lock that keeps others out."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from analysis.atomic_file import written_atomically

Arrays = Mapping[str, np.ndarray]
_SHARD = re.compile(r"^shard-(\d{6})\.safetensors$")
_PACKED, _INDEX = "/unique", "/index"


class RunLocked(RuntimeError):
    """Another process is writing this run."""


class Journal:
    """Finished shards, each a safetensors file that is whole or not there.

    A file holds float arrays and, as text in its metadata, a JSON object about them. Arrays
    ``[example, column]`` whose columns repeat (denominators are alike for all heads of a layer)
    are stored once per distinct column.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self) -> list[int]:
        """Numbers of the shards that are whole, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_SHARD.match(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def write(self, shard: int, arrays: Arrays, about: Mapping[str, Any]) -> None:
        """Record a finished shard; a file of the same number is replaced.

        Raises:
            DiskFull: no room; shards written before are untouched.
        """
        from safetensors.numpy import save

        packed = {key: array for name in arrays for key, array in _pack(name, arrays[name])}
        text = {"about": json.dumps(about, ensure_ascii=False)}
        path = self._path(shard)
        path.parent.mkdir(exist_ok=True)
        with written_atomically(path) as temporary:
            # Not save_file: its files can be read by their owner alone, whatever the umask.
            temporary.write_bytes(save(packed, metadata=text))

    def read(self, shard: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and the JSON object of a shard.

        Raises:
            ValueError: the file cannot be read.
        """
        with self._opened(shard) as (file, about):
            return _unpack({name: file.get_tensor(name) for name in file.keys()}), about  # noqa: SIM118

    def about(self, shard: int) -> dict[str, Any]:
        """The JSON object of a shard, its arrays left on the disk."""
        with self._opened(shard) as (_, about):
            return about

    @contextmanager
    def _opened(self, shard: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        from safetensors import SafetensorError, safe_open

        path = self._path(shard)
        try:
            with safe_open(path, "numpy") as file:
                yield file, json.loads((file.metadata() or {})["about"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"Shard {path} cannot be read ({error}). Delete that one file and go on with "
                "`--resume`."
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.safetensors"


def _pack(name: str, array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if array.ndim != 2 or array.size == 0:
        return [(name, np.ascontiguousarray(array))]
    columns = np.ascontiguousarray(array.T)
    rows = columns.view(np.dtype((np.void, columns.dtype.itemsize * columns.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    if 2 * first.size > columns.shape[0]:
        return [(name, np.ascontiguousarray(array))]
    return [
        (name + _PACKED, np.ascontiguousarray(columns[first].T)),
        (name + _INDEX, inverse.ravel().astype(np.int32)),
    ]


def _unpack(stored: Arrays) -> dict[str, np.ndarray]:
    plain = {name: array for name, array in stored.items() if not name.endswith((_PACKED, _INDEX))}
    for name, array in stored.items():
        if name.endswith(_PACKED):
            base = name.removesuffix(_PACKED)
            plain[base] = array[:, stored[base + _INDEX]]
    return plain


class RunLock:
    """Held by the one process that writes a run; the system drops it when that process ends.

    The file names process and host for people. What counts is the system's lock on it, so a file
    left behind by a crash locks nobody out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        if not _acquired(file):
            holder = self.holder() or "another process"
            file.close()
            raise RunLocked(
                f"The run {self.path.parent.parent} is being written by {holder}. Wait for it, "
                "or choose another `--out`."
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> str:
        """Who wrote its name into the file last; empty if nobody did."""
        return self.path.read_text(encoding="utf-8").strip() if self.path.exists() else ""

    def is_held(self) -> bool:
        """Whether some process writes the run right now."""
        import fcntl

        if not self.path.exists():
            return False
        with self.path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def _acquired(file: IO[str]) -> bool:
    """Try for a moment: somebody who only asks whether the lock is held has it for an instant."""
    import fcntl

    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False
