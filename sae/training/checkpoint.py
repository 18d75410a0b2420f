"""Checkpoints of a training: two generations, each whole or not there.

checkpoint/
  lock
  00000500/                 optimiser steps when it was written
    shared.safetensors      coders, moments of the optimisers, firing counts
    process-0.safetensors   where this process is in the data
    whole.json              written last: a generation without it does not count
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis.atomic_file import write_json
from analysis.run_files import RunError, read_json
from sae.exchange.tensor_file import TensorFileError, read_tensors, write_tensors
from sae.training.distributed import Processes

CHECKPOINT = "checkpoint"
_WHOLE, _SHARED = "whole.json", "shared.safetensors"
_KEPT = 2


@dataclass(frozen=True)
class Part:
    """Tensors by name, and JSON values."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Generation:
    """A checkpoint that was read.

    Attributes:
        step: optimiser steps, of all sites, when it was written.
        shared: what all processes have alike.
        own: what belongs to the process that reads.
        unreadable: why newer ones were passed over.
    """

    step: int
    shared: Part
    own: Part
    unreadable: tuple[str, ...] = ()


def whole_steps(folder: Path) -> list[int]:
    """Optimiser steps, of all sites, at which the checkpoints in a folder were written."""
    if not folder.is_dir():
        return []
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{_WHOLE}"))


class Checkpoints:
    """Those of one training; all processes see the same folder."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.processes = processes

    def steps(self) -> list[int]:
        """When whole generations were written, oldest first."""
        return whole_steps(self.folder)

    def write(self, step: int, shared: Part, own: Part) -> None:
        """Write a generation, then drop all but the two newest; called by all processes at once.

        Whenever this ends early, by a kill as well, the generations before stay as they were.

        Raises:
            DiskFull: no room.
        """
        folder = self.folder / f"{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        if self.processes.writes:
            # One that could not be read may stand there.
            (folder / _WHOLE).unlink(missing_ok=True)
        self.processes.wait()
        write_tensors(folder / _own(self.processes.rank), own.tensors, own.facts)
        if self.processes.writes:
            write_tensors(folder / _SHARED, shared.tensors, shared.facts)
        self.processes.wait()
        if self.processes.writes:
            write_json(folder / _WHOLE, {"step": step, "processes": self.processes.count})
            self._drop(self.steps()[-_KEPT:])
        self.processes.wait()

    def newest(self) -> Generation | None:
        """The newest generation that can be read; None where none was ever written.

        Raises:
            RunError: there are some, and none can be read.
        """
        failures = []
        for step in reversed(self.steps()):
            folder = self.folder / f"{step:08d}"
            try:
                read_json(folder / _WHOLE, "")
                shared = Part(*read_tensors(folder / _SHARED))
                own = Part(*read_tensors(folder / _own(self.processes.rank)))
            except (TensorFileError, RunError) as error:
                failures.append(str(error))
                continue
            return Generation(step, shared, own, tuple(failures))
        if failures:
            raise RunError(
                f"No checkpoint in {self.folder} can be read: {' '.join(failures)} "
                "Train again into another folder."
            )
        return None

    def clear(self) -> None:
        """Drop all generations; for a training that is finished."""
        if self.processes.writes and self.folder.is_dir():
            self._drop([])

    def _drop(self, kept: list[int]) -> None:
        for folder in self.folder.iterdir():
            if folder.name.isdigit() and int(folder.name) not in kept:
                # First what makes it count: half of a generation must not look like one.
                (folder / _WHOLE).unlink(missing_ok=True)
                shutil.rmtree(folder)


def _own(rank: int) -> str:
    return f"process-{rank}.safetensors"
