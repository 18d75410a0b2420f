"""How a coder's parameters are moved: Adam, by a schedule, within the rules of its decoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.decoder_rules import make_rows_unit, remove_parallel_gradient
from sae.coders.defaults import Defaults
from sae.training.distributed import Processes
from sae.training.schedule import Schedule

_FUSED = {"cpu", "cuda", "mps", "xpu"}
_NAME = "optimiser/"


class Optimiser:
    """Adam on one coder, the same in all processes.

    Attributes:
        adam: with the coder's parameters, in the groups that its kind wants.
    """

    def __init__(
        self,
        coder: Coder,
        chosen: Defaults,
        schedule: Schedule,
        gradient_clip: float | None,
        processes: Processes,
    ) -> None:
        """No step is taken yet.

        Args:
            chosen: peak of the learning rate, and betas.
            gradient_clip: largest norm of the gradient of all parameters; None: not clipped.
        """
        self._coder, self._schedule, self._processes = coder, schedule, processes
        self._clip, self._peak = gradient_clip, chosen.learning_rate
        self.adam = torch.optim.Adam(
            coder.parameter_groups(chosen.learning_rate),
            lr=chosen.learning_rate,
            betas=chosen.betas,
        )
        self._peaks = [group["lr"] for group in self.adam.param_groups]

    def place(self, device: torch.device) -> None:
        """Follow the coder, whose parameters are the same ones elsewhere, to a device."""
        for group in self.adam.param_groups:
            group["fused"] = device.type in _FUSED
        self.adam.load_state_dict(self.adam.state_dict())

    def rate(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0), of groups without a factor of their own."""
        return self._peak * self._schedule.learning_rate(step)

    def read(self, total: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Take the gradients of a loss; several processes take the mean of theirs.

        Returns:
            The loss, plus the norm of its gradients where they are clipped: finite if all is well.
        """
        total.backward()
        gradients = [p.grad for p in self._coder.parameters() if p.grad is not None]
        # Kinds that follow a running mean hold it in a buffer.
        followed = [buffer for buffer in self._coder.buffers() if buffer.is_floating_point()]
        self._processes.average([*gradients, *followed])
        remove_parallel_gradient(self._coder)
        size = total.detach()
        if self._clip is not None:
            size = size + torch.nn.utils.clip_grad_norm_(self._coder.parameters(), self._clip)
        return size

    def step(self, step: int) -> None:
        """Move the parameters by the gradients that were read, as step ``step`` (from 0)."""
        factor = self._schedule.learning_rate(step)
        for group, peak in zip(self.adam.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self.adam.step()
        self.forget_gradients()
        make_rows_unit(self._coder)

    def forget_gradients(self) -> None:
        """Give their memory back."""
        self.adam.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Moments of every parameter by name, as `restore` takes them."""
        state = self.adam.state_dict()["state"]
        return {
            f"{_NAME}{index}/{name}": value
            for index, moments in state.items()
            for name, value in moments.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the moments among some tensors."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(_NAME):
                _, index, moment = name.split("/")
                state.setdefault(int(index), {})[moment] = value
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state, "param_groups": groups})
