"""A training from its first or next step to its end: trainers, their batches, what is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from analysis.run_files import RunError
from sae.activations.finite_rows import RowsNotFinite
from sae.activations.source import Activations
from sae.coders.coder import Coder
from sae.training.checkpoint import Part
from sae.training.distributed import Processes
from sae.training.feed import Feed, Step
from sae.training.folder import TrainingFolder
from sae.training.interrupts import Interrupts
from sae.training.jobs import Jobs
from sae.training.metrics import Listener, Notice, Record
from sae.training.site_trainer import SiteTrainer


class Session:
    """One call of `sae.training.train.train_sites` or `train_settings`.

    Attributes:
        trainers: by the names of the jobs.
    """

    def __init__(
        self,
        jobs: Jobs,
        source: Activations,
        processes: Processes,
        folder: TrainingFolder | None,
        listener: Listener,
        interrupts: Interrupts,
        device: torch.device | None,
    ) -> None:
        """Begin, or take up the training whose checkpoint the folder holds.

        Raises:
            ValueError: settings that do not fit a site.
            RunError: no checkpoint can be read, or processes read different ones.
        """
        self.jobs, self.processes, self.folder = jobs, processes, folder
        self._tell, self._interrupts, self._device = listener, interrupts, device
        self._before, self._began = 0.0, time.monotonic()
        self.trainers = {
            name: SiteTrainer(name, source.widths[job.site], job.config, processes, self.seconds)
            for name, job in jobs.by_name.items()
        }
        steps = max(trainer.schedule.steps for trainer in self.trainers.values())
        self._feed = Feed(source, jobs.shared, processes, interrupts, steps)
        self._placed, self._whole, self._written = False, True, -1
        if folder is not None:
            self._take_up(folder)

    def seconds(self) -> float:
        """Time the training has taken, that of earlier runs included."""
        return self._before + time.monotonic() - self._began

    @property
    def taken(self) -> int:
        """Optimiser steps of all sites."""
        return sum(trainer.taken for trainer in self.trainers.values())

    def run(self) -> None:
        """Take all steps.

        Raises:
            ValueError: rows or a loss that are not finite; too few rows.
            KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
        """
        batches = iter(self._feed)
        try:
            while not all(trainer.done for trainer in self.trainers.values()):
                self._interrupts.check()
                self._step(*self._next(batches))
        except KeyboardInterrupt:
            # Several processes are not at one step now, and could not agree on a checkpoint.
            if self._whole and self.processes.count == 1:
                self._checkpoint()
            raise
        self._checkpoint()

    def finish(self, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Coder]:
        """The coders, written to the folder where there is one."""
        coders = {
            site: trainer.finished(
                {**about[site], "training": {"tokens": trainer.tokens, "scale": trainer.scale}}
            )
            for site, trainer in self.trainers.items()
        }
        if self.folder is not None:
            self.folder.finish(coders, {"seconds": self.seconds()})
        return coders

    def _next(self, batches: Iterator[Step]) -> Step:
        try:
            return next(batches)
        except RowsNotFinite as error:
            step = max(self.trainers[name].taken for name in self.jobs.at(error.site)) + 1
            raise ValueError(f"{error} It was before step {step} of this site.") from error

    def _step(self, site: str, rows: Tensor) -> None:
        due = [self.trainers[name] for name in self.jobs.at(site)]
        due = [trainer for trainer in due if not trainer.done]
        if not due:
            return
        if not self._placed:
            for each in self.trainers.values():
                each.place(self._device or rows.device)
            self._placed = True
        before = self.taken
        self._whole = False
        records = [self._learnt(trainer, site, rows) for trainer in due]
        self._whole = True
        for record in records:
            if record is None:
                continue
            if self.folder is not None and self.processes.writes:
                self.folder.metrics.add(record)
            self._tell(record)
        every = self.jobs.shared.checkpoint_every * len(self.trainers)
        if before // every < self.taken // every:
            self._checkpoint()

    def _learnt(self, trainer: SiteTrainer, site: str, rows: Tensor) -> Record | None:
        if not trainer.taken:
            trainer.begin(rows, self._feed.norms.take(site, self.processes))
        return trainer.step(rows)

    def _checkpoint(self) -> None:
        if self.folder is None or self.taken in (0, self._written):
            return
        self._whole = False
        parts = {site: trainer.part() for site, trainer in self.trainers.items()}
        tensors = {name: value for part in parts.values() for name, value in part.tensors.items()}
        facts = {
            "sites": {site: part.facts for site, part in parts.items()},
            "seconds": self.seconds(),
            "metrics": self.folder.metrics.length() if self.processes.writes else 0,
        }
        self.folder.checkpoints.write(self.taken, Part(tensors, facts), self._feed.part())
        self._whole, self._written = True, self.taken

    def _take_up(self, folder: TrainingFolder) -> None:
        found = folder.checkpoints.newest()
        step = 0 if found is None else found.step
        if self.processes.totals([step]) != [step * self.processes.count]:
            raise RunError(
                f"All processes must go on from one checkpoint, this one could read that of step "
                f"{step}. Give all of them the same folder."
            )
        if self.processes.writes:
            folder.metrics.cut(0 if found is None else found.shared.facts["metrics"])
        if found is None:
            return
        for site, trainer in self.trainers.items():
            trainer.restore(found.shared.tensors, found.shared.facts["sites"][site])
        self._feed.restore(found.own.tensors, found.own.facts)
        self._before, self._written = found.shared.facts["seconds"], step
        damaged = f" Newer ones were passed over: {' '.join(found.unreadable)}"
        self._tell(
            Notice(f"Goes on from the checkpoint of step {step}.{damaged * bool(found.unreadable)}")
        )
