"""What lies in a folder that `headscope sae` wrote, finished or not; no model is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.run_files import LOCK, MANIFEST, PLAN, digests, read_json
from headscope.coding.opened import TRAINING, is_training

if TYPE_CHECKING:
    from sae.coders.coder import Coder
    from sae.judging.sweep import Sweep
    from sae.training.metrics import Record

What = Literal["coder", "training", "sweep", "store"]
State = Literal["finished", "running", "unfinished"]
_AGAIN = "Train again into another folder."


@dataclass(frozen=True)
class CoderFolder:
    """One coder.

    Attributes:
        format: which tool's.
    """

    path: Path
    format: str
    coder: Coder = field(repr=False)


@dataclass(frozen=True)
class TrainingFolderState:
    """A training, or the one that is part of a sweep.

    Attributes:
        sites: by coder, the site that it is trained at.
        configs: by coder, its settings (`TrainConfig.record`).
        first, last: by coder, the first and the newest line of the metrics; empty before the
            first step.
        safe: optimiser steps, of all coders together, in the newest whole checkpoint.
        altered: files of a finished training that are no longer what they were.
    """

    path: Path
    state: State
    plan: Mapping[str, Any] = field(repr=False)
    sites: Mapping[str, str] = field(repr=False)
    configs: Mapping[str, Mapping[str, Any]] = field(repr=False)
    first: Mapping[str, Record] = field(repr=False)
    last: Mapping[str, Record] = field(repr=False)
    safe: int = 0
    altered: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepFolder:
    """A sweep; ``judged`` is None before all its settings were judged."""

    path: Path
    training: TrainingFolderState
    judged: Sweep | None = field(repr=False)


@dataclass(frozen=True)
class StoreFolder:
    """Head outputs on a disk.

    Attributes:
        rows: by site.
        shards: how many are written.
        megabytes: that they take.
    """

    path: Path
    finished: bool
    plan: Mapping[str, Any] = field(repr=False)
    rows: Mapping[str, int]
    shards: int
    megabytes: float


def what_is(folder: Path) -> What | None:
    """What `headscope sae` wrote to a folder (or another tool, of a coder); None: nothing."""
    if is_training(folder / TRAINING):
        return "sweep"
    if is_training(folder):
        return "training"
    if (folder / PLAN).is_file():
        return "store" if "shard_rows" in read_json(folder / PLAN) else None
    # Not above: other runs are told apart without waiting for torch.
    from sae.exchange.formats import format_of
    from sae.exchange.refusals import CoderFolderError

    try:
        format_of(folder)
    except CoderFolderError:
        return None
    return "coder"


def described(folder: Path) -> CoderFolder | TrainingFolderState | SweepFolder | StoreFolder:
    """What a folder holds, which is something of `headscope sae` (`what_is`).

    Raises:
        CoderFolderError: a coder that cannot be read.
        RunError: a file of a training or sweep that cannot be read.
        StoreError: the same of a store.
    """
    from sae.exchange.formats import format_of, load_coder

    kind = what_is(folder)
    if kind == "sweep":
        return SweepFolder(folder, training_state(folder / TRAINING), _judged(folder))
    if kind == "training":
        return training_state(folder)
    if kind == "store":
        return _store(folder)
    return CoderFolder(folder, format_of(folder), load_coder(folder))


def training_state(folder: Path) -> TrainingFolderState:
    """How far a training is; it may be running.

    Raises:
        RunError: a file of it cannot be read.
    """
    from analysis.journal import RunLock
    from sae.training.checkpoint import CHECKPOINT, whole_steps

    # Asked before anything is read: what is finished meanwhile is then told as running, not as
    # given up.
    held = RunLock(folder / CHECKPOINT / LOCK).is_held()
    plan = read_json(folder / PLAN, _AGAIN)
    state: State = "running" if held else "unfinished"
    altered: tuple[str, ...] = ()
    if (folder / MANIFEST).exists():
        state = "finished"
        there = digests(folder, skip={CHECKPOINT})
        known = read_json(folder / MANIFEST, _AGAIN)["files"]
        altered = tuple(sorted(name for name in known if there.get(name) != known[name]))
    if "settings" in plan:
        sites = {name: one["site"] for name, one in plan["settings"].items()}
        configs: dict[str, Any] = {name: one["config"] for name, one in plan["settings"].items()}
    else:
        sites = {site: site for site in plan["sites"]}
        configs = dict.fromkeys(plan["sites"], plan["config"])
    first: dict[str, Record] = {}
    last: dict[str, Record] = {}
    for record in _records(folder):
        first.setdefault(record.site, record)
        last[record.site] = record
    steps = whole_steps(folder / CHECKPOINT)
    safe = steps[-1] if steps else 0
    return TrainingFolderState(folder, state, plan, sites, configs, first, last, safe, altered)


def _records(folder: Path) -> list[Record]:
    from analysis.run_files import RunError
    from sae.training.metrics import METRICS, Record, read_metrics

    if not (folder / METRICS).is_file():
        return []
    try:
        return [Record(**line) for line in read_metrics(folder)]
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder / METRICS} cannot be read ({error}). {_AGAIN}") from error


def _judged(folder: Path) -> Sweep | None:
    from analysis.run_files import read_table
    from sae.judging.pareto import ABOUT, TABLE
    from sae.judging.sweep import Sweep

    if not (folder / ABOUT).is_file():
        return None
    missing = read_json(folder / ABOUT, _AGAIN)["not_measured"]
    return Sweep(read_table(folder / TABLE, _AGAIN), {}, missing)


def _store(folder: Path) -> StoreFolder:
    from sae.activations.store_files import INDEX, SHARDS, about_shard, read_record

    plan = read_record(folder / PLAN)
    shards = sorted((folder / SHARDS).glob("shard-*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards) / 1e6
    if (folder / INDEX).is_file():
        return StoreFolder(
            folder, True, plan, read_record(folder / INDEX)["rows"], len(shards), size
        )
    rows = dict.fromkeys(plan["widths"], 0)
    for shard in shards:
        found = about_shard(shard)["rows"]
        rows = {site: count + found[site] for site, count in rows.items()}
    return StoreFolder(folder, False, plan, rows, len(shards), size)
