"""The training of one coder at one site, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.coder import Coder, Losses, Moment
from sae.coders.registry import dead_features, defaults, make_coder
from sae.coders.resampling import resample
from sae.coders.start import start_at
from sae.training.batch_statistics import batch_statistics
from sae.training.checkpoint import Part
from sae.training.config import TrainConfig
from sae.training.distributed import Processes
from sae.training.finite_loss import FiniteLoss
from sae.training.firing import Firing
from sae.training.metrics import Record
from sae.training.optimiser import Optimiser
from sae.training.schedule import Schedule


class SiteTrainer:
    """A coder, its optimiser and what is counted while it learns.

    Rows are divided by `scale` before the coder sees them. With several processes each gives its
    own rows to `step`, and all hold the same coder afterwards: that of one process with all those
    rows, up to rounding. What a loss takes over a whole batch is then taken over each process'
    rows: the choice of BatchTopK, the number of active latents of JumpReLU, the variance by which
    AuxK is divided.

    Attributes:
        coder: in training mode, of rows divided by ``scale``.
        taken: steps so far.
        firing: which latents have not fired for how long.
        scale: mean norm of the first rows over the root of the width; 1 without normalisation,
            and before the first step.
    """

    def __init__(
        self,
        site: str,
        width: int,
        config: TrainConfig,
        processes: Processes | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """A coder as it starts, on the CPU.

        Args:
            clock: seconds that the training has taken, for records.

        Raises:
            ValueError: settings that do not fit this width; the site is named.
        """
        self.site, self.config, self.clock = site, config, clock
        self.processes = processes or Processes()
        try:
            self.coder: Coder = make_coder(config, width).train()
            chosen = defaults(config, width)
        except ValueError as error:
            raise ValueError(f"At {site}: {error}") from error
        self.schedule = Schedule.of(
            config, config.steps(self.processes.count), dead_features(config) == "resample"
        )
        self._optimiser = Optimiser(
            self.coder, chosen, self.schedule, config.gradient_clip, self.processes
        )
        self.firing = Firing(self.coder.latents, config.dead_rows)
        self.taken, self.scale = 0, 1.0
        self.place(torch.device("cpu"))

    def place(self, device: torch.device) -> None:
        """Move everything to a device."""
        self.device = device
        self.coder.to(device)
        self._optimiser.place(device)
        self.firing.rows_since = self.firing.rows_since.to(device)
        self._finite = FiniteLoss(self.site, self.processes, device)

    @property
    def done(self) -> bool:
        """Whether all steps were taken."""
        return self.taken >= self.schedule.steps

    @property
    def tokens(self) -> int:
        """Rows this site was trained on, by all processes."""
        return self.taken * self.config.batch_size * self.processes.count

    def begin(self, rows: Float[Tensor, "batch width"], mean_norm: float) -> None:
        """Fix the scale and the point the coder starts at; before the first step.

        Args:
            rows: the first batch.
            mean_norm: of the rows of the first block.

        Raises:
            ValueError: all rows are zero, or some are not finite.
        """
        if not math.isfinite(mean_norm):
            raise ValueError(
                f"Head outputs of {self.site} must be finite, got NaN or infinity before step 1. "
                "Check the model's weights and the data."
            )
        if self.config.normalise == "mean_norm":
            if not mean_norm > 0:
                raise ValueError(
                    f"Rows of {self.site} must not all be zero, their mean norm is {mean_norm}. "
                    "Leave this site out, or look at its heads."
                )
            self.scale = mean_norm / math.sqrt(self.coder.width)
        start_at(self.coder, self.processes.gathered(self._scaled(rows)))

    def step(self, rows: Float[Tensor, "batch width"]) -> Record | None:
        """Learn from a batch; the record where this step is logged.

        Raises:
            ValueError: the loss is not finite; named with the step it first was not. On a GPU, and
                with several processes, it is looked for at logged steps and checkpoints.
        """
        x = self._scaled(rows)
        if self.taken in self.schedule.resampling_steps:
            self._resample(x)
        rate = self._optimiser.rate(self.taken)
        losses = self._learn(x)
        self.firing.update(self.processes.summed(losses.fired), x.shape[0] * self.processes.count)
        self.taken += 1
        logged = self.taken == 1 or self.done or self.taken % self.config.log_every == 0
        if not logged:
            return None
        self._finite.refuse(rows)
        return self._record(x, losses, rate)

    def part(self) -> Part:
        """Everything to go on from, as `restore` takes it.

        Raises:
            ValueError: a parameter is not finite.
        """
        self._finite.refuse()
        tensors = {f"coder/{name}": value for name, value in self.coder.state_dict().items()}
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise ValueError(
                    f"The coder of {self.site} must stay finite, `{name}` is not after step "
                    f"{self.taken}. Lower `learning_rate`."
                )
        tensors |= {**self._optimiser.tensors(), "rows_since": self.firing.rows_since}
        facts = {"taken": self.taken, "scale": self.scale, "seen": self.firing.seen}
        return Part({f"{self.site}/{name}": value for name, value in tensors.items()}, facts)

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Become what another trainer of the same settings was."""
        start = f"{self.site}/"
        mine = {n.removeprefix(start): value for n, value in tensors.items() if n.startswith(start)}
        parameters = {
            n.removeprefix("coder/"): v for n, v in mine.items() if n.startswith("coder/")
        }
        self.coder.load_state_dict(parameters)
        self._optimiser.restore(mine)
        self.firing.rows_since.copy_(mine["rows_since"])
        self.taken, self.scale = facts["taken"], facts["scale"]
        self.firing.seen = facts["seen"]

    def finished(self, about: Mapping[str, Any]) -> Coder:
        """The coder in the units of the model, ready to use; the trainer is done with it."""
        self._optimiser.forget_gradients()
        self.coder.rescale(self.scale)
        self.coder.about = dict(about)
        return self.coder.eval().requires_grad_(False)

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows.to(self.device, torch.float32, non_blocking=True) / self.scale

    def _learn(self, x: Tensor) -> Losses:
        moment = Moment(
            step=self.taken,
            progress=self.schedule.progress(self.taken),
            warmth=self.schedule.warmth(self.taken),
            dead=self.firing.dead,
            fast=self.config.fast,
        )
        half = self.config.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            losses = self.coder.losses(x, moment)
        size = self._optimiser.read(losses.total)
        self._finite.note(size, self.taken + 1, x)
        self._optimiser.step(self.taken)
        return losses

    def _resample(self, x: Tensor) -> None:
        dead = self.firing.dead
        if dead is None:
            return
        rows = self.processes.gathered(x)
        found = resample(
            self.coder, self._optimiser.adam, rows, dead, seed=self.config.seed + self.taken
        )
        # Latents that could not begin again, for want of rows, stay dead.
        renewed = torch.zeros_like(dead)
        renewed[dead.nonzero().squeeze(1)[: found.renewed]] = True
        self.firing.revive(renewed)

    def _record(self, x: Tensor, losses: Losses, rate: float) -> Record:
        found = batch_statistics(x, losses, self.processes)
        return Record(
            site=self.site,
            step=self.taken,
            steps=self.schedule.steps,
            tokens=self.tokens,
            loss=found.loss,
            parts=found.parts,
            l0=found.l0,
            explained_variance=found.explained_variance,
            dead=self.firing.dead_count(),
            lr=rate,
            seconds=self.clock(),
        )
