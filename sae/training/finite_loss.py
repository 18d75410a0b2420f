"""A loss that is no longer finite is found without waiting for the device at every step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.training.distributed import Processes


class FiniteLoss:
    """Remembers, on the device, the first step whose loss or gradient was not finite."""

    def __init__(self, site: str, processes: Processes, device: torch.device) -> None:
        self.site, self.processes = site, processes
        self._bad = torch.full((), -1, device=device)
        self._every_step = device.type == "cpu" and processes.count == 1

    def note(self, size: Tensor, step: int, rows: Float[Tensor, "batch width"]) -> None:
        """Look at a step, from 1.

        Args:
            size: scalar that is finite if all is well, such as the loss plus the gradient's norm.
            rows: that it was taken with.

        Raises:
            ValueError: as `refuse`; on a CPU at once, else when `refuse` is called.
        """
        self._bad.masked_fill_((self._bad < 0) & ~size.isfinite(), step)
        if self._every_step:
            self.refuse(rows)

    def refuse(self, rows: Float[Tensor, "batch width"] | None = None) -> None:
        """Nothing, if all steps were finite; all processes must ask at the same step.

        Raises:
            ValueError: naming the site and the first step that was not.
        """
        bad = int(self._bad)
        if not any(self.processes.totals([bad >= 0])):
            return
        where = f"at step {bad}" if bad >= 0 else "in another process"
        if rows is not None and not bool(rows.isfinite().all()):
            raise ValueError(
                f"Head outputs of {self.site} must be finite, got NaN or infinity {where}. "
                "Check the model's weights and the data."
            )
        raise ValueError(
            f"The loss at {self.site} must be finite, it was not {where}. "
            "Lower `learning_rate`, and look for rows that are far larger than others."
        )
