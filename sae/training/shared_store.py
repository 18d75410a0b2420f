"""One store of head outputs for several processes that train together."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from sae.activations.source import Activations
from sae.activations.store import store_activations
from sae.activations.store_files import INDEX, StoreError
from sae.activations.stored_rows import StoredActivations
from sae.training.distributed import Processes

_GOES_ON, _DONE, _FAILED = 1.0, 2.0, 3.0


def store_together(
    source: Activations,
    folder: Path,
    processes: Processes,
    *,
    resume: bool = False,
    device: Any = None,
    **how: Any,
) -> StoredActivations:
    """The rows of a store that the first process makes where there is none; the others wait.

    They hear of every shard, so that a store may take as long as it takes. Called by all processes
    at once, with the same source.

    Args:
        resume: go on with an unfinished one.
        device: where rows are put when they are read; None: on the CPU.
        how: settings of `store_activations`.

    Raises:
        StoreError, RunLocked, DiskFull, ValueError: what `store_activations` raises, in the first
            process; StoreError in the others. A store of something else, or of fewer shards than
            there are processes: in all.
    """
    if processes.writes:
        _write(source, folder, processes, resume, how)
    else:
        _wait_for(folder, processes)
    found = StoredActivations(folder, sites=list(source.widths), device=device, of=source)
    if found.shards < processes.count:
        raise StoreError(
            f"The store in {folder} must have a shard for each of {processes.count} processes, it "
            f"has {found.shards}. Train with fewer processes, or on more data."
        )
    return found


def _write(
    source: Activations, folder: Path, processes: Processes, resume: bool, how: dict[str, Any]
) -> None:
    try:
        if not (folder / INDEX).is_file():
            store_activations(
                source,
                folder,
                resume=resume,
                listener=lambda *_: _tell(processes, _GOES_ON),
                **how,
            )
    except BaseException:
        # Where it failed because the others are gone, they cannot be told.
        with suppress(RuntimeError):
            _tell(processes, _FAILED)
        raise
    _tell(processes, _DONE)


def _tell(processes: Processes, state: float) -> None:
    processes.totals([state])


def _wait_for(folder: Path, processes: Processes) -> None:
    while (said := processes.totals([0.0])) == [_GOES_ON]:
        pass
    if said != [_DONE]:
        raise StoreError(
            f"The store in {folder} could not be made, the first process says why. Start again "
            "when that is mended."
        )
