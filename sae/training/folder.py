"""The folder of a training: what it holds, and who may write to it.

FOLDER/
  plan.json       written first: settings, sites, data
  metrics.jsonl   a line per site and logged step
  checkpoint/     to go on from; emptied when the training is finished
  SITE/           a coder each (`sae.exchange.headscope_folder`), or NAME/ of each setting
  manifest.json   written last: a folder without it is unfinished
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from analysis.atomic_file import drop_half_written, write_json
from analysis.journal import RunLock
from analysis.run_files import (
    LOCK,
    MANIFEST,
    PLAN,
    RunError,
    digests,
    plan_differences,
    read_json,
    refuse_foreign,
)
from sae.activations.source import Activations
from sae.coders.coder import Coder
from sae.exchange.headscope_folder import load_coder, save_coder
from sae.training.checkpoint import CHECKPOINT, Checkpoints
from sae.training.distributed import Processes
from sae.training.jobs import Jobs
from sae.training.metrics import METRICS, MetricsFile

SCHEMA = 1
KIND = "sae training"
_AGAIN = "Train again into another folder."
_OWN = {PLAN, METRICS, MANIFEST, CHECKPOINT}
_MAY_DIFFER = ("device", "log_every", "checkpoint_every")
"""Settings that a training may be taken up again with other values of."""


def training_plan(jobs: Jobs, source: Activations, processes: int) -> dict[str, Any]:
    """What is to be done, as `plan.json` says it."""
    sites = {
        site: {"width": width, "heads": source.heads[site]} for site, width in source.widths.items()
    }
    plan = {
        "schema": SCHEMA,
        "kind": KIND,
        **jobs.record(),
        "sites": sites,
        "data": dict(source.about),
        "processes": processes,
    }
    return json.loads(json.dumps(plan))


class TrainingFolder:
    """The writing side, held by one training at a time.

    Attributes:
        finished: whether all that is asked for was done before; nothing is written then.
    """

    def __init__(self, path: Path, processes: Processes, finished: bool) -> None:
        self.path = path
        self.processes = processes
        self.finished = finished
        self.metrics = MetricsFile(path / METRICS)
        self.checkpoints = Checkpoints(path / CHECKPOINT, processes)

    @classmethod
    @contextmanager
    def begin(
        cls, path: Path, plan: Mapping[str, Any], resume: bool, processes: Processes
    ) -> Iterator[TrainingFolder]:
        """A folder to train into, locked; the plan stands in it before anything else.

        Nothing is written before all checks have passed. An unfinished training without any
        checkpoint counts as empty.

        Raises:
            RunError: the folder holds something else, a finished training (without ``resume``),
                an unfinished one without ``resume``, or one with another plan.
            RunLocked: another process is writing it.
        """
        _refuse_names(plan)
        _refuse_foreign(path)
        lock = RunLock(path / CHECKPOINT / LOCK) if processes.writes else nullcontext()
        if (path / PLAN).exists():
            # Locked first: what a running training is about to write must not be judged.
            with lock:
                processes.wait()
                finished = _refuse_other(path, plan, resume, processes)
                processes.wait()
                folder = cls(path, processes, finished)
                if processes.writes:
                    drop_half_written(path)
                    if finished:
                        # Killed between the manifest and this, a training leaves them behind.
                        folder.checkpoints.clear()
                    else:
                        write_json(path / PLAN, plan)
                yield folder
        else:
            processes.wait()
            path.mkdir(parents=True, exist_ok=True)
            with lock:
                if processes.writes:
                    drop_half_written(path)
                    write_json(path / PLAN, plan)
                yield cls(path, processes, False)

    def finish(self, coders: Mapping[str, Coder], manifest: Mapping[str, Any]) -> None:
        """Write the coders, then the manifest with the digests of all that is there."""
        if self.processes.writes:
            for site, coder in coders.items():
                save_coder(coder, self.path / site, replace=True)
            files = digests(self.path, skip={CHECKPOINT})
            about = {"schema": SCHEMA, "kind": KIND, "sites": list(coders)}
            write_json(self.path / MANIFEST, {**about, **manifest, "files": files})
            self.checkpoints.clear()
        self.processes.wait()

    def coders(self, device: torch.device | None = None) -> dict[str, Coder]:
        """Those of a finished training, by site; on the CPU where no device is named."""
        sites = read_json(self.path / MANIFEST, _AGAIN)["sites"]
        return {site: load_coder(self.path / site, device or "cpu") for site in sites}


def _refuse_names(plan: Mapping[str, Any]) -> None:
    for site in plan.get("settings", plan["sites"]):
        if not site or site in _OWN or Path(site).name != site or site.startswith("."):
            raise RunError(
                f"A site must have a name that a folder can have, and none of "
                f"{', '.join(sorted(_OWN))}; got {site!r}. Name it otherwise."
            )


def _refuse_foreign(path: Path) -> None:
    refuse_foreign(path, {CHECKPOINT}, "`out`")
    if (path / PLAN).exists() and read_json(path / PLAN, _AGAIN).get("kind") != KIND:
        raise RunError(
            f"`out` must be a new folder or that of a training, {path} holds another run. "
            "Choose another name; nothing was touched."
        )


def _refuse_other(path: Path, plan: Mapping[str, Any], resume: bool, processes: Processes) -> bool:
    """Whether the training there is finished; raises where it cannot be gone on with."""
    finished = (path / MANIFEST).exists()
    if not finished and not Checkpoints(path / CHECKPOINT, processes).steps():
        return False
    if not resume:
        state = "a finished" if finished else "an unfinished"
        advice = "" if finished else "Say `resume` to go on with it, or choose "
        raise RunError(f"{path} holds {state} training. {advice or 'Choose '}another `out`.")
    differences = plan_differences(_comparable(read_json(path / PLAN, _AGAIN)), _comparable(plan))
    if differences:
        raise RunError(
            f"The training in {path} has another plan: {'; '.join(differences)}. "
            "Resume with what it was started with, or choose another `out`."
        )
    return finished


def _comparable(plan: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(plan)
    if "config" in plan:
        found["config"] = _lasting(plan["config"])
    if "settings" in plan:
        found["settings"] = {
            name: {**one, "config": _lasting(one["config"])}
            for name, one in plan["settings"].items()
        }
    return found


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _MAY_DIFFER}
