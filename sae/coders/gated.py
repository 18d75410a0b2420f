"""Gated: one reading decides whether a latent fires, a scaled copy of it how strongly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.coders.coder import Coder, Losses, Moment
from sae.coders.defaults import Defaults

if TYPE_CHECKING:
    from sae.training.config import TrainConfig

_UNIT_NORM_SPARSITY = 0.1


class Gated(Coder):
    """``strength = 1[gate > 0] · ReLU(magnitude)``, both from one product with the encoder.

    ``gate = (x - b) W + encoder_bias`` and ``magnitude = exp(magnitude_log_scale) · (x - b) W +
    magnitude_bias``. The loss is ``|x - x̂|² + sparsity Σ ReLU(gate) + |x - x̂_gate|²`` with
    ``x̂_gate`` decoded from ReLU(gate) by a *frozen* copy of the decoder and its bias: L1 shrinks
    gates alone, so strengths are not shrunk. The step has no gradient: the gate learns from the
    last two parts.

    Source: Rajamanoharan et al. 2024 (arXiv 2404.16014), section 3.2 and appendix G. SAELens 6.54
    does not freeze the decoder in the last part; we do, as paper and dictionary_learning.

    Attributes:
        magnitude_log_scale: the paper's r_mag; starts at 0.
        magnitude_bias: the paper's b_mag; ``encoder_bias`` is its b_gate.
    """

    architecture: ClassVar[str] = "gated"

    def __init__(
        self,
        width: int,
        latents: int,
        *,
        centred: bool = True,
        seed: int = 0,
        sparsity: float = 1.0,
    ) -> None:
        super().__init__(width, latents, centred=centred, seed=seed)
        self.sparsity = sparsity
        self.magnitude_log_scale = nn.Parameter(torch.zeros(latents))
        self.magnitude_bias = nn.Parameter(torch.zeros(latents))

    @classmethod
    def defaults(cls, width: int, latents: int) -> Defaults:
        """dictionary_learning's weight for rows of norm 1, times the root of the width.

        Its learning rate, 5e-5, is for a hundred thousand steps and more; SAELens' is taken.
        """
        return Defaults(
            learning_rate=3e-4,
            betas=(0.0, 0.999),
            sparsity=_UNIT_NORM_SPARSITY * width**0.5,
            source="dictionary_learning's GatedSAETrainer; SAELens 6.54 (learning rate)",
        )

    @classmethod
    def options_of(cls, config: TrainConfig, width: int) -> dict[str, Any]:
        return {"sparsity": config.sparsity}

    @property
    def settings(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity}

    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        read = pre - self.encoder_bias
        magnitude = read * self.magnitude_log_scale.exp() + self.magnitude_bias
        return magnitude.relu() * (pre > 0)

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        gate = self.pre_activations(x)
        strengths = self.activate(gate)
        reconstruction = self.decode(strengths)
        error = (x - reconstruction).pow(2).sum(1).mean()
        opened = gate.relu()
        sparsity = self.sparsity * moment.warmth * opened.sum(1).mean()
        by_gate = opened @ self.decoder.detach() + self.decoder_bias.detach()
        gate_error = (x - by_gate).pow(2).sum(1).mean()
        return Losses(
            error + sparsity + gate_error,
            {
                "reconstruction": error.detach(),
                "sparsity": sparsity.detach(),
                "gate": gate_error.detach(),
            },
            (strengths > 0).sum(0),
            reconstruction.detach(),
        )

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        super().rescale(factor)
        self.magnitude_bias.mul_(factor)

    @torch.no_grad()
    def scale_strengths(self, factors: Float[Tensor, " latent"]) -> None:
        super().scale_strengths(factors)
        self.magnitude_bias.mul_(factors)

    @torch.no_grad()
    def restart(
        self,
        which: Int[Tensor, " chosen"],
        directions: Float[Tensor, "chosen width"],
        encoder_norm: float,
    ) -> None:
        super().restart(which, directions, encoder_norm)
        self.magnitude_bias[which] = 0.0
        self.magnitude_log_scale[which] = 0.0
